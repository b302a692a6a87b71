"""model/calibration.py: temperatures and sigmoids find what distorted the logits, and their guards."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from bulktag.model.calibration import (
    MAX_TEMPERATURE,
    MIN_IMAGES,
    MIN_IMAGES_PER_LABEL,
    MIN_TEMPERATURE,
    Calibration,
    fit_sigmoids,
    fit_temperature,
)
from bulktag.model.reliability import calibration_error


def draw_logits(temperature, num=3000, num_labels=4, seed=0):
    """Logits that are `temperature` times too large for how often they are right."""
    generator = np.random.default_rng(seed)
    honest_NL = generator.normal(size=(num, num_labels)) * 2
    ids_N = np.array([generator.choice(num_labels, p=p) for p in softmax(honest_NL, axis=1)])
    return honest_NL * temperature, ids_N


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_of_overconfident_and_shy_heads_is_found(temperature):
    logits_NL, ids_N = draw_logits(temperature)
    assert fit_temperature(logits_NL, ids_N).temperature == pytest.approx(temperature, rel=0.1)


def test_temperature_is_that_of_the_lowest_cross_entropy():
    logits_NL, ids_N = draw_logits(2.0)
    found = fit_temperature(logits_NL, ids_N).temperature

    def cross_entropy(temperature):
        return -log_softmax(logits_NL / temperature, axis=1)[np.arange(len(ids_N)), ids_N].mean()

    assert cross_entropy(found) <= min(cross_entropy(found * 0.98), cross_entropy(found * 1.02))


@pytest.mark.parametrize("num_labels", [2, 3])
def test_labels_that_validation_does_not_have_do_not_disturb(num_labels):
    logits_NL, ids_N = draw_logits(3.0, num_labels=num_labels)
    wider_NL = np.concatenate([logits_NL, np.full((len(logits_NL), 2), -50.0)], axis=1)
    expected = fit_temperature(logits_NL, ids_N).temperature
    assert fit_temperature(wider_NL, ids_N).temperature == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx(3.0, rel=0.1)


def test_temperature_lowers_calibration_error_on_other_images():
    logits_NL, ids_N = draw_logits(3.0, seed=1)
    temperature = fit_temperature(*draw_logits(3.0, seed=2)).temperature
    errors = []
    for t in (1.0, temperature):
        scores_NL = softmax(logits_NL / t, axis=1)
        errors.append(calibration_error(scores_NL.max(axis=1), scores_NL.argmax(axis=1) == ids_N))
    assert errors[1] < 0.3 * errors[0]


def test_perfectly_separated_and_hopeless_validation_stay_in_range():
    ids_N = np.arange(200) % 4
    assert fit_temperature(np.eye(4)[ids_N], ids_N).temperature == pytest.approx(MIN_TEMPERATURE, rel=1e-3)
    assert fit_temperature(np.eye(4)[(ids_N + 1) % 4] * 50, ids_N).temperature == pytest.approx(
        MAX_TEMPERATURE, rel=1e-3
    )


def test_too_few_images_or_one_label_leave_scores_as_they_are():
    logits_NL, ids_N = draw_logits(3.0, num=MIN_IMAGES - 1)
    assert fit_temperature(logits_NL, ids_N).method == "none"
    assert fit_temperature(np.ones((200, 1)), np.zeros(200, int)).method == "none"


def test_nan_logits_are_refused():
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(np.full((100, 3), np.nan), np.zeros(100, int))


def draw_labels(slope_L, offset_L, num=4000, seed=0):
    """Logits of labels by themselves that need these slopes and offsets to be honest."""
    generator = np.random.default_rng(seed)
    honest_NL = generator.normal(size=(num, len(slope_L))) * 2 - 1
    return (honest_NL - offset_L) / slope_L, generator.random(honest_NL.shape) < expit(honest_NL)


def test_each_label_gets_a_slope_and_an_offset_of_its_own():
    slope_L, offset_L = np.array([0.5, 1.0, 3.0]), np.array([1.0, 0.0, -2.0])
    found = fit_sigmoids(*draw_labels(slope_L, offset_L))
    assert found.method == "sigmoid"
    np.testing.assert_allclose(found.slope_L, slope_L, rtol=0.1)
    np.testing.assert_allclose(found.offset_L, offset_L, atol=0.15)


def test_label_with_few_images_or_against_its_scores_is_calibrated_like_all_together():
    logits_NL, targets_NL = draw_labels(np.full(4, 0.5), np.zeros(4))
    targets_NL[:, 1] = False
    targets_NL[: MIN_IMAGES_PER_LABEL - 1, 1] = True
    logits_NL[:, 2] *= -1
    found = fit_sigmoids(logits_NL, targets_NL)
    assert found.slope_L[1] == found.slope_L[2] != found.slope_L[0]
    assert (found.slope_L > 0).all()


def test_undoing_a_calibration_gives_the_scores_before_it():
    logits_NL = np.random.default_rng(0).normal(size=(50, 3)) * 3
    slope_L, offset_L = np.array([0.5, 2.0, 1.0]), np.array([1.0, -1.0, 0.0])
    sigmoid = Calibration("sigmoid", slope_L, offset_L)
    np.testing.assert_allclose(sigmoid.undo(expit(logits_NL * slope_L + offset_L)), expit(logits_NL), atol=1e-6)
    temperature = Calibration("temperature", np.full(3, 0.4), np.zeros(3))
    np.testing.assert_allclose(
        temperature.undo(softmax(logits_NL * 0.4, axis=1)), softmax(logits_NL, axis=1), atol=1e-9
    )
    assert temperature.temperature == 2.5
    assert Calibration.from_json(sigmoid.to_json()).to_json() == sigmoid.to_json()
