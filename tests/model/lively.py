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
    """Compare rows of results that must not be next to nothing.

    Drawn weights amplify rounding: the largest difference of EfficientNet-B0 was 0.002 of its largest value on one
    processor and 0.006 on another, its cosine 0.999998. A wrong pixel scaling or layer changes both much more.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    largest = np.abs(expected).max()
    assert largest > 1e-4
    np.testing.assert_allclose(actual / largest, expected / largest, atol=0.02)
    lengths = np.linalg.norm(actual, axis=1) * np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose((actual * expected).sum(axis=1) / lengths, 1.0, atol=1e-3)
