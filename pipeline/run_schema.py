"""JSON Schema of run files, for editors that check while one types; made from the same fields as flags and checks."""

import dataclasses
import json
import typing
from typing import Any

from bulktag.pipeline.config import JOBS
from bulktag.pipeline.options import Range

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
# Stands for a value in a run file, whatever the field's type: see `run.substitute`.
_VARIABLE = {"type": "string", "pattern": r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}"}
_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def build_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a run file: stages, their fields, types, choices and ranges."""
    return {
        "$schema": _DRAFT,
        "title": "bulktag run",
        "description": "Stages of a run, done in the order extract, train, evaluate, tag",
        "type": "object",
        "properties": {job: _stage(job, kind) for job, kind in JOBS.items()},
        "additionalProperties": False,
        "minProperties": 1,
    }


def format_schema() -> str:
    """The schema as the text of its file."""
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


def _stage(job: str, kind: type) -> dict[str, Any]:
    fields = dataclasses.fields(kind)
    names = {field.name: _property(field) for field in fields}
    # As flags have them: read too.
    dashed = {
        name.replace("_", "-"): {"$ref": f"#/properties/{job}/properties/{name}"} for name in names if "_" in name
    }
    return {
        "type": "object",
        "description": " ".join((kind.__doc__ or "").split()),
        "properties": names | dashed,
        "required": [field.name for field in fields if field.metadata["required"]],
        "additionalProperties": False,
    }


def _property(field: dataclasses.Field) -> dict[str, Any]:
    origin, arguments = typing.get_origin(field.type), typing.get_args(field.type)
    described: dict[str, Any] = {"description": field.metadata["help"]}
    if not field.metadata["required"] and field.default not in ("", (), None):
        described["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
    if origin is tuple:
        item = _scalar(field, arguments[0])
        return described | {"anyOf": [item, {"type": "array", "items": item}]}
    kind = next(kind for kind in (*arguments, field.type) if kind is not type(None))
    return described | _scalar(field, kind)


def _scalar(field: dataclasses.Field, kind: type) -> dict[str, Any]:
    """One value: as its type, or a variable in its place."""
    if field.metadata["choices"]:
        return {"anyOf": [{"enum": [choice for choice in field.metadata["choices"] if choice]}, _VARIABLE]}
    if kind is str:
        # YAML reads 2026-11-22 and 7 as no texts; bulktag takes them as they were typed.
        return {"type": ["string", "number"]}
    limits = _limits(field.metadata["within"]) if kind in (int, float) else {}
    return {"anyOf": [{"type": _TYPES[kind], **limits}, _VARIABLE]}


def _limits(within: Range) -> dict[str, float]:
    limits: dict[str, float] = {}
    if within.low is not None:
        limits["exclusiveMinimum" if within.low_open else "minimum"] = within.low
    if within.high is not None:
        limits["maximum"] = within.high
    return limits
