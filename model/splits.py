"""Read one split of extracted examples: TFRecord shards -> batches of bottlenecks and targets.

The order of records is fixed by the names and the content of the shards alone, never by the timing of threads, so
that training on a split kept in memory and training on the same split streamed from disk see the same batches.

Array suffixes: N images of a split, B images in a batch, D bottleneck width, L labels.
"""

import dataclasses
import functools
import json

import numpy as np
import tensorflow as tf

SPLITS = ("train", "validation", "test")
INFO_NAME = "examples.json"
READ_BATCH = 1024
# Shards read in turn, one record from each: neighbours in a batch come from different shards, which counts where
# a shard holds one folder, that is one label. Each costs one open file and its buffer.
NUM_SHARDS_IN_TURN = 64


@dataclasses.dataclass(frozen=True)
class ExamplesInfo:
    """What examples.json says: the width, the labels and how many images each split has."""

    folder: str
    width: int  # D
    labels: tuple[str, ...]  # label ids in the shards count along this list
    num_images: dict[str, int]  # per split
    multi_label: bool
    content: dict  # the whole file


def read_examples_info(folder: str) -> ExamplesInfo:
    """Read `FOLDER/examples.json`.

    Args:
      folder: local, or on any file system that TensorFlow opens.
    Raises:
      ValueError: it is missing, is no JSON, or lacks a key.
    """
    path = tf.io.gfile.join(folder, INFO_NAME)
    try:
        with tf.io.gfile.GFile(path, "r") as file:
            content = json.loads(file.read())
    except (tf.errors.NotFoundError, tf.errors.FailedPreconditionError) as error:
        raise ValueError(f"expected a folder of extracted examples with {INFO_NAME}, found none: {path}") from error
    except ValueError as error:
        raise ValueError(f"expected JSON, got something else ({error}): {path}") from error
    try:
        return ExamplesInfo(
            folder=folder,
            width=int(content["width"]),
            labels=tuple(content["labels"]),
            num_images={split: int(content["counts"].get(split, {}).get("images", 0)) for split in SPLITS},
            multi_label=bool(content.get("multi_label", False)),
            content=content,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected width, labels and counts in {INFO_NAME}, got no usable {error}: {path}") from error


def shard_paths(folder: str, split: str) -> list[str]:
    """List the shards of a split, sorted by name; an empty list where it has none."""
    patterns = [tf.io.gfile.join(folder, split, name) for name in ("part-*.tfrecord", "part-*.tfrecord.gz")]
    return sorted(tf.io.gfile.glob(patterns))


def read_batches(info: ExamplesInfo, split: str, *, multi_label: bool, batch_size: int = READ_BATCH) -> tf.data.Dataset:
    """Read a split once, in a fixed order, in batches; records that cannot be trained on are left out but counted.

    Args:
      info: from `read_examples_info`.
      split: "train", "validation" or "test".
      multi_label: a record may have any number of labels; otherwise only records with exactly one are used.
      batch_size: records parsed at once; a batch has that many or fewer.
    Returns:
      A dataset of dicts: "bottleneck" float32[B, D]; "target" int32[B], or float32[B, L] of 0 and 1 for multi_label;
      "uri" string[B]; "content" int64[B], equal for equal sha256; and the scalars int64 "num_read", "unlabelled",
      "several_labels" (single-label only) and "unknown_label" (ids that examples.json does not have).
    """
    paths = shard_paths(info.folder, split)
    parse = _parser(info.width, len(info.labels), multi_label)
    batches = _read_records(paths).batch(batch_size)
    return batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)


