"""Read one split of extracted examples: TFRecord shards -> batches of bottlenecks and targets.

The order of records is fixed by the names and the content of the shards alone, never by the timing of threads, so
that training on a split kept in memory and training on the same split streamed from disk see the same batches.

Array suffixes: R records read, B of them that can be used, D bottleneck width, L labels.
"""

import dataclasses
import functools
import json
from collections.abc import Callable

import tensorflow as tf

SPLITS = ("train", "validation", "test")
INFO_NAME = "examples.json"
READ_BATCH = 1024
# Fewer images of a label, over all splits, are too few to learn from, or to measure with.
MIN_IMAGES_PER_LABEL = 20
# So many shards are read in turn, a block of records from each: a shuffle buffer then holds records of all of them,
# which counts where a shard holds one folder, that is one label. Each costs an open file, its buffer and two blocks: 17
# MB in all for bottlenecks of 2,048 numbers. One record at a time instead of a block cost 2.5 times the CPU (17.8
# against 7.0 us a record with parsing).
SHARDS_IN_TURN = 32
READ_BLOCK = 32
FILE_BUFFER_BYTES = 1 << 18


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


def interleave(shards: tf.data.Dataset, open_shard: Callable) -> tf.data.Dataset:
    """Read shards in turn, several at once, in an order that depends on nothing but the shards.

    Args:
      shards: of anything that names a shard.
      open_shard: turns one into a dataset of blocks of at most `READ_BLOCK` records.
    """
    return shards.interleave(
        open_shard, cycle_length=SHARDS_IN_TURN, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )


def open_shard(path: tf.Tensor) -> tf.data.Dataset:
    """Blocks of serialised examples, string[<= READ_BLOCK] each, of one plain or gzip shard."""
    # tf.data reads plain and gzip shards through different arguments; the name says which one it is.
    compression = tf.where(tf.strings.regex_full_match(path, r".*\.gz"), "GZIP", "")
    return tf.data.TFRecordDataset(path, compression, buffer_size=FILE_BUFFER_BYTES).batch(READ_BLOCK)


def read_batches(
    info: ExamplesInfo, paths: list[str], *, multi_label: bool, batch_size: int = READ_BATCH
) -> tf.data.Dataset:
    """Read shards once, in a fixed order, in batches; records that cannot be trained on are left out but counted.

    Args:
      info: from `read_examples_info`.
      paths: from `shard_paths`.
      multi_label: a record may have any number of labels; otherwise only records with exactly one are used.
      batch_size: records parsed at once; a batch has that many or fewer.
    Returns:
      A dataset of dicts, see `example_parser`; beside them "shard" int32[R], which of `paths` each record read is from.
    """
    parse = example_parser(info.width, len(info.labels), multi_label)

    def open_numbered(number, path):
        blocks = open_shard(path)
        return blocks.map(
            lambda serialized_R: (serialized_R, tf.fill(tf.shape(serialized_R), tf.cast(number, tf.int32)))
        )

    records = interleave(tf.data.Dataset.from_tensor_slices(tf.constant(paths, tf.string)).enumerate(), open_numbered)
    return (
        records.rebatch(batch_size)
        .map(
            lambda serialized_R, shard_R: parse(serialized_R) | {"shard": shard_R},
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .prefetch(2)
    )


@functools.cache
def example_parser(width: int, num_labels: int, multi_label: bool) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """A parser of whole batches, traced once, because a streamed split is opened every epoch.

    Args:
      width: D.
      num_labels: L.
      multi_label: see `read_batches`.
    Returns:
      A function of string[R], serialised examples, to a dict of the B <= R of them that can be trained on:
      "bottleneck" float32[B, D]; "target" int32[B], or float32[B, L] of 0 and 1 for multi_label; "content" int64[B],
      equal for equal sha256; and of all of them: "usable" bool[R], and the scalars int64 "unlabelled",
      "several_labels" (single-label only) and "unknown_label" (ids that examples.json does not have).
    """
    features = {
        "image/sha256": tf.io.FixedLenFeature([], tf.string, default_value=""),
        "image/class/label": tf.io.RaggedFeature(tf.int64),
        "image/bottleneck": tf.io.FixedLenFeature([width], tf.float32),
    }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def parse(serialized_R):
        return _usable_part(tf.io.parse_example(serialized_R, features), num_labels, multi_label)

    return parse


def _usable_part(record: dict, num_labels: int, multi_label: bool) -> dict:
    ids_R = record["image/class/label"]  # ragged
    known_R = tf.ragged.boolean_mask(ids_R, (ids_R >= 0) & (ids_R < num_labels))
    num_known_R = known_R.row_lengths()
    counts = {
        "unknown_label": tf.size(ids_R.flat_values, tf.int64) - tf.size(known_R.flat_values, tf.int64),
        "unlabelled": tf.math.count_nonzero(ids_R.row_lengths() == 0),
        "several_labels": tf.constant(0, tf.int64),
    }
    if multi_label:
        # An image whose labels are all unknown would teach that none applies, so it is left out.
        keep_R = (num_known_R > 0) | (ids_R.row_lengths() == 0)
        positions = tf.stack([tf.cast(known_R.value_rowids(), tf.int64), known_R.flat_values], axis=1)
        shape = tf.stack([tf.cast(ids_R.nrows(), tf.int64), num_labels])
        target_R = tf.minimum(tf.scatter_nd(positions, tf.ones_like(known_R.flat_values, tf.float32), shape), 1.0)
    else:
        keep_R = (num_known_R == 1) & (ids_R.row_lengths() == 1)
        counts["several_labels"] = tf.math.count_nonzero(ids_R.row_lengths() > 1)
        target_R = tf.cast(tf.reduce_max(known_R, axis=1), tf.int32)
    rows = {
        "bottleneck": record["image/bottleneck"],
        "target": target_R,
        "content": tf.strings.to_hash_bucket_fast(record["image/sha256"], (1 << 63) - 1),
    }
    # Nearly always all of them: a mask would copy the bottlenecks once more.
    kept = tf.cond(
        tf.reduce_all(keep_R),
        lambda: rows,
        lambda: {name: tf.boolean_mask(value, keep_R) for name, value in rows.items()},
    )
    return kept | counts | {"usable": keep_R}
