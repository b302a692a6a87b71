"""model/thresholds.py: thresholds that hold on other images, and what they rest on."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve

from bulktag.model.thresholds import (
    MAX_F1_THRESHOLD,
    MAX_SCORES,
    MIN_IMAGES_FOR_F1,
    as_scores,
    precision_low,
    record_thresholds,
    thresholds_for_f1,
    thresholds_for_precision,
)

LABELS = tuple("abcdefgh")


def draw(num, seed, shift=3.0):
    """Calibrated scores of 8 labels, rarer from one to the next, and what is true."""
    generator = np.random.default_rng(seed)
    scores_NL = expit(generator.normal(size=(num, 8)) * 3 - shift - np.arange(8) / 4)
    return scores_NL.astype(np.float32), generator.random((num, 8)) < scores_NL


@pytest.mark.parametrize("target", [0.8, 0.9])
def test_switched_on_labels_reach_the_target_on_other_images(target):
    thresholds = thresholds_for_precision(record_thresholds(*draw(3000, 0)), LABELS, target)
    scores_NL, targets_NL = draw(20_000, 1)
    given_NL = scores_NL >= as_scores(thresholds)
    on = [i for i, row in enumerate(thresholds) if row.threshold is not None]
    assert len(on) >= 3
    for label in on:
        right, given = int(targets_NL[given_NL[:, label], label].sum()), int(given_NL[:, label].sum())
        assert binomtest(right, given).proportion_ci(0.95).high >= target
    for row in (thresholds[i] for i in on):
        assert row.precision_low >= target and row.given > 10


def test_label_that_cannot_reach_the_target_is_off_and_says_how_much_it_was_seen():
    scores_NL, targets_NL = draw(1000, 0)
    targets_NL[:, 3] = np.random.default_rng(5).random(1000) < 0.3  # whatever its scores say
    targets_NL[:, 4] = False
    targets_NL[:5, 4], scores_NL[:5, 4] = True, 0.999  # always right, and seen five times
    thresholds = thresholds_for_precision(record_thresholds(scores_NL, targets_NL), LABELS, 0.9)
    assert thresholds[3].threshold is None and thresholds[3].support == targets_NL[:, 3].sum()
    assert thresholds[4].threshold is None and thresholds[4].support == 5
    assert as_scores(thresholds)[3] == np.inf


def test_f1_thresholds_are_the_best_ones_and_at_most_one_half():
    scores_NL, targets_NL = draw(2000, 0)
    for label, row in enumerate(thresholds_for_f1(record_thresholds(scores_NL, targets_NL), LABELS)):
        precision, recall, _ = precision_recall_curve(targets_NL[:, label], scores_NL[:, label])
        best = (2 * precision * recall / np.maximum(precision + recall, 1e-9)).max()
        given_N = scores_NL[:, label] >= row.threshold
        right = (given_N & targets_NL[:, label]).sum()
        assert 2 * right / (given_N.sum() + targets_NL[:, label].sum()) > best - 0.01
        assert row.threshold <= MAX_F1_THRESHOLD
        assert row.given == pytest.approx(given_N.sum(), rel=0.1)


def test_label_with_few_images_takes_the_threshold_of_the_others():
    scores_NL, targets_NL = draw(2000, 0)
    few = np.flatnonzero(targets_NL[:, 0])[MIN_IMAGES_FOR_F1 - 1 :]
    targets_NL[few, 0] = False
    found = thresholds_for_f1(record_thresholds(scores_NL, targets_NL), LABELS)[0].threshold
    given_TN = scores_NL.ravel() >= np.linspace(0.01, 0.5, 50)[:, None]
    f1_T = 2 * (given_TN & targets_NL.ravel()).sum(1) / (given_TN.sum(1) + targets_NL.sum())
    assert f1_T[round(found * 100) - 1] > f1_T.max() - 0.01
    nothing = thresholds_for_f1(record_thresholds(np.zeros((0, 2)), np.zeros((0, 2))), ("a", "b"))
    assert [row.threshold for row in nothing] == [MAX_F1_THRESHOLD] * 2 and nothing[0].precision is None


def test_record_is_small_and_exact_at_its_scores():
    scores_NL, targets_NL = draw(30_000, 0, shift=0.0)
    record = record_thresholds(scores_NL, targets_NL)
    assert record.scores_LK.shape == (8, MAX_SCORES)
    for score, given, right in zip(record.scores_LK[0], record.given_LK[0], record.right_LK[0], strict=True):
        reached_N = scores_NL[:, 0] >= score
        assert (reached_N.sum(), targets_NL[reached_N, 0].sum()) == (given, right)


def test_bound_of_a_precision_rises_with_evidence():
    assert precision_low(0, 0) == precision_low(0, 9) == 0
    assert precision_low(5, 5) < precision_low(50, 50) < 1
    # Over many draws, the truth lies above the bound as often as it says.
    right = np.random.default_rng(0).binomial(60, 0.85, 20_000)
    assert (precision_low(right, 60) <= 0.85).mean() == pytest.approx(0.9, abs=0.04)
