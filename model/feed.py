"""Feed a head the batches of a split, in memory or streamed from its shards.

Training is a function of the seed and the examples alone: the order of every epoch follows from seed and epoch, so
it is the same for a split in memory and for one streamed from disk, and for a run that was stopped and resumed.

Array suffixes: B images in a batch, D bottleneck width, L labels.
"""

from typing import TYPE_CHECKING

import numpy as np
import tensorflow as tf

from bulktag.model.scans import SplitScan
from bulktag.model.splits import READ_BLOCK, ExamplesInfo, example_parser, interleave, open_shard, read_batches

if TYPE_CHECKING:
    from bulktag.model.fitting import FitOptions

SCORE_BATCH = 1024
# Records that wait in the shuffle buffer: as many as fit into this many bytes.
SHUFFLE_BYTES = 256 * 2**20
MIN_SHUFFLE_RECORDS = 512


def evaluation_batches(
    info: ExamplesInfo, scan: SplitScan, multi_label: bool, num_replicas: int = 1
) -> tf.data.Dataset:
    """Feed a split once, in order: (float32[B, D], targets), from memory where the scan kept it.

    Args:
      info: of the examples.
      scan: of the split.
      multi_label: see `read_batches`.
      num_replicas: devices that share each batch; the first is divisible by it.
    """
    batch_size = divisible(SCORE_BATCH, scan.num_images, num_replicas)
    if scan.bottleneck_ND is not None:
        rows = tf.data.Dataset.range(scan.num_images).batch(batch_size)
        return rows.map(_gather(scan), num_parallel_calls=1)
    pairs = read_batches(info, scan.paths, multi_label=multi_label).map(_pair)
    # Filled up again after unusable records left, as from memory.
    if scan.num_images < scan.num_records or batch_size != SCORE_BATCH:
        pairs = pairs.rebatch(batch_size)
    return pairs.apply(tf.data.experimental.assert_cardinality(-(-scan.num_images // batch_size)))


def divisible(batch_size: int, num_images: int, num_replicas: int) -> int:
    """A batch size like the one wanted, of which all devices that share a batch get equally many images.

    Keras takes the shapes of the first batch from all of them, and fails where they differ.
    """
    if num_replicas == 1:
        return batch_size
    return max(min(batch_size, num_images) // num_replicas, 1) * num_replicas


def _pair(batch: dict) -> tuple[tf.Tensor, tf.Tensor]:
    return batch["bottleneck"], batch["target"]


def training_batches(
    info: ExamplesInfo, scan: SplitScan, options: "FitOptions", *, first_epoch: int, weights_L: np.ndarray | None
) -> tf.data.Dataset:
    """Feed the train split for all epochs that are left.

    Each epoch reads the shards in an order of its own, and shuffles what it reads through a buffer of `SHUFFLE_BYTES`.
    What is shuffled are serialised examples, or for a split in memory their numbers in the same order; only whole
    batches of them are parsed or looked up.

    Args:
      info: of the examples.
      scan: of the train split; its arrays are used where it kept them, else its shards are read every epoch.
      options: batch size, epochs and seed.
      first_epoch: counts from 0; above 0 when training resumes.
      weights_L: float[L], weight of each label in the loss, or None.
    Returns:
      A dataset of (bottlenecks, targets, sample weights), ceil(N / batch size) batches for each epoch.
    """
    num_shards = len(scan.paths)
    num_buffered = max(MIN_SHUFFLE_RECORDS, SHUFFLE_BYTES // (4 * info.width))
    num_buffered = min(num_buffered, scan.num_records)
    # Of a head with several labels an image, the loss weighs them: see `compile_logits_model`.
    sample_weights_L = None if options.multi_label else weights_L
    open_numbered, look_up = _stored(scan) if scan.bottleneck_ND is not None else _streamed(info, scan, options)

    def one_epoch(epoch):
        seed = tf.constant(options.seed, tf.int64) * 1_000_003 + epoch
        shards = tf.data.Dataset.range(num_shards).shuffle(num_shards, seed=seed, reshuffle_each_iteration=False)
        records = interleave(shards, open_numbered).unbatch()
        batches = records.shuffle(num_buffered, seed=seed, reshuffle_each_iteration=False).batch(options.batch_size)
        pairs = batches.map(look_up, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        # Unusable records have left: the batches are filled up again.
        return pairs if scan.num_images == scan.num_records else pairs.rebatch(options.batch_size)

    return (
        tf.data.Dataset.range(first_epoch, options.epochs).flat_map(one_epoch).map(_weigh(sample_weights_L)).prefetch(4)
    )


def _streamed(info: ExamplesInfo, scan: SplitScan, options: "FitOptions"):
    """Number of a shard -> blocks of its serialised examples; a batch of those -> pairs."""
    paths = tf.constant(scan.paths, tf.string)
    parse = example_parser(info.width, len(info.labels), options.multi_label)
    return lambda shard: open_shard(paths[shard]), lambda serialized_R: _pair(parse(serialized_R))


def _stored(scan: SplitScan):
    """Number of a shard -> blocks of the numbers of its records; a batch of those -> pairs."""
    ends_S = tf.constant(np.cumsum(scan.shard_sizes_S))
    sizes_S = tf.constant(scan.shard_sizes_S)

    def open_numbered(shard):
        return tf.data.Dataset.range(ends_S[shard] - sizes_S[shard], ends_S[shard]).batch(READ_BLOCK)

    gather = _gather(scan)

    def rows_of(record_R):
        row_R = scan.row_of_record_M[record_R]
        return row_R[row_R >= 0]

    def look_up(record_R):
        row_B = tf.numpy_function(rows_of, [record_R], tf.int64, stateful=False)
        return gather(row_B)

    return open_numbered, look_up


def _gather(scan: SplitScan):
    target_type = scan.target_N.dtype

    def take(row_B):
        return scan.bottleneck_ND[row_B], scan.target_N[row_B]

    def gather(row_B):
        # NumPy's own indexing, because a tensor would be a second copy of the whole split.
        bottleneck_BD, target = tf.numpy_function(take, [row_B], [tf.float32, target_type], stateful=False)
        bottleneck_BD.set_shape([None, scan.bottleneck_ND.shape[1]])
        target.set_shape([None, *scan.target_N.shape[1:]])
        return bottleneck_BD, target

    return gather


def _weigh(weights_L: np.ndarray | None):
    def weigh(bottleneck_BD, target):
        if weights_L is None:
            return bottleneck_BD, target, tf.ones(tf.shape(bottleneck_BD)[:1])
        return bottleneck_BD, target, tf.gather(tf.constant(weights_L, tf.float32), target)

    return weigh
