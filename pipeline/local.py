"""The local runner: in this process, or in worker processes on this machine that are looked after."""

import contextlib
import os
import shlex
import sys
import threading
import time

import psutil
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from bulktag.pipeline.failures import JobFailed

WORKER_MODULE = "bulktag.pipeline.worker"
# At the end of a job its workers end a moment before it does.
WORKER_GRACE_S = 10.0
WORKER_DIED = (
    "a worker process ended before its work was done, perhaps for lack of memory: fewer --workers or a smaller "
    "--batch-size need less"
)


def make_local_runner(options: PipelineOptions, workers: int) -> FnApiRunner:
    """Beam's own runner for one machine.

    Args:
      options: of the job; told the number of workers.
      workers: processes; with 1 this one does the work.
    """
    if workers == 1:
        return FnApiRunner()
    # Beam's own multi_processing mode puts the interpreter's path into a shell line unquoted, so the worker processes
    # are named here and the mode stays at its default.
    options.view_as(DirectOptions).direct_num_workers = workers
    command = f"exec {shlex.quote(sys.executable)} -m {WORKER_MODULE} --launcher {os.getpid()}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command_string=command))


def say_nothing(_) -> None:
    """For threads that fail because their job is being ended."""


# The names that Beam 2.77 gives to the launcher's threads that talk to one worker process.
_WORKER_THREADS = ("run_worker", "beam_control_read", "read_grpc_client_inputs")


def quiet_about_workers(failure: threading.ExceptHookArgs) -> None:
    """Leave out threads that fail because their worker is gone."""
    if failure.thread is None or failure.thread.name not in _WORKER_THREADS:
        threading.__excepthook__(failure)


class WorkerWatch:
    """The worker processes of a local job. Beam waits for ever for one that died, of lack of memory for example."""

    def __init__(self, num_workers: int):
        self._num_workers = num_workers
        self._seen: set[psutil.Process] = set()
        self._missed_since: float | None = None

    def _alive(self) -> set[psutil.Process]:
        alive = set()
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if WORKER_MODULE in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    alive.add(child)
        return alive

    def check(self) -> None:
        """Look whether one is missing.

        Raises:
          JobFailed: one has been for so long that the job cannot be about to end.
        """
        if self._num_workers == 1:
            return
        alive = self._alive()
        self._seen |= alive
        if self._seen <= alive:
            self._missed_since = None
            return
        now = time.monotonic()
        self._missed_since = self._missed_since or now
        if now - self._missed_since > WORKER_GRACE_S:
            raise JobFailed(WORKER_DIED)

    def end_all(self) -> None:
        """End those that are still there."""
        if self._num_workers == 1:
            return
        left = list(self._alive())
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=5)
