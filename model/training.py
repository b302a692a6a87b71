"""Train a head on extracted examples: read, check, fit, calibrate, measure.

Array suffixes: N images of a split, B images in a batch, D bottleneck width, L labels.
"""

import dataclasses
import hashlib
import importlib.util
import json
import time
from collections.abc import Callable

import keras
import numpy as np
import psutil

from bulktag.model.feed import divisible, evaluation_batches
from bulktag.model.fitting import OPTIMIZERS, FitOptions, Progress, fit_logits_model, log_test
from bulktag.model.hardware import training_strategy
from bulktag.model.head import (
    ARCHITECTURES,
    build_head,
    build_logits_model,
    check_head,
    fold_calibration,
    without_augmentation,
)
from bulktag.model.scans import SplitScan, scan_split
from bulktag.model.splits import MIN_IMAGES_PER_LABEL, SPLITS, ExamplesInfo, read_examples_info
from bulktag.model.validation import Tuning, tune

# The defaults of the head were chosen by 5-fold cross-validation on flower photos: the train and validation splits of
# the 2015 Inception bottlenecks (3,311 images) and MobileNetV2 features of 300 and 400 images. Beside 3e-4, a rate of
# 1e-3 lost 0.9 points and 1e-4 took three times as long for no gain; label smoothing of 0.1 gained 0.6 to 0.8 points,
# and batches of 128 at 3,311 images 0.4 points over 64.
LEARNING_RATES = {"mlp": 3e-4, "linear": 3e-4, "cnn": 1e-3}
# Epochs of a small split are only some steps long, and its validation loss is noisy: six of them were too few. On eight
# splits of 600 flower photos, 240 of them for training, patience of 150 steps gave 0.8 points over 48.
MIN_PATIENCE_EPOCHS, MIN_PATIENCE_STEPS = 6, 150
CACHE_MODES = ("auto", "always", "never")
CLASS_WEIGHTS = ("auto", "none", "balanced")
# Splits kept in memory take at most this share of what is free, all of them together. What a split that is not kept
# needs: `feed.SHUFFLE_BYTES`, the blocks being read (`splits.SHARDS_IN_TURN`) and 17 bytes an image.
CACHE_MEMORY_SHARE = 0.5
# With several labels an image, the images that have a rare one count more, by the root of how rare it is and at most so
# much: with the full ratio, label noise of rare labels would decide the training.
MAX_POSITIVE_WEIGHT = 10.0


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """How to train. None means: follow the rule, which depends on the number of training images (see `resolve`)."""

    architecture: str = "mlp"  # mlp, linear or cnn
    hidden: tuple[int, ...] = (1024,)  # units of each hidden layer; mlp only
    dropout: float = 0.5
    learning_rate: float | None = None
    weight_decay: float = 0.0  # of AdamW, per step and learning rate
    optimizer: str = "adamw"  # or sgd, with momentum
    augment: bool = True  # mirror, turn and shift pictures while training; cnn only
    label_smoothing: float = 0.1  # share of each target that is spread over all labels; not used for multi-label
    batch_size: int | None = None
    epochs: int = 60  # at most
    patience: int | None = None  # epochs without a lower loss on validation before training stops
    class_weights: str = "auto"  # balanced: rare labels count more; auto: so with multi_label, else none
    seed: int = 0
    multi_label: bool = False
    target_precision: float = 0.0  # of each label's threshold; 0: its best F1
    checkpoint_dir: str | None = None  # None: no checkpoints, a killed training starts again
    log_dir: str | None = None  # for TensorBoard
    trial: bool = False  # only to compare with others: no thresholds, no novelty, figures of validation alone
    cache: str = "auto"  # keep the splits in memory: auto (where they fit), always, never

    def __post_init__(self):
        """Check what can be checked without the examples."""
        choices = {
            "architecture": ARCHITECTURES,
            "optimizer": OPTIMIZERS,
            "class_weights": CLASS_WEIGHTS,
            "cache": CACHE_MODES,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} to be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("batch_size", "epochs", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"expected learning_rate above 0, got {self.learning_rate}")
        if self.weight_decay < 0:
            raise ValueError(f"expected weight_decay of at least 0, got {self.weight_decay}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"expected label_smoothing in [0, 1), got {self.label_smoothing}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"expected seed in [0, 2^31), got {self.seed}")
        if not 0 <= self.target_precision <= 1:
            raise ValueError(f"expected target_precision between 0 and 1, got {self.target_precision}")
        if self.log_dir and importlib.util.find_spec("tensorboard") is None:
            raise ValueError("expected package tensorboard for log_dir, found none: pip install 'bulktag[tensorboard]'")


@dataclasses.dataclass(frozen=True)
class TrainedHead:
    """A head ready to be bundled, and what is known about it."""

    model: keras.Model  # float32[B, D] -> calibrated scores float32[B, L]
    labels: tuple[str, ...]
    tuning: Tuning  # calibration, already folded into the model; thresholds; novelty
    history: list[dict]  # per epoch: accuracy, cross_entropy, validation_accuracy, validation_cross_entropy
    best_epoch: int  # whose weights these are, counted from 1
    resumed_epochs: int  # epochs that came from a checkpoint
    figures: dict[str, dict]  # per split: n, accuracy, cross_entropy, of the finished head
    warnings: list[str]
    warning_counts: dict[str, int]
    seconds: float  # that it took
    settings: FitOptions  # with the rules applied
    cached: bool  # whether the splits were in memory


