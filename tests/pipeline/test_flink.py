"""What can be said of a Flink job without a cluster; tests/flink has one."""

import pytest

from bulktag.pipeline import flink
from bulktag.pipeline.failures import JobFailed, find_disk_error
from bulktag.pipeline.runners import check_beam_options, check_runner

WORKER_TRACE = """org.apache.flink.runtime.JobException: Recovery is suppressed by ExponentialDelayRestart
Caused by: java.lang.Exception: The user defined 'open()' method caused an exception
Caused by: java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent call last):
  File "tables.py", line 3, in write
OSError: [Errno 28] No space left on device [while running 'Tags/WriteTags']"""


@pytest.mark.parametrize(
    ("state", "text", "message"),
    [
        ("CANCELED", "", "the job was cancelled on the cluster; nothing was published"),
        ("FAILED", "...NoResourceAvailableException: Could not acquire", "the cluster had fewer free slots"),
        (
            "FAILED",
            "x\nCaused by: io.grpc.StatusRuntimeException: CANCELLED",
            "worker processes ended before their work",
        ),
        (
            "FAILED",
            "x\nCaused by: java.util.concurrent.TimeoutException: No client connected",
            "worker processes ended",
        ),
        (
            "FAILED",
            "org.apache.flink.runtime.JobException: Recovery is suppressed\n"
            "Caused by: org.apache.flink.util.FlinkException: The TaskExecutor is shutting down.",
            "the cluster lost TaskManagers more often than it starts their work again: The TaskExecutor is shutting",
        ),
    ],
)
def test_the_end_of_a_job_is_told_in_one_line(state, text, message):
    failure = flink._explain_failure(state, text, RuntimeError("unknown error"))
    assert isinstance(failure, JobFailed) and str(failure).startswith(message) and "\n" not in str(failure)


def test_what_a_worker_raised_is_told_as_it_raised_it():
    failure = flink._explain_failure("FAILED", WORKER_TRACE, RuntimeError("unknown error"))
    assert type(failure) is RuntimeError and str(failure).startswith("Traceback (most recent call last)")
    assert find_disk_error(failure) == "No space left on device, in a worker"


def test_options_of_beams_flink_runner_that_its_python_side_does_not_list_are_known():
    options = check_beam_options(("--runner=FlinkRunner", "--execution_mode_for_batch=PIPELINED"))
    assert options.view_as(flink.FlinkJobOptions).execution_mode_for_batch == "PIPELINED"


def test_a_check_asks_no_cluster():
    assert check_runner(("--runner=FlinkRunner", "--flink_master=localhost:1"), 1).cluster is None


@pytest.mark.parametrize(
    ("jar", "message"),
    [(None, "expected --flink_job_server_jar FILE, .* got none"), ("/none.jar", "expected .* got no file: /none.jar")],
)
def test_a_job_without_its_jar_is_refused(jar, message):
    with pytest.raises(ValueError, match=message):
        flink._check_jar(jar)
