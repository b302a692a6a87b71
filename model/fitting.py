"""Fit a head on a split: losses, early stopping, checkpoints, and the figures of every epoch; `feed` has the batches.

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
from bulktag.model.feed import evaluation_batches, training_batches
from bulktag.model.scans import SplitScan
from bulktag.model.splits import ExamplesInfo

PROGRESS_EVERY_S = 0.2
OPTIMIZERS = ("adamw", "sgd")
SGD_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How to fit, with every default already resolved to a number."""

    optimizer: str  # adamw or sgd
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
    decay = options.weight_decay
    if options.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(options.learning_rate, momentum=SGD_MOMENTUM, weight_decay=decay or None)
    else:
        optimizer = keras.optimizers.AdamW(options.learning_rate, weight_decay=decay)
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
            callbacks += [keras.callbacks.TensorBoard(options.log_dir), _CostAndError(options.log_dir)]
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


class _CostAndError(keras.callbacks.Callback):
    """Writes each epoch's cost (cross-entropy) and error (1 - accuracy) for TensorBoard, training beside validation."""

    def __init__(self, log_dir: str):
        super().__init__()
        self._writers = {name: _open_log(log_dir, name) for name in ("train", "validation")}

    def on_epoch_end(self, epoch, logs=None):
        for name, prefix in (("train", ""), ("validation", "val_")):
            _write_log(self._writers[name], epoch, logs[f"{prefix}cross_entropy"], logs[f"{prefix}accuracy"])

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()


def log_test(log_dir: str, best_epoch: int, figures: dict) -> None:
    """Write cost and error of the finished head on the test split, at the epoch whose weights it has.

    During training nobody looks at the test split, so this is one point beside the curves of the others.
    """
    if figures.get("n"):
        writer = _open_log(log_dir, "test")
        _write_log(writer, best_epoch - 1, figures["cross_entropy"], figures["accuracy"])
        writer.close()


def _open_log(log_dir: str, name: str):
    return tf.summary.create_file_writer(f"{log_dir.rstrip('/')}/{name}")


def _write_log(writer, epoch: int, cross_entropy: float, accuracy: float) -> None:
    with writer.as_default(step=epoch):
        tf.summary.scalar("cost", cross_entropy)
        tf.summary.scalar("error", 1 - accuracy)
    writer.flush()


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
