"""Where a Beam job runs: options, progress, interruption."""

import contextlib
import dataclasses
import difflib
import errno
import os
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import apache_beam as beam
import psutil
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner
from apache_beam.transforms.environments import SubprocessSDKEnvironment

from bulktag.pipeline.console import ProgressDisplay, say
from bulktag.transforms.progress import read_progress

POLL_EVERY_S = 0.2
WORKER_MODULE = "bulktag.pipeline.worker"
# At the end of a job its workers end a moment before it does.
WORKER_GRACE_S = 10.0
WORKER_DIED = (
    "a worker process ended before its work was done, perhaps for lack of memory: fewer --workers or a smaller "
    "--batch-size need less"
)
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class JobFailed(Exception):
    """The job ended without a usable result; the message says why in one line."""


def check_beam_options(flags: tuple[str, ...], also: list[str] | None = None) -> PipelineOptions:
    """Parse Beam's own options.

    Args:
      flags: as on a command line.
      also: names beside Beam's that may have been meant by a flag that nobody knows.
    Raises:
      ValueError: one that Beam does not have, or a value that it refuses.
    """
    parser = _beam_parser()
    try:
        _, unknown = parser.parse_known_args(list(flags))
    except SystemExit as error:  # argparse exits where a value is wrong
        raise ValueError(f"expected Beam options that Beam accepts, got: {shlex.join(flags)}") from error
    if unknown:
        names = [
            name for action in parser._actions for name in action.option_strings
        ]  # argparse lists them nowhere else
        raise ValueError(unknown_flag_message(unknown[0], [*(also or ()), *names]))
    return PipelineOptions(list(flags))


def unknown_flag_message(flag: str, names: list[str]) -> str:
    """One line for a flag that nobody knows, with the nearest one that exists."""
    flag = flag.split("=", 1)[0]
    nearest = difflib.get_close_matches(flag, names, n=1, cutoff=0.6)
    return f"expected a known option, got {flag}" + (f" (did you mean {nearest[0]}?)" if nearest else "")


def _beam_parser():
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise ValueError(f"expected Beam options that Beam accepts, got: {message}")

    parser = Parser(allow_abbrev=False, add_help=False)
    for kind in {str(kind): kind for kind in PipelineOptions.__subclasses__()}.values():
        if hasattr(kind, "_add_argparse_args"):
            kind._add_argparse_args(parser)  # the way PipelineOptions itself builds its parser
    return parser


@dataclasses.dataclass(frozen=True)
class RunnerChoice:
    """The runner of a job and its options.

    Attributes:
      name: as printed and written into run.json.
      options: Beam's.
      is_local: runs in this process, or in worker processes on this machine.
    """

    name: str
    options: PipelineOptions
    is_local: bool
    workers: int


def choose_runner(flags: tuple[str, ...], workers: int) -> RunnerChoice:
    """The runner that the user asked for; in this process where none was.

    Raises:
      ValueError: see `check_beam_options`; or --workers with a runner that has workers of its own.
    """
    options = check_beam_options(flags)
    asked = any(flag.split("=", 1)[0] == "--runner" for flag in flags)
    if asked:
        if workers != 1:
            raise ValueError(f"expected workers only for the local runner, got workers {workers} and a --runner")
        name = options.view_as(StandardOptions).runner
        return RunnerChoice(name, options, _check_runner(name) in _IN_PROCESS, 1)
    options.view_as(SetupOptions).save_main_session = False
    return RunnerChoice("local", options, True, workers)


_IN_PROCESS = ("DirectRunner", "SwitchingDirectRunner", "BundleBasedDirectRunner", "FnApiRunner")


def _check_runner(name: str) -> str:
    """Name of the runner's class.

    Raises:
      ValueError: Beam has none of this name, or what it needs is not installed.
    """
    try:
        return type(create_runner(name)).__name__
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"expected a runner that Beam can load, got {name!r}: {error}") from error


def _make_runner(choice: RunnerChoice):
    if choice.name != "local":
        return None  # Beam takes it from the options
    if choice.workers == 1:
        return FnApiRunner()
    # Beam's own multi_processing mode puts the interpreter's path into a shell line unquoted, so the worker processes
    # are named here and the mode stays at its default.
    choice.options.view_as(DirectOptions).direct_num_workers = choice.workers
    command = f"exec {shlex.quote(sys.executable)} -m {WORKER_MODULE} {os.getpid()}"
    return FnApiRunner(default_environment=SubprocessSDKEnvironment.from_command_string(command_string=command))


