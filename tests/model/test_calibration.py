"""model/calibration.py: the temperature against scikit-learn's, and its guards."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from bulktag.model.calibration import MAX_TEMPERATURE, MIN_IMAGES, MIN_TEMPERATURE, fit_temperature
from bulktag.model.metrics import calibration_error


def draw_logits(temperature, num=3000, num_labels=4, seed=0):
    """Logits that are `temperature` times too large for how often they are right."""
    generator = np.random.default_rng(seed)
    honest_NL = generator.normal(size=(num, num_labels)) * 2
    ids_N = np.array([generator.choice(num_labels, p=p) for p in softmax(honest_NL, axis=1)])
    return honest_NL * temperature, ids_N


class Passthrough(ClassifierMixin, BaseEstimator):
    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_of_overconfident_and_shy_heads_is_found(temperature):
    logits_NL, ids_N = draw_logits(temperature)
    assert fit_temperature(logits_NL, ids_N) == pytest.approx(temperature, rel=0.1)


def test_temperature_agrees_with_scikit_learn():
    logits_NL, ids_N = draw_logits(2.0)
    reference = CalibratedClassifierCV(FrozenEstimator(Passthrough().fit(logits_NL, ids_N)), method="temperature")
    expected_NL = reference.fit(logits_NL, ids_N).predict_proba(logits_NL)
    ours_NL = softmax(logits_NL / fit_temperature(logits_NL, ids_N), axis=1)
    np.testing.assert_allclose(ours_NL, expected_NL, atol=1e-4)


def test_temperature_lowers_calibration_error_on_other_images():
    logits_NL, ids_N = draw_logits(3.0, seed=1)
    temperature = fit_temperature(*draw_logits(3.0, seed=2))
    errors = []
    for t in (1.0, temperature):
        scores_NL = softmax(logits_NL / t, axis=1)
        errors.append(calibration_error(scores_NL.max(axis=1), scores_NL.argmax(axis=1) == ids_N))
    assert errors[1] < 0.3 * errors[0]


def test_perfectly_separated_and_hopeless_validation_stay_in_range():
    ids_N = np.arange(200) % 4
    assert fit_temperature(np.eye(4)[ids_N], ids_N) == pytest.approx(MIN_TEMPERATURE, rel=1e-3)
    assert fit_temperature(np.eye(4)[(ids_N + 1) % 4] * 50, ids_N) == pytest.approx(MAX_TEMPERATURE, rel=1e-3)


def test_too_few_images_or_one_label_leave_scores_as_they_are():
    logits_NL, ids_N = draw_logits(3.0, num=MIN_IMAGES - 1)
    assert fit_temperature(logits_NL, ids_N) == 1.0
    assert fit_temperature(np.ones((200, 1)), np.zeros(200, int)) == 1.0


def test_nan_logits_are_refused():
    with pytest.raises(ValueError, match="finite logits"):
        fit_temperature(np.full((100, 3), np.nan), np.zeros(100, int))