@functools.cache
def _parser(width: int, num_labels: int, multi_label: bool):
    """Parser of a batch of serialised examples; traced once, because a streamed split is opened every epoch."""
    features = {
        "image/uri": tf.io.FixedLenFeature([], tf.string, default_value=""),
        "image/sha256": tf.io.FixedLenFeature([], tf.string, default_value=""),
        "image/class/label": tf.io.RaggedFeature(tf.int64),
        "image/bottleneck": tf.io.FixedLenFeature([width], tf.float32),
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def parse(serialized_B):
        return _usable_part(tf.io.parse_example(serialized_B, features), num_labels, multi_label)

    return parse


def _read_records(paths: list[str]) -> tf.data.Dataset:
    def read_shard(path):
        # tf.data reads plain and gzip shards through different arguments; the name says which one it is.
        compression = tf.where(tf.strings.regex_full_match(path, r".*\.gz"), "GZIP", "")
        return tf.data.TFRecordDataset(path, compression_type=compression, buffer_size=1 << 18)

    return tf.data.Dataset.from_tensor_slices(tf.constant(paths, tf.string)).interleave(
        read_shard,
        cycle_length=NUM_SHARDS_IN_TURN,
        block_length=1,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _usable_part(record: dict, num_labels: int, multi_label: bool) -> dict:
    ids_B = record["image/class/label"]  # ragged
    known_B = tf.ragged.boolean_mask(ids_B, (ids_B >= 0) & (ids_B < num_labels))
    num_known_B = known_B.row_lengths()
    counts = {
        "unknown_label": tf.size(ids_B.flat_values, tf.int64) - tf.size(known_B.flat_values, tf.int64),
        "num_read": ids_B.nrows(),
        "unlabelled": tf.math.count_nonzero(ids_B.row_lengths() == 0),
        "several_labels": tf.constant(0, tf.int64),
    }
    if multi_label:
        # An image whose labels are all unknown would teach that none applies, so it is left out.
        keep_B = (num_known_B > 0) | (ids_B.row_lengths() == 0)
        positions = tf.stack([tf.cast(known_B.value_rowids(), tf.int64), known_B.flat_values], axis=1)
        shape = tf.stack([tf.cast(ids_B.nrows(), tf.int64), num_labels])
        target_B = tf.minimum(tf.scatter_nd(positions, tf.ones_like(known_B.flat_values, tf.float32), shape), 1.0)
    else:
        keep_B = (num_known_B == 1) & (ids_B.row_lengths() == 1)
        counts["several_labels"] = tf.math.count_nonzero(ids_B.row_lengths() > 1)
        target_B = tf.cast(tf.reduce_max(known_B, axis=1), tf.int32)
    kept = {
        "bottleneck": record["image/bottleneck"],
        "target": target_B,
        "uri": record["image/uri"],
        "content": tf.strings.to_hash_bucket_fast(record["image/sha256"], (1 << 63) - 1),
    }
    return {name: tf.boolean_mask(value, keep_B) for name, value in kept.items()} | counts


@dataclasses.dataclass
class SplitScan:
    """What one pass over a split found."""

    num_images: int  # usable ones
    label_counts_L: np.ndarray  # int64[L], usable images that carry each label
    unlabelled: int
    several_labels: int
    unknown_label: int
    mean_D: np.ndarray  # float64[D]
    var_D: np.ndarray  # float64[D]
    content_N: np.ndarray  # int64[N], equal for equal sha256
    target_N: np.ndarray | None  # int32[N]; float32[N, L] for multi-label, where it was to be kept
    bottleneck_ND: np.ndarray | None  # float32[N, D], where it was to be kept


def scan_split(info: ExamplesInfo, split: str, *, multi_label: bool, keep: bool) -> SplitScan:
    """Read a split once: count, check, take the statistics of its features, and keep it in memory if asked to.

    Raises:
      ValueError: a shard is damaged, its bottlenecks have another width or are not finite, or the split has another
        number of images than examples.json says.
    """
    # Without `keep`, what stays in memory is a few bytes an image: the targets of a split with several labels do not.
    names = ("content", "target", "bottleneck") if keep else ("content",) if multi_label else ("content", "target")
    parts = {name: [] for name in names}
    counts_L = np.zeros(len(info.labels), np.int64)
    totals = {"unlabelled": 0, "several_labels": 0, "unknown_label": 0}
    num_read, moments = 0, _Moments(info.width)
    for batch in _numpy_batches(info, split, multi_label):
        num_read += int(batch["num_read"])
        for name in totals:
            totals[name] += int(batch[name])
        moments.add(batch["bottleneck"])
        counts_L += _count_labels(batch["target"], len(info.labels))
        for name in parts:
            parts[name].append(batch[name])
    where = tf.io.gfile.join(info.folder, split)
    if num_read != info.num_images[split]:
        raise ValueError(
            f"expected {info.num_images[split]} images, as {INFO_NAME} says, got {num_read}: {where}; extract again"
        )
    if not np.isfinite(moments.mean_D).all():
        raise ValueError(f"expected finite bottlenecks, got NaN or infinity: {where}")
    if not moments.num:  # nothing usable: arrays of the right shape and no rows
        parts = {"content": [np.zeros(0, np.int64)], "target": [np.zeros((0, len(info.labels)) if multi_label else 0)]}
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    return SplitScan(
        num_images=moments.num,
        label_counts_L=counts_L,
        **totals,
        mean_D=moments.mean_D,
        var_D=moments.var_D,
        content_N=arrays["content"],
        target_N=arrays.get("target"),
        bottleneck_ND=arrays.get("bottleneck"),
    )


def _count_labels(target: np.ndarray, num_labels: int) -> np.ndarray:
    return np.bincount(target, minlength=num_labels) if target.ndim == 1 else target.sum(axis=0).astype(np.int64)


def _numpy_batches(info: ExamplesInfo, split: str, multi_label: bool):
    where = tf.io.gfile.join(info.folder, split)
    try:
        yield from read_batches(info, split, multi_label=multi_label).as_numpy_iterator()
    except tf.errors.DataLossError as error:
        raise ValueError(f"expected whole TFRecord shards, got a damaged one ({error.message}): {where}") from error
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"expected examples with {info.width} numbers in image/bottleneck, got others "
            f"({error.message.splitlines()[0][:200]}): {where}"
        ) from error


class _Moments:
    """Mean and variance of a stream of batches, merged in float64 (Chan, Golub and LeVeque, 1979)."""

    def __init__(self, width: int):
        self.num, self.mean_D, self._squares_D = 0, np.zeros(width), np.zeros(width)

    def add(self, bottleneck_BD: np.ndarray) -> None:
        num = len(bottleneck_BD)
        if not num:
            return
        mean_D = bottleneck_BD.mean(axis=0, dtype=np.float64)
        delta_D = mean_D - self.mean_D
        total = self.num + num
        self._squares_D += bottleneck_BD.var(axis=0, dtype=np.float64) * num + delta_D**2 * (self.num * num / total)
        self.mean_D = self.mean_D + delta_D * (num / total)
        self.num = total

    @property
    def var_D(self) -> np.ndarray:
        return self._squares_D / max(self.num, 1)
