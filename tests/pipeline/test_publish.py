"""Staging folders and publishing."""

import json
import os
import subprocess
import sys

import pytest

from bulktag.pipeline import publish

RUN = {"job": "tag", "run_id": "r", "status": "succeeded"}


def publish_text(output, run_id, text, entry="tags/run_date=2026-11-22"):
    with publish.staging(str(output), run_id) as made:
        os.makedirs(f"{made.final}/{entry}")
        with open(f"{made.final}/{entry}/part-0", "w") as file:
            file.write(text)
        publish.publish(made, (entry,), {**RUN, "run_id": run_id})


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_appears_whole_with_its_marker(tmp_path):
    publish_text(tmp_path / "out", "a", "first")
    assert names(tmp_path / "out") == ["_SUCCESS", "run.json", "tags/run_date=2026-11-22/part-0"]
    assert (tmp_path / "out" / "_SUCCESS").read_text() == "a\n"
    assert json.loads((tmp_path / "out" / "run.json").read_text())["run_id"] == "a"


def test_the_same_date_again_replaces_it_and_other_dates_stay(tmp_path):
    out = tmp_path / "out"
    publish_text(out, "a", "first")
    publish_text(out, "b", "yesterday", "tags/run_date=2026-11-21")
    (out / "tags/run_date=2026-11-22/part-1").write_text("of the first run")
    publish_text(out, "c", "second")
    assert names(out) == ["_SUCCESS", "run.json", "tags/run_date=2026-11-21/part-0", "tags/run_date=2026-11-22/part-0"]
    assert (out / "tags/run_date=2026-11-22/part-0").read_text() == "second"


def test_what_fails_before_publishing_leaves_no_trace(tmp_path):
    with pytest.raises(RuntimeError), publish.staging(str(tmp_path / "out"), "a") as made:
        (tmp_path / "out" / ".bulktag-a" / "work" / "x").write_text("half")
        raise RuntimeError(made.run_id)
    assert not (tmp_path / "out").exists()


def test_a_dead_runs_staging_goes_and_a_live_ones_stays(tmp_path):
    out = tmp_path / "out"
    program = (
        "import os, sys; from bulktag.pipeline import publish\n"
        "with publish.staging(sys.argv[1], 'dead') as made: os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(out)], check=False)
    assert (out / ".bulktag-dead").is_dir()
    with publish.staging(str(out), "live"):
        assert not (out / ".bulktag-dead").exists()
        with publish.staging(str(out), "other"):
            assert (out / ".bulktag-live" / "final").is_dir()


def test_a_failed_run_is_kept_apart_until_a_good_one(tmp_path):
    out = tmp_path / "out"
    publish_text(out, "a", "good")
    with publish.staging(str(out), "b") as made:
        os.makedirs(f"{made.final}/tags")
        folder = publish.publish_failed(made, {**RUN, "status": "failed: why"})
    assert folder == str(out / "failed")
    assert json.loads((out / "failed" / "run.json").read_text())["status"] == "failed: why"
    assert (out / "tags/run_date=2026-11-22/part-0").read_text() == "good"
    publish_text(out, "c", "good again")
    assert not (out / "failed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"photo.jpg": "x"}, "got one that holds 'photo.jpg' and no run.json"),
        (
            {"run.json": '{"job": "extract"}'},
            "expected the output of an earlier tag, or an empty folder, got that of extract",
        ),
        ({"run.json": "{"}, "expected run.json of an earlier run, got something else"),
    ],
)
def test_a_folder_of_something_else_is_never_replaced(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="expected") as caught:
        publish.check_output(str(tmp_path), "tag")
    assert message in str(caught.value)


def test_an_empty_or_missing_or_own_folder_is_fine(tmp_path):
    publish.check_output(str(tmp_path), "tag")
    publish.check_output(str(tmp_path / "new"), "tag")
    publish_text(tmp_path / "own", "a", "x")
    publish.check_output(str(tmp_path / "own"), "tag")
    with pytest.raises(ValueError, match="got a file"):
        publish.check_output(str(tmp_path / "own" / "run.json"), "tag")
