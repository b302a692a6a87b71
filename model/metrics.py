"""Evaluate scores against known labels.

Array suffixes: N images, L labels.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn import metrics as sklearn_metrics
from sklearn.exceptions import UndefinedMetricWarning

from bulktag.model.intervals import bootstrap_multi_label, bootstrap_single_label
from bulktag.model.reliability import Reliability, label_calibration_error, measure_reliability

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
    predicted: int  # images that were given it
    average_precision: float | None  # None where no image has it
    auc: float | None  # area under the ROC curve; None where no image has it, or all do
    threshold: float | None  # score from which it becomes a tag; None: switched off


class ConfusedPair(NamedTuple):
    """Images of one label that were given another."""

    actual: str
    predicted: str
    count: int
    share: float  # of the images of `actual`


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; precision, recall and F1 are of the best label. Averages are over labels that occur."""

    n: int
    labels: tuple[str, ...]
    accuracy: float
    top_5_accuracy: float  # equal to 1 with five labels or fewer
    cross_entropy: float  # nats per image
    calibration_error: float  # expected calibration error of the best score, in [0, 1]
    calibration_error_before: float  # of the head's scores without calibration
    macro_precision: float
    macro_recall: float
    macro_f1: float
    micro_precision: float  # with one label an image, these three and accuracy are the same
    micro_recall: float
    micro_f1: float
    mean_average_precision: float
    mean_auc: float | None
    tagged_share: float  # images with a label at or above its threshold
    tag_precision: float | None  # share of tags at the thresholds that are right; None where there is none
    intervals: dict[str, tuple[float, float]]  # of figures by name, 95%, by bootstrap over the images
    per_label: list[LabelFigures]
    confusion_LL: np.ndarray  # int64[L, L], actual x predicted
    most_confused: list[ConfusedPair]
    reliability: Reliability  # of the best score
    reliability_before: Reliability

    def figures(self) -> dict:
        """The single numbers and their intervals, as metrics.json has them."""
        skipped = {"labels", "per_label", "confusion_LL", "most_confused", "reliability", "reliability_before"}
        names = [field.name for field in dataclasses.fields(self) if field.name not in skipped]
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class MultiLabelEvaluation:
    """What an evaluation with any number of labels per image found. Precision, recall and F1 are at the thresholds."""

    n: int
    labels: tuple[str, ...]
    mean_average_precision: float  # over the labels that occur
    mean_auc: float | None
    micro_precision: float
    micro_recall: float
    micro_f1: float
    macro_precision: float
    macro_recall: float
    macro_f1: float
    accuracy: float  # share of images with labels whose best-scored label is one of theirs
    exact_match: float  # share of images whose tags are just their labels
    cross_entropy: float  # nats per decision
    calibration_error: float  # of each label by itself, mean over the labels that occur
    calibration_error_before: float
    tagged_share: float
    tag_precision: float | None
    intervals: dict[str, tuple[float, float]]
    per_label: list[LabelFigures]
    confusion_LL: np.ndarray  # int64[L, L], images that lack tag i and have tag j wrongly
    most_confused: list[ConfusedPair]
    reliability: Reliability  # of all scores of all labels
    reliability_before: Reliability

    figures = Evaluation.figures