def run_pipeline(
    choice: RunnerChoice, build: Callable[[beam.Pipeline, str | None], None], display: ProgressDisplay
) -> dict[str, int]:
    """Build a pipeline, run it to its end and show how far it is.

    Args:
      choice: where it runs.
      build: gets the pipeline and the folder for progress files (None where workers cannot reach it).
      display: shows progress.
    Returns:
      the pipeline's counters, by "namespace/name".
    Raises:
      KeyboardInterrupt: the user pressed Ctrl-C; the job's workers are ended.
      Exception: what the job raised.
    """
    outcome: dict = {}
    with tempfile.TemporaryDirectory(prefix="bulktag-progress-", ignore_cleanup_errors=True) as folder:
        progress_dir = folder if choice.is_local else None

        def work() -> None:
            try:
                pipeline = beam.Pipeline(runner=_make_runner(choice), options=choice.options)
                build(pipeline, progress_dir)
                result = outcome["result"] = pipeline.run()
                outcome["state"] = result.wait_until_finish()
                outcome["counters"] = _counters(result)
            except BaseException as error:  # handed to the caller's thread, below
                outcome["error"] = error

        # A thread, so that this one can show progress and hear Ctrl-C; a daemon, so that Ctrl-C need not wait for it.
        thread = threading.Thread(target=work, name="bulktag-job", daemon=True)
        try:
            _wait_for(thread, choice.workers, lambda: display.update(read_progress(folder)))
        except BaseException:
            if not choice.is_local and "result" in outcome:
                _cancel(outcome["result"])
            raise
    if "error" in outcome:
        if "Channel closed prematurely" in str(outcome["error"]):  # Beam, to whom a worker was talking as it died
            raise JobFailed(WORKER_DIED) from outcome["error"]
        raise outcome["error"]
    return outcome["counters"]


def _wait_for(thread: threading.Thread, num_workers: int, show: Callable[[], None]) -> None:
    """Run the job's thread to its end, look after its worker processes, and show how far it is."""
    watch = _WorkerWatch(num_workers)
    # Threads that talk to a worker process would each print a traceback if that died; `watch` says it instead.
    hook, threading.excepthook = threading.excepthook, _quiet_about_workers
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_EVERY_S)
            show()
            watch.check()
    except BaseException:
        hook = _say_nothing  # Beam's other threads would each print that their worker is gone
        raise
    finally:
        threading.excepthook = hook
        watch.end_all()


def _say_nothing(_) -> None:
    """For threads that fail because their job is being ended."""


# The names that Beam 2.77 gives to the launcher's threads that talk to one worker process.
_WORKER_THREADS = ("run_worker", "beam_control_read", "read_grpc_client_inputs")


def _quiet_about_workers(failure: threading.ExceptHookArgs) -> None:
    if failure.thread is None or failure.thread.name not in _WORKER_THREADS:
        threading.__excepthook__(failure)


def _cancel(result) -> None:
    """Ask the service to end a job whose launcher was interrupted: nobody would publish what it makes."""
    try:
        result.cancel()
    except Exception as error:  # whatever the service says, the user wants to leave
        say(f"the job could not be cancelled, end it at its runner: {error}")


class _WorkerWatch:
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


def find_disk_error(error: BaseException | None) -> str | None:
    """One line for a full, read-only or forbidden disk or a damaged shard behind an error, else None.

    Errors of workers reach the launcher as text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return f"{error.strerror}: {error.filename or 'while writing'}"
        for number in _DISK_ERRORS:
            if f"[Errno {number}] {os.strerror(number)}" in str(error):
                return f"{os.strerror(number)}, in a worker"
            if type(error).__module__.startswith("tensorflow.") and os.strerror(number) in str(error):
                return f"{os.strerror(number)}, while TensorFlow was reading or writing"
        if "DataLossError" in f"{type(error).__name__}: {error}":
            return "expected whole TFRecord shards, got a damaged one; extract again"
        error = error.__cause__ or error.__context__
    return None


def _counters(result) -> dict[str, int]:
    metrics = result.metrics().query()
    counters: dict[str, int] = {}
    for counter in metrics["counters"]:
        name = f"{counter.key.metric.namespace}/{counter.key.metric.name}"
        counters[name] = counters.get(name, 0) + counter.result
    return counters
