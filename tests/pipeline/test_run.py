"""`bulktag run`: one YAML file, checked before anything starts."""

import pytest

from bulktag.pipeline import cli
from bulktag.pipeline.cli import run_command
from bulktag.pipeline.run import load_run

GOOD = """\
# a comment
tag:
  input: [new/]
  model: model
  output: tags
  top-k: 3
extract:
  input: photos
  output: examples
  backbone: builtin
"""


def write(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_stages_come_in_the_order_of_the_journey(tmp_path):
    run = load_run(write(tmp_path, GOOD))
    assert [job for job, _ in run.stages] == ["extract", "tag"]
    assert run.stages[1][1].top_k == 3


def test_values_can_be_set_from_the_command_line(tmp_path):
    run = load_run(
        write(tmp_path, GOOD), ("tag.top_k=7", "tag.run_date=2026-11-22", "tag.input=[a, b]", "extract.labels=none")
    )
    tag = run.stages[1][1]
    assert (tag.top_k, tag.run_date, tag.input) == (7, "2026-11-22", ("a", "b"))
    assert run.stages[0][1].labels == "none"


def test_variables_of_the_environment_stand_in_values(tmp_path, monkeypatch):
    monkeypatch.setenv("NIGHT", "2026-11-22")
    monkeypatch.setenv("TOP", "4")
    monkeypatch.delenv("BUCKET", raising=False)
    text = GOOD.replace("top-k: 3", "top-k: ${TOP}\n  run_date: ${NIGHT}")
    text = text.replace("[new/]", '["${BUCKET:-photos}/${NIGHT}/", "a$${b}$c"]')
    tag = load_run(write(tmp_path, text), ("tag.output=tags/${NIGHT}",)).stages[1][1]
    assert (tag.top_k, tag.run_date, tag.output) == (4, "2026-11-22", "tags/2026-11-22")
    assert tag.input == ("photos/2026-11-22/", "a${b}$c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            GOOD.replace("output: tags", "output: ${NOT_SET_ANYWHERE}/tags"),
            "expected environment variable NOT_SET_ANYWHERE (or ${{NOT_SET_ANYWHERE:-VALUE}}), found none: {path}:5",
        ),
        ("tags:\n  input: a\n", "expected a stage of extract, train, evaluate, tag, got 'tags': {path}:1"),
        (GOOD.replace("top-k", "topk"), "got 'topk': {path}:6"),
        (GOOD.replace("top-k: 3", "top-k: lots"), "expected top_k to be a whole number, got 'lots': {path}:6"),
        (GOOD.replace("  output: examples\n", ""), "extract: expected output, got none: {path}"),
        (GOOD + "  backbone: pixels\n", "expected each key once, got 'backbone' again: {path}:11"),
        ("tag: [1, 2]\n", "expected fields of tag as `key: value` lines, got something else: {path}:1"),
        ("tag:\n  input: [a\n  model: b\n", "{path}:3"),
        ("", "expected at least one stage"),
        ("tag: !!python/object/apply:os.system ['true']\n", "expected fields of tag"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match="expected") as caught:
        load_run(path)
    assert message.format(path=path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("top_k=3", "expected --set STAGE.FIELD=VALUE"),
        ("train.epochs=3", "expected a stage of the run file (tag, extract), got 'train'"),
        ("tag.topk=3", "got 'topk' in --set"),
        ("tag.top_k=x", "expected top_k to be a whole number"),
    ],
)
def test_a_wrong_override_is_named(tmp_path, override, message):
    with pytest.raises(ValueError, match="expected") as caught:
        load_run(write(tmp_path, GOOD), (override,))
    assert message in str(caught.value)


def test_dry_run_prints_what_would_be_done_and_does_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "new", "model"):
        (tmp_path / folder).mkdir()
    path = write(tmp_path, GOOD)
    before = [path.name for path in tmp_path.iterdir()]
    assert run_command(["run", path, "--dry-run", "--set", "tag.top_k=4"]) == 0
    out = capsys.readouterr().out
    assert "top_k: 4" in out and "backbone: builtin" in out
    assert [path.name for path in tmp_path.iterdir()] == before


