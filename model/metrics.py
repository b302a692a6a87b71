"""Evaluate scores against known labels.

Array suffixes: N images, L labels.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn import metrics as sklearn_metrics

# Bins of equal width over [0, 1], as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
CALIBRATION_BINS = 15
MAX_CONFUSED_PAIRS = 50
# The smallest score that counts in a cross-entropy: the smallest normal float32.
MIN_SCORE = float(np.finfo(np.float32).tiny)


class LabelFigures(NamedTuple):
    """How well one label is found. Precision is 0 where it was never predicted, recall where it never occurs."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # images that have it


class ConfusedPair(NamedTuple):
    """Images of one label that were given another."""

    actual: str
    predicted: str
    count: int
    share: float  # of the images of `actual`


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found. Averages are over the labels that occur."""

    n: int
    labels: tuple[str, ...]
    accuracy: float
    top_5_accuracy: float  # equal to 1 with five labels or fewer
    cross_entropy: float  # nats per image
    calibration_error: float  # expected calibration error of the best score, in [0, 1]
    macro_precision: float
    macro_recall: float
    macro_f1: float
    per_label: list[LabelFigures]
    confusion_LL: np.ndarray  # int64[L, L], actual x predicted
    most_confused: list[ConfusedPair]

    def figures(self) -> dict:
        """The single numbers, as metrics.json has them."""
        skipped = {"labels", "per_label", "confusion_LL", "most_confused"}
        names = [field.name for field in dataclasses.fields(self) if field.name not in skipped]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class MultiLabelEvaluation:
    """What an evaluation with any number of labels per image found. Precision, recall and F1 are at the thresholds."""

    n: int
    labels: tuple[str, ...]
    mean_average_precision: float  # over the labels that occur
    micro_precision: float
    micro_recall: float
    micro_f1: float
    macro_f1: float
    accuracy: float  # share of images whose best-scored label is one of theirs
    per_label: list[LabelFigures]

    figures = Evaluation.figures


def evaluate_scores(scores_NL: np.ndarray, label_ids_N: np.ndarray, labels: Sequence[str]) -> Evaluation:
    """Evaluate scores where each image has one label.

    Args:
      scores_NL: float[N, L], calibrated, each row sums to 1.
      label_ids_N: int[N], the right labels.
      labels: L names.
    Raises:
      ValueError: no image, shapes that do not go together, scores that are not finite, or an id out of range.
    """
    scores_NL, label_ids_N = np.asarray(scores_NL), np.asarray(label_ids_N)
    _check_shapes(scores_NL, labels)
    if label_ids_N.shape != scores_NL.shape[:1] or label_ids_N.min() < 0 or label_ids_N.max() >= len(labels):
        raise ValueError(f"expected {len(scores_NL)} label ids in [0, {len(labels)}), got {label_ids_N.shape}")
    # The same tie rule as in the tags: the lower label first. sklearn's top-k would take the higher one.
    predicted_N = scores_NL.argmax(axis=1)
    right_score_N = scores_NL[np.arange(len(scores_NL)), label_ids_N]
    better_N = (scores_NL > right_score_N[:, None]).sum(axis=1)
    tied_before_NL = (scores_NL == right_score_N[:, None]) & (np.arange(len(labels)) < label_ids_N[:, None])
    rank_N = better_N + tied_before_NL.sum(axis=1)
    confusion_LL = sklearn_metrics.confusion_matrix(label_ids_N, predicted_N, labels=np.arange(len(labels)))
    per_label = _figures_per_label(label_ids_N, predicted_N, labels)
    macro = np.mean([figures[1:4] for figures in per_label if figures.support], axis=0)
    return Evaluation(
        n=len(scores_NL),
        labels=tuple(labels),
        accuracy=float((rank_N == 0).mean()),
        top_5_accuracy=float((rank_N < 5).mean()),
        cross_entropy=float(-np.log(np.maximum(right_score_N, MIN_SCORE, dtype=np.float64)).mean()),
        calibration_error=calibration_error(scores_NL.max(axis=1), predicted_N == label_ids_N),
        macro_precision=float(macro[0]),
        macro_recall=float(macro[1]),
        macro_f1=float(macro[2]),
        per_label=per_label,
        confusion_LL=confusion_LL,
        most_confused=most_confused(confusion_LL, labels),
    )


def evaluate_multi_label(
    scores_NL: np.ndarray, targets_NL: np.ndarray, labels: Sequence[str], thresholds_L: np.ndarray
) -> MultiLabelEvaluation:
    """Evaluate scores where an image has any number of labels.

    Args:
      scores_NL: float[N, L], each in [0, 1].
      targets_NL: [N, L] of 0 and 1.
      labels: L names.
      thresholds_L: float[L], lowest score with which each label counts as given.
    Raises:
      ValueError: no image or shapes that do not go together.
    """
    scores_NL, targets_NL = np.asarray(scores_NL), np.asarray(targets_NL).astype(bool)
    _check_shapes(scores_NL, labels)
    if targets_NL.shape != scores_NL.shape:
        raise ValueError(f"expected targets {scores_NL.shape}, got {targets_NL.shape}")
    given_NL = scores_NL >= np.asarray(thresholds_L)
    used_L = targets_NL.any(axis=0)
    average_precision = sklearn_metrics.average_precision_score
    per_label = _figures_per_label(targets_NL, given_NL, labels)
    micro = sklearn_metrics.precision_recall_fscore_support(targets_NL, given_NL, average="micro", zero_division=0)
    return MultiLabelEvaluation(
        n=len(scores_NL),
        labels=tuple(labels),
        mean_average_precision=float(average_precision(targets_NL[:, used_L], scores_NL[:, used_L]))
        if used_L.any()
        else 0.0,
        micro_precision=float(micro[0]),
        micro_recall=float(micro[1]),
        micro_f1=float(micro[2]),
        macro_f1=float(np.mean([row.f1 for row in per_label if row.support] or [0.0])),
        accuracy=float(targets_NL[np.arange(len(scores_NL)), scores_NL.argmax(axis=1)].mean()),
        per_label=per_label,
    )


def calibration_error(best_score_N: np.ndarray, correct_N: np.ndarray, num_bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: how far scores and shares of right answers lie apart, averaged over the images.

    Args:
      best_score_N: float[N], the score of the predicted label.
      correct_N: bool[N], whether it was right.
      num_bins: bins of equal width over [0, 1].
    """
    bin_N = np.clip((np.asarray(best_score_N, np.float64) * num_bins).astype(int), 0, num_bins - 1)
    gap_per_bin = np.bincount(bin_N, np.asarray(best_score_N, np.float64) - np.asarray(correct_N), num_bins)
    return float(np.abs(gap_per_bin).sum() / len(bin_N))


