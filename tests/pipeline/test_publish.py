"""Staging folders and publishing."""

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from bulktag.pipeline import publish
from bulktag.pipeline.signals import Terminated, hear_stop_signals
from bulktag.transforms import files

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


@pytest.mark.parametrize(
    ("output", "apart"),
    [("photos", False), ("photos/tags", False), ("photos/../photos/x", False), ("link/x", False), ("photos2", True)],
)
def test_an_output_below_its_input_is_refused(tmp_path, output, apart):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    sources = [str(tmp_path / "photos")]
    if apart:
        publish.check_apart(str(tmp_path / output), sources)
    else:
        with pytest.raises(ValueError, match="expected an output outside of the input folder"):
            publish.check_apart(str(tmp_path / output), sources)
    publish.check_apart(str(tmp_path), sources)


@pytest.mark.parametrize(
    ("name", "message"), [("file", "got a file"), ("file/x/y", "got a file"), ("x" * 300, "got File name too long")]
)
def test_a_name_that_no_folder_can_have_is_refused_before_any_work(tmp_path, name, message):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=message):
        publish.check_output(str(tmp_path / name), "tag")


def test_a_folder_that_may_not_be_written_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests may run as root, to whom nothing is forbidden
    with pytest.raises(ValueError, match="expected a folder that may be written"):
        publish.check_output(str(tmp_path / "new"), "tag")


def test_a_run_that_dies_while_it_is_published_can_be_done_again(tmp_path):
    out = tmp_path / "out"
    publish_text(out, "a", "first")
    program = f"""
import os
from bulktag.pipeline import publish
swap, calls = publish._swap, []
def dying(*arguments):
    swap(*arguments)
    calls.append(1)
    if len(calls) == 2:  # after the table, before run.json
        os._exit(9)
publish._swap = dying
with publish.staging({str(out)!r}, "b") as made:
    os.makedirs(made.final + "/tags/run_date=2026-11-22")
    open(made.final + "/tags/run_date=2026-11-22/part-0", "w").write("second")
    publish.publish(made, ("tags/run_date=2026-11-22",), {{**{RUN!r}, "run_id": "b"}})
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 9
    assert not (out / "_SUCCESS").exists()
    assert json.loads((out / "run.json").read_text())["status"] == "publishing"
    publish.check_output(str(out), "tag")
    publish_text(out, "c", "third")
    assert names(out) == ["_SUCCESS", "run.json", "tags/run_date=2026-11-22/part-0"]
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_ctrl_c_while_publishing_waits_for_its_end(tmp_path, monkeypatch, number, error):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    hear_stop_signals()
    swap = publish._swap

    def interrupted(made, entry, target):
        os.kill(os.getpid(), number)
        swap(made, entry, target)

    monkeypatch.setattr(publish, "_swap", interrupted)
    try:
        with pytest.raises(error) as caught:
            publish_text(tmp_path / "out", "a", "first")
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert caught.value.args == ("the run had been published",)
    assert names(tmp_path / "out") == ["_SUCCESS", "run.json", "tags/run_date=2026-11-22/part-0"]


def test_a_disk_that_is_full_by_then_leaves_the_last_run_as_it_was(tmp_path, monkeypatch):
    out = tmp_path / "out"
    publish_text(out, "a", "first")
    write = files.write_bytes

    def full(uri, data):
        if uri.endswith("_SUCCESS"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), uri)
        write(uri, data)

    monkeypatch.setattr(files, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        publish_text(out, "b", "second")
    assert (out / "_SUCCESS").read_text() == "a\n"
    assert json.loads((out / "run.json").read_text())["run_id"] == "a"
    assert (out / "tags/run_date=2026-11-22/part-0").read_text() == "first"
