"""`bulktag follow`: watch a job that another launcher started."""

import json
import os
import time
from collections import Counter

from bulktag.pipeline import flink
from bulktag.pipeline.console import OUT, ProgressDisplay, say
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.publish import RUN_FILE
from bulktag.pipeline.workspace import JOB_FILE, PROGRESS_DIR, STAGING_PREFIX, is_abandoned
from bulktag.transforms import files
from bulktag.transforms.progress import read_progress

LOOK_EVERY_S = 1.0


def run_follow(output: str) -> dict:
    """Show how far the newest job that writes into a folder is, until it has ended.

    Args:
      output: the job's --output (--model for train).
    Returns:
      contents of run.json.
    Raises:
      ValueError: no job is writing into it.
      JobFailed: it ended without publishing.
    """
    folder = files.normalise(output)
    run_id = _find_job(folder)
    if run_id is None:
        raise ValueError(f"expected the output folder of a job that is running, found no job there: {output}")
    work = files.join(folder, STAGING_PREFIX + run_id, "work")
    job = json.loads(files.read_bytes(files.join(work, JOB_FILE)))
    where = f", {job['flink']['url']}/#/job/running/{job['flink']['job_id']}" if "flink" in job else ""
    say(f"{job['job']} {run_id}, runner: {job['runner']}{where}")
    with ProgressDisplay(job["job"]) as display:
        while files.exists(files.join(work, JOB_FILE)):
            display.update(read_progress(files.join(work, PROGRESS_DIR)))
            if is_abandoned(files.join(folder, STAGING_PREFIX + run_id)):
                state = _state(job)
                raise JobFailed(f"the launcher of {run_id} is gone: nobody will publish what the job makes{state}")
            time.sleep(LOOK_EVERY_S)
    run = _published(folder)
    if not str(run.get("run_id", "")).startswith(run_id):
        raise JobFailed(f"{run_id} ended without publishing anything")
    OUT.print(f"{run['job']} {run['run_id']}: {run['status']}, {run['seconds']:.1f} s: {folder}", markup=False)
    return run


def _find_job(folder: str) -> str | None:
    """Run id of the newest staging folder."""
    if files.is_local(folder):
        names = [name for name in os.listdir(folder)] if os.path.isdir(folder) else []
    else:
        found = files.list_prefix(f"{folder}/{STAGING_PREFIX}")
        names = {entry.uri[len(folder) + 1 :].split("/", 1)[0] for entry in found}
    jobs = [
        name.removeprefix(STAGING_PREFIX)
        for name in names
        if name.startswith(STAGING_PREFIX) and files.exists(files.join(folder, name, "work", JOB_FILE))
    ]
    return max(jobs, default=None)


def _state(job: dict) -> str:
    if "flink" not in job:
        return ""
    try:
        state = flink.FlinkCluster(job["flink"]["url"]).status(job["flink"]["job_id"]).state
    except flink.FlinkError:
        return ""
    return f"; on the cluster it is {state}"


def _published(folder: str) -> Counter | dict:
    try:
        return json.loads(files.read_bytes(files.join(folder, RUN_FILE)))
    except FileNotFoundError:
        return {}
