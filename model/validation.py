"""What validation images say of a fitted head: its calibration, its thresholds, and what is usual in training.

Array suffixes: N images, D bottleneck width, L labels.
"""

import dataclasses

import keras
import numpy as np
from scipy.special import expit, softmax

from bulktag.model.calibration import Calibration, fit_sigmoids, fit_temperature
from bulktag.model.feed import evaluation_batches
from bulktag.model.novelty import MAX_FIT_IMAGES, NoveltyModel, NoveltyQuality, fit_novelty, measure_novelty
from bulktag.model.scans import SplitScan
from bulktag.model.splits import ExamplesInfo
from bulktag.model.thresholds import (
    LabelThreshold,
    ThresholdRecord,
    record_thresholds,
    thresholds_for_f1,
    thresholds_for_precision,
)

# Logits kept at once: what is fitted to them are a few numbers a label.
MAX_LOGITS = 50_000_000


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What was fitted on validation images, besides the head.

    Attributes:
      calibration: of the logits.
      record: what each threshold gave on validation.
      thresholds: those chosen, one a label.
      novelty: None where there are too few images.
      novelty_quality: on labels held out.
    """

    calibration: Calibration
    record: ThresholdRecord
    thresholds: list[LabelThreshold]
    novelty: NoveltyModel | None
    novelty_quality: NoveltyQuality


def tune(
    logits_model: keras.Model, info: ExamplesInfo, scans: dict[str, SplitScan], *, multi_label: bool,
    target_precision: float, calibration_only: bool = False,
) -> Tuning:  # fmt: skip
    """Fit what is fitted on validation images only.

    Args:
      logits_model: of the fitted head, not calibrated yet: float32[B, D] -> float32[B, L].
      info: of the examples.
      scans: of "train" and "validation".
      multi_label: the head's scores are independent of each other.
      target_precision: thresholds reach it; 0: they are those of the best F1.
      calibration_only: of a head that is only to be compared with others.
    """
    num_labels = len(info.labels)
    most = max(1, MAX_LOGITS // num_labels)
    bottleneck_ND, targets = _sample(info, scans["validation"], multi_label, most)
    logits_NL = logits_model.predict(bottleneck_ND, batch_size=1024, verbose=0)
    targets_NL = _as_rows(targets, num_labels)
    if multi_label:
        calibration = fit_sigmoids(logits_NL, targets_NL)
        scores_NL = expit(logits_NL * calibration.slope_L + calibration.offset_L)
    else:
        calibration = fit_temperature(logits_NL, targets)
        scores_NL = softmax(logits_NL.astype(np.float64) * calibration.slope_L, axis=1)
    if calibration_only:
        return Tuning(calibration, record_thresholds(scores_NL[:0], targets_NL[:0]), [], None, NoveltyQuality(None, {}))
    record = record_thresholds(scores_NL, targets_NL)
    choose = thresholds_for_precision if target_precision else thresholds_for_f1
    thresholds = choose(record, info.labels, *([target_precision] if target_precision else []))
    train_ND, train_targets = _sample(info, scans["train"], multi_label, MAX_FIT_IMAGES)
    step = -(-len(bottleneck_ND) // MAX_FIT_IMAGES)
    train = (train_ND, _as_rows(train_targets, num_labels))
    validation = (bottleneck_ND[::step], targets_NL[::step])
    return Tuning(
        calibration, record, thresholds, fit_novelty(*train, validation[0]),
        measure_novelty(*train, *validation, info.labels),
    )  # fmt: skip


def _sample(info: ExamplesInfo, scan: SplitScan, multi_label: bool, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Bottlenecks and targets of every so many images of a split, `most` of them or fewer."""
    step = max(1, -(-scan.num_images // most))
    if scan.bottleneck_ND is not None:
        return scan.bottleneck_ND[::step], scan.target_N[::step]
    bottlenecks, targets, num_seen = [], [], 0
    for bottleneck_BD, target in evaluation_batches(info, scan, multi_label).as_numpy_iterator():
        start = -num_seen % step
        bottlenecks.append(bottleneck_BD[start::step])
        targets.append(target[start::step])
        num_seen += len(bottleneck_BD)
    return np.concatenate(bottlenecks), np.concatenate(targets)


def _as_rows(targets: np.ndarray, num_labels: int) -> np.ndarray:
    """bool[N, L] of ids[N] or of rows already."""
    if targets.ndim == 2:
        return targets > 0
    return np.arange(num_labels) == targets[:, None]
