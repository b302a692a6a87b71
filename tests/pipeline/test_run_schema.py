"""The JSON Schema of run files says what `bulktag run` takes."""

import json
import pathlib

import jsonschema
import pytest
import yaml

from bulktag.pipeline.cli import run_command
from bulktag.pipeline.run_schema import build_schema, format_schema

REPO = pathlib.Path(__file__).resolve().parents[2]
CHECK = jsonschema.Draft202012Validator(build_schema())


def errors(text):
    # Dates as texts, which is what editors, with YAML 1.2, take them for.
    content = json.loads(json.dumps(yaml.safe_load(text), default=str))
    return [error.message for error in CHECK.iter_errors(content)]


def test_the_published_schema_is_todays():
    path = REPO / "run_configs" / "schema.json"
    assert path.read_text(encoding="utf-8") == format_schema(), "run: bulktag run --schema > run_configs/schema.json"
    jsonschema.Draft202012Validator.check_schema(build_schema())


@pytest.mark.parametrize("path", sorted((REPO / "run_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_run_config_fits_and_names_its_schema(path):
    text = path.read_text(encoding="utf-8")
    assert errors(text) == []
    assert "# yaml-language-server: $schema=schema.json" in text.splitlines()


@pytest.mark.parametrize(
    "text",
    [
        "tag: {input: a, model: m, output: o, top_k: 3, run_date: 2026-11-22}",
        "tag: {input: [a, b], model: m, output: o, top-k: '${TOP}', min_score: 0.5, scores: true}",
        "extract: {input: a, output: o, split: [0.8, 0.1, 0.1], resize: pad}",
    ],
)
def test_what_runs_fits(text):
    assert errors(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "tags: {input: a}",
        "tag: {input: a, model: m}",
        "tag: {input: a, model: m, output: o, top_k: many}",
        "tag: {input: a, model: m, output: o, top_k: 0}",
        "tag: {input: a, model: m, output: o, min_score: 2}",
        "tag: {input: a, model: m, output: o, layout: tall}",
        "extract: {input: a, output: o, colour: red}",
        "{}",
    ],
)
def test_what_is_refused_does_not_fit(text):
    assert errors(text)


def test_the_command_prints_it(capsys):
    assert run_command(["run", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == build_schema()
    assert run_command(["run"]) == 2
    assert "expected CONFIG.yaml" in capsys.readouterr().err
