"""The worker pool over its real protocol, with real worker processes that find no runner."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import grpc
import psutil
import pytest
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from bulktag.pipeline import worker_pool

NOBODY = "localhost:9"  # the port of a service that throws everything away, and that nobody runs


@pytest.fixture
def pool():
    """(pool, stub of a TaskManager)"""
    made = worker_pool.WorkerPool()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(made, server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        yield made, beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
    server.stop(None)
    for worker in made._workers:
        with contextlib.suppress(OSError):
            worker.process.kill()
            worker.process.wait()


def start(stub, worker_id="1-1", endpoint=NOBODY) -> psutil.Process:
    before = set(psutil.Process().children())
    request = beam_fn_api_pb2.StartWorkerRequest(worker_id=worker_id)
    request.control_endpoint.url = endpoint
    assert stub.StartWorker(request).error == ""
    (started,) = set(psutil.Process().children()) - before
    assert started.cmdline()[0] == sys.executable
    return started


def stop(stub, worker_id="1-1") -> None:
    assert stub.StopWorker(beam_fn_api_pb2.StopWorkerRequest(worker_id=worker_id)).error == ""


def test_one_task_managers_stop_leaves_anothers_worker_of_the_same_number(pool, monkeypatch):
    monkeypatch.setattr(worker_pool, "STOP_GRACE_S", 0.1)
    made, stub = pool
    first, second = start(stub, endpoint=NOBODY), start(stub, endpoint="localhost:19")
    stop(stub)
    time.sleep(1)
    assert first.is_running() and second.is_running()
    first.kill()
    psutil.wait_procs([first], 10)
    made.reap()
    stop(stub)
    assert second in psutil.wait_procs([second], 20)[0]


def test_how_a_worker_ended_is_said(pool, capfd):
    made, stub = pool
    worker = start(stub, "7-1")
    os.kill(worker.pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while "killed by SIGKILL" not in (err := capfd.readouterr().err):
        assert time.monotonic() < deadline
        made.reap()
        time.sleep(0.1)
    assert f"worker 7-1 for {NOBODY}: process {worker.pid} ended" in err


def test_a_second_pool_on_the_port_is_refused_and_the_first_ends_its_workers():
    command = [sys.executable, "-m", "bulktag.pipeline.worker_pool", "--port"]
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    first = subprocess.Popen([*command, port], stderr=subprocess.PIPE, text=True)
    assert f"worker pool at localhost:{port}" in first.stderr.readline()
    second = subprocess.run([*command, port], capture_output=True, text=True, timeout=60)
    assert second.returncode == 2 and second.stderr.splitlines()[-1] == (
        f"expected a free port, got one that is in use: localhost:{port}"
    )
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        request = beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1")
        request.control_endpoint.url = NOBODY
        beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel).StartWorker(request)
    (worker,) = psutil.Process(first.pid).children()
    first.kill()  # without a chance to tell anybody
    first.wait()
    assert worker in psutil.wait_procs([worker], 30)[0]
