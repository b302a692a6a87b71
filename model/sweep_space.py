"""What a user wants a sweep to try, checked without loading what trains."""

from collections.abc import Sequence
from typing import Any

_KINDS = {
    "architecture": str, "hidden": tuple, "learning_rate": float, "dropout": float, "weight_decay": float,
    "label_smoothing": float, "batch_size": int, "epochs": int, "patience": int, "class_weights": str,
}  # fmt: skip


def parse_space(texts: Sequence[str]) -> dict[str, list]:
    """What a user wants tried: NAME=VALUE,VALUE of fields of `TrainOptions`; hidden layers as 1024x256.

    Raises:
      ValueError: an unknown name, or a value that is none of its kind.
    """
    space = {}
    for text in texts:
        name, _, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in _KINDS or not values:
            raise ValueError(f"expected NAME=VALUE,VALUE with a name of {', '.join(_KINDS)}, got {text!r}")
        try:
            space[name] = [_parse(_KINDS[name], value.strip()) for value in values.split(",")]
        except ValueError as error:
            raise ValueError(f"expected values of {name} such as {_example(name)}, got {text!r}") from error
    return space


def _parse(kind: type, value: str) -> Any:
    return tuple(int(units) for units in value.split("x")) if kind is tuple else kind(value)


def _example(name: str) -> str:
    return {tuple: "512,1024x256", float: "0.1,0.5", int: "32,64", str: "mlp,linear"}[_KINDS[name]]
