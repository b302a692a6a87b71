"""Checkpoints: what a stopped training needs to go on as if it had not stopped.

TensorFlow's CheckpointManager writes each one beside the last and then moves its pointer, on any file system that
TensorFlow opens, so a training killed while it writes resumes from the one before.
"""

import json
import logging
import math

import keras
import tensorflow as tf

_LOG = logging.getLogger(__name__)

# The loss on validation: cross-entropy with the smoothing that training uses.
MONITORED = "validation_loss"
# A loss that falls by less stays where it is: training for its sake cost up to three times the epochs and gained
# nothing in cross-validation on flower photos.
MIN_IMPROVEMENT = 0.002


class TrainingState:
    """What a stopped training needs to go on as if it had not stopped: weights, optimiser, best weights, figures."""

    def __init__(self, logits_model: keras.Model, fingerprint: str):
        self.rows: list[dict] = []
        self.resumed_epochs = 0
        self._fingerprint = fingerprint
        self._model = logits_model
        # `variables` of the model include the states of its dropout generators.
        self._current = [variable.value for variable in (*logits_model.variables, *logits_model.optimizer.variables)]
        self._best = [tf.Variable(value) for value in logits_model.get_weights()]
        self._notes = _Notes()
        self._manager = None

    def restore(self, folder: str) -> None:
        """Take up the checkpoint in a folder where it belongs to this training, and write later ones there."""
        checkpoint = tf.train.Checkpoint(current=self._current, best=self._best, notes=self._notes)
        self._manager = tf.train.CheckpointManager(checkpoint, folder, max_to_keep=2)
        latest = self._manager.latest_checkpoint
        if latest is None:
            return
        # The notes alone first: the weights of another training need not even have the same shapes.
        tf.train.Checkpoint(notes=self._notes).restore(latest).expect_partial()
        if self._notes.content.get("fingerprint") != self._fingerprint:
            _LOG.warning("checkpoint of another training (other options or examples), starting fresh: %s", folder)
            return
        checkpoint.restore(latest).assert_consumed()
        self.rows = self._notes.content["rows"]
        self.resumed_epochs = len(self.rows)
        _LOG.info("resuming after epoch %d: %s", self.resumed_epochs, folder)

    def add(self, row: dict) -> None:
        """Record the figures of an epoch, keep its weights if they are the best, and write the checkpoint."""
        self.rows.append(row)
        if self.best_epoch == len(self.rows):
            for best, value in zip(self._best, self._model.get_weights(), strict=True):
                best.assign(value)
        if self._manager is not None:
            self._notes.content = {"fingerprint": self._fingerprint, "rows": self.rows}
            self._manager.save()

    @property
    def best_epoch(self) -> int:
        """Epoch, counted from 1, after which the loss on validation no longer fell; 0 without any."""
        best_epoch, best_loss = 0, math.inf
        for epoch, row in enumerate(self.rows, start=1):
            if row[MONITORED] < best_loss - MIN_IMPROVEMENT:
                best_epoch, best_loss = epoch, row[MONITORED]
        return best_epoch

    def is_finished(self, epochs: int, patience: int) -> bool:
        """Whether all epochs are done, or the last `patience` of them were no better than the best before."""
        done = len(self.rows)
        return done >= epochs or (done > 0 and done - self.best_epoch >= patience)

    def discard(self) -> None:
        """Delete the checkpoints: a finished training is not resumed, the next one starts fresh."""
        if self._manager is not None:
            for path in tf.io.gfile.glob(tf.io.gfile.join(self._manager.directory, "ckpt-*")):
                tf.io.gfile.remove(path)
            pointer = tf.io.gfile.join(self._manager.directory, "checkpoint")
            if tf.io.gfile.exists(pointer):
                tf.io.gfile.remove(pointer)

    def use_best(self) -> None:
        """Put the weights of the best epoch into the model."""
        self._model.set_weights([best.numpy() for best in self._best])


class _Notes(tf.train.experimental.PythonState):
    """The JSON part of a checkpoint."""

    def __init__(self):
        self.content: dict = {}

    def serialize(self) -> str:
        return json.dumps(self.content)

    def deserialize(self, string_value) -> None:
        self.content = json.loads(string_value)
