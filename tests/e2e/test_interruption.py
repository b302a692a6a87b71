"""What the outside does to a running job: signals, kill -9, a second run beside it, a full disk."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pyarrow.dataset
import pytest

COMMAND = [sys.executable, "-c", "from bulktag.pipeline.cli import main; main()"]


@pytest.fixture(scope="module")
def many_images(demo_images, tmp_path_factory) -> pathlib.Path:
    """Enough copies of the pictures that a job takes a few seconds."""
    folder = tmp_path_factory.mktemp("many")
    for i in range(12):
        shutil.copytree(demo_images, folder / f"copy{i}")
    return folder


def hear_interrupts() -> None:
    """A shell without a terminal starts what it runs in the background with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_interrupts,
    )


def finish(process) -> tuple[int, str]:
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def wait_for_staging(output: pathlib.Path, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not list(output.glob(".bulktag-*/work")):
        assert time.monotonic() < deadline, "the job did not start"
        time.sleep(0.05)


def count_rows(output) -> int:
    return pyarrow.dataset.dataset(f"{output}/tags", partitioning="hive").count_rows()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "code", "workers", "delay_s"),
    [
        (signal.SIGINT, 130, 1, 0.0),
        (signal.SIGINT, 130, 1, 1.5),
        (signal.SIGTERM, 143, 1, 0.7),
        (signal.SIGINT, 130, 2, 3.0),
        (signal.SIGTERM, 143, 2, 6.0),
    ],
)
def test_a_signal_leaves_no_half_output_and_no_process(
    many_images, bundle_dir, tmp_path, signum, code, workers, delay_s
):
    output = tmp_path / "out"
    process = start("tag", "--input", many_images, "--model", bundle_dir, "--output", output, "--workers", workers)
    wait_for_staging(output)
    time.sleep(delay_s)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signum)
    returncode, err = finish(process)
    assert returncode == code, err
    assert "Traceback" not in err
    assert err.strip().splitlines()[-1] == "interrupted: nothing was published"
    assert not output.exists() or list(output.iterdir()) == []
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


@pytest.mark.slow
def test_after_kill_9_the_next_run_is_clean(many_images, bundle_dir, tmp_path):
    output = tmp_path / "out"
    arguments = ("tag", "--input", many_images, "--model", bundle_dir, "--output", output)
    process = start(*arguments)
    wait_for_staging(output)
    time.sleep(1.5)
    process.kill()
    process.wait()
    assert [path.name for path in output.iterdir() if not path.name.startswith(".bulktag-")] == []
    returncode, err = finish(start(*arguments))
    assert returncode == 0, err
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []
    assert count_rows(output) == 12 * 160


@pytest.mark.slow
def test_two_runs_at_once_do_not_mix(many_images, bundle_dir, tmp_path):
    output = tmp_path / "out"
    first = start("tag", "--input", many_images, "--model", bundle_dir, "--output", output)
    second = start("tag", "--input", many_images / "copy0", "--model", bundle_dir, "--output", output)
    for process in (first, second):
        returncode, err = finish(process)
        assert returncode == 0, err
    run = json.loads((output / "run.json").read_text())
    table = pyarrow.dataset.dataset(f"{output}/tags", partitioning="hive").to_table()
    assert set(table["run_id"].to_pylist()) == {run["run_id"]}
    assert table.num_rows == run["counts"]["matched"]
    assert [path.name for path in output.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_publishes_nothing(many_images, bundle_dir, tmp_path, workers):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system here: {mounted.stderr.strip()}")
    try:
        arguments = ("tag", "--input", many_images, "--model", bundle_dir, "--output", disk / "out", "--embedding")
        returncode, err = finish(start(*arguments, "--workers", workers))
        assert returncode == 1
        assert "No space left on device" in err.strip().splitlines()[-1] and "Traceback" not in err
        assert not list((disk).rglob("_SUCCESS"))
    finally:
        subprocess.run(["umount", disk], check=True)
