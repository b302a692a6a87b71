"""A Flink cluster as a runner: jobs are sent to it, watched and cancelled over its REST API.

Beam's `FlinkRunner` with `--flink_submit_uber_jar` sends the pipeline inside the job-server jar; no Java runs on the
launcher. What Beam 2.77 leaves out is added here: a job name and id that are known before the job starts, cancelling
(Beam asks for a path that Flink does not have), a state that is asked for every second (Beam's pauses grow to a
minute), and patience with a JobManager that is away for a moment.
"""

import dataclasses
import os
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import requests
import urllib3
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
)
from apache_beam.runners.portability.flink_runner import MAGIC_HOST_NAMES, FlinkRunner
from apache_beam.runners.portability.flink_uber_jar_job_server import FlinkBeamJob, FlinkUberJarJobServer

from bulktag.pipeline.console import warn
from bulktag.pipeline.failures import JobFailed

# Where a worker pool that shares the TaskManager's pod, host or network listens.
WORKER_POOL = "localhost:50000"
POLL_EVERY_S = 1.0
TIMEOUT_S = 30.0
# Pauses double from 0.5 s: a JobManager that is started again, by Kubernetes for example, may be away for two minutes.
RETRIES, BACKOFF_S = 8, 0.5
CONNECT_TIMEOUT_S = 5.0
ENDED = ("FINISHED", "FAILED", "CANCELED")
# Java's words where the connection to a worker process broke, or where one never came.
WORKER_LOST = (
    "worker processes ended before their work was done, more often than the cluster starts it again, perhaps for lack "
    "of memory: a smaller --batch-size needs less"
)
_WORKER_LOST_SIGNS = ("StatusRuntimeException", "call already closed", "No client connected", "FnApiControlClient",
                "Worker died", "UNAVAILABLE", "CANCELLED: client cancelled", "Stream closed")  # fmt: skip


class FlinkJobOptions(PipelineOptions):
    """Options of Beam's Flink runner that its Python SDK passes on but does not list."""

    @classmethod
    def _add_argparse_args(cls, parser):
        parser.add_argument(
            "--execution_mode_for_batch",
            choices=("PIPELINED", "BATCH", "BATCH_FORCED"),
            help="how Flink exchanges data between steps; bulktag's default: BATCH",
        )


class FlinkError(Exception):
    """The cluster refused or failed; the message says what and where, in one line."""


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """What Flink says of a job.

    Attributes:
      state: RUNNING, FINISHED, FAILED, CANCELED, ...
      restarts: how often Flink started parts of it again.
    """

    state: str
    restarts: int


