"""Build the head: bottlenecks in, calibrated scores out, in plain Keras layers only.

The head standardises its own input, so bottlenecks are stored and served as the backbone gave them. Its layers:
`Normalization` (statistics of the train split) -> hidden layers -> `Dense` named "logits" -> softmax or sigmoid.
Calibration, a slope and an offset of each label's logit, is folded into "logits", so a saved head, a SavedModel and a
frozen graph all carry calibrated scores without a layer or a number of their own.

Array suffixes: B images in a batch, D bottleneck width, L labels.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np

ARCHITECTURES = ("mlp", "linear", "cnn")
LOGITS = "logits"

# A feature is divided by sqrt(variance + this share of the mean variance): a feature that was almost always zero in
# a small train split would otherwise reach tens of standard deviations on the first image that has it.
VARIANCE_FLOOR_SHARE = 0.1
# Augmentation, as usual for CIFAR: turns of up to 15 degrees, as a share of a whole one, and shifts of up to a tenth.
MAX_TURN, MAX_SHIFT = 15 / 360, 0.1
_AUGMENT = "augment_"


def build_head(
    width: int,
    num_labels: int,
    *,
    architecture: str = "mlp",
    hidden: Sequence[int] = (1024,),
    dropout: float = 0.5,
    multi_label: bool = False,
    feature_mean: np.ndarray | None = None,
    feature_var: np.ndarray | None = None,
    shares_L: np.ndarray | None = None,
    augment: bool = False,
    seed: int = 0,
) -> keras.Model:
    """Build an untrained head.

    Args:
      width: D, numbers in a bottleneck.
      num_labels: L.
      architecture: "mlp" (hidden layers with ReLU), "linear" (none), or "cnn", a small convolutional network for
        bottlenecks that are the pixels of an S x S RGB image (D = S * S * 3, rows first, channels last).
      hidden: units of each hidden layer; only "mlp" has them.
      dropout: share of units dropped after each hidden layer while training ("linear": of input features).
      multi_label: sigmoid scores, each label by itself, instead of a softmax over all.
      feature_mean: float[D], subtracted from the input; None: the input is taken as it is.
      feature_var: float[D], variances that go with it.
      shares_L: float[L] in [0, 1], how often each label occurs in training; with multi_label the head starts there.
      augment: mirror, turn and shift the pictures while training ("cnn" only).
      seed: of initial weights, dropout masks and augmentation.
    Returns:
      A model named "head": float32[B, D] "bottleneck" -> float32[B, L] scores in [0, 1].
    Raises:
      ValueError: an unknown architecture, a number out of range, or "cnn" with a D that is no S * S * 3.
    """
    check_head(width, num_labels, architecture, hidden, dropout)
    # Every initialiser and mask gets a seed of its own: Keras warns where one generator serves two layers.
    seeds = iter(np.random.SeedSequence(seed).generate_state(64).tolist())
    inputs = keras.Input((width,), dtype="float32", name="bottleneck")
    outputs = inputs
    if feature_mean is not None:
        layer = keras.layers.Normalization(name="standardise")
        outputs = layer(inputs)
        _set_statistics(layer, *_floored_statistics(architecture, feature_mean, feature_var))
    if architecture == "cnn":
        outputs = keras.layers.Reshape((*[_image_side(width)] * 2, 3), name="pixels")(outputs)
        if augment:
            outputs = _augmented(outputs, seeds)
        outputs = _convolutions(outputs, dropout=dropout, seeds=seeds)
    elif architecture == "mlp":
        outputs = _hidden_layers(outputs, hidden, dropout, seeds)
    elif dropout:
        outputs = keras.layers.Dropout(dropout, seed=next(seeds), name="dropout_input")(outputs)
    # Zero weights make the first scores uniform, whatever the width: no label starts with an advantage. Scores of
    # labels by themselves start at how often each occurs: from one half, the first epochs would only learn that most
    # do not.
    # Source: Lin et al., "Focal loss for dense object detection", ICCV 2017, section 4.1.
    logits = keras.layers.Dense(num_labels, kernel_initializer="zeros", name=LOGITS)
    outputs = logits(outputs)
    if multi_label and shares_L is not None:
        shares_L = np.clip(shares_L, 1e-4, 1 - 1e-4)
        logits.bias.assign(np.log(shares_L / (1 - shares_L)).astype(np.float32))
    outputs = keras.layers.Activation("sigmoid" if multi_label else "softmax", dtype="float32", name="scores")(outputs)
    return keras.Model(inputs, outputs, name="head")


def build_logits_model(head: keras.Model) -> keras.Model:
    """Return the head without its last activation, sharing its weights: float32[B, D] -> logits float32[B, L]."""
    return keras.Model(head.input, head.get_layer(LOGITS).output, name="head_logits")


def fold_calibration(head: keras.Model, slope_L: np.ndarray, offset_L: np.ndarray) -> None:
    """Replace each label's logit by slope * logit + offset for good, through the last layer's kernel and bias.

    Args:
      head: from `build_head`; changed in place.
      slope_L: float[L], above 0; less than 1 makes scores less sure of themselves.
      offset_L: float[L].
    Raises:
      ValueError: a slope is no positive number, or an offset not finite.
    """
    if not (np.isfinite(slope_L).all() and np.isfinite(offset_L).all() and np.all(np.asarray(slope_L) > 0)):
        raise ValueError(f"expected slopes above 0 and finite offsets, got {slope_L!r} and {offset_L!r}")
    layer = head.get_layer(LOGITS)
    kernel_DL, bias_L = layer.get_weights()
    layer.set_weights([kernel_DL * np.asarray(slope_L, np.float32), (bias_L * slope_L + offset_L).astype(np.float32)])


def without_augmentation(head: keras.Model) -> keras.Model:
    """The head without its layers that augment, which do nothing once it is trained but could not be frozen.

    Its weights are shared with `head`; a head without such layers is returned itself.
    """
    if not any(layer.name.startswith(_AUGMENT) for layer in head.layers):
        return head
    outputs = head.input
    for layer in head.layers[1:]:
        if not layer.name.startswith(_AUGMENT):
            outputs = layer(outputs)
    return keras.Model(head.input, outputs, name=head.name)


def check_head(width: int, num_labels: int, architecture: str, hidden: Sequence[int], dropout: float) -> None:
    """Raise the ValueErrors of `build_head` without building anything; takes the arguments of the same names."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"expected architecture to be one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    if width < 1 or num_labels < 1:
        raise ValueError(f"expected at least one feature and one label, got {width} and {num_labels}")
    if any(units < 1 for units in hidden):
        raise ValueError(f"expected hidden layers of at least 1 unit, got {tuple(hidden)}")
    if not 0 <= dropout < 1:
        raise ValueError(f"expected dropout in [0, 1), got {dropout}")
    if architecture == "cnn":
        _image_side(width)


