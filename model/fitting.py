"""Fit a head on a split: the feed of batches, early stopping, checkpoints, and the figures of every epoch.

Training is a function of the seed and the examples alone: the order of every epoch follows from seed and epoch, so
it is the same for a split in memory and for one streamed from disk, and for a run that was stopped and resumed.

Array suffixes: B images in a batch, D bottleneck width, L labels.
"""

import dataclasses
import math
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from bulktag.model.checkpoints import MONITORED, TrainingState
from bulktag.model.scans import SplitScan
from bulktag.model.splits import READ_BLOCK, ExamplesInfo, example_parser, interleave, open_shard, read_batches

SCORE_BATCH = 1024
# Records that wait in the shuffle buffer: as many as fit into this many bytes.
SHUFFLE_BYTES = 256 * 2**20
MIN_SHUFFLE_RECORDS = 512
PROGRESS_EVERY_S = 0.2


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How to fit, with every default already resolved to a number."""

    learning_rate: float
    weight_decay: float
    label_smoothing: float
    batch_size: int
    epochs: int
    patience: int  # epochs without a lower loss on validation before training stops
    seed: int
    multi_label: bool
    checkpoint_dir: str | None
    log_dir: str | None


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where training stands: what a live line shows."""

    epoch: int  # counts from 1
    epochs: int  # at most; early stopping may end before
    step: int  # of the whole training, counts from 1
    total_steps: int
    training_accuracy: float  # of this epoch so far, with dropout at work
    cross_entropy: float  # likewise
    validation_accuracy: float | None  # of the last finished epoch; None before the first
    validation_cross_entropy: float | None
    resumed_epochs: int  # epochs that a checkpoint brought; 0 for a fresh start
    epoch_done: bool


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
    info: ExamplesInfo, scan: SplitScan, options: FitOptions, *, first_epoch: int, weights_L: np.ndarray | None
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


def _streamed(info: ExamplesInfo, scan: SplitScan, options: FitOptions):
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


class _TopLabelIsRight(keras.metrics.MeanMetricWrapper):
    """Share of images with labels whose best-scored label is one of theirs; any is wrong for one without labels."""

    def __init__(self, name: str):
        super().__init__(
            lambda target_BL, logits_BL: tf.gather(target_BL, tf.argmax(logits_BL, axis=-1), batch_dims=1), name
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_true, y_pred, tf.cast(tf.reduce_max(y_true, axis=-1) > 0, tf.float32))


def _smoothed_cross_entropy(smoothing: float):
    """Cross-entropy against (1 - smoothing) on the right label plus smoothing spread evenly over all.

    Keras smooths one-hot targets only, which would cost a row of L numbers for each image.
    """

    def smoothed_cross_entropy(target_B, logits_BL):
        log_scores_BL = tf.nn.log_softmax(logits_BL)
        # Keras hands targets over as floats, with an axis more or less depending on its version.
        right_B = tf.gather(log_scores_BL, tf.cast(tf.reshape(target_B, [-1]), tf.int32), batch_dims=1)
        return -(1 - smoothing) * right_B - smoothing * tf.reduce_mean(log_scores_BL, axis=-1)

    return smoothed_cross_entropy


def _weighted_binary_cross_entropy(weights_L: np.ndarray | None):
    """Cross-entropy of each label by itself; the images that have a label count with its weight."""
    weights = 1.0 if weights_L is None else tf.constant(weights_L, tf.float32)

    def weighted_binary_cross_entropy(target_BL, logits_BL):
        losses_BL = tf.nn.weighted_cross_entropy_with_logits(tf.cast(target_BL, tf.float32), logits_BL, weights)
        return tf.reduce_mean(losses_BL, axis=-1)

    return weighted_binary_cross_entropy


def compile_logits_model(logits_model: keras.Model, options: FitOptions, weights_L: np.ndarray | None = None) -> None:
    """Give the model its optimiser, loss and the two metrics "accuracy" and "cross_entropy".

    With several labels per image, accuracy is the share of images with labels whose best-scored one is one of theirs,
    and `weights_L` are those of the images that have each label.
    """
    if options.multi_label:
        loss = _weighted_binary_cross_entropy(weights_L)
        cross_entropy = keras.metrics.BinaryCrossentropy(from_logits=True, name="cross_entropy")
        accuracy = _TopLabelIsRight(name="accuracy")
    else:
        loss = _smoothed_cross_entropy(options.label_smoothing)
        cross_entropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy")
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    optimizer = keras.optimizers.AdamW(options.learning_rate, weight_decay=options.weight_decay)
    # XLA would compile anew for the last batch of an epoch, and gains nothing on two dense layers.
    logits_model.compile(optimizer=optimizer, loss=loss, metrics=[accuracy, cross_entropy], jit_compile=False)
    optimizer.build(logits_model.trainable_variables)