class FlinkCluster:
    """A cluster's REST API. Source: https://nightlies.apache.org/flink/flink-docs-release-1.20/docs/ops/rest_api/

    Args:
      url: of the JobManager, such as http://localhost:8081.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._session = requests.Session()
        # Asking again changes nothing; sending a job again would run it twice.
        retry = urllib3.Retry(RETRIES, backoff_factor=BACKOFF_S, status_forcelist=(502, 503, 504))
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))

    def get(self, path: str) -> Any:
        """Contents of one resource.

        Raises:
          FlinkError: the cluster cannot be reached or has no such thing.
        """
        try:
            response = self._session.get(f"{self.url}/v1/{path}", timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise FlinkError(f"the Flink cluster at {self.url} cannot be reached: {_reason(error)}") from error
        if response.status_code != requests.codes.ok:
            raise FlinkError(f"the Flink cluster at {self.url} answered {response.status_code} to {path}")
        return response.json()

    def check(self) -> int:
        """Its number of slots.

        Raises:
          ValueError: nobody answers there, somebody other than Flink does, or it has no TaskManager.
        """
        try:
            response = requests.get(f"{self.url}/v1/overview", timeout=CONNECT_TIMEOUT_S)
            overview = response.json()
            slots = int(overview["slots-total"])
        except requests.ConnectionError as error:
            raise ValueError(f"expected a Flink cluster at {self.url}, got {_reason(error)}") from error
        except (requests.RequestException, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected a Flink cluster at {self.url}, got something else there") from error
        if not slots:
            raise ValueError(f"expected a Flink cluster with free slots at {self.url}, got one without a TaskManager")
        return slots

    def restarts(self) -> bool:
        """Whether it starts failed parts of a job again. Jobs of Beam's batch mode cannot ask for it themselves."""
        settings = {setting["key"]: setting["value"] for setting in self.get("jobmanager/config")}
        kind = settings.get("restart-strategy.type") or settings.get("restart-strategy") or "disable"
        return kind not in ("disable", "off", "none")

    def status(self, job_id: str) -> JobStatus:
        """State of a job."""
        job = self.get(f"jobs/{job_id}")
        metrics = self.get(f"jobs/{job_id}/metrics?get=numRestarts")
        return JobStatus(job["state"], sum(int(metric["value"]) for metric in metrics))

    def cancel(self, job_id: str) -> None:
        """Ask to end a job.

        Raises:
          FlinkError: it refused.
        """
        url = f"{self.url}/v1/jobs/{job_id}"
        try:
            response = requests.patch(url, params={"mode": "cancel"}, timeout=CONNECT_TIMEOUT_S)
        except requests.RequestException as error:
            raise FlinkError(f"the Flink cluster at {self.url} cannot be reached: {_reason(error)}") from error
        if response.status_code != requests.codes.accepted:
            raise FlinkError(f"the Flink cluster at {self.url} answered {response.status_code} to cancelling {job_id}")

    def read_failure(self, job_id: str) -> str:
        """Java's text of what ended a job."""
        exceptions = self.get(f"jobs/{job_id}/exceptions")
        history = exceptions.get("exceptionHistory", {}).get("entries", [])
        return exceptions.get("root-exception") or (history[0]["stacktrace"] if history else "")

    def count_by_task_manager(self, job_id: str, step: str) -> dict[str, int]:
        """Elements that each TaskManager took in at one step of a job.

        Args:
          job_id: of the job.
          step: part of the name of a transform; Flink joins transforms to one vertex and keeps their names.
        """
        counts: Counter = Counter()
        for vertex in self.get(f"jobs/{job_id}")["vertices"]:
            if step in vertex["name"]:
                for manager in self.get(f"jobs/{job_id}/vertices/{vertex['id']}/taskmanagers")["taskmanagers"]:
                    counts[manager["endpoint"]] += manager["metrics"]["read-records"]
        return dict(sorted(counts.items()))


