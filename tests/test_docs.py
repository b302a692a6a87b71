"""What README, run configs and --help say is true."""

import dataclasses
import pathlib
import re
import shlex

import duckdb
import pytest

from bulktag.pipeline.cli import build_parser
from bulktag.pipeline.config import JOBS, ClassifyConfig, TagConfig, build_config
from bulktag.pipeline.run import load_run
from bulktag.pipeline.runners import check_runner
from bulktag.pipeline.tag import run_tag

REPO = pathlib.Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.split("  #")[0].strip()
    for kind, text in BLOCKS
    if not kind
    for line in text.replace("\\\n", "").splitlines()
    if "bulktag " in line
]
COMMANDS = [command for command in COMMANDS if command.startswith("bulktag ")]


@pytest.fixture(scope="module")
def tags_folder(demo_images, bundle_dir, tmp_path_factory) -> pathlib.Path:
    """A folder in which `tags/` is the output of a run, as README's queries expect it."""
    folder = tmp_path_factory.mktemp("docs")
    run_tag(TagConfig(input=(str(demo_images / "circle"),), model=str(bundle_dir), output=str(folder / "tags")))
    return folder


@pytest.mark.parametrize("sql", [text for kind, text in BLOCKS if kind == "sql"])
def test_readme_queries_run(sql, tags_folder, monkeypatch):
    monkeypatch.chdir(tags_folder)
    rows = duckdb.sql(sql).fetchall()
    assert rows or "errors" in sql


@pytest.mark.parametrize("program", [text for kind, text in BLOCKS if kind == "python"])
def test_readme_programs_run(program, tags_folder, bundle_dir, demo_images, monkeypatch):
    monkeypatch.chdir(tags_folder)
    if not (tags_folder / "model").exists():
        (tags_folder / "model").symlink_to(bundle_dir)
        (tags_folder / "one.jpg").symlink_to(next(demo_images.glob("circle/*.jpg")))
    exec(compile(program, "README.md", "exec"), {})


def test_readme_shows_commands():
    assert {command.split()[1] for command in COMMANDS} >= {"extract", "train", "evaluate", "tag", "classify"}


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_commands_parse(command):
    parsed, beam = build_parser().parse_known_args(shlex.split(command)[1:])
    values = vars(parsed)
    verb = values.pop("verb")
    if verb in (kinds := {**JOBS, "classify": ClassifyConfig}):
        build_config(kinds[verb], {**values, **({"beam": beam} if beam else {})})
        check_runner(tuple(beam), 1)


def test_readme_names_every_make_target_it_uses():
    targets = re.findall(r"^([a-z-]+):.*##", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) - {"help"} <= set(targets)


@pytest.mark.parametrize("path", sorted((REPO / "run_configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_run_config_loads_and_says_how_to_launch_it(path):
    assert load_run(str(path), offline=True).stages
    header = "".join(line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#"))
    assert f"bulktag run run_configs/{path.name}" in header


@pytest.mark.parametrize("kind", [*JOBS.values(), ClassifyConfig])
def test_every_option_is_documented(kind):
    for field in dataclasses.fields(kind):
        assert field.metadata["help"], field.name