def most_confused(confusion_LL: np.ndarray, labels: Sequence[str], num: int = MAX_CONFUSED_PAIRS) -> list[ConfusedPair]:
    """List the pairs of labels that were mixed up, the most frequent first."""
    wrong_LL = confusion_LL.copy()
    np.fill_diagonal(wrong_LL, 0)
    support_L = confusion_LL.sum(axis=1)
    order = np.argsort(-wrong_LL, axis=None, kind="stable")[:num]
    pairs = zip(*np.unravel_index(order, wrong_LL.shape), strict=True)
    return [
        ConfusedPair(labels[a], labels[p], int(wrong_LL[a, p]), float(wrong_LL[a, p] / support_L[a]))
        for a, p in pairs
        if wrong_LL[a, p]
    ]


def _check_shapes(scores_NL: np.ndarray, labels: Sequence[str]) -> None:
    if scores_NL.ndim != 2 or scores_NL.shape[1] != len(labels):
        raise ValueError(f"expected scores[N, {len(labels)}], got {scores_NL.shape}")
    if not len(scores_NL):
        raise ValueError("expected at least one image to evaluate, got none")
    if not np.isfinite(scores_NL).all():
        raise ValueError("expected finite scores, got NaN or infinity")


def _figures_per_label(actual: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> list[LabelFigures]:
    columns = sklearn_metrics.precision_recall_fscore_support(
        actual, predicted, labels=np.arange(len(labels)), average=None, zero_division=0
    )
    precision_L, recall_L, f1_L, support_L = columns
    return [
        LabelFigures(label, float(precision_L[i]), float(recall_L[i]), float(f1_L[i]), int(support_L[i]))
        for i, label in enumerate(labels)
    ]
