"""Fields of configurations: ranges, types, help."""

import dataclasses

import pytest

from bulktag.pipeline.config import JOBS, ClassifyConfig
from bulktag.pipeline.options import NOT_NEGATIVE, POSITIVE, SHARE, Range, convert_value, option

UNITS = {"_px": "pixel", "max_bytes": "bytes", "max_pixels": "pixels", "timeout_s": "seconds"}


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = option(1, "how many", within=POSITIVE)
    shares: tuple[float, ...] = option((0.5,), "parts", within=SHARE)
    name: str = option("", "what it is called")
    loud: bool = option(False, "shout")
    kind: str = option("a", "which", choices=("a", "b"))


FIELDS = {field.name: field for field in dataclasses.fields(Example)}


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("count", "3", 3),
        ("count", 3.0, 3),
        ("shares", "0.25", (0.25,)),
        ("shares", ["0", 1], (0.0, 1.0)),
        ("name", 7, "7"),
        ("loud", "TRUE", True),
        ("kind", "b", "b"),
    ],
)
def test_plain_values_become_the_fields_type(name, given, expected):
    converted = convert_value(FIELDS[name], given)
    assert converted == expected and type(converted) is type(expected)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("count", "0", "expected count above 0, got 0"),
        ("count", "1e3", "expected count to be a whole number, got '1e3'"),
        ("count", True, "expected count to be a whole number, got True"),
        ("count", float("inf"), "expected count to be a whole number, got inf"),
        ("shares", ["0.5", "nan"], "expected shares between 0 and 1, got nan"),
        ("shares", "-inf", "expected shares between 0 and 1, got -inf"),
        ("name", None, "expected name to be text, got None"),
        ("loud", "yes", "expected loud to be true or false, got 'yes'"),
        ("kind", "c", "expected kind to be one of a, b, got 'c'"),
    ],
)
def test_other_values_are_refused_with_what_was_expected(name, given, message):
    with pytest.raises(ValueError, match="expected") as caught:
        convert_value(FIELDS[name], given)
    assert str(caught.value) == message


def test_ranges_say_their_bounds():
    NOT_NEGATIVE.check("seed", 0)
    with pytest.raises(ValueError, match="expected seed of at least 0, got -1"):
        NOT_NEGATIVE.check("seed", -1)
    with pytest.raises(ValueError, match="expected x to be a finite number, got inf"):
        Range().check("x", float("inf"))


@pytest.mark.parametrize("kind", [*JOBS.values(), ClassifyConfig])
def test_help_names_the_unit_and_the_default(kind):
    for field in dataclasses.fields(kind):
        text = field.metadata["help"]
        assert text and not text.endswith("."), field.name
        for ending, unit in UNITS.items():
            if field.name.endswith(ending):
                assert unit in text, field.name
        if field.type is float and field.metadata["within"] == SHARE:
            assert "(0 to 1)" in text, field.name


@pytest.mark.parametrize("kind", [*JOBS.values(), ClassifyConfig])
def test_defaults_are_values_that_would_be_taken(kind):
    for field in dataclasses.fields(kind):
        if not field.metadata["required"]:
            assert convert_value(field, field.default) == field.default
