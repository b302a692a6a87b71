"""Where a Beam job runs: options, progress, interruption."""

import dataclasses
import difflib
import json
import os
import shlex
import threading
from collections.abc import Callable

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import create_runner

from bulktag.pipeline import dataflow, flink, local
from bulktag.pipeline.console import ProgressDisplay, say
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.workspace import JOB_FILE, PROGRESS_DIR
from bulktag.transforms import files
from bulktag.transforms.progress import read_progress

POLL_EVERY_S = 0.2
SCORING_STEP = "Infer"


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
      workers: processes of the local runner.
      cluster: a Flink cluster, or None.
    """

    name: str
    options: PipelineOptions
    is_local: bool
    workers: int
    cluster: flink.FlinkCluster | None = None

    @property
    def is_dataflow(self) -> bool:
        """Runs on Google's Dataflow."""
        return self.name.endswith(dataflow.RUNNER)


def use_storage_options(flags: tuple[str, ...], workers: int) -> None:
    """Have this process reach stores as Beam's options say: on whose behalf, at which address.

    Raises:
      ValueError: see `check_runner`; so a mistake is heard before any store is asked.
    """
    FileSystems.set_options(check_runner(flags, workers).options)


def choose_runner(flags: tuple[str, ...], workers: int, job_name: str = "", config=None) -> RunnerChoice:
    """The runner that the user asked for, ready for a job; in this process where none was.

    Args:
      flags: Beam's own options.
      workers: worker processes of the local runner.
      job_name: where the flags give none.
      config: of the job, to look for what does not go together with the runner.
    Raises:
      ValueError: see `check_runner`; or there is no cluster where one should be.
    """
    choice = check_runner(flags, workers)
    FileSystems.set_options(choice.options)  # for what the launcher itself reads and writes
    check_detach(choice, getattr(config, "detach", False))
    if choice.is_dataflow:
        if config is not None:
            dataflow.check_job(config, choice.options)
        dataflow.prepare(choice.options, job_name)
    if _kind(choice.name) == "FlinkRunner" and flink.is_cluster(choice.options):
        return dataclasses.replace(choice, cluster=flink.prepare(choice.options, job_name))
    return choice


def check_runner(flags: tuple[str, ...], workers: int) -> RunnerChoice:
    """What can be said of the choice without asking anybody.

    Raises:
      ValueError: see `check_beam_options`; or --workers with a runner that has workers of its own.
    """
    options = check_beam_options(flags)
    asked = any(flag.split("=", 1)[0] == "--runner" for flag in flags)
    if not asked:
        options.view_as(SetupOptions).save_main_session = False
        return RunnerChoice("local", options, True, workers)
    if workers != 1:
        raise ValueError(f"expected workers only for the local runner, got workers {workers} and a --runner")
    name = options.view_as(StandardOptions).runner
    if _kind(name) == dataflow.RUNNER:
        dataflow.check(options)
    return RunnerChoice(name, options, _kind(name) in _IN_PROCESS, 1)


def check_detach(choice: RunnerChoice, detach: bool) -> None:
    """Refuse to leave a job that could not go on alone.

    Raises:
      ValueError: with the reason.
    """
    if detach and not choice.is_dataflow:
        raise ValueError(f"expected detach only with --runner DataflowRunner, got runner {choice.name}")


_IN_PROCESS = ("DirectRunner", "SwitchingDirectRunner", "BundleBasedDirectRunner", "FnApiRunner")


def _kind(name: str) -> str:
    """Name of the runner's class.

    Raises:
      ValueError: Beam has none of this name, or what it needs is not installed.
    """
    if name == "local":
        return FnApiRunner.__name__
    try:
        return type(create_runner(name)).__name__
    except (ValueError, ImportError, AttributeError) as error:
        raise ValueError(f"expected a runner that Beam can load, got {name!r}: {error}") from error


def _make_runner(choice: RunnerChoice):
    if choice.cluster:
        return flink.ClusterRunner(choice.cluster)
    if choice.name == "local":
        return local.make_local_runner(choice.options, choice.workers)
    return None  # Beam takes it from the options


