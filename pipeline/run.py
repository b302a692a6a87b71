"""`bulktag run`: the stages of one YAML file, in order."""

import dataclasses
import os
from typing import Any

import yaml

from bulktag.pipeline.config import JOBS, build_config, convert_value
from bulktag.transforms import files


@dataclasses.dataclass(frozen=True)
class RunFile:
    """A parsed run: (job name, its configuration), in the order of the journey."""

    path: str
    stages: tuple[tuple[str, Any], ...]


def load_run(path: str, overrides: tuple[str, ...] = ()) -> RunFile:
    """Read and check a run file.

    Args:
      path: the YAML file; each top-level key is a job, its keys are the job's fields (`-` and `_` are the same).
      overrides: "job.field=value", read as YAML values; they replace what the file says.
    Raises:
      ValueError: with path and line: no YAML, an unknown stage or key, a value of the wrong type.
    """
    uri = files.normalise(path)
    try:
        text = files.read_bytes(uri).decode("utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise ValueError(f"expected a run file that exists, found none: {path}") from error
    except IsADirectoryError as error:
        raise ValueError(f"expected a run file, got a folder: {path}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"expected a run file in UTF-8, got {error.reason}: {path}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ValueError(f"expected YAML, got {error.problem}: {path}:{line}") from error
    stages = _read_stages(root, path)
    for override in overrides:
        _apply_override(stages, override)
    if not stages:
        raise ValueError(f"expected at least one stage of {', '.join(JOBS)}, got none: {path}")
    built = []
    for job, kind in JOBS.items():  # the order of the journey, whatever the order in the file
        if job in stages:
            try:
                built.append((job, build_config(kind, stages[job])))
            except ValueError as error:
                raise ValueError(f"{job}: {error}: {path}") from error
    return RunFile(uri, tuple(built))


def _read_stages(root: yaml.Node | None, path: str) -> dict[str, dict[str, Any]]:
    stages: dict[str, dict[str, Any]] = {}
    for key, node in _entries(root, f"stages ({', '.join(JOBS)})", path):
        if key.value not in JOBS:
            raise ValueError(f"expected a stage of {', '.join(JOBS)}, got {key.value!r}: {path}:{_line(key)}")
        fields = {field.name: field for field in dataclasses.fields(JOBS[key.value])}
        values = stages[key.value] = {}
        for name, value in _entries(node, f"fields of {key.value}", path):
            field = fields.get(name.value.replace("-", "_"))
            if field is None:
                known = ", ".join(sorted(fields))
                raise ValueError(f"expected a field of {key.value} ({known}), got {name.value!r}: {path}:{_line(name)}")
            try:
                values[field.name] = convert_value(field, _plain(value))
            except ValueError as error:
                raise ValueError(f"{error}: {path}:{_line(name)}") from error
    return stages


def _entries(node: yaml.Node | None, what: str, path: str) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """Key and value nodes of a mapping, each key once."""
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return []
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"expected {what} as `key: value` lines, got something else: {path}:{_line(node)}")
    seen: set[str] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ValueError(f"expected a plain key, got something else: {path}:{_line(key)}")
        if key.value in seen:
            raise ValueError(f"expected each key once, got {key.value!r} again: {path}:{_line(key)}")
        seen.add(key.value)
    return node.value


def _plain(node: yaml.Node) -> Any:
    return yaml.constructor.SafeConstructor().construct_object(node, deep=True)


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _apply_override(stages: dict[str, dict[str, Any]], override: str) -> None:
    name, found, text = override.partition("=")
    job, dot, field_name = name.partition(".")
    if not (found and dot):
        raise ValueError(f"expected --set STAGE.FIELD=VALUE, got {override!r}")
    if job not in stages:
        raise ValueError(f"expected a stage of the run file ({', '.join(stages)}), got {job!r} in --set {override}")
    fields = {field.name: field for field in dataclasses.fields(JOBS[job])}
    field = fields.get(field_name.replace("-", "_"))
    if field is None:
        raise ValueError(f"expected a field of {job} ({', '.join(sorted(fields))}), got {field_name!r} in --set")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"expected a YAML value, got {text!r} in --set {override}") from error
    stages[job][field.name] = convert_value(field, text if value is None else value)


def describe_run(run: RunFile) -> str:
    """What a run would do, with every value that differs from its default."""
    lines = []
    for job, config in run.stages:
        lines.append(f"{job}:")
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if value != field.default:
                lines.append(f"  {field.name}: {list(value) if isinstance(value, tuple) else value}")
    return os.linesep.join(lines)
