"""Bottlenecks <-> TFRecord shards of tf.train.Example, by split.

Array suffixes: D bottleneck width.
"""

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import apache_beam as beam
import tensorflow as tf
from apache_beam.transforms.window import GlobalWindows

from bulktag.model.splits import interleave, open_shard
from bulktag.transforms import cifar, files
from bulktag.transforms.columns import FEATURES, build_batch, column_parser
from bulktag.transforms.progress import add_progress, flush_progress
from bulktag.transforms.records import SPLITS, ScoredBatch, StagedFile, unpack_images
from bulktag.transforms.shards import SUFFIXES, ShardWriter, build_example
from bulktag.transforms.sources import EXAMPLES_FILE
from bulktag.transforms.staging import new_file_uri

# About 100 MB a shard: enough shards for parallel reading, few enough for an object store. Source:
# https://www.tensorflow.org/tutorials/load_data/tfrecord ("100 to 200 MB")
MAX_SHARD_BYTES = 100 << 20
NO_LABEL = "(no label)"
# Shards that one step reads together: batches run across them, so that few are short, while a job still has many steps
# to give to its workers.
SHARDS_AT_ONCE = 4
PARSED_AT_ONCE = 2
# Each batch is parsed by one thread: shared out among threads it costs more in all, and the head needs the cores.
_OPTIONS = tf.data.Options()
_OPTIONS.threading.max_intra_op_parallelism = 1


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


@dataclasses.dataclass(frozen=True)
class ShardSettings:
    """How examples are written.

    Attributes:
      proportions: shares of train, validation and test.
      seed: of the split.
      compression: "none" or "gzip". Bottlenecks of Inception-v3 shrink by 11%, of MobileNetV2 by 31%, and an image
        then takes 299 instead of 44 us to write, 45 instead of 9 us to read.
    """

    proportions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = 0
    compression: str = "none"

    def __post_init__(self):
        if self.compression not in SUFFIXES:
            raise ValueError(f"expected compression none or gzip, got {self.compression!r}")
        if len(self.proportions) != 3 or min(self.proportions) < 0 or abs(sum(self.proportions) - 1) > 1e-6:
            raise ValueError(f"expected three shares of at least 0 that add up to 1, got {self.proportions}")

    def choose(self, uri: str, sha256: bytes) -> str:
        """The split of an image: by its content; the test split of a set that has its own is that one."""
        train, validation, test = self.proportions
        is_test = cifar.is_test_image(uri)
        if is_test:
            return "test"
        if is_test is None or test == 1:
            return choose_split(sha256, self.proportions, self.seed)
        return choose_split(sha256, (train / (1 - test), validation / (1 - test), 0.0), self.seed)


class _WriteShards(beam.DoFn):
    """Batches of bottlenecks -> one bundle's shards, a new one where a shard is full."""

    def __init__(self, staging_dir: str, settings: ShardSettings):
        self._staging_dir, self._settings = staging_dir, settings

    def start_bundle(self):
        self._open: dict[str, ShardWriter] = {}

    def process(self, batch: ScoredBatch, labels: list[str]):
        label_ids = {label: i for i, label in enumerate(sorted(labels))}
        for image, bottleneck_D in zip(unpack_images(batch.images), batch.bottleneck_BD, strict=True):
            split = self._settings.choose(image.uri, image.sha256)
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


def read_shard(uri: str, width: int, batch_size: int) -> Iterator[ScoredBatch]:
    """Read one shard back, in order; see `read_shards`."""
    return read_shards((uri,), width, batch_size)


def read_shards(
    uris: Sequence[str], width: int, batch_size: int, *, keep_encoded: bool = False
) -> Iterator[ScoredBatch]:
    """Read shards back, blocks of them in turn.

    Args:
      uris: files that `WriteExamples` wrote.
      width: D, the number of floats of a bottleneck.
      batch_size: images a batch, whatever shards they stand in; the last one is shorter.
      keep_encoded: also the images' own bytes, which must be there.
    Raises:
      tf.errors.OpError: a shard is damaged or holds bottlenecks of another width.
      ValueError: a text is no UTF-8, or a digest has not 32 bytes.
    """
    for copies in local_copies(uris):
        blocks = interleave(tf.data.Dataset.from_tensor_slices(list(copies)), open_shard)
        parsed = blocks.rebatch(batch_size).map(column_parser(width, keep_encoded), num_parallel_calls=PARSED_AT_ONCE)
        try:
            for arrays in parsed.prefetch(PARSED_AT_ONCE).with_options(_OPTIONS).as_numpy_iterator():
                yield build_batch(arrays)
        except tf.errors.DataLossError as error:
            raise tf.errors.DataLossError(None, None, f"{error.message}: {_find_damaged(copies)}") from error


