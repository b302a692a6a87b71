"""Choose the score from which each label becomes a tag, and say on how many validation images that rests.

What validation showed of each label, at every score that matters, is kept in the bundle: `bulktag tag
--target-precision` chooses anew without the examples.

Array suffixes: N images, L labels, K scores kept of each label.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv
from sklearn.metrics import confusion_matrix_at_thresholds

# Scores kept of each label, at most: about evenly spread over how many images reach them, on a logarithmic scale,
# because precision is decided where few do.
MAX_SCORES = 96
# A precision is believed if it lies above the target with this certainty: a label that was right 10 times out of 10
# may well be right in 8 of 10 cases.
CERTAINTY = 0.9
# The best threshold for F1 of calibrated scores is half of the F1 that it reaches, and so never above one half. Source:
# Lipton, Elkan and Naryanaswamy, "Optimal thresholding of classifiers to maximize F1 measure", ECML 2014, theorem 1.
MAX_F1_THRESHOLD = 0.5
# With fewer images of a label its best F1 is a matter of chance: the best threshold for all labels together is taken.
MIN_IMAGES_FOR_F1 = 10


class LabelThreshold(NamedTuple):
    """A label's threshold and what it rests on, as bundle.json has it."""

    label: str
    threshold: float | None  # None: the label is switched off
    precision: float | None  # on the validation images that reach the threshold; None where none does
    precision_low: float | None  # with `CERTAINTY` it is at least this
    recall: float | None  # share of the label's validation images that reach the threshold; None where it has none
    given: int  # validation images that reach the threshold
    support: int  # validation images that have the label


@dataclasses.dataclass(frozen=True, eq=False)
class ThresholdRecord:
    """What validation showed of each label.

    Attributes:
      scores_LK: float32[L, K], falling; NaN beyond a label's last.
      given_LK: int32[L, K], images that reach the score.
      right_LK: int32[L, K], how many of them have the label.
      support_L: int32[L], images that have the label.
    """

    scores_LK: np.ndarray
    given_LK: np.ndarray
    right_LK: np.ndarray
    support_L: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, as they are saved."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def record_thresholds(scores_NL: np.ndarray, targets_NL: np.ndarray) -> ThresholdRecord:
    """Note what each threshold would have given.

    Args:
      scores_NL: float[N, L], calibrated scores of validation images.
      targets_NL: [N, L] of 0 and 1.
    """
    scores_NL, targets_NL = np.asarray(scores_NL, np.float32), np.asarray(targets_NL).astype(bool)
    assert scores_NL.shape == targets_NL.shape
    num_labels = scores_NL.shape[1]
    scores_LK = np.full((num_labels, MAX_SCORES), np.nan, np.float32)
    given_LK, right_LK = np.zeros((2, num_labels, MAX_SCORES), np.int32)
    for label in range(num_labels if len(scores_NL) else 0):
        scores_K, given_K, right_K = _candidates(scores_NL[:, label], targets_NL[:, label])
        scores_LK[label, : len(scores_K)] = scores_K
        given_LK[label, : len(scores_K)], right_LK[label, : len(scores_K)] = given_K, right_K
    return ThresholdRecord(scores_LK, given_LK, right_LK, targets_NL.sum(axis=0, dtype=np.int32))


