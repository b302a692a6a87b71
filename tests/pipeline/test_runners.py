"""Where jobs run: Beam's options, worker processes, what went wrong in one line."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import apache_beam as beam
import psutil
import pytest
import tensorflow as tf
from apache_beam.options.pipeline_options import PortableOptions, StandardOptions, WorkerOptions

from bulktag.pipeline import local
from bulktag.pipeline.console import ProgressDisplay
from bulktag.pipeline.failures import JobFailed, find_disk_error
from bulktag.pipeline.runners import check_beam_options, choose_runner, run_pipeline


def test_without_a_runner_the_job_runs_here():
    choice = choose_runner((), 2)
    assert (choice.name, choice.is_local, choice.workers) == ("local", True, 2)


@pytest.mark.parametrize("flags", [("--runner", "FlinkRunner"), ("--runner=FlinkRunner",), ("--runner=flinkrunner",)])
def test_beams_own_options_reach_beam(flags):
    choice = choose_runner((*flags, "--flink_master", "[local]", "--environment_type=LOOPBACK", "--num_workers=3"), 1)
    assert not choice.is_local
    assert choice.options.view_as(StandardOptions).runner == flags[-1].split("=")[-1]
    assert choice.options.view_as(PortableOptions).environment_type == "LOOPBACK"
    assert choice.options.view_as(WorkerOptions).num_workers == 3
    assert choice.options.get_all_options()["flink_master"] == "[local]"


@pytest.mark.parametrize("name", ["DirectRunner", "directrunner", "FnApiRunner"])
def test_beams_in_process_runners_are_local(name):
    assert choose_runner(("--runner", name), 1).is_local


@pytest.mark.parametrize(
    ("flags", "workers", "message"),
    [
        (("--runer", "FlinkRunner"), 1, "expected a known option, got --runer (did you mean --runner?)"),
        (("--flink_mastr=x",), 1, "expected a known option, got --flink_mastr (did you mean --flink_master?)"),
        (("--runner", "NoSuchRunner"), 1, "expected a runner that Beam can load, got 'NoSuchRunner'"),
        (("--runner", "no.such.Runner"), 1, "expected a runner that Beam can load, got 'no.such.Runner'"),
        (("--runner",), 1, "expected Beam options that Beam accepts, got: argument --runner: expected one argument"),
        (("--num_workers", "many"), 1, "invalid int value: 'many'"),
        (("--runner", "FlinkRunner"), 2, "expected workers only for the local runner, got workers 2 and a --runner"),
        (("more.jpg",), 1, "expected a known option, got more.jpg"),
    ],
)
def test_a_mistake_in_beams_options_is_named(flags, workers, message):
    with pytest.raises(ValueError, match="expected") as caught:
        choose_runner(flags, workers)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_our_own_flags_are_suggested_too():
    with pytest.raises(ValueError, match="did you mean --top-k"):
        check_beam_options(("--topk",), also=["--top-k"])


@pytest.mark.parametrize(
    "answer", [None, b"not HTTP at all", b"HTTP/1.0 200 OK\r\n\r\n<html>", b"HTTP/1.0 404 no\r\n\r\n{}"]
)
def test_a_cluster_that_is_none_is_named_before_anything_starts(answer):
    with socket.create_server(("localhost", 0)) as server:
        url = f"http://localhost:{server.getsockname()[1]}"

        def serve():
            with contextlib.suppress(OSError):
                client, _ = server.accept()
                client.recv(1000)
                client.sendall(answer)
                client.close()

        if answer is None:
            server.close()
        else:
            threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ValueError, match=f"expected a Flink cluster at {url}, got ") as caught:
            choose_runner(("--runner", "FlinkRunner", "--flink_master", url.removeprefix("http://")), 1)
    assert "\n" not in str(caught.value)


def _count_three(pipeline, progress_dir):
    def count(item):
        beam.metrics.Metrics.counter("read", "done").inc()
        return item

    pipeline | beam.Create([1, 2, 3]) | beam.Map(count)


def test_counters_come_back_by_name(tmp_path):
    assert (
        run_pipeline(choose_runner((), 1), _count_three, ProgressDisplay("job"), str(tmp_path))["counters"]["read/done"]
        == 3
    )


def test_what_a_job_raises_is_raised(tmp_path):
    def build(pipeline, progress_dir):
        raise LookupError("of the job")

    with pytest.raises(LookupError, match="of the job"):
        run_pipeline(choose_runner((), 1), build, ProgressDisplay("job"), str(tmp_path))


def _caused(error, cause):
    error.__cause__ = cause
    return error


FULL, CLOSED = "No space left on device", "Permission denied"
DAMAGED = "expected whole TFRecord shards, got a damaged one; extract again, with --recompute"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, FULL, "/x"), f"{FULL}: /x"),
        (_caused(RuntimeError("job"), PermissionError(errno.EACCES, CLOSED, "/x")), f"{CLOSED}: /x"),
        (RuntimeError(f"... OSError: [Errno 28] {FULL} [while"), f"{FULL}, in a worker"),
        (
            tf.errors.ResourceExhaustedError(None, None, f"/x; {FULL}"),
            f"{FULL}, while TensorFlow was reading or writing",
        ),
        (tf.errors.ResourceExhaustedError(None, None, "out of memory"), None),
        (RuntimeError("DataLossError: truncated record"), DAMAGED),
        (tf.errors.DataLossError(None, None, "truncated record"), DAMAGED),
        (RuntimeError("index out of range"), None),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), None),
    ],
)
def test_disks_that_are_full_or_closed_are_told_from_bugs(error, line):
    assert find_disk_error(error) == line


def _start_fake_worker() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", local.WORKER_MODULE])


def test_a_worker_that_dies_ends_the_job_after_a_while(monkeypatch):
    monkeypatch.setattr(local, "WORKER_GRACE_S", 0.2)
    watch = local.WorkerWatch(2)
    workers = [_start_fake_worker(), _start_fake_worker()]
    try:
        watch.check()
        workers[0].kill()
        workers[0].wait()
        watch.check()  # perhaps the job is just ending
        time.sleep(0.3)
        with pytest.raises(JobFailed, match="a worker process ended before its work was done"):
            watch.check()
        watch.end_all()
        assert not psutil.pid_exists(workers[1].pid)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_other_processes_of_the_launcher_are_left_alone():
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    local.WorkerWatch(2).end_all()
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.slow
def test_a_worker_process_ends_with_its_launcher():
    working = (
        "import sys, time; from apache_beam.runners.worker import sdk_worker_main\n"
        "from bulktag.pipeline import worker\n"
        "sdk_worker_main.main = lambda _: time.sleep(100)\n"
        "worker.main(['--launcher', sys.argv[1]])"
    )
    program = (
        "import os, subprocess, sys\n"
        f"print(subprocess.Popen([sys.executable, '-c', {working!r}, str(os.getpid())]).pid, flush=True)\n"
        "sys.stdin.read()"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    worker = int(launcher.stdout.readline())
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(worker).wait(8)
    launcher.communicate("", timeout=60)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(worker), os.kill(worker, signal.SIGKILL)
