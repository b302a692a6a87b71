"""Weights for the networks of keras.applications: Keras' own download, HDF5 weights files and `.keras` models.

A file is checked to fit before it is used, and nothing in it is ever executed (Keras' safe mode stays on).
"""

import contextlib
import hashlib
import os
import pathlib
import socket
import sys
import tempfile
import urllib.error
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator

import numpy as np

from bulktag.model.applications import build_application, default_image_size_px, first_line

HDF5_SUFFIXES = (".h5", ".hdf5")
KERAS_SUFFIX = ".keras"
_DOWNLOAD_TIMEOUT_S = 20
_INSTEAD = (
    "pass --weights FILE (.weights.h5, .h5, .keras or a frozen .pb graph), --weights random:0 for a trial, "
    "or --backbone builtin"
)
# Standard deviation of each RGB channel over ImageNet: keras.applications.efficientnet, IMAGENET_STDDEV_RGB.
_IMAGENET_STDDEV_RGB = (0.229, 0.224, 0.225)


def weights_digest(arrays: list[np.ndarray]) -> str:
    """sha256 in hex of arrays in order: their dtypes, shapes and bytes.

    Names stay out: Keras numbers unnamed layers in the order in which a process makes them.
    """
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def build_imagenet_application(name: str, image_size_px: int, *, include_top: bool = False):
    """A network with the weights that Keras publishes, from its cache or downloaded.

    Returns:
      keras.Model, see `build_application`.
    Raises:
      ValueError: they cannot be had (no network), or the cached file is damaged.
    """
    cache = pathlib.Path(os.environ.get("KERAS_HOME") or "~/.keras", "models").expanduser()
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_S)  # Keras gives none, and a blocked connection would hang for minutes
    try:
        # Keras prints the progress of its download: standard output belongs to results.
        with contextlib.redirect_stdout(sys.stderr), _quiet_keras():
            return build_application(name, image_size_px, weights="imagenet", include_top=include_top)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise ValueError(
            f"expected the imagenet weights of {name}, cannot download them ({first_line(error)}): {_INSTEAD}"
        ) from error
    except OSError as error:
        raise ValueError(
            f"cannot read the imagenet weights of {name} ({first_line(error)}): remove them from {cache} and try again"
        ) from error
    except Exception as error:
        # keras.utils.get_file turns every network error into a bare Exception with this message.
        if not str(error).startswith("URL fetch failure"):
            raise
        raise ValueError(
            f"expected the imagenet weights of {name}, cannot download them ({first_line(error)}): {_INSTEAD}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_s)


def load_application(name: str, image_size_px: int, path: str, *, include_top: bool = False):
    """A network with the weights of an HDF5 file, written with or without the classifier.

    Args:
      name: snake_case name in keras.applications.
      image_size_px: S.
      path: `.weights.h5` of Keras 3, or an older `.h5` with weights or a whole model.
      include_top: with its classifier of 1,000 classes, which the file must then have.
    Raises:
      ValueError: no HDF5 file, or its arrays do not fit the network.
    """
    held = _held_shapes(path)
    model = build_application(name, image_size_px, include_top=include_top)
    expected = _shapes(model)
    missing, extra = expected - held, held - expected
    if missing:
        raise ValueError(_misfit(name, expected, held, path, "with its 1,000 classes" if include_top else ""))
    if not extra:
        _load_hdf5(model, path)
    else:
        _load_beneath_classifier(model, name, path, held, extra)
    _restore_imagenet_scaling(model, name)
    return model


def load_keras_model(path: str):
    """A whole model from a `.keras` file; code in it (a Lambda layer) is refused, not run.

    Returns:
      keras.Model of one picture input.
    Raises:
      ValueError: no such file, or a model that cannot be loaded safely.
    """
    import keras

    if not zipfile.is_zipfile(path):
        raise ValueError(f"expected a .keras model file, got something else: weights={path!r}")
    try:
        with _quiet_keras():
            model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"cannot load the .keras model ({first_line(error)}): weights={path!r}") from error
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"expected a .keras model of pictures [?, S, S, 3], got input {shape}: weights={path!r}")
    return model


def check_fits(model, name: str, path: str) -> list[np.ndarray]:
    """The arrays of a loaded model that belong to a network, without its classifier.

    Raises:
      ValueError: the model is not built on that network.
    """
    network = build_application(name, default_image_size_px(name))
    expected = [tuple(weight.shape) for weight in network.weights]
    arrays = model.get_weights()
    held = [array.shape for array in arrays]
    for start in range(len(held) - len(expected) + 1):  # layers of the user's may stand before the network
        if held[start : start + len(expected)] == expected:
            return arrays[start : start + len(expected)]
    raise ValueError(_misfit(name, Counter(expected), Counter(held), path))