def evaluate_scores(
    scores_NL: np.ndarray, label_ids_N: np.ndarray, labels: Sequence[str], *, thresholds_L: np.ndarray | None = None,
    before_NL: np.ndarray | None = None,
) -> Evaluation:  # fmt: skip
    """Evaluate scores where each image has one label.

    Args:
      scores_NL: float[N, L], calibrated, each row sums to 1.
      label_ids_N: int[N], the right labels.
      labels: L names.
      thresholds_L: float[L], score from which each label becomes a tag; None: any score does.
      before_NL: float[N, L], the scores without calibration; None: the same.
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
    targets_NL = label_ids_N[:, None] == np.arange(len(labels))
    thresholds_L = np.zeros(len(labels)) if thresholds_L is None else np.asarray(thresholds_L)
    per_label = _figures_per_label(label_ids_N, predicted_N, scores_NL, targets_NL, thresholds_L, labels)
    before = _best_reliability(scores_NL if before_NL is None else before_NL, label_ids_N)
    after = _best_reliability(scores_NL, label_ids_N)
    losses_N = -np.log(np.maximum(right_score_N, MIN_SCORE, dtype=np.float64))
    return Evaluation(
        n=len(scores_NL),
        labels=tuple(labels),
        accuracy=float((rank_N == 0).mean()),
        top_5_accuracy=float((rank_N < 5).mean()),
        cross_entropy=float(losses_N.mean()),
        calibration_error=after.error,
        calibration_error_before=before.error,
        **_macro(per_label),
        **dict.fromkeys(("micro_precision", "micro_recall", "micro_f1"), float((rank_N == 0).mean())),
        **_ranking(per_label),
        **_tags(scores_NL >= thresholds_L, targets_NL),
        intervals=bootstrap_single_label(
            label_ids_N, predicted_N, rank_N, scores_NL.max(axis=1), losses_N, len(labels)
        ),
        per_label=per_label,
        confusion_LL=confusion_LL,
        most_confused=most_confused(confusion_LL, labels),
        reliability=after,
        reliability_before=before,
    )


def _best_reliability(scores_NL: np.ndarray, label_ids_N: np.ndarray) -> Reliability:
    return measure_reliability(scores_NL.max(axis=1), scores_NL.argmax(axis=1) == label_ids_N)


def evaluate_multi_label(
    scores_NL: np.ndarray, targets_NL: np.ndarray, labels: Sequence[str], thresholds_L: np.ndarray,
    before_NL: np.ndarray | None = None,
) -> MultiLabelEvaluation:  # fmt: skip
    """Evaluate scores where an image has any number of labels.

    Args:
      scores_NL: float[N, L], each in [0, 1].
      targets_NL: [N, L] of 0 and 1.
      labels: L names.
      thresholds_L: float[L], lowest score with which each label counts as given; infinity for one switched off.
      before_NL: float[N, L], the scores without calibration; None: the same.
    Raises:
      ValueError: no image or shapes that do not go together.
    """
    scores_NL, targets_NL = np.asarray(scores_NL), np.asarray(targets_NL).astype(bool)
    _check_shapes(scores_NL, labels)
    if targets_NL.shape != scores_NL.shape:
        raise ValueError(f"expected targets {scores_NL.shape}, got {targets_NL.shape}")
    before_NL = scores_NL if before_NL is None else before_NL
    given_NL = scores_NL >= np.asarray(thresholds_L)
    per_label = _figures_per_label(targets_NL, given_NL, scores_NL, targets_NL, np.asarray(thresholds_L), labels)
    micro = sklearn_metrics.precision_recall_fscore_support(targets_NL, given_NL, average="micro", zero_division=0)
    has_labels_N = targets_NL.any(axis=1)
    best_is_right_N = targets_NL[np.arange(len(scores_NL)), scores_NL.argmax(axis=1)]
    likelihood_NL = np.where(targets_NL, scores_NL, 1 - scores_NL.astype(np.float64))
    missed_NL, wrong_NL = (targets_NL & ~given_NL).astype(np.int64), (given_NL & ~targets_NL).astype(np.int64)
    confusion_LL = missed_NL.T @ wrong_NL
    np.fill_diagonal(confusion_LL, (targets_NL & given_NL).sum(axis=0))
    return MultiLabelEvaluation(
        n=len(scores_NL),
        labels=tuple(labels),
        **_ranking(per_label),
        micro_precision=float(micro[0]),
        micro_recall=float(micro[1]),
        micro_f1=float(micro[2]),
        **_macro(per_label),
        accuracy=float(best_is_right_N[has_labels_N].mean()) if has_labels_N.any() else 0.0,
        exact_match=float((given_NL == targets_NL).all(axis=1).mean()),
        cross_entropy=float(-np.log(np.maximum(likelihood_NL, MIN_SCORE)).mean()),
        calibration_error=label_calibration_error(scores_NL, targets_NL),
        calibration_error_before=label_calibration_error(before_NL, targets_NL),
        **_tags(given_NL, targets_NL),
        intervals=bootstrap_multi_label(scores_NL, targets_NL, given_NL),
        per_label=per_label,
        confusion_LL=confusion_LL,
        most_confused=most_confused(confusion_LL, labels, targets_NL.sum(axis=0)),
        reliability=measure_reliability(scores_NL.ravel(), targets_NL.ravel()),
        reliability_before=measure_reliability(before_NL.ravel(), targets_NL.ravel()),
    )


def most_confused(
    confusion_LL: np.ndarray, labels: Sequence[str], support_L: np.ndarray | None = None, num: int = MAX_CONFUSED_PAIRS
) -> list[ConfusedPair]:
    """List the pairs of labels that were mixed up, the most frequent first.

    Args:
      confusion_LL: int[L, L], actual x predicted.
      labels: L names.
      support_L: int[L], images of each label; None: the sums of the rows.
      num: at most so many.
    """
    wrong_LL = confusion_LL.copy()
    np.fill_diagonal(wrong_LL, 0)
    support_L = confusion_LL.sum(axis=1) if support_L is None else support_L
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


def _macro(per_label: list[LabelFigures]) -> dict[str, float]:
    used = [row for row in per_label if row.support]
    names = ("precision", "recall", "f1")
    return {f"macro_{name}": float(np.mean([getattr(row, name) for row in used] or [0.0])) for name in names}


def _ranking(per_label: list[LabelFigures]) -> dict[str, float | None]:
    precisions = [row.average_precision for row in per_label if row.average_precision is not None]
    areas = [row.auc for row in per_label if row.auc is not None]
    return {
        "mean_average_precision": float(np.mean(precisions)) if precisions else 0.0,
        "mean_auc": float(np.mean(areas)) if areas else None,
    }


def _tags(given_NL: np.ndarray, targets_NL: np.ndarray) -> dict[str, float | None]:
    num_given = int(given_NL.sum())
    return {
        "tagged_share": float(given_NL.any(axis=1).mean()),
        "tag_precision": float((given_NL & targets_NL).sum() / num_given) if num_given else None,
    }


def _figures_per_label(
    actual: np.ndarray, predicted: np.ndarray, scores_NL: np.ndarray, targets_NL: np.ndarray,
    thresholds_L: np.ndarray, labels: Sequence[str],
) -> list[LabelFigures]:  # fmt: skip
    columns = sklearn_metrics.precision_recall_fscore_support(
        actual, predicted, labels=np.arange(len(labels)), average=None, zero_division=0
    )
    precision_L, recall_L, f1_L, support_L = columns
    given_L = predicted.sum(axis=0) if predicted.ndim == 2 else np.bincount(predicted, minlength=len(labels))
    rows = []
    for i, label in enumerate(labels):
        average_precision, auc = _rank_figures(targets_NL[:, i], scores_NL[:, i])
        threshold = float(thresholds_L[i]) if np.isfinite(thresholds_L[i]) else None
        numbers = (float(precision_L[i]), float(recall_L[i]), float(f1_L[i]), int(support_L[i]), int(given_L[i]))
        rows.append(LabelFigures(label, *numbers, average_precision, auc, threshold))
    return rows


def _rank_figures(targets_N: np.ndarray, score_N: np.ndarray) -> tuple[float | None, float | None]:
    """Average precision and area under the ROC curve."""
    if not targets_N.any():
        return None, None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        average_precision = float(sklearn_metrics.average_precision_score(targets_N, score_N))
    return average_precision, None if targets_N.all() else float(sklearn_metrics.roc_auc_score(targets_N, score_N))