def resolve(options: TrainOptions, num_images: int) -> FitOptions:
    """Apply the rules for what was left open.

    Batch size: the power of two at or below N / 16, within 32..512, so that small splits still take some ten steps
    per epoch and large ones use wide matrix products. Learning rate: see LEARNING_RATES. Patience: six epochs, and in
    small splits as many as make 150 steps.
    """
    batch_size = options.batch_size or int(np.clip(2 ** int(np.log2(max(num_images / 16, 1))), 32, 512))
    steps_per_epoch = -(-num_images // batch_size)
    return FitOptions(
        optimizer=options.optimizer,
        learning_rate=options.learning_rate or LEARNING_RATES[options.architecture],
        weight_decay=options.weight_decay,
        label_smoothing=0.0 if options.multi_label else options.label_smoothing,
        batch_size=batch_size,
        epochs=options.epochs,
        patience=options.patience or max(MIN_PATIENCE_EPOCHS, MIN_PATIENCE_STEPS // max(steps_per_epoch, 1)),
        seed=options.seed,
        multi_label=options.multi_label,
        checkpoint_dir=options.checkpoint_dir,
        log_dir=options.log_dir,
    )


def train_head(
    examples_dir: str, options: TrainOptions, on_step: Callable[[Progress], None] | None = None
) -> TrainedHead:
    """Train, calibrate and measure a head.

    The same seed on the same examples gives the same head, bit for bit, on the same CPU: with the splits in memory
    or streamed, stopped and resumed or not.

    Args:
      examples_dir: folder of extracted examples, with examples.json, on any file system that TensorFlow opens.
      options: how to train.
      on_step: called with a `Progress` a few times a second and at the end of each epoch.
    Raises:
      ValueError: options or examples that cannot be trained on, in one line.
    """
    started = time.monotonic()
    info = read_examples_info(examples_dir)
    # Before anything long: what the options and the width of the bottlenecks already rule out.
    check_head(info.width, len(info.labels), options.architecture, options.hidden, options.dropout)
    cached = _fits_in_memory(info, options)
    scans = {split: scan_split(info, split, multi_label=options.multi_label, keep=cached) for split in SPLITS}
    _check_splits(info, scans)
    counts = count_warnings(info, scans)
    settings = resolve(options, scans["train"].num_images)
    strategy = training_strategy()
    num_replicas = strategy.num_replicas_in_sync
    batch_size = divisible(settings.batch_size, scans["train"].num_images, num_replicas)
    settings = dataclasses.replace(settings, batch_size=batch_size)
    with strategy.scope():
        head = _build_head(info, options, scans["train"])
        logits_model = build_logits_model(head)
        state = fit_logits_model(
            logits_model,
            info,
            scans,
            settings,
            weights_L=_label_weights(scans["train"], options),
            fingerprint=_fingerprint(info, options),
            on_step=on_step,
        )
    tuning = tune(
        logits_model,
        info,
        scans,
        multi_label=options.multi_label,
        target_precision=options.target_precision,
        calibration_only=options.trial,
    )
    fold_calibration(head, tuning.calibration.slope_L, tuning.calibration.offset_L)
    measured = ("validation",) if options.trial else SPLITS
    figures = {split: _measure(logits_model, info, scans[split], options.multi_label) for split in measured}
    state.discard()
    if options.log_dir:
        log_test(options.log_dir, state.best_epoch, figures.get("test", {}))
    return TrainedHead(
        model=without_augmentation(head),
        labels=info.labels,
        tuning=tuning,
        history=state.rows,
        best_epoch=state.best_epoch,
        resumed_epochs=state.resumed_epochs,
        figures=figures,
        warnings=describe_warnings(info, scans, counts, options.multi_label),
        warning_counts=counts,
        seconds=time.monotonic() - started,
        settings=settings,
        cached=cached,
    )


def _build_head(info: ExamplesInfo, options: TrainOptions, train: SplitScan) -> keras.Model:
    return build_head(
        info.width,
        len(info.labels),
        architecture=options.architecture,
        hidden=options.hidden,
        dropout=options.dropout,
        multi_label=options.multi_label,
        feature_mean=train.mean_D,
        feature_var=train.var_D,
        shares_L=train.label_counts_L / max(train.num_images, 1),
        augment=options.augment and options.architecture == "cnn",
        seed=options.seed,
    )


def _fits_in_memory(info: ExamplesInfo, options: TrainOptions) -> bool:
    if options.cache != "auto":
        return options.cache == "always"
    numbers_per_image = info.width + (len(info.labels) if options.multi_label else 1)
    needed = 4 * numbers_per_image * sum(info.num_images.values())
    return needed <= CACHE_MEMORY_SHARE * psutil.virtual_memory().available


def _check_splits(info: ExamplesInfo, scans: dict[str, SplitScan]) -> None:
    for split in ("train", "validation"):
        if not scans[split].num_images:
            raise ValueError(
                f"expected labelled images in train and validation, got none usable in {split} "
                f"(of {info.num_images[split]}): {info.folder}"
            )
    num_used = int((scans["train"].label_counts_L > 0).sum())
    if num_used < 2 and len(info.labels) != 1:
        raise ValueError(f"expected training images of at least 2 labels, got {num_used}: {info.folder}")


def count_warnings(info: ExamplesInfo, scans: dict[str, SplitScan]) -> dict[str, int]:
    """Count what a user should know about the examples; nothing in it stops the training.

    Returns:
      Always the same keys: "small_labels" (labels with fewer than `MIN_IMAGES_PER_LABEL` images over all splits),
      "unlabelled", "several_labels" and "unknown_label" images over all splits, "duplicates_across_labels" (different
      contents that stand under more than one label; 0 for multi-label), "empty_test" (0 or 1).
    """
    images_per_label_L = sum(scan.label_counts_L for scan in scans.values())
    counts = {"small_labels": int((images_per_label_L < MIN_IMAGES_PER_LABEL).sum())}
    for name in ("unlabelled", "several_labels", "unknown_label"):
        counts[name] = sum(getattr(scan, name) for scan in scans.values())
    counts["duplicates_across_labels"] = _count_duplicates_across_labels(scans)
    counts["empty_test"] = int(scans["test"].num_images == 0)
    return counts


def _count_duplicates_across_labels(scans: dict[str, SplitScan]) -> int:
    if any(scan.target_N is None or scan.target_N.ndim != 1 for scan in scans.values()):
        return 0
    content_N = np.concatenate([scan.content_N for scan in scans.values()])
    label_N = np.concatenate([scan.target_N for scan in scans.values()])
    pairs = np.unique(np.stack([content_N, label_N.astype(np.int64)]), axis=1)
    labels_per_content = np.unique(pairs[0], return_counts=True)[1]
    return int((labels_per_content > 1).sum())


def describe_warnings(
    info: ExamplesInfo, scans: dict[str, SplitScan], counts: dict[str, int], multi_label: bool
) -> list[str]:
    """Put the counts that are not 0 into short sentences, with the names of up to five labels."""
    images_per_label_L = sum(scan.label_counts_L for scan in scans.values())
    smallest = [f"{info.labels[i]}: {images_per_label_L[i]}" for i in np.argsort(images_per_label_L, kind="stable")[:5]]
    shown = ", ".join(smallest[: counts["small_labels"]]) + (", ..." if counts["small_labels"] > 5 else "")
    sentences = {
        "small_labels": f"labels with fewer than {MIN_IMAGES_PER_LABEL} images ({shown})",
        "unlabelled": "images without a label" + (", taken as having none" if multi_label else ", left out"),
        "several_labels": "images with several labels, left out (train with multi-label to use them)",
        "unknown_label": "label ids that examples.json does not know, left out",
        "duplicates_across_labels": "images that stand under more than one label with the same content",
    }
    described = [f"{counts[name]} {sentence}" for name, sentence in sentences.items() if counts[name]]
    return described + (["no image in the test split: no held-out figures"] if counts["empty_test"] else [])


def _label_weights(train: SplitScan, options: TrainOptions) -> np.ndarray | None:
    """float[L], None for equal ones: of the images of each label, or with multi_label of the ones in its column."""
    counts_L = train.label_counts_L
    if options.multi_label and options.class_weights != "none":
        ratio_L = (train.num_images - counts_L) / np.maximum(counts_L, 1)
        return np.clip(np.sqrt(ratio_L), 1.0, MAX_POSITIVE_WEIGHT)
    return _class_weights(counts_L) if options.class_weights == "balanced" else None


def _class_weights(counts_L: np.ndarray) -> np.ndarray:
    """Weights with which every label that occurs counts the same and the mean weight over the images is 1."""
    weights_L = np.zeros(len(counts_L))
    used_L = counts_L > 0
    weights_L[used_L] = counts_L.sum() / (used_L.sum() * counts_L[used_L])
    return weights_L


def _fingerprint(info: ExamplesInfo, options: TrainOptions) -> str:
    """Digest of everything that decides the outcome of a training."""
    decisive = dataclasses.asdict(options)
    for name in ("checkpoint_dir", "log_dir", "cache"):
        del decisive[name]
    text = json.dumps([decisive, info.content], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _measure(logits_model: keras.Model, info: ExamplesInfo, scan: SplitScan, multi_label: bool) -> dict:
    """Figures of a finished head on one split: {"n", "accuracy", "cross_entropy"}; None where there is no image."""
    if not scan.num_images:
        return {"n": 0, "accuracy": None, "cross_entropy": None}
    batches = evaluation_batches(info, scan, multi_label, logits_model.distribute_strategy.num_replicas_in_sync)
    values = logits_model.evaluate(batches, return_dict=True, verbose=0)
    return {"n": scan.num_images, "accuracy": values["accuracy"], "cross_entropy": values["cross_entropy"]}
