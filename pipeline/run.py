"""`bulktag run`: the stages of one YAML file, in order."""

import dataclasses
import os
import re
from typing import Any

import yaml

from bulktag.pipeline.config import JOBS, build_config
from bulktag.pipeline.options import convert_value
from bulktag.pipeline.publish import check_output
from bulktag.pipeline.runners import check_runner
from bulktag.transforms import files


@dataclasses.dataclass(frozen=True)
class RunFile:
    """A parsed run.

    Attributes:
      path: of the file.
      stages: (job name, its configuration), in the order of the journey.
      places: path and line of each stage.
    """

    path: str
    stages: tuple[tuple[str, Any], ...]
    places: dict[str, str]


def load_run(path: str, overrides: tuple[str, ...] = (), *, offline: bool = False) -> RunFile:
    """Read and check a run file.

    Args:
      path: the YAML file; each top-level key is a job, its keys are the job's fields (`-` and `_` are the same);
        `${NAME}` in a value is a variable of the environment.
      overrides: "job.field=value", read as YAML values; they replace what the file says.
      offline: ask no store what its outputs hold.
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
    except yaml.YAMLError as error:
        raise ValueError(f"expected YAML, got {' '.join(str(error).split())}: {path}") from error
    stages, lines = _read_stages(root, path)
    for override in overrides:
        _apply_override(stages, override)
    if not stages:
        raise ValueError(f"expected at least one stage of {', '.join(JOBS)}, got none: {path}")
    # The order of the journey, whatever the order in the file.
    jobs = [job for job in JOBS if job in stages]
    places = {job: f"{path}:{lines[job]}" for job in jobs}
    return RunFile(uri, tuple((job, _build(job, stages[job], places[job], offline)) for job in jobs), places)


def _build(job: str, values: dict[str, Any], place: str, offline: bool) -> Any:
    """One stage's configuration, with what can be checked before any stage runs: the last one may run hours later."""
    try:
        config = build_config(JOBS[job], values)
        if getattr(config, "beam", ()):
            check_runner(config.beam, getattr(config, "workers", 1))
        output = files.normalise(config.model if job == "train" else config.output)
        if files.is_local(output) or not offline:
            check_output(output, job)
    except ValueError as error:
        raise ValueError(f"{job}: {error}: {place}") from error
    return config


def _read_stages(root: yaml.Node | None, path: str) -> tuple[dict[str, dict[str, Any]], dict[str, int]]:
    """Values of each stage, and the line that it begins on."""
    stages: dict[str, dict[str, Any]] = {}
    lines: dict[str, int] = {}
    for key, node in _entries(root, f"stages ({', '.join(JOBS)})", path):
        if key.value not in JOBS:
            raise ValueError(f"expected a stage of {', '.join(JOBS)}, got {key.value!r}: {path}:{_line(key)}")
        fields = {field.name: field for field in dataclasses.fields(JOBS[key.value])}
        values, lines[key.value] = {}, _line(key)
        stages[key.value] = values
        for name, value in _entries(node, f"fields of {key.value}", path):
            field = fields.get(name.value.replace("-", "_"))
            if field is None:
                known = ", ".join(sorted(fields))
                raise ValueError(f"expected a field of {key.value} ({known}), got {name.value!r}: {path}:{_line(name)}")
            if field.name in values:  # top-k and top_k
                raise ValueError(f"expected each key once, got {name.value!r} again: {path}:{_line(name)}")
            try:
                values[field.name] = convert_value(field, _plain(value))
            except ValueError as error:
                raise ValueError(f"{error}: {path}:{_line(name)}") from error
    return stages, lines


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


_NULL, _BOOL = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
_TYPED = tuple(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "timestamp"))


def _plain(node: yaml.Node) -> Any:
    """A node as text, true, false, None or a list of these.

    Numbers and dates stay the text that was typed: a folder named 007 is not 7, and the field knows its type.
    """
    if isinstance(node, yaml.SequenceNode):
        if any(not isinstance(item, yaml.ScalarNode) for item in node.value):
            raise ValueError("expected a list of plain values, got something else")
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.ScalarNode) and node.tag in (_NULL, _BOOL):
        return yaml.constructor.SafeConstructor().construct_object(node)
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _TYPED:
        raise ValueError(f"expected a plain value or a list, got {node.tag.rsplit(':', 1)[-1]}")
    return substitute(node.value)


# ${NAME} or ${NAME:-what to take without it}; $${NAME} stays as it is, with one dollar.
_VARIABLE = re.compile(r"\$(\$\{[^}]*\})|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def substitute(text: str) -> str:
    """A text with the environment's variables in it.

    Raises:
      ValueError: the environment has no such variable, and the text says nothing to take instead.
    """

    def value(match: re.Match) -> str:
        escaped, name, default = match.groups()
        if escaped:
            return escaped
        if (found := os.environ.get(name, default)) is None:
            raise ValueError(f"expected environment variable {name} (or ${{{name}:-VALUE}}), found none")
        return found

    return _VARIABLE.sub(value, text)


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
        raise ValueError(
            f"expected a field of {job} ({', '.join(sorted(fields))}), got {field_name!r} in --set {override}"
        )
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = text if node is None else _plain(node)
        stages[job][field.name] = convert_value(field, text if value is None else value)
    except yaml.YAMLError as error:
        raise ValueError(f"expected a YAML value, got {text!r} in --set {override}") from error
    except ValueError as error:
        raise ValueError(f"{error}: --set {override}") from error
