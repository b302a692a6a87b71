"""Bootstrap intervals: how far a figure could have come out otherwise with other images of the same kind.

Images are drawn again with replacement; the middle 95% of what each figure then is are its interval. Each draw is a
number of times that every image counts, so figures that are sums over images cost one product. Source: Efron and
Tibshirani, "An introduction to the bootstrap", 1993, chapter 13 (percentile intervals).

Array suffixes: N images, L labels.
"""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import average_precision_score

from bulktag.model.reliability import CALIBRATION_BINS, bins_of

NUM_DRAWS = 500
LEVEL = 0.95
# Average precision sorts anew for each label and draw: so many scores in all are looked at, 10 seconds' worth.
MAX_SORTED_SCORES = 60_000_000
# Images drawn in all, where there are so many that fewer draws do.
MAX_DRAWN = 50_000_000
MIN_DRAWS = 20
SEED = 0

Intervals = dict[str, tuple[float, float]]


def bootstrap_single_label(
    actual_N: np.ndarray, predicted_N: np.ndarray, rank_N: np.ndarray, best_N: np.ndarray, losses_N: np.ndarray,
    num_labels: int,
) -> Intervals:  # fmt: skip
    """Intervals where each image has one label.

    Args:
      actual_N, predicted_N: int[N], label ids.
      rank_N: int[N], rank of the right label, 0 is best.
      best_N: float[N], score of the predicted label.
      losses_N: float[N], cross-entropy of each image.
      num_labels: L.
    """
    right_N = (rank_N == 0).astype(float)
    top_5_N = (rank_N < 5).astype(float)
    bin_N, gap_N = bins_of(best_N), best_N - right_N

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        num = counts_N.sum()
        supported_L = np.bincount(actual_N, counts_N, num_labels)
        given_L = np.bincount(predicted_N, counts_N, num_labels)
        found_L = np.bincount(actual_N, counts_N * right_N, num_labels)
        return {
            "accuracy": counts_N @ right_N / num,
            "top_5_accuracy": counts_N @ top_5_N / num,
            "cross_entropy": counts_N @ losses_N / num,
            "calibration_error": np.abs(np.bincount(bin_N, counts_N * gap_N, CALIBRATION_BINS)).sum() / num,
            "macro_f1": _macro_f1(found_L, given_L, supported_L),
        }

    return _draw(len(actual_N), NUM_DRAWS, measure)


def bootstrap_multi_label(scores_NL: np.ndarray, targets_NL: np.ndarray, given_NL: np.ndarray) -> Intervals:
    """Intervals where an image has any number of labels.

    Args:
      scores_NL: float[N, L].
      targets_NL, given_NL: bool[N, L].
    """
    found_NL = (targets_NL & given_NL).astype(np.float32)
    targets_as_NL, given_as_NL = targets_NL.astype(np.float32), given_NL.astype(np.float32)
    exact_N = (targets_NL == given_NL).all(axis=1)

    def measure(counts_N: np.ndarray) -> dict[str, float]:
        found_L, given_L, supported_L = counts_N @ found_NL, counts_N @ given_as_NL, counts_N @ targets_as_NL
        return {
            "micro_precision": found_L.sum() / max(given_L.sum(), 1),
            "micro_recall": found_L.sum() / max(supported_L.sum(), 1),
            "micro_f1": 2 * found_L.sum() / max(given_L.sum() + supported_L.sum(), 1),
            "macro_f1": _macro_f1(found_L, given_L, supported_L),
            "exact_match": counts_N @ exact_N / counts_N.sum(),
        }

    def measure_ranking(counts_N: np.ndarray) -> dict[str, float]:
        drawn_N = counts_N > 0
        precisions = [
            average_precision_score(
                targets_NL[drawn_N, label], scores_NL[drawn_N, label], sample_weight=counts_N[drawn_N]
            )
            for label in np.flatnonzero(targets_NL[drawn_N].any(axis=0))
        ]
        return {"mean_average_precision": float(np.mean(precisions or [0.0]))}

    num_draws = int(np.clip(MAX_SORTED_SCORES // max(scores_NL.size, 1), MIN_DRAWS, NUM_DRAWS))
    return _draw(len(scores_NL), NUM_DRAWS, measure) | _draw(len(scores_NL), num_draws, measure_ranking)


def _macro_f1(found_L: np.ndarray, given_L: np.ndarray, supported_L: np.ndarray) -> float:
    used_L = supported_L > 0
    return float((2 * found_L[used_L] / (given_L[used_L] + supported_L[used_L])).mean()) if used_L.any() else 0.0


def _draw(num_images: int, num_draws: int, measure: Callable[[np.ndarray], dict[str, float]]) -> Intervals:
    generator = np.random.default_rng(SEED)
    num_draws = int(np.clip(MAX_DRAWN // num_images, MIN_DRAWS, num_draws))
    rows = [
        measure(np.bincount(generator.integers(0, num_images, num_images), minlength=num_images).astype(np.float32))
        for _ in range(num_draws)
    ]
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {name: tuple(map(float, np.quantile([row[name] for row in rows], edges))) for name in rows[0]}
