"""How far scores are from being right as often as they say.

Array suffixes: N images or decisions, L labels, K bins.
"""

from typing import NamedTuple

import numpy as np

# Bins of equal width over [0, 1], as in Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.
CALIBRATION_BINS = 15


class Reliability(NamedTuple):
    """Scores in bins of equal width, and how often they were right.

    Attributes:
      count_K: int64[K], scores in each bin.
      mean_score_K, share_right_K: float64[K]; NaN in an empty bin.
    """

    count_K: np.ndarray
    mean_score_K: np.ndarray
    share_right_K: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error: distances of scores from shares of right answers, averaged over the scores."""
        gap_K = np.nan_to_num(np.abs(self.mean_score_K - self.share_right_K))
        return float((gap_K * self.count_K).sum() / max(self.count_K.sum(), 1))


def measure_reliability(score_N: np.ndarray, right_N: np.ndarray, num_bins: int = CALIBRATION_BINS) -> Reliability:
    """Sort scores into bins.

    Args:
      score_N: float[N] in [0, 1], of the predicted label, or of a label by itself.
      right_N: bool[N], whether it was right.
      num_bins: K.
    """
    score_N = np.asarray(score_N, np.float64)
    bin_N = bins_of(score_N, num_bins)
    count_K = np.bincount(bin_N, minlength=num_bins)
    with np.errstate(invalid="ignore"):
        mean_score_K = np.bincount(bin_N, score_N, num_bins) / count_K
        share_right_K = np.bincount(bin_N, np.asarray(right_N, float), num_bins) / count_K
    return Reliability(count_K, mean_score_K, share_right_K)


def bins_of(score_N: np.ndarray, num_bins: int = CALIBRATION_BINS) -> np.ndarray:
    """int[N], the bin of each score."""
    return np.clip((np.asarray(score_N, np.float64) * num_bins).astype(int), 0, num_bins - 1)


def calibration_error(score_N: np.ndarray, right_N: np.ndarray, num_bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error; see `measure_reliability`."""
    return measure_reliability(score_N, right_N, num_bins).error


def label_calibration_error(scores_NL: np.ndarray, targets_NL: np.ndarray) -> float:
    """Expected calibration error of each label by itself, its mean over the labels that occur; 0 where none does.

    Source: Kull et al., "Beyond temperature scaling: obtaining well-calibrated multi-class probabilities with Dirichlet
    calibration", NeurIPS 2019 (classwise ECE).
    """
    used = np.flatnonzero(np.asarray(targets_NL).any(axis=0))
    errors = [calibration_error(scores_NL[:, label], targets_NL[:, label]) for label in used]
    return float(np.mean(errors)) if errors else 0.0
