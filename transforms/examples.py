"""Bottlenecks <-> TFRecord shards of tf.train.Example, by split.

Array suffixes: B images, D bottleneck width.
"""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindows

from bulktag.transforms import files
from bulktag.transforms.progress import add_progress, flush_progress
from bulktag.transforms.records import (
    IMAGES_SCHEMA,
    SPLITS,
    ImageInfo,
    ScoredBatch,
    StagedFile,
    null_if_negative,
    unpack_images,
)
from bulktag.transforms.shards import SUFFIXES, ShardWriter
from bulktag.transforms.sources import EXAMPLES_FILE
from bulktag.transforms.staging import new_file_uri

# About 100 MB a shard: enough shards for parallel reading, few enough for an object store. Source:
# https://www.tensorflow.org/tutorials/load_data/tfrecord ("100 to 200 MB")
MAX_SHARD_BYTES = 100 << 20
NO_LABEL = "(no label)"


def choose_split(sha256: bytes, proportions: tuple[float, float, float], seed: int = 0) -> str:
    """The split that a content always lands in.

    Args:
      sha256: digest of the file's bytes: equal contents share a split, and a new image moves no other one.
      proportions: shares of train, validation and test; they add up to 1.
      seed: another seed gives an independent split.
    """
    # Seed 0 uses the digest as it is, so that anybody can recompute the split from the sha256 column.
    number = int.from_bytes(sha256[:8], "big") if seed == 0 else _mix(sha256, seed)
    position = number / 2**64
    if position < proportions[0]:
        return "train"
    return "validation" if position < proportions[0] + proportions[1] else "test"


def _mix(sha256: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(sha256 + seed.to_bytes(8, "big")).digest()[:8], "big")


def build_example(image: ImageInfo, bottleneck_D: np.ndarray, label_ids: dict[str, int]) -> tf.train.Example:
    """One image as tf.train.Example, with the features that DESIGN calls the TFRecord contract.

    Args:
      image: what is known of it.
      bottleneck_D: float32[D].
      label_ids: id of each label name.
    """
    features = {
        "image/uri": _bytes(image.uri.encode()),
        "image/sha256": _bytes(image.sha256),
        "image/height": _int64(image.height),
        "image/width": _int64(image.width),
        "image/bytes": _int64(image.num_bytes),
        "image/modified": _int64(image.modified_us),
        "image/class/text": _bytes(*(label.encode() for label in image.labels)),
        "image/class/label": _int64(*(label_ids[label] for label in image.labels)),
        "image/bottleneck": tf.train.Feature(float_list=tf.train.FloatList(value=bottleneck_D)),
    }
    if image.encoded is not None:
        features["image/encoded"] = _bytes(image.encoded)
    return tf.train.Example(features=tf.train.Features(feature=features))


