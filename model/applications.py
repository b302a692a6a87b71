"""The networks of `keras.applications` by their snake_case names: how to build each, its input size, its pixel scaling.

The names and the scaling are read off Keras itself, so a network that a later Keras adds is there without a change.
Keras is imported on first use: `bulktag --help` does not wait for it.
"""

import difflib
import functools
import inspect
import random
import re
import sys
from collections.abc import Callable

# Input sizes in pixels that differ from _USUAL_SIZE_PX: the `default_size` of each constructor in keras.applications
# (a test compares them with Keras).
_USUAL_SIZE_PX = 224
_OTHER_SIZES_PX = {
    "inception_v3": 299,
    "inception_resnet_v2": 299,
    "xception": 299,
    "nasnet_large": 331,
    "efficientnet_b1": 240,
    "efficientnet_b2": 260,
    "efficientnet_b3": 300,
    "efficientnet_b4": 380,
    "efficientnet_b5": 456,
    "efficientnet_b6": 528,
    "efficientnet_b7": 600,
    "efficientnet_v2_b1": 240,
    "efficientnet_v2_b2": 260,
    "efficientnet_v2_b3": 300,
    "efficientnet_v2_s": 384,
    "efficientnet_v2_m": 480,
    "efficientnet_v2_l": 480,
}


def snake_case(constructor_name: str) -> str:
    """The name of a constructor of keras.applications as users type it: `EfficientNetV2B0` is `efficientnet_v2_b0`."""
    # Brands with an inner capital are one word.
    words = re.sub(
        r"(Mobile|Res|Dense|Efficient|NAS)Net|ConvNeXt", lambda brand: brand[0].capitalize(), constructor_name
    )
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", words).lower()


@functools.cache
def application_constructors() -> dict[str, Callable]:
    """Every network of keras.applications: snake_case name -> constructor, sorted by name."""
    import keras

    found = {
        snake_case(name): function
        for name, function in vars(keras.applications).items()
        if inspect.isfunction(function) and "include_top" in inspect.signature(function).parameters
    }
    return dict(sorted(found.items()))


def check_application(name: str, others: tuple[str, ...] = ()) -> None:
    """Refuse a name that is no network of keras.applications.

    Args:
      name: as given by the user.
      others: further names to suggest.
    Raises:
      ValueError: with the nearest names.
    """
    names = [*others, *application_constructors()]
    if name in application_constructors():
        return
    near = difflib.get_close_matches(snake_case(name), names, n=3, cutoff=0.5)
    hint = f"such as {', '.join(near)}" if near else "such as inception_v3, mobilenet_v2, efficientnet_b0 or resnet50"
    raise ValueError(f"expected a backbone {hint} (builtin, pixels or a model of keras.applications), got {name!r}")


def default_image_size_px(name: str) -> int:
    """Side of the square that the network was made for, in pixels."""
    return _OTHER_SIZES_PX.get(name, _USUAL_SIZE_PX)


def pixel_scaling(name: str) -> Callable:
    """The `preprocess_input` of the network's family: float32[B, S, S, 3] in 0..255 -> what the network expects."""
    module = sys.modules[application_constructors()[name].__module__]
    return module.preprocess_input


def build_application(
    name: str, image_size_px: int, *, weights: str | None = None, include_top: bool = False, classes: int = 1000
):
    """Build a network of keras.applications.

    Args:
      name: its snake_case name.
      image_size_px: S.
      weights: "imagenet", which Keras downloads, or None for fresh weights.
      include_top: with its classifier; else it ends in the average of each feature over the picture.
      classes: of the classifier.
    Returns:
      keras.Model from float32[B, S, S, 3] (scaled by `pixel_scaling`) to float32[B, D] or float32[B, classes].
    Raises:
      ValueError: the network does not take this size.
    """
    top = {"include_top": True, "classes": classes} if include_top else {"include_top": False, "pooling": "avg"}
    try:
        return application_constructors()[name](weights=weights, input_shape=(image_size_px, image_size_px, 3), **top)
    except ValueError as error:
        message = first_line(error)
        if "input" not in message.lower() and "dimension" not in message.lower():
            raise
        raise ValueError(f"expected an image size that {name} takes, got {image_size_px} px: {message}") from error


def build_random_application(name: str, image_size_px: int, seed: int, *, include_top: bool = False):
    """Build a network with random weights; the same seed gives the same weights in every process.

    Raises:
      ValueError: see `build_application`.
    """
    # Each initialiser draws its own seed from Python's generator when it is made and is a pure function of that seed
    # afterwards. So this generator is all there is to seed, and the caller's own sequence can be handed back.
    application_constructors()  # importing Keras draws from the generator too
    state = random.getstate()
    random.seed(seed)
    try:
        return build_application(name, image_size_px, include_top=include_top)
    finally:
        random.setstate(state)


def first_line(error: BaseException) -> str:
    """An exception's message cut to its first line, for use inside another message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()