def fit_logits_model(
    logits_model: keras.Model,
    info: ExamplesInfo,
    scans: dict[str, SplitScan],
    options: FitOptions,
    *,
    weights_L: np.ndarray | None,
    fingerprint: str,
    on_step: Callable[[Progress], None] | None,
) -> TrainingState:
    """Fit with early stopping; the model ends with the weights of its best epoch.

    Args:
      logits_model: float32[B, D] -> float32[B, L], changed in place.
      info: of the examples.
      scans: of "train" and "validation".
      options: how to fit.
      weights_L: float[L], weight of each label's images in the loss, or None.
      fingerprint: of everything that decides the outcome; a checkpoint with another one is not resumed from.
      on_step: called a few times a second and at the end of each epoch.
    Returns:
      The state after the last epoch: figures of every epoch, which was best, how many a checkpoint brought.
    Raises:
      ValueError: the loss is no longer finite.
    """
    compile_logits_model(logits_model, options, weights_L)
    state = TrainingState(logits_model, fingerprint)
    if options.checkpoint_dir:
        state.restore(options.checkpoint_dir)
    steps_per_epoch = -(-scans["train"].num_images // options.batch_size)
    if not state.is_finished(options.epochs, options.patience):
        callbacks = [_EpochEnd(state, options, steps_per_epoch, on_step)]
        if options.log_dir:
            callbacks.append(keras.callbacks.TensorBoard(options.log_dir, write_graph=False))
        logits_model.fit(
            training_batches(info, scans["train"], options, first_epoch=state.resumed_epochs, weights_L=weights_L),
            validation_data=evaluation_batches(
                info, scans["validation"], options.multi_label, logits_model.distribute_strategy.num_replicas_in_sync
            ),
            initial_epoch=state.resumed_epochs,
            epochs=options.epochs,
            steps_per_epoch=steps_per_epoch,
            callbacks=callbacks,
            shuffle=False,  # the feed is shuffled
            verbose=0,
        )
    state.use_best()
    return state


class _EpochEnd(keras.callbacks.Callback):
    """Reports progress, records epochs, and stops when validation no longer improves."""

    def __init__(self, state, options, steps_per_epoch, on_step):
        super().__init__()
        self._state, self._options, self._on_step = state, options, on_step
        self._steps_per_epoch = steps_per_epoch
        self._epoch, self._reported_at_s = 0, -math.inf

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._on_step is None or time.monotonic() - self._reported_at_s < PROGRESS_EVERY_S:
            return
        self._report(batch + 1, float(logs["accuracy"]), float(logs["cross_entropy"]), epoch_done=False)

    def on_epoch_end(self, epoch, logs=None):
        row = {
            "epoch": epoch + 1,
            "accuracy": float(logs["accuracy"]),
            "cross_entropy": float(logs["cross_entropy"]),
            "validation_accuracy": float(logs["val_accuracy"]),
            "validation_cross_entropy": float(logs["val_cross_entropy"]),
            MONITORED: float(logs["val_loss"]),
        }
        if not (math.isfinite(row["cross_entropy"]) and math.isfinite(row[MONITORED])):
            raise ValueError(
                f"expected a finite loss, got cross-entropy {row['cross_entropy']} in training and loss "
                f"{row[MONITORED]} in validation: epoch {epoch + 1}; lower the learning rate, "
                f"now {self._options.learning_rate}"
            )
        self._state.add(row)
        if self._on_step is not None:
            self._report(self._steps_per_epoch, row["accuracy"], row["cross_entropy"], epoch_done=True)
        if self._state.is_finished(self._options.epochs, self._options.patience):
            self.model.stop_training = True

    def _report(self, step_in_epoch: int, accuracy: float, cross_entropy: float, *, epoch_done: bool) -> None:
        self._reported_at_s = time.monotonic()
        last = self._state.rows[-1] if self._state.rows else {}
        self._on_step(
            Progress(
                epoch=self._epoch + 1,
                epochs=self._options.epochs,
                step=self._epoch * self._steps_per_epoch + step_in_epoch,
                total_steps=self._options.epochs * self._steps_per_epoch,
                training_accuracy=accuracy,
                cross_entropy=cross_entropy,
                validation_accuracy=last.get("validation_accuracy"),
                validation_cross_entropy=last.get("validation_cross_entropy"),
                resumed_epochs=self._state.resumed_epochs,
                epoch_done=epoch_done,
            )
        )