def _candidates(scores_N: np.ndarray, targets_N: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """At most `MAX_SCORES` thresholds, the images that reach them, and how many of those have the label."""
    if not targets_N.any():
        return np.zeros(0), np.zeros(0), np.zeros(0)
    _, wrong_T, _, right_T, scores_T = confusion_matrix_at_thresholds(targets_N, scores_N, pos_label=True)
    # Lowering a threshold past images without the label only loses precision.
    useful_T = np.flatnonzero(np.diff(right_T, prepend=0))
    if len(useful_T) > MAX_SCORES:
        kept = np.unique(np.geomspace(1, len(useful_T), 4 * MAX_SCORES).astype(int) - 1)
        useful_T = useful_T[kept[np.linspace(0, len(kept) - 1, MAX_SCORES).astype(int)]]
    return scores_T[useful_T], (wrong_T + right_T)[useful_T].astype(int), right_T[useful_T].astype(int)


def precision_low(right, given, certainty: float = CERTAINTY):
    """Lower bound of a precision, one-sided, by Jeffreys' interval; arrays or numbers; 0 for none given.

    Source: Brown, Cai and DasGupta, "Interval estimation for a binomial proportion", 2001.
    """
    right, given = np.asarray(right, float), np.asarray(given, float)
    bound = betaincinv(right + 0.5, given - right + 0.5, 1 - certainty)
    return np.where(right > 0, bound, 0.0)


def thresholds_for_precision(record: ThresholdRecord, labels: tuple[str, ...], target: float) -> list[LabelThreshold]:
    """The lowest threshold of each label that reaches a precision with `CERTAINTY`; None where none does.

    Args:
      record: of validation images.
      labels: L names.
      target: precision, above 0, at most 1.
    """
    # A threshold without any image above it would never be tested.
    reached_LK = (precision_low(record.right_LK, record.given_LK) >= target) & (record.given_LK > 0)
    column_L = reached_LK.shape[1] - 1 - reached_LK[:, ::-1].argmax(axis=1)  # the last, and so the lowest
    column_L = np.where(reached_LK.any(axis=1), column_L, -1)
    return [_describe(record, labels, label, column) for label, column in enumerate(column_L.tolist())]


def thresholds_for_f1(record: ThresholdRecord, labels: tuple[str, ...]) -> list[LabelThreshold]:
    """The threshold of each label with the best F1, one half at most; labels with few images share that of all."""
    with np.errstate(invalid="ignore"):
        f1_LK = 2 * record.right_LK / np.maximum(record.given_LK + record.support_L[:, None], 1)
    best_L = f1_LK.argmax(axis=1)
    chosen_L = record.scores_LK[np.arange(len(labels)), best_L]
    trusted_L = record.support_L >= MIN_IMAGES_FOR_F1
    chosen_L = np.minimum(np.where(trusted_L, chosen_L, _common_f1_threshold(record)), MAX_F1_THRESHOLD)
    return [_describe_at(record, labels, label, float(score)) for label, score in enumerate(chosen_L)]


def _common_f1_threshold(record: ThresholdRecord) -> float:
    """The one threshold of all labels with the best F1 over all decisions; one half where that rests on few images."""
    num_positives = record.support_L.sum()
    if num_positives < MIN_IMAGES_FOR_F1:
        return MAX_F1_THRESHOLD
    tried_T = np.linspace(0, MAX_F1_THRESHOLD, 51)[1:]
    given_T, right_T = np.zeros(len(tried_T)), np.zeros(len(tried_T))
    for scores_K, given_K, right_K in zip(record.scores_LK, record.given_LK, record.right_LK, strict=True):
        num_kept = np.count_nonzero(~np.isnan(scores_K))
        reached_T = np.searchsorted(-scores_K[:num_kept], -tried_T, side="right")  # kept scores from there on
        given_T += np.concatenate([[0], given_K])[reached_T]
        right_T += np.concatenate([[0], right_K])[reached_T]
    # Of equally good ones the highest: what is between it and the lower ones belongs to no label for sure.
    best_T = 2 * right_T / (given_T + num_positives)
    return float(tried_T[np.flatnonzero(best_T >= best_T.max() - 1e-9)[-1]])


def _describe(record: ThresholdRecord, labels: tuple[str, ...], label: int, column: int) -> LabelThreshold:
    if column < 0:
        return LabelThreshold(labels[label], None, None, None, None, 0, int(record.support_L[label]))
    return _describe_at(record, labels, label, float(record.scores_LK[label, column]))


def _describe_at(record: ThresholdRecord, labels: tuple[str, ...], label: int, threshold: float) -> LabelThreshold:
    """What is known of a threshold: what the lowest kept score at or above it gave."""
    reached = np.flatnonzero(record.scores_LK[label] >= np.float32(threshold))
    column = int(reached[-1]) if len(reached) else -1
    given = int(record.given_LK[label, column]) if column >= 0 else 0
    right = int(record.right_LK[label, column]) if column >= 0 else 0
    support = int(record.support_L[label])
    return LabelThreshold(
        labels[label],
        threshold,
        right / given if given else None,
        float(precision_low(right, given)) if given else None,
        right / support if support else None,
        given,
        support,
    )


def as_scores(thresholds: list[LabelThreshold]) -> list[float]:
    """The scores alone; infinity for labels that are switched off."""
    return [math.inf if row.threshold is None else row.threshold for row in thresholds]
