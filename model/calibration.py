"""Calibrate a head: one temperature, fitted on validation data, so that a score is about how often it is right.

Scores of 0.8 should be right four times out of five. Dividing the logits by one temperature T keeps the order of
labels, and so accuracy, and corrects how sure the head is.
Source: Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks", ICML 2017.

Array suffixes: N images, L labels.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

# One number needs little data, yet with fewer images than this the fitted T varies by tens of percent from one
# draw of the validation split to the next, more than what calibration corrects.
MIN_IMAGES = 50
# Below and above these a head is not badly calibrated but broken, or the validation split is perfectly separated
# (its best T is then 0, which would turn every score into 0 or 1).
MIN_TEMPERATURE = 0.25
MAX_TEMPERATURE = 10.0


def fit_temperature(logits_NL: np.ndarray, label_ids_N: np.ndarray) -> float:
    """Find the temperature that gives the lowest cross-entropy on validation data.

    Args:
      logits_NL: float[N, L], the head's outputs before softmax.
      label_ids_N: int[N], the right labels.
    Returns:
      T between `MIN_TEMPERATURE` and `MAX_TEMPERATURE`; exactly 1 with fewer than `MIN_IMAGES` images or one label.
    Raises:
      ValueError: shapes that do not go together, or logits that are not finite.
    """
    logits_NL, label_ids_N = np.asarray(logits_NL, np.float64), np.asarray(label_ids_N)
    if logits_NL.ndim != 2 or label_ids_N.shape != logits_NL.shape[:1]:
        raise ValueError(f"expected logits[N, L] and ids[N], got {logits_NL.shape} and {label_ids_N.shape}")
    if not np.isfinite(logits_NL).all():
        raise ValueError("expected finite logits, got NaN or infinity")
    num_images, num_labels = logits_NL.shape
    if num_images < MIN_IMAGES or num_labels < 2:
        return 1.0

    def cross_entropy(inverse_temperature: float) -> float:
        return -log_softmax(logits_NL * inverse_temperature, axis=1)[np.arange(num_images), label_ids_N].mean()

    # Convex in 1 / T, so a bounded search finds the one minimum.
    found = minimize_scalar(cross_entropy, bounds=(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), options={"xatol": 1e-6})
    return float(1 / found.x)
