"""Networks with weights that keep a signal alive.

Keras' own random weights make a deep network's output fade to 1e-12, where every comparison succeeds.
"""

import keras
import numpy as np

from bulktag.model import applications


def enliven(model, name, seed=0):
    """Draw every kernel anew (He et al., 2015) and set batch normalisation from random pictures."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) > 1:
            fan_in = np.prod(weight.shape[:-1]) if weight.shape[-1] > 1 else np.prod(weight.shape[:2])
            weight.assign(rng.normal(0, np.sqrt(2 / fan_in), weight.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    pixels_BHWC = rng.integers(0, 256, (8, *model.input_shape[1:])).astype(np.float32)
    model(applications.pixel_scaling(name)(pixels_BHWC), training=True)
    return model


def assert_agree(actual, expected):
    """Compare arrays to a thousandth of the largest value, which must not be next to nothing."""
    largest = np.abs(expected).max()
    assert largest > 1e-4
    np.testing.assert_allclose(actual / largest, np.asarray(expected) / largest, atol=1e-3)