def scales_pixels(model) -> bool:
    """Whether a model brings pixels of 0..255 to its own range, by a layer or by arithmetic before its network."""
    import keras

    for layer in model.layers:
        kind = type(layer).__name__
        if isinstance(layer, keras.Model) or "Conv" in kind:
            return False
        if kind in ("Rescaling", "Normalization", "TrueDivide", "Divide", "Multiply", "Subtract", "Add", "GetItem"):
            return True
    return False


def _held_shapes(path: str) -> Counter:
    import h5py

    if not h5py.is_hdf5(path):
        raise ValueError(f"expected an HDF5 weights file, got something else: weights={path!r}")
    shapes = Counter()

    def note(key, item):
        if isinstance(item, h5py.Dataset) and not key.startswith("optimizer"):
            shapes[item.shape] += 1

    with h5py.File(path) as file:
        file.visititems(note)
    return shapes


def _shapes(model) -> Counter:
    return Counter(tuple(weight.shape) for weight in model.weights)


def _misfit(name: str, expected: Counter, held: Counter, path: str, detail: str = "") -> str:
    fitting = (expected & held).total()
    example = next(iter(expected - held), None)
    lacks = f", none left of shape {list(example)}" if example is not None else " in another order"
    return (
        f"expected the weights of {' '.join(filter(None, (name, detail)))} ({expected.total()} arrays), "
        f"got {held.total()} arrays of which {fitting} fit{lacks}: weights={path!r}"
    )


def _load_beneath_classifier(model, name: str, path: str, held: Counter, extra: Counter) -> None:
    """Fill a network without its top from a file that has one."""
    for classes in sorted({shape[0] for shape in extra if len(shape) == 1}, reverse=True):
        # The classifier of VGG fits one picture size only, so the file's network is built at its own.
        whole = build_application(name, default_image_size_px(name), include_top=True, classes=classes)
        if _shapes(whole) == held:
            _load_hdf5(whole, path)
            arrays = whole.get_weights()[: len(model.weights)]
            assert [array.shape for array in arrays] == [tuple(weight.shape) for weight in model.weights]
            _set_weights(model, arrays)
            return
    raise ValueError(
        f"expected the weights of {name} with or without its classifier, got {extra.total()} further arrays, "
        f"one of shape {list(next(iter(extra)))}: weights={path!r}"
    )


def _load_hdf5(model, path: str) -> None:
    import h5py

    with h5py.File(path) as file:
        # Keras up to 2 wrote another layout, also under the suffix of today's; Keras 3 goes by the suffix alone.
        older = "layer_names" in file.attrs or "model_weights" in file
    with tempfile.TemporaryDirectory(prefix="bulktag-weights-") as folder:
        link = pathlib.Path(folder, "network.h5" if older else "network.weights.h5")
        link.symlink_to(pathlib.Path(path).resolve())
        try:
            with _quiet_keras():
                model.load_weights(str(link))
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(
                f"cannot load weights into {model.name} ({first_line(error)}): weights={path!r}"
            ) from error


def _set_weights(model, arrays: list[np.ndarray]) -> None:
    model.set_weights(arrays)
    for layer in model.layers:
        if hasattr(layer, "finalize_state") and layer.weights:
            layer.finalize_state()  # Normalization computes with copies of its weights


def _restore_imagenet_scaling(model, name: str) -> None:
    """Undo the standard deviations that EfficientNet's published weights hold in place of variances.

    Keras divides by the missing root in a layer that it adds for `weights="imagenet"` only
    (https://github.com/tensorflow/tensorflow/issues/49930), so a copy of that file would be scaled wrongly.
    """
    if not name.startswith("efficientnet_b"):
        return
    (layer,) = (layer for layer in model.layers if type(layer).__name__ == "Normalization")
    if np.allclose(layer.adapt_variance, _IMAGENET_STDDEV_RGB, atol=1e-4):
        layer.adapt_variance.assign(np.square(_IMAGENET_STDDEV_RGB))
        layer.finalize_state()


@contextlib.contextmanager
def _quiet_keras() -> Iterator[None]:
    """Hide the warnings that a sound load gives by the hundred; what matters is raised."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Skipping nested container")
        warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
        yield
