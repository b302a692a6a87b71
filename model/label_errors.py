"""Images whose labels are probably wrong, by confident learning.

For each label, the mean score that its own images get is what the model is usually sure of it with. An image that
another label's score reaches that for, while its own label is not even the most likely of such, was probably labelled
wrongly. Scores must be of images that the model was not trained on. Source: Northcutt, Jiang and Chuang, "Confident
learning: estimating uncertainty in dataset labels", JAIR 2021, section 3.1. (Its authors' library is under the AGPL.)

Array suffixes: N images, L labels.
"""

from typing import NamedTuple

import numpy as np


class LabelError(NamedTuple):
    """An image whose label is probably wrong."""

    row: int  # of the image
    given: int | None  # label id; None: the label that it lacks is `suggested`
    suggested: int | None  # label id; None: it should not have `given`
    margin: float  # how much likelier the other is, in score


def find_label_errors(scores_NL: np.ndarray, label_ids_N: np.ndarray) -> list[LabelError]:
    """Where each image has one label; the surest errors first.

    Args:
      scores_NL: float[N, L], calibrated.
      label_ids_N: int[N].
    """
    rows = np.arange(len(scores_NL))
    own_N = scores_NL[rows, label_ids_N]
    counts_L = np.bincount(label_ids_N, minlength=scores_NL.shape[1])
    with np.errstate(invalid="ignore"):
        usual_L = np.bincount(label_ids_N, own_N, scores_NL.shape[1]) / counts_L
    confident_NL = np.where(scores_NL >= np.where(counts_L > 0, usual_L, np.inf), scores_NL, -1.0)
    best_N = confident_NL.argmax(axis=1)
    wrong = np.flatnonzero((confident_NL[rows, best_N] >= 0) & (best_N != label_ids_N))
    margin = scores_NL[wrong, best_N[wrong]] - own_N[wrong]
    return [
        LabelError(int(wrong[i]), int(label_ids_N[wrong[i]]), int(best_N[wrong[i]]), float(margin[i]))
        for i in np.argsort(-margin, kind="stable")
        if margin[i] > 0
    ]


def find_multi_label_errors(scores_NL: np.ndarray, targets_NL: np.ndarray) -> list[LabelError]:
    """Where each image has any number of labels, each label by itself; the surest errors first.

    Args:
      scores_NL: float[N, L], calibrated.
      targets_NL: bool[N, L].
    """
    found = []
    for label in np.flatnonzero(targets_NL.any(axis=0) & ~targets_NL.all(axis=0)):
        score_N, has_N = scores_NL[:, label].astype(np.float64), targets_NL[:, label]
        usual_with, usual_without = score_N[has_N].mean(), score_N[~has_N].mean()
        for row in np.flatnonzero(~has_N & (score_N >= max(usual_with, 0.5))):
            found.append(LabelError(int(row), None, int(label), float(2 * score_N[row] - 1)))
        for row in np.flatnonzero(has_N & (score_N <= min(usual_without, 0.5))):
            found.append(LabelError(int(row), int(label), None, float(1 - 2 * score_N[row])))
    return sorted(found, key=lambda error: -error.margin)
