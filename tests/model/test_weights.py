import pathlib
import urllib.error
import warnings

import keras
import numpy as np
import pytest

from bulktag.model import applications, weights

SMALL_PX = 32


@pytest.fixture(scope="module")
def with_classifier():
    """MobileNet, the quickest to build, with a classifier of 5 classes."""
    return keras.applications.MobileNet(weights=None, classes=5, input_shape=(SMALL_PX, SMALL_PX, 3))


@pytest.fixture(scope="module")
def pooled_arrays(with_classifier):
    return with_classifier.get_weights()[:-2]


def _assert_same(arrays, expected):
    assert len(arrays) == len(expected)
    for array, other in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("file_name", ["a.weights.h5", "older.h5", "older_under_a_new_name.weights.h5"])
@pytest.mark.parametrize("include_top", [True, False], ids=["with classifier", "without"])
def test_weights_file_gives_its_network_without_a_warning(
    tmp_path, with_classifier, pooled_arrays, file_name, include_top
):
    model = with_classifier
    if not include_top:
        model = applications.build_application("mobilenet", SMALL_PX)
        model.set_weights(pooled_arrays)
    path = tmp_path / file_name
    if file_name == "a.weights.h5":
        model.save_weights(path)
    else:
        model.save(tmp_path / "older.h5")  # the layout of Keras 2
        (tmp_path / "older.h5").rename(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = weights.load_application("mobilenet", SMALL_PX, str(path))
    _assert_same(loaded.get_weights(), pooled_arrays)


def test_weights_of_another_network_are_refused(tmp_path, with_classifier):
    path = str(tmp_path / "a.weights.h5")
    with_classifier.save_weights(path)
    expected = r"expected the weights of mobilenet_v2 \(260 arrays\), got 137 arrays of which \d+ fit, none left"
    with pytest.raises(ValueError, match=expected):
        weights.load_application("mobilenet_v2", SMALL_PX, path)


def test_weights_of_a_wrapped_network_are_refused_in_one_line(tmp_path, with_classifier):
    """The arrays are all there, but another layout means that they cannot be told apart for sure."""
    path = str(tmp_path / "a.weights.h5")
    network = applications.build_application("mobilenet", SMALL_PX)
    keras.Sequential([keras.Input((SMALL_PX, SMALL_PX, 3)), network]).save_weights(path)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="cannot load weights into mobilenet") as caught:
        warnings.simplefilter("error", UserWarning)  # Keras would give one for each layer
        weights.load_application("mobilenet", SMALL_PX, path)
    assert "\n" not in str(caught.value)


def test_weights_of_a_network_with_a_foreign_top_are_refused(tmp_path):
    network = applications.build_application("mobilenet", SMALL_PX)
    outputs = keras.layers.Dense(7)(keras.layers.Dense(11)(network.output))
    path = str(tmp_path / "a.weights.h5")
    keras.Model(network.input, outputs).save_weights(path)
    with pytest.raises(ValueError, match="with or without its classifier, got 4 further arrays"):
        weights.load_application("mobilenet", SMALL_PX, path)


def test_copy_of_keras_own_efficientnet_file_is_scaled_as_keras_scales_it(tmp_path):
    """The file holds standard deviations for variances; Keras mends that for weights="imagenet" only."""
    model = applications.build_random_application("efficientnet_b0", SMALL_PX, 0)
    (norm,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    mean, stddev = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    norm.set_weights([mean, stddev, np.int64(1)])
    model.save_weights(tmp_path / "a.weights.h5")
    loaded = weights.load_application("efficientnet_b0", SMALL_PX, str(tmp_path / "a.weights.h5"))
    (norm,) = (layer for layer in loaded.layers if isinstance(layer, keras.layers.Normalization))
    pixels_BHWC = np.random.default_rng(0).random((1, SMALL_PX, SMALL_PX, 3), np.float32)
    np.testing.assert_allclose(norm(pixels_BHWC), (pixels_BHWC - mean) / stddev, rtol=1e-4, atol=1e-5)


def test_digest_tells_order_shape_and_values_apart():
    one, two = np.float32([1, 2]), np.float32([3])
    variants = [[one, two], [two, one], [one[None], two], [one, two + 1], [one]]
    assert len({weights.weights_digest(arrays) for arrays in variants}) == len(variants)
    assert weights.weights_digest([one]) == weights.weights_digest([one.copy()])


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr("keras.src.backend.config.keras_home", lambda: str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "failure",
    [
        urllib.error.URLError(OSError("unreachable")),
        urllib.error.ContentTooShortError("cut", b""),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
    ],
)
def test_without_network_the_error_says_what_to_pass_instead(empty_cache, monkeypatch, failure):
    def fail(*args):
        raise failure

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", fail)
    with pytest.raises(
        ValueError, match="expected the imagenet weights of mobilenet_v2, cannot download them"
    ) as caught:
        weights.build_imagenet_application("mobilenet_v2", 96)
    assert "pass --weights FILE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_connection_that_hangs_is_given_up(empty_cache, monkeypatch):
    """Keras sets no time limit of its own."""
    import socket

    limits_s = []
    monkeypatch.setattr(
        "keras.src.utils.file_utils.urlretrieve", lambda *args: limits_s.append(socket.getdefaulttimeout()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        weights.build_imagenet_application("mobilenet_v2", 96)
    assert 1 < limits_s[0] < 60
    assert socket.getdefaulttimeout() is None


def test_damaged_file_in_the_cache_is_named(empty_cache, monkeypatch):
    def cut_short(origin, target, hook):
        pathlib.Path(target).write_bytes(b"half of it")

    monkeypatch.setattr("keras.src.utils.file_utils.urlretrieve", cut_short)
    with pytest.raises(ValueError, match=f"remove them from {empty_cache}"):
        weights.build_imagenet_application("mobilenet_v2", 96)
