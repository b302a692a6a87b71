"""The `builtin` backbone: a compact Inception-style network whose weights come with the package.

It learnt on pictures that `scripts/train_builtin.py` draws (shapes, letters, textures), never on the demo's circle,
square, plus and triangle nor on digits, and from what MobileNetV2 makes of those and of views of 302 flower photos. It
serves the demo, the tests and first tries on photos; an ImageNet network tells more.

The published form has batch normalisation folded into the convolutions and float16 weights; it computes in float32.
Legend: B batch, S side of the square in pixels, D width of the bottleneck.
"""

import pathlib
import zipfile

import keras
import numpy as np

BUILTIN_IMAGE_SIZE_PX = 96
BUILTIN_WEIGHTS = pathlib.Path(__file__).parent / "data" / "builtin.npz"

# (1x1, [reduce, 3x3], [reduce, 3x3, 3x3], pool projection): the branches of Inception-v2's blocks (Szegedy et al.,
# "Rethinking the Inception Architecture", 2015, figure 5), scaled down until the network trains on two CPU cores.
_MIXED_WIDTHS = {
    "mixed1": (32, (32, 48), (16, 24, 24), 24),
    "mixed2": (64, (64, 96), (32, 48, 48), 48),
    "mixed3": (64, (64, 96), (32, 48, 48), 48),
    "mixed4": (192, (128, 192), (64, 96, 96), 96),
    "mixed5": (192, (128, 192), (64, 64, 64), 64),
}
# ([reduce, 3x3 stride 2], [reduce, 3x3, 3x3 stride 2]) beside a strided max pool.
_REDUCTION_WIDTHS = {
    "reduction1": ((48, 64), (24, 32, 32)),
    "reduction2": ((96, 160), (48, 80, 80)),
}


def _convolve(x, name: str, filters: int, kernel: int, *, strides: int = 1, batch_norm: bool):
    x = keras.layers.Conv2D(filters, kernel, strides, padding="same", use_bias=not batch_norm, name=name)(x)
    if batch_norm:
        x = keras.layers.BatchNormalization(momentum=0.95, epsilon=1e-3, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _mix(x, name: str, *, batch_norm: bool):
    single, (reduce3, wide3), (reduce5, middle5, wide5), pooled = _MIXED_WIDTHS[name]
    conv = {"batch_norm": batch_norm}
    branch1 = _convolve(x, f"{name}_1x1", single, 1, **conv)
    branch3 = _convolve(x, f"{name}_3x3_reduce", reduce3, 1, **conv)
    branch3 = _convolve(branch3, f"{name}_3x3", wide3, 3, **conv)
    branch5 = _convolve(x, f"{name}_5x5_reduce", reduce5, 1, **conv)
    branch5 = _convolve(branch5, f"{name}_5x5_first", middle5, 3, **conv)
    branch5 = _convolve(branch5, f"{name}_5x5_second", wide5, 3, **conv)
    branch_pool = keras.layers.AveragePooling2D(3, 1, padding="same", name=f"{name}_pool")(x)
    branch_pool = _convolve(branch_pool, f"{name}_pool_project", pooled, 1, **conv)
    return keras.layers.Concatenate(name=name)([branch1, branch3, branch5, branch_pool])


def _shrink(x, name: str, *, batch_norm: bool):
    (reduce3, wide3), (reduce5, middle5, wide5) = _REDUCTION_WIDTHS[name]
    conv = {"batch_norm": batch_norm}
    branch3 = _convolve(x, f"{name}_3x3_reduce", reduce3, 1, **conv)
    branch3 = _convolve(branch3, f"{name}_3x3", wide3, 3, strides=2, **conv)
    branch5 = _convolve(x, f"{name}_5x5_reduce", reduce5, 1, **conv)
    branch5 = _convolve(branch5, f"{name}_5x5_first", middle5, 3, **conv)
    branch5 = _convolve(branch5, f"{name}_5x5_second", wide5, 3, strides=2, **conv)
    branch_pool = keras.layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)
    return keras.layers.Concatenate(name=name)([branch3, branch5, branch_pool])


def build_network(image_size_px: int = BUILTIN_IMAGE_SIZE_PX, *, batch_norm: bool = False) -> keras.Model:
    """Build the network with fresh weights.

    Args:
      image_size_px: S, the side of the square; the weights fit any S.
      batch_norm: with batch normalisation, as it is trained; without, as it is published.
    Returns:
      A model from float32[B, S, S, 3] in 0..255 to float32[B, D].
    """
    pixels_BHWC = keras.Input((image_size_px, image_size_px, 3), name="pixels")
    conv = {"batch_norm": batch_norm}
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(pixels_BHWC)
    x = _convolve(x, "stem1", 16, 3, strides=2, **conv)
    x = _convolve(x, "stem2", 32, 3, strides=2, **conv)
    x = _convolve(x, "stem3", 48, 3, **conv)
    x = _mix(x, "mixed1", **conv)
    x = _shrink(x, "reduction1", **conv)
    x = _mix(x, "mixed2", **conv)
    x = _mix(x, "mixed3", **conv)
    x = _shrink(x, "reduction2", **conv)
    x = _mix(x, "mixed4", **conv)
    x = _mix(x, "mixed5", **conv)
    bottleneck_BD = keras.layers.GlobalAveragePooling2D(name="bottleneck")(x)
    return keras.Model(pixels_BHWC, bottleneck_BD, name="builtin")


def load_weights(network: keras.Model, path: pathlib.Path) -> None:
    """Load published weights into a network built without batch normalisation.

    Args:
      network: what `build_network()` returned.
      path: a .npz of float16 arrays named `LAYER/kernel` and `LAYER/bias`; never unpickled.
    Raises:
      ValueError: the file is no such archive, or its arrays do not fit the network.
    """
    convolutions = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    try:
        with np.load(path, allow_pickle=False) as arrays:
            weights = {name: arrays[name].astype(np.float32) for name in arrays.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"expected the builtin network's weights (.npz), got {error}: {path}") from error
    expected = {
        f"{layer.name}/{kind}": tuple(variable.shape)
        for layer in convolutions
        for kind, variable in (("kernel", layer.kernel), ("bias", layer.bias))
    }
    got = {name: value.shape for name, value in weights.items()}
    if got != expected:
        name = sorted(set(got.items()) ^ set(expected.items()))[0][0]
        raise ValueError(f"expected {name} of shape {expected.get(name)}, got {got.get(name)}: {path}")
    for layer in convolutions:
        layer.set_weights([weights[f"{layer.name}/kernel"], weights[f"{layer.name}/bias"]])


def build_builtin(weights: str | pathlib.Path = BUILTIN_WEIGHTS) -> keras.Model:
    """Build the builtin backbone with its published weights.

    Args:
      weights: the weights file; the package's own unless another was trained.
    Returns:
      A model from float32[B, S, S, 3] in 0..255, S = `BUILTIN_IMAGE_SIZE_PX`, to float32[B, D], D = 512.
    Raises:
      ValueError: the file does not fit the network.
      OSError: the file cannot be read.
    """
    network = build_network()
    load_weights(network, pathlib.Path(weights))
    network.trainable = False
    return network