def test_a_missing_file_is_the_users_mistake(tmp_path, capsys):
    assert run_command(["run", str(tmp_path / "no.yaml")]) == 2
    assert "expected a run file that exists" in capsys.readouterr().err


def test_all_stages_run_in_order(tmp_path, demo_images):
    text = f"""\
extract: {{input: "{demo_images}", output: "{tmp_path}/examples", backbone: builtin, split: [0.5, 0.2, 0.3]}}
train: {{examples: "{tmp_path}/examples", model: "{tmp_path}/model", epochs: 3}}
evaluate: {{examples: "{tmp_path}/examples", model: "{tmp_path}/model", output: "{tmp_path}/report"}}
tag: {{input: "{demo_images}/circle", model: "{tmp_path}/model", output: "{tmp_path}/tags"}}
"""
    assert run_command(["run", write(tmp_path, text)]) == 0
    for name in ("examples", "model", "report", "tags"):
        assert (tmp_path / name / "_SUCCESS").exists()


def test_a_stage_that_fails_ends_the_run(tmp_path, demo_images, capsys):
    text = f"""\
extract: {{input: "{demo_images}", output: "{tmp_path}/examples", backbone: builtin, split: [0.5, 0.2, 0.3]}}
train: {{examples: "{tmp_path}/examples", model: "{tmp_path}/model", epochs: 1, min_accuracy: 1, learning_rate: 1.0e-9}}
tag: {{input: "{demo_images}", model: "{tmp_path}/model", output: "{tmp_path}/tags"}}
"""
    assert run_command(["run", write(tmp_path, text)]) == 1
    assert "is below --min-accuracy 1" in capsys.readouterr().err
    assert not (tmp_path / "model" / "bundle.json").exists() and not (tmp_path / "tags").exists()


def test_text_is_taken_as_it_was_typed(tmp_path):
    text = GOOD.replace("model: model", "model: 007").replace("output: tags", "output: 2026-1-2")
    tag = load_run(write(tmp_path, text + "  labels: 0x10\n"), ("tag.run_date=2026-11-22",)).stages[1][1]
    assert (tag.model, tag.output, tag.run_date) == ("007", "2026-1-2", "2026-11-22")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD.replace("top-k: 3", "top-k: 0"), "expected top_k above 0, got 0: {path}:6"),
        (GOOD + "  split: [0.5, nan, 0.5]\n", "expected split to be a finite number, got nan: {path}:11"),
        (GOOD.replace("top-k: 3", "top-k: !!python/name:os.system x"), "expected a plain value or a list, got"),
        (GOOD.replace("input: photos", "input: {a: b}"), "expected a plain value or a list, got map: {path}:8"),
        (GOOD.replace("  input: [new/]", "  input: [[new/]]"), "expected a list of plain values, got something else"),
        (GOOD.replace("top-k: 3", "top-k: 3\n  top_k: 4"), "expected each key once, got 'top_k' again: {path}:7"),
        (GOOD.replace("  model: model\n", ""), "tag: expected model, got none: {path}:2"),
        (GOOD + "  beam: [--runer, FlinkRunner]\n", "did you mean --runner?): {path}:7"),
        (GOOD.replace("output: examples", "output: {path}"), "expected a folder or a new name, got a file: {path}"),
        ("tag:\n  model: a\x07\n", "expected YAML, got unacceptable character"),
    ],
)
def test_every_stage_is_checked_before_the_first_one_runs(tmp_path, text, message):
    path = str(tmp_path / "run.yaml")
    write(tmp_path, text.replace("{path}", path))
    with pytest.raises(ValueError, match="expected") as caught:
        load_run(path)
    assert message.replace("{path}", path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interrupted_run_says_what_was_done_before(tmp_path, monkeypatch, capsys):
    def stop_at_tag(job, config):
        if job == "tag":
            raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_stage", stop_at_tag)
    assert run_command(["run", write(tmp_path, GOOD)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted: tag published nothing; done before: extract"
