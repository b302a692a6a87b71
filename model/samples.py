"""Pick the images that a report shows: right, wrong and doubtful ones.

Array suffixes: N images, L labels.
"""

from typing import NamedTuple

import numpy as np

SEED = 0


class Samples(NamedTuple):
    """Numbers of images, the most telling first."""

    wrong: list[int]
    doubtful: list[int]
    right: list[int]


def worst_first(scores_NL: np.ndarray, targets_NL: np.ndarray, thresholds_L: np.ndarray | None) -> np.ndarray:
    """Numbers of the images that were tagged wrongly, those that the model was surest of first.

    Args:
      scores_NL: float[N, L], calibrated.
      targets_NL: bool[N, L].
      thresholds_L: float[L], with any number of labels an image; None: each has one, and the best score is meant.
    """
    if thresholds_L is None:
        predicted_N = scores_NL.argmax(axis=1)
        wrong_N = ~targets_NL[np.arange(len(scores_NL)), predicted_N]
        sureness_N = scores_NL.max(axis=1)
    else:
        wrong_NL = (scores_NL >= thresholds_L) != targets_NL
        wrong_N = wrong_NL.any(axis=1)
        sureness_N = np.where(wrong_NL, np.where(targets_NL, 1 - scores_NL, scores_NL), 0).max(axis=1)
    rows = np.flatnonzero(wrong_N)
    return rows[np.argsort(-sureness_N[rows], kind="stable")]


def pick_samples(
    scores_NL: np.ndarray, targets_NL: np.ndarray, thresholds_L: np.ndarray | None, wrong: np.ndarray, num: int
) -> Samples:
    """Pick at most `num` images of each kind; `wrong` is what `worst_first` says of the others.

    Wrong ones are spread over what they were taken for, right ones over the labels. Doubtful is where the two best
    labels are closest, or a label is closest to its threshold.
    """
    if thresholds_L is None:
        two_N2 = (
            np.partition(scores_NL, -2, axis=1)[:, -2:] if scores_NL.shape[1] > 1 else np.zeros((len(scores_NL), 2))
        )
        doubt_N = two_N2[:, 1] - two_N2[:, 0]
    else:
        doubt_N = np.abs(scores_NL - np.where(np.isfinite(thresholds_L), thresholds_L, 2.0)).min(axis=1)
    kind_N = scores_NL.argmax(axis=1)
    right = np.setdiff1d(np.flatnonzero(targets_NL.any(axis=1)), wrong)
    right = np.random.default_rng(SEED).permutation(right)
    doubtful = np.argsort(doubt_N, kind="stable")
    return Samples(_spread(wrong, kind_N, num), doubtful[:num].tolist(), _spread(right, kind_N, num))


def _spread(rows: np.ndarray, kind_N: np.ndarray, num: int) -> list[int]:
    """The first of each kind, then the second of each, and so on; in the order of `rows` otherwise."""
    seen: dict[int, int] = {}
    turn = []
    for row in rows.tolist():
        kind = int(kind_N[row])
        turn.append(seen.get(kind, 0))
        seen[kind] = turn[-1] + 1
    return [rows.tolist()[i] for i in np.argsort(turn, kind="stable")[:num]]
