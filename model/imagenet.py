"""ImageNet classifiers as a backbone and a head: what `tag --model imagenet` needs, with nothing to train.

Array suffixes: B images, D bottleneck width, L the 1,000 labels.
"""

import pathlib
from typing import TYPE_CHECKING

from bulktag.model import applications
from bulktag.model import weights as weight_files
from bulktag.model.backbone import (
    BUILTIN,
    IMAGENET,
    PIXELS,
    Backbone,
    check_file,
    fold_backbone,
    freeze_backbone,
    parse_seed,
)

if TYPE_CHECKING:
    import keras

NUM_CLASSES = 1000
_LABELS_FILE = pathlib.Path(__file__).parent / "data" / "imagenet_labels.txt"


def imagenet_labels() -> list[str]:
    """The 1,000 class names in the order of keras.applications, each different; lines of `#` in the file are notes."""
    lines = _LABELS_FILE.read_text(encoding="utf-8").splitlines()
    labels = [line for line in lines if line and not line.startswith("#")]
    assert len(set(labels)) == NUM_CLASSES
    return labels


def build_imagenet_classifier(
    name: str, weights: str, *, image_size_px: int | None = None
) -> tuple[Backbone, "keras.Model", list[str]]:
    """Build a network with its ImageNet classifier, split at the classifying layer.

    Args:
      name: a network of keras.applications in snake_case.
      weights: "imagenet", "random:SEED", or a local `.weights.h5`, `.h5` or `.keras` file with the classifier.
      image_size_px: S; None for the network's own.
    Returns:
      Backbone; its head, a keras.Model named "head" from float32[B, D] to probabilities float32[B, 1000]; the labels.
    Raises:
      ValueError: no such network, or weights without the classifier of 1,000 classes.
    """
    if name in (BUILTIN, PIXELS) or weights.lower().endswith(".pb"):
        raise ValueError(
            f"expected a network of keras.applications for the imagenet model, got {name!r} with weights={weights!r}"
        )
    applications.check_application(name)
    model = _build_whole(name, weights, image_size_px)
    position, layer = _classifying_layer(model, name, weights)
    network, head = _features(model, layer), _head(layer)
    arrays = [array for earlier in model.layers[:position] for array in earlier.get_weights()]
    scaling = applications.pixel_scaling(name)
    if weights.endswith(weight_files.KERAS_SUFFIX) and weight_files.scales_pixels(model):
        scaling = _as_they_are
    digest = weight_files.weights_digest(arrays)
    backbone = freeze_backbone(name, weights, network, scaling, model.input_shape[1], digest, "application")
    return fold_backbone(backbone), head, imagenet_labels()


def _as_they_are(pixels_BHWC):
    return pixels_BHWC


def _build_whole(name: str, weights: str, image_size_px: int | None):
    size_px = image_size_px or applications.default_image_size_px(name)
    if weights == IMAGENET:
        return weight_files.build_imagenet_application(name, size_px, include_top=True)
    if (seed := parse_seed(weights)) is not None:
        return applications.build_random_application(name, size_px, seed, include_top=True)
    if check_file(weights).lower().endswith(weight_files.KERAS_SUFFIX):
        model = weight_files.load_keras_model(weights)
        weight_files.check_fits(model, name, weights)
        if image_size_px not in (None, model.input_shape[1]) or model.input_shape[1] is None:
            raise ValueError(
                f"expected the model's image size {model.input_shape[1]}, got {image_size_px}: {weights!r}"
            )
        return model
    if weights.lower().endswith(weight_files.HDF5_SUFFIXES):
        return weight_files.load_application(name, size_px, weights, include_top=True)
    raise ValueError(f"expected a weights file .weights.h5, .h5 or .keras, got {weights!r}")


def _classifying_layer(model, name: str, weights: str):
    """The last layer with weights and its position: Dense, or a convolution of 1x1 (MobileNet)."""
    position, layer = max((item for item in enumerate(model.layers) if item[1].weights), key=lambda item: item[0])
    shape = tuple(layer.kernel.shape) if hasattr(layer, "kernel") else ()
    if shape[-1:] != (NUM_CLASSES,) or any(side != 1 for side in shape[:-2]):
        raise ValueError(
            f"expected a {name} that ends in 1000 classes, it ends in {layer.name} {list(shape)}: {weights!r}"
        )
    return position, layer


def _features(model, layer):
    """The model up to the input of a layer."""
    import keras

    return keras.Model(model.inputs, layer.input)


def _head(layer):
    import keras

    kernel = layer.get_weights()[0]
    head = keras.Sequential(
        [
            keras.Input((kernel.shape[-2],), name="bottleneck"),
            keras.layers.Dense(NUM_CLASSES, use_bias=layer.use_bias, activation="softmax", name="scores"),
        ],
        name="head",
    )
    head.set_weights([kernel.reshape(kernel.shape[-2:]), *layer.get_weights()[1:]])
    return head