def _reason(error: Exception) -> str:
    """The innermost reason of a failed connection."""
    found = re.search(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
    return found[1].lower() if found else type(error).__name__


def is_cluster(options: PipelineOptions) -> bool:
    """Whether options ask for a Flink cluster, and not for one inside a process that Beam starts."""
    return options.view_as(FlinkRunnerOptions).flink_master not in MAGIC_HOST_NAMES


def prepare(options: PipelineOptions, job_name: str = "") -> FlinkCluster:
    """Fill in what a job on a cluster needs and the user did not say.

    Returns:
      the cluster.
    Raises:
      ValueError: there is no cluster at --flink_master, or no job-server jar.
    """
    flink, portable = options.view_as(FlinkRunnerOptions), options.view_as(PortableOptions)
    flink.flink_master = FlinkRunner.add_http_scheme(flink.flink_master)
    cluster = FlinkCluster(flink.flink_master)
    slots = cluster.check()
    _check_jar(flink.flink_job_server_jar)
    if not cluster.restarts():
        warn("the cluster starts nothing again: a worker that is lost ends the job. Set in its configuration "
             "restart-strategy.type: exponential-delay and "
             "restart-strategy.exponential-delay.attempts-before-reset-backoff: 4")  # fmt: skip
    flink.flink_submit_uber_jar = True
    if flink.parallelism < 1:
        flink.parallelism = slots
    if not portable.environment_type:
        portable.environment_type, portable.environment_config = "EXTERNAL", WORKER_POOL
    job = options.view_as(FlinkJobOptions)
    # Each step's results are kept until the next one has read them: what a lost TaskManager was doing is done again by
    # the others, and no more than that. These results are names of files, not pixels.
    job.execution_mode_for_batch = job.execution_mode_for_batch or "BATCH"
    name = options.view_as(GoogleCloudOptions)
    name.job_name = name.job_name or job_name
    return cluster


def _explain_failure(state: str, text: str, error: BaseException) -> BaseException:
    if state == "CANCELED":
        return JobFailed("the job was cancelled on the cluster; nothing was published")
    if "NoResourceAvailableException" in text:
        return JobFailed("the cluster had fewer free slots than the job needs, or lost a TaskManager and got none in "
                         "its place: more TaskManagers or a smaller --parallelism")  # fmt: skip
    if "Traceback (most recent call last)" in text:
        return RuntimeError(text[text.index("Traceback (most recent call last)") :])
    if any(sign in text for sign in _WORKER_LOST_SIGNS):
        return JobFailed(f"{WORKER_LOST} (the worker pool's log says how it ended)")
    cause = re.findall(r"Caused by: \S+: (.*)", text)[-1:] or text.splitlines()[:1]
    if "TaskManager" in text or "TaskExecutor" in text:
        return JobFailed(f"the cluster lost TaskManagers more often than it starts their work again: {cause[0]}")
    return RuntimeError(text) if text else error


def _check_jar(path: str | None) -> None:
    if not path:
        raise ValueError("expected --flink_job_server_jar FILE, Beam's job server for this version of Flink, got none "
                         "(make flink-jar gets it)")  # fmt: skip
    if "://" not in path and not os.path.isfile(path):
        raise ValueError(f"expected Beam's job-server jar, got no file: {path}")


class ClusterRunner(FlinkRunner):
    """Beam's Flink runner with what this module adds.

    Args:
      cluster: where the job goes.
    Attributes:
      job_id: that the job has there.
    """

    def __init__(self, cluster: FlinkCluster):
        super().__init__()
        self._cluster = cluster
        self.job_id = uuid.uuid4().hex

    def explain(self, error: BaseException) -> BaseException:
        """What to tell the user about a job that did not end well."""
        if isinstance(error, FlinkError):
            return JobFailed(str(error))
        try:
            state, text = self._cluster.status(self.job_id).state, self._cluster.read_failure(self.job_id)
        except FlinkError:
            return error  # it never started there
        return _explain_failure(state, text, error)

    def default_job_server(self, options):
        """The one that sends a jar."""
        # As Beam's own: the program in the jar finds the cluster that runs it.
        options.view_as(FlinkRunnerOptions).flink_master = "[auto]"
        return _JobServer(self._cluster, self.job_id, options)


class _JobServer(FlinkUberJarJobServer):
    def __init__(self, cluster: FlinkCluster, flink_job_id: str, options: PipelineOptions):
        super().__init__(cluster.url, options)
        self._cluster, self._flink_job_id = cluster, flink_job_id

    def create_beam_job(self, job_id, job_name, pipeline, options):
        """One job."""
        return _Job(self._cluster, self._flink_job_id, self.executable_jar(), job_id, job_name, pipeline, options,
                    self._artifact_port)  # fmt: skip


class _Job(FlinkBeamJob):
    def __init__(self, cluster: FlinkCluster, flink_job_id: str, executable_jar, job_id, job_name, pipeline, options,
                 artifact_port):  # fmt: skip
        super().__init__(cluster.url, executable_jar, job_id, job_name, pipeline, options, artifact_port)
        self._cluster, self._flink_job_id = cluster, flink_job_id

    def run(self):
        """Send the jar and start the job."""
        self._stop_artifact_service()  # which also puts the pipeline into the jar
        try:
            with open(self._jar, "rb") as jar:
                uploaded = self.post("v1/jars/upload", files={"jarfile": ("beam.jar", jar)})
        finally:
            os.unlink(self._jar)
        self._flink_jar_id, self._jar_uploaded = uploaded["filename"].rsplit("/", 1)[-1], True
        try:
            self.post(
                f"v1/jars/{self._flink_jar_id}/run",
                json={
                    "entryClass": "org.apache.beam.runners.flink.FlinkPipelineRunner",
                    "jobId": self._flink_job_id,
                },
            )
        finally:
            self.delete_jar()  # the job has a copy

    def get(self, path, **_):
        """Ask the cluster, with patience."""
        return self._cluster.get(path.removeprefix("v1/"))

    def cancel(self):
        """End the job on the cluster."""
        self._cluster.cancel(self._flink_job_id)

    def get_state_stream(self) -> Iterator[tuple]:
        """State and time, each time that it changes."""

        def ask():
            while True:
                yield self.get_state()
                time.sleep(POLL_EVERY_S)

        for state, timestamp in self.with_state_history(ask()):
            yield state, timestamp
            if self.is_terminal_state(state):
                return

    def get_message_stream(self) -> Iterator[Any]:
        """States alone; why a job failed is asked for by `FlinkCluster.read_failure`."""
        yield from self.get_state_stream()
