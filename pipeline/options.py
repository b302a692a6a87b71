"""What a field of a configuration may hold, and plain values brought to its type."""

import dataclasses
import math
import typing
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a field takes.

    Attributes:
      low: smallest one; None: no bound.
      high: largest one; None: no bound.
      low_open: `low` itself is none of them.
    """

    low: float | None = None
    high: float | None = None
    low_open: bool = False

    def check(self, name: str, value: float) -> None:
        """Refuse what lies outside, and what is no number.

        Raises:
          ValueError: with the range and the value.
        """
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if math.isfinite(value) and low <= value <= high and not (self.low_open and value == low):
            return
        if self.low is None and self.high is None:
            raise ValueError(f"expected {name} to be a finite number, got {value}")
        if self.high is not None:
            raise ValueError(f"expected {name} between {low:g} and {high:g}, got {value}")
        raise ValueError(f"expected {name} {'above' if self.low_open else 'of at least'} {low:g}, got {value}")


POSITIVE, SHARE, NOT_NEGATIVE = Range(0, low_open=True), Range(0, 1), Range(0)


def option(
    default: Any, help_text: str, *, choices: tuple = (), metavar: str = "", required: bool = False,
    within: Range = Range(),
) -> Any:  # fmt: skip
    """A documented field of a job's configuration; `within` holds for numbers, and for each of a list."""
    metadata = {"help": help_text, "choices": choices, "metavar": metavar, "required": required, "within": within}
    return dataclasses.field(default=default, metadata=metadata)


def convert_value(field: dataclasses.Field, value: Any) -> Any:
    """A value from YAML or a flag as the field's type.

    Raises:
      ValueError: it cannot be one, lies outside of the field's range, or is none of its choices.
    """
    origin, arguments = typing.get_origin(field.type), typing.get_args(field.type)
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(_convert_scalar(field, arguments[0], item) for item in items)
    kind = next(kind for kind in (*arguments, field.type) if kind is not type(None))  # of `float | None`, the first
    if value is None and type(None) in arguments:
        return None
    converted = _convert_scalar(field, kind, value)
    choices = field.metadata["choices"]
    if choices and converted not in choices:
        raise ValueError(f"expected {field.name} to be one of {', '.join(filter(None, choices))}, got {value!r}")
    return converted


def _convert_scalar(field: dataclasses.Field, kind: type, value: Any) -> Any:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
    elif kind is str:
        # YAML reads 2026-11-22 as a date and 7 as a number: what was typed is what is meant.
        if not isinstance(value, bool | dict | list | None):
            return str(value)
    elif (number := _number(kind, value)) is not None:
        field.metadata["within"].check(field.name, number)
        return number
    raise ValueError(f"expected {field.name} to be {words[kind]}, got {value!r}")


def _number(kind: type, value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if isinstance(value, str) or number == value or number != number else None
