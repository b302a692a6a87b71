"""`bulktag follow`, beside real jobs."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from bulktag.pipeline.cli import run_command

COMMAND = [sys.executable, "-c", "from bulktag.pipeline.cli import main; main()"]


@pytest.fixture
def job(demo_images, bundle_dir, tmp_path):
    """A tag job that runs for some seconds, and its output."""
    for number in range(12):
        shutil.copytree(demo_images, tmp_path / "photos" / str(number), copy_function=os.link)
    output = tmp_path / "tags"
    process = subprocess.Popen(
        [*COMMAND, "tag", "--input", str(tmp_path / "photos"), "--model", str(bundle_dir), "--output", str(output)],
        stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(output.glob(".bulktag-*/work/job.json")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    yield process, output
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_job_is_followed_to_its_end(job, capsys):
    process, output = job
    assert run_command(["follow", str(output)]) == 0
    assert process.wait(60) == 0
    out, err = capsys.readouterr()
    assert "runner: local" in err and "succeeded" in out


@pytest.mark.slow
def test_a_launcher_that_died_is_told(job, capsys):
    process, output = job
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run_command(["follow", str(output)]) == 1
    assert "is gone: nobody will publish what the job makes" in capsys.readouterr().err


def test_no_job_is_told(tmp_path, capsys):
    assert run_command(["follow", str(tmp_path)]) == 2
    assert run_command(["follow", str(pathlib.Path(tmp_path) / "none")]) == 2
    assert run_command(["follow", str(tmp_path), "--fast"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert all(line.startswith("bulktag follow: expected ") for line in err) and len(err) == 3