def _image_side(width: int) -> int:
    side = math.isqrt(width // 3)
    if side * side * 3 != width or side < 8:
        raise ValueError(
            f"expected bottlenecks of S * S * 3 pixels with S of at least 8 (backbone `pixels`) for architecture cnn, "
            f"got width {width}; use architecture mlp or linear"
        )
    return side


def _set_statistics(layer: keras.layers.Normalization, mean_D: np.ndarray, var_D: np.ndarray) -> None:
    # As weights and not as constructor arguments, which would write 2 D numbers as text into the model's config.
    # This is what `adapt` does at its end; a saved head does it when it is loaded.
    layer.set_weights([mean_D.astype(np.float32), var_D.astype(np.float32), np.zeros((), np.int64)])
    layer.finalize_state()


def _floored_statistics(
    architecture: str, mean_D: np.ndarray, var_D: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    if var_D is None or np.shape(var_D) != np.shape(mean_D):
        raise ValueError(f"expected feature_var of shape {np.shape(mean_D)}, got {np.shape(var_D)}")
    mean_D, var_D = np.asarray(mean_D, np.float64), np.asarray(var_D, np.float64)
    if architecture == "cnn":  # one mean and variance per colour: a pixel's own would undo what convolutions share
        mean_3 = mean_D.reshape(-1, 3).mean(axis=0)
        var_3 = (var_D + mean_D**2).reshape(-1, 3).mean(axis=0) - mean_3**2
        mean_D, var_D = np.tile(mean_3, mean_D.size // 3), np.tile(var_3, var_D.size // 3)
    var_D = var_D + VARIANCE_FLOOR_SHARE * var_D.mean()
    return mean_D, np.where(var_D > 0, var_D, 1.0)


def _hidden_layers(outputs, hidden, dropout, seeds):
    for index, units in enumerate(hidden, start=1):
        start = keras.initializers.HeNormal(seed=next(seeds))
        outputs = keras.layers.Dense(units, activation="relu", kernel_initializer=start, name=f"hidden_{index}")(
            outputs
        )
        if dropout:
            outputs = keras.layers.Dropout(dropout, seed=next(seeds), name=f"dropout_{index}")(outputs)
    return outputs


def _augmented(outputs, seeds):
    """Mirrored left to right, turned and shifted at random while training; as they are otherwise."""
    outputs = keras.layers.RandomFlip("horizontal", seed=next(seeds), name=f"{_AUGMENT}flip")(outputs)
    outputs = keras.layers.RandomRotation(MAX_TURN, "reflect", seed=next(seeds), name=f"{_AUGMENT}rotation")(outputs)
    return keras.layers.RandomTranslation(MAX_SHIFT, MAX_SHIFT, "reflect", seed=next(seeds), name=f"{_AUGMENT}shift")(
        outputs
    )


def _convolutions(outputs, *, dropout, seeds):
    """Stack conv32, pool, conv64, conv64, pool, 512 units, dropout."""
    for index, (filters, pool) in enumerate(((32, True), (64, False), (64, True)), start=1):
        outputs = keras.layers.Conv2D(
            filters,
            3,
            padding="same",
            activation="relu",
            kernel_initializer=keras.initializers.HeNormal(seed=next(seeds)),
            name=f"convolution_{index}",
        )(outputs)
        if pool:
            outputs = keras.layers.MaxPooling2D(2, name=f"pool_{index}")(outputs)
    return _hidden_layers(keras.layers.Flatten(name="flatten")(outputs), (512,), dropout, seeds)