def run_pipeline(
    choice: RunnerChoice, build: Callable[[beam.Pipeline, str], None], display: ProgressDisplay, staging_dir: str,
    *, detach: bool = False,
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Build a pipeline, run it to its end and show how far it is.

    Args:
      choice: where it runs.
      build: gets the pipeline and the folder for progress files.
      display: shows progress.
      staging_dir: the run's staging folder, which launcher and workers reach.
      detach: do not wait for its end.
    Returns:
      counters: the pipeline's, by "namespace/name"; on a cluster also task_managers: elements of the step that scores
      images, by TaskManager.
    Raises:
      KeyboardInterrupt: the user pressed Ctrl-C; the job's workers are ended.
      JobFailed: a worker or a cluster failed.
      Exception: what the job raised.
    """
    runner = _make_runner(choice)
    progress_dir = files.join(staging_dir, PROGRESS_DIR)
    _describe_job(choice, runner, display.title, staging_dir)
    outcome: dict = {}

    def work() -> None:
        try:
            pipeline = beam.Pipeline(runner=runner, options=choice.options)
            build(pipeline, progress_dir)
            result = outcome["result"] = pipeline.run()
            if choice.is_dataflow and result.has_job:
                _note_dataflow_job(choice, outcome, display.title, staging_dir, detach)
            if detach:
                outcome["counters"] = {}
                return
            outcome["state"] = result.wait_until_finish()
            outcome["counters"] = _counters(result)
        except BaseException as error:  # handed to the caller's thread, below
            outcome["error"] = error

    # A thread, so that this one can show progress and hear Ctrl-C; a daemon, so that Ctrl-C need not wait for it.
    thread = threading.Thread(target=work, name="bulktag-job", daemon=True)
    try:
        _wait_for(thread, choice, lambda: display.update(read_progress(progress_dir)))
    except BaseException:
        if not choice.is_local and "result" in outcome:
            _cancel(outcome["result"])
        raise
    if "error" in outcome:
        raise _explain(outcome["error"], runner) from outcome["error"]
    facts = {"counters": outcome["counters"], **({"dataflow": outcome["job"]} if "job" in outcome else {})}
    if choice.cluster:
        facts["task_managers"] = choice.cluster.count_by_task_manager(runner.job_id, SCORING_STEP)
    return facts


def _describe_job(choice: RunnerChoice, runner, title: str, staging_dir: str) -> None:
    """Make the folder for progress, and leave word for another launcher that wants to follow this job."""
    if files.is_local(staging_dir):
        os.makedirs(files.join(staging_dir, PROGRESS_DIR), exist_ok=True)
    job = {"job": title, "runner": choice.name}
    if choice.cluster:
        job["flink"] = {"url": choice.cluster.url, "job_id": runner.job_id}
    files.write_bytes(files.join(staging_dir, JOB_FILE), json.dumps(job).encode())


def _note_dataflow_job(choice: RunnerChoice, outcome: dict, title: str, staging_dir: str, detached: bool) -> None:
    job_id = outcome["result"].job_id()
    job = outcome["job"] = {"job_id": job_id, "url": dataflow.job_url(choice.options, job_id)}
    content = {"job": title, "runner": choice.name, "dataflow": job, "detached": detached}
    files.write_bytes(files.join(staging_dir, JOB_FILE), json.dumps(content).encode())
    say(f"Dataflow job {job_id}: {job['url']}")


def _explain(error: BaseException, runner) -> BaseException:
    """What to tell the user about the end of a job."""
    if "Channel closed prematurely" in str(error):  # Beam, to whom a worker was talking as it died
        return JobFailed(local.WORKER_DIED)
    if isinstance(runner, flink.ClusterRunner):
        return runner.explain(error)
    return dataflow.explain(error)


def _wait_for(thread: threading.Thread, choice: RunnerChoice, show: Callable[[], None]) -> None:
    """Run the job's thread to its end, look after its worker processes, and show how far it is."""
    watch = local.WorkerWatch(choice.workers)
    # Threads that talk to a worker process would each print a traceback if that died; `watch` says it instead.
    hook, threading.excepthook = threading.excepthook, local.quiet_about_workers
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_EVERY_S if choice.is_local else flink.POLL_EVERY_S)
            show()
            watch.check()
    except BaseException:
        hook = local.say_nothing  # Beam's other threads would each print that their worker is gone
        raise
    finally:
        threading.excepthook = hook
        watch.end_all()


def _cancel(result) -> None:
    """Ask the service to end a job whose launcher was interrupted: nobody would publish what it makes."""
    try:
        result.cancel()
    except Exception as error:  # whatever the service says, the user wants to leave
        say(f"the job could not be cancelled, end it at its runner: {error}")


def _counters(result) -> dict[str, int]:
    metrics = result.metrics().query()
    counters: dict[str, int] = {}
    for counter in metrics["counters"]:
        if counter.key.metric.namespace == "beam":
            continue  # a cluster's own measures
        name = f"{counter.key.metric.namespace}/{counter.key.metric.name}"
        counters[name] = counters.get(name, 0) + counter.result
    return counters