def read_identities(uri: str) -> Iterator[tuple[str, int, int, int]]:
    """(URI, bytes, modified in microseconds, generation) of each example of a shard; -1 for what is unknown.

    Raises:
      tf.errors.DataLossError: the shard is damaged.
    """
    names = ("image/uri", "image/bytes", "image/modified", "image/generation")
    features = {name: FEATURES[name] for name in names}
    for copies in local_copies((uri,)):
        blocks = tf.data.Dataset.from_tensor_slices(list(copies)).flat_map(open_shard)
        for parsed in blocks.map(lambda block: tf.io.parse_example(block, features)).as_numpy_iterator():
            numbers = (parsed[name].tolist() for name in names[1:])
            yield from zip((name.decode() for name in parsed[names[0]]), *numbers, strict=True)


def _find_damaged(copies: dict[str, str]) -> str:
    """URI of the first shard that cannot be read to its end; TensorFlow does not say which one it is."""
    for path, uri in copies.items():
        try:
            for _ in open_shard(path):
                pass
        except tf.errors.DataLossError:
            return uri
    return ", ".join(copies.values())


def local_copies(uris: Sequence[str]) -> Iterator[dict[str, str]]:
    """Paths that TensorFlow can open, and their URIs, to be read together: all local shards, or one copy from a store.

    While one copy is being read, the next is on its way; a copy that was read is deleted.
    """
    local = {uri: uri for uri in uris if files.is_local(uri)}
    if local:
        yield local
    remote = [uri for uri in uris if uri not in local]
    with tempfile.TemporaryDirectory(prefix="bulktag-") as folder, ThreadPoolExecutor(1) as pool:

        def fetch(number: int) -> str:
            # The name says how a shard is compressed; shards of two splits may have the same.
            return files.fetch_file(remote[number], os.path.join(folder, str(number), remote[number].rsplit("/", 1)[1]))

        coming = pool.submit(fetch, 0) if remote else None
        for number, uri in enumerate(remote):
            path = coming.result()
            coming = pool.submit(fetch, number + 1) if number + 1 < len(remote) else None
            yield {path: uri}
            os.unlink(path)


def list_shards(examples_dir: str, splits: Iterable[str] = SPLITS) -> list[str]:
    """URIs of the shards of an examples folder, sorted."""
    found: list[str] = []
    for split in splits:
        folder = files.join(examples_dir, split)
        if files.is_local(folder):
            names = os.listdir(folder) if os.path.isdir(folder) else []
            found += sorted(os.path.join(folder, name) for name in names)
        else:
            found += sorted(shard.uri for shard in files.list_children(folder))
    suffixes = tuple(SUFFIXES.values())
    return [uri for uri in found if uri.endswith(suffixes) and not uri.rsplit("/", 1)[1].startswith(".")]


class _ReadShards(beam.DoFn):
    """URIs of shards -> batches of bottlenecks.

    One batch is always on its way while another one is being scored. So are the next shards: opening them and parsing
    their first batch takes a tenth of a second.
    """

    def __init__(self, width: int, batch_size: int, progress_dir: str | None):
        self._width, self._batch_size, self._progress_dir = width, batch_size, progress_dir

    def setup(self):
        # One thread for the shards being read, one for those being opened.
        self._pool = ThreadPoolExecutor(2, "bulktag-read")

    def teardown(self):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start_bundle(self):
        self._opened: tuple[Future, Iterator[ScoredBatch]] | None = None

    def process(self, uris: tuple[str, ...]):
        batches = read_shards(uris, self._width, self._batch_size)
        before, self._opened = self._opened, (self._pool.submit(next, batches, None), batches)
        yield from self._read(before)

    def finish_bundle(self):
        for batch in self._read(self._opened):
            yield GlobalWindows.windowed_value(batch)
        flush_progress(self._progress_dir)

    def _read(self, opened: tuple[Future, Iterator[ScoredBatch]] | None) -> Iterator[ScoredBatch]:
        if opened is None:
            return
        coming, batches = opened
        while (batch := coming.result()) is not None:
            coming = self._pool.submit(next, batches, None)
            add_progress(self._progress_dir, matched=batch.images.num_rows)
            yield batch


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
        starts = range(0, len(self.shards), SHARDS_AT_ONCE)
        return (
            pipeline
            | beam.Create([(start, self.shards[start : start + SHARDS_AT_ONCE]) for start in starts])
            # Spreads them; and a step that is done again gives the same shards to each worker.
            | beam.GroupByKey()
            | beam.FlatMapTuple(lambda _, groups: groups)
            | beam.ParDo(_ReadShards(self.width, self.batch_size, self.progress_dir)).with_output_types(ScoredBatch)
        )
