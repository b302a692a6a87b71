"""The worker pool of a Flink cluster: starts SDK workers where a TaskManager asks for them.

Speaks the protocol of Beam's own pool (`apache_beam.runners.worker.worker_pool_main`), which serves as well where each
TaskManager has a pool to itself. This one differs in what Beam 2.77's lacks:

- TaskManagers that share a pool. Each counts its workers from 1, and Beam's pool keeps one process for each number, so
  that a TaskManager which stops its worker 1 ends the one of another.
- Workers start with the pool's own interpreter, not with the first `python` on PATH, and never block on output that
  nobody reads.
- It says when a worker died and by what, which on the TaskManager's side is only a closed connection.
"""

import argparse
import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

WORKER_MODULE = "bulktag.pipeline.worker"
DEFAULT_PORT = 50000
# A worker whose runner hangs up ends by itself; one that does not is ended after so long.
STOP_GRACE_S = 10.0
MAX_REQUESTS = 16
LOOK_EVERY_S = 0.5


class _Worker(NamedTuple):
    """One SDK worker process; a TaskManager's control endpoint and its number for the worker are a name for it."""

    worker_id: str
    endpoint: str
    process: subprocess.Popen


class WorkerPool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts and ends SDK worker processes as TaskManagers ask for it."""

    def __init__(self):
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()

    def StartWorker(self, request, context):
        """Start one that connects to the TaskManager that asks."""
        command = [
            sys.executable, "-m", WORKER_MODULE, "--launcher", str(os.getpid()),
            "--control", request.control_endpoint.url, "--id", request.worker_id,
        ]  # fmt: skip
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=f"a worker could not be started: {error}")
        worker = _Worker(request.worker_id, request.control_endpoint.url, process)
        _say(f"worker {worker.worker_id} for {worker.endpoint}: process {process.pid}")
        with self._lock:
            self._workers.append(worker)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request, context):
        """End one, unless another TaskManager's goes by the same number: the right one ends as its runner hangs up."""
        with self._lock:
            found = [worker for worker in self._workers if worker.worker_id == request.worker_id]
        if len(found) == 1:
            threading.Thread(target=_end, args=(found[0].process,), daemon=True).start()
        return beam_fn_api_pb2.StopWorkerResponse()

    def reap(self) -> None:
        """Forget workers that have ended, and say how."""
        with self._lock:
            ended = [worker for worker in self._workers if worker.process.poll() is not None]
            self._workers = [worker for worker in self._workers if worker not in ended]
        for worker in ended:
            how = worker.process.returncode
            reason = f"killed by {signal.Signals(-how).name}" if how < 0 else f"exit code {how}"
            _say(f"worker {worker.worker_id} for {worker.endpoint}: process {worker.process.pid} ended, {reason}")

    def end_all(self) -> None:
        """End all workers."""
        for worker in self._workers:
            _end(worker.process)
        self.reap()


def _end(process: subprocess.Popen) -> None:
    try:
        process.wait(STOP_GRACE_S)
        return
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(prog="python -m bulktag.pipeline.worker_pool", description=__doc__.split("\n")[0])
    parser.add_argument("--host", default="localhost", help="address to listen on (default: localhost)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"(default: {DEFAULT_PORT})")
    args = parser.parse_args(argv)
    pool = WorkerPool()
    # A second pool on the same port would answer every other request.
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(MAX_REQUESTS), options=[("grpc.so_reuseport", 0)])
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        server.add_insecure_port(f"{args.host}:{args.port}")
    except RuntimeError:
        print(f"expected a free port, got one that is in use: {args.host}:{args.port}", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    server.start()
    _say(f"worker pool at {args.host}:{args.port}")
    while not stop.wait(LOOK_EVERY_S):
        pool.reap()
    server.stop(None)
    pool.end_all()
    return 0


if __name__ == "__main__":
    sys.exit(main())