def _bytes(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _int64(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """How examples are written.

    Attributes:
      proportions: shares of train, validation and test.
      seed: of the split.
      compression: "gzip" or "none".
    """

    proportions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    compression: str = "gzip"

    def __post_init__(self):
        if self.compression not in SUFFIXES:
            raise ValueError(f"expected compression gzip or none, got {self.compression!r}")
        if len(self.proportions) != 3 or min(self.proportions) < 0 or abs(sum(self.proportions) - 1) > 1e-6:
            raise ValueError(f"expected three shares of at least 0 that add up to 1, got {self.proportions}")


class _WriteShards(beam.DoFn):
    """Batches of bottlenecks -> one bundle's shards, a new one where a shard is full."""

    def __init__(self, staging_dir: str, settings: ShardSettings):
        self._staging_dir, self._settings = staging_dir, settings

    def start_bundle(self):
        self._open: dict[str, ShardWriter] = {}

    def process(self, batch: ScoredBatch, labels: list[str]):
        label_ids = {label: i for i, label in enumerate(sorted(labels))}
        for image, bottleneck_D in zip(unpack_images(batch.images), batch.bottleneck_BD, strict=True):
            split = choose_split(image.sha256, self._settings.proportions, self._settings.seed)
            shard = self._open.get(split)
            if shard is None:
                uri = new_file_uri(self._staging_dir, split, SUFFIXES[self._settings.compression])
                shard = self._open[split] = ShardWriter(uri, self._settings.compression)
            serialized = build_example(image, bottleneck_D, label_ids).SerializeToString(deterministic=True)
            shard.write(serialized, image.labels or (NO_LABEL,))
            if shard.num_raw_bytes >= MAX_SHARD_BYTES:
                yield self._close(split)

    def finish_bundle(self):
        for split in list(self._open):
            yield GlobalWindows.windowed_value(self._close(split))

    def _close(self, split: str) -> StagedFile:
        shard = self._open.pop(split)
        num_bytes = shard.close()
        beam.metrics.Metrics.counter("examples", "written").inc(shard.num_images)
        return StagedFile(split, shard.uri, shard.num_images, num_bytes, dict(sorted(shard.label_counts.items())))


@dataclasses.dataclass(eq=False)
class WriteExamples(beam.PTransform):
    """PCollection[ScoredBatch] -> TFRecord shards by split -> PCollection[StagedFile].

    Attributes:
      staging_dir: the run's staging folder.
      labels: PCollection[str] of distinct label names; ids count along their sorted list.
      settings: proportions, seed and compression.
    """

    staging_dir: str
    labels: beam.PCollection
    settings: ShardSettings = ShardSettings()

    def __post_init__(self):
        super().__init__()

    def expand(self, batches):
        """Wire it."""
        return batches | "WriteShards" >> beam.ParDo(
            _WriteShards(self.staging_dir, self.settings), beam.pvalue.AsList(self.labels)
        ).with_output_types(StagedFile)


_FEATURES = {
    "image/uri": tf.io.FixedLenFeature([], tf.string),
    "image/sha256": tf.io.FixedLenFeature([], tf.string),
    "image/height": tf.io.FixedLenFeature([], tf.int64),
    "image/width": tf.io.FixedLenFeature([], tf.int64),
    "image/bytes": tf.io.FixedLenFeature([], tf.int64, -1),
    "image/modified": tf.io.FixedLenFeature([], tf.int64, -1),
    "image/class/text": tf.io.RaggedFeature(tf.string),
}


def read_shard(uri: str, width: int, batch_size: int) -> Iterator[ScoredBatch]:
    """Read one shard back, in order.

    Args:
      uri: a file that `WriteExamples` wrote.
      width: D, the number of floats of a bottleneck.
      batch_size: images a batch; the last one is shorter.
    Raises:
      tf.errors.OpError: the shard is damaged or holds bottlenecks of another width.
      ValueError: a text is no UTF-8, or a digest has not 32 bytes.
    """
    with tempfile.TemporaryDirectory(prefix="bulktag-") as folder:
        path = uri if files.is_local(uri) else files.fetch_file(uri, os.path.join(folder, "shard"))
        compression = "GZIP" if uri.endswith(SUFFIXES["gzip"]) else ""
        records = tf.data.TFRecordDataset(path, compression, buffer_size=8 << 20).batch(batch_size)
        for parsed in records.map(_parser(width)).prefetch(2).as_numpy_iterator():
            yield ScoredBatch(_images(parsed), parsed["image/bottleneck"], None)


def _parser(width: int):
    """string[B] of serialised examples -> columns, texts as one long string with the lengths of its parts."""
    features = {**_FEATURES, "image/bottleneck": tf.io.FixedLenFeature([width], tf.float32)}

    def parse(serialized_B):
        parsed = tf.io.parse_example(serialized_B, features)
        labels = parsed.pop("image/class/text")
        parsed["image/sha256"] = tf.io.decode_raw(parsed["image/sha256"], tf.uint8)  # uint8[B, 32]
        parsed["image/uri"] = _join(parsed["image/uri"])
        return {**parsed, "splits": labels.row_splits, "labels": _join(labels.flat_values)}

    return parse


def _join(texts_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.strings.length(texts_B), tf.strings.reduce_join(texts_B)


def _images(parsed: dict) -> pa.RecordBatch:
    num_bytes, modified = (
        null_if_negative(parsed[f"image/{name}"], IMAGES_SCHEMA.field(column).type)
        for name, column in (("bytes", "bytes"), ("modified", "modified"))
    )
    uris = _string_array(*parsed["image/uri"])
    splits_B1 = parsed["splits"].astype(np.int32)
    digests_BX = parsed["image/sha256"]
    if digests_BX.shape[1] != 32:
        raise ValueError(f"expected digests of 32 bytes in image/sha256, got {digests_BX.shape[1]}: {uris[0]}")
    return pa.RecordBatch.from_arrays(
        [
            uris,
            pa.ListArray.from_arrays(pa.array(splits_B1), _string_array(*parsed["labels"])),
            num_bytes,
            modified,
            pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), len(uris), [None, pa.py_buffer(digests_BX)]),
            pa.array(parsed["image/width"]).cast(pa.int32()),
            pa.array(parsed["image/height"]).cast(pa.int32()),
            pa.nulls(len(uris), pa.large_binary()),
        ],
        schema=IMAGES_SCHEMA,
    )


def _string_array(lengths_B: np.ndarray, joined: bytes) -> pa.StringArray:
    """Arrow strings from one long string.

    Raises:
      ValueError: it is no UTF-8.
    """
    offsets = np.zeros(len(lengths_B) + 1, np.int32)
    np.cumsum(lengths_B, out=offsets[1:])
    array = pa.StringArray.from_buffers(len(lengths_B), pa.py_buffer(offsets), pa.py_buffer(joined))
    array.validate(full=True)
    return array


def list_shards(examples_dir: str, splits: Iterable[str] = SPLITS) -> list[str]:
    """URIs of the shards of an examples folder, sorted."""
    found: list[str] = []
    for split in splits:
        folder = files.join(examples_dir, split)
        if files.is_local(folder):
            names = os.listdir(folder) if os.path.isdir(folder) else []
            found += sorted(os.path.join(folder, name) for name in names)
        else:
            found += sorted(uri for uri, _, _ in files.list_remote(files.escape(folder) + "/*"))
    suffixes = tuple(SUFFIXES.values())
    return [uri for uri in found if uri.endswith(suffixes) and not uri.rsplit("/", 1)[1].startswith(".")]


class _ReadShard(beam.DoFn):
    """Shard URI -> batches of bottlenecks."""

    def __init__(self, width: int, batch_size: int, progress_dir: str | None):
        self._width, self._batch_size, self._progress_dir = width, batch_size, progress_dir

    def process(self, uri: str):
        for batch in read_shard(uri, self._width, self._batch_size):
            add_progress(self._progress_dir, matched=batch.images.num_rows)
            yield batch

    def finish_bundle(self):
        flush_progress(self._progress_dir)


@dataclasses.dataclass(eq=False)
class ReadExamples(beam.PTransform):
    """Stored bottlenecks of an examples folder -> PCollection[ScoredBatch] without scores.

    Attributes:
      shards: URIs of shards.
      width: D.
      batch_size: images a batch.
      progress_dir: see `add_progress`.
    """

    shards: tuple[str, ...]
    width: int
    batch_size: int
    progress_dir: str | None = None

    def __post_init__(self):
        super().__init__()
        if not self.shards:
            raise ValueError(f"expected shards beside {EXAMPLES_FILE}, got none")

    def expand(self, pipeline):
        """Wire it."""
        return (
            pipeline
            | beam.Create(self.shards)
            | beam.Reshuffle()
            | beam.ParDo(_ReadShard(self.width, self.batch_size, self.progress_dir))
        )
