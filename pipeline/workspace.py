"""A run's own folder beside its output: made, locked and removed.

The folder is locked for as long as the process lives, so that a later run can tell what a dead one left behind. In a
store, an object in it says that the process lives.
"""

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
from collections.abc import Iterator

from bulktag.pipeline import flink, store_locks
from bulktag.pipeline.console import say, warn
from bulktag.pipeline.signals import uninterrupted
from bulktag.transforms import files

STAGING_PREFIX = ".bulktag-"
ATTEMPTS = 5
DETACHED_GONE_AFTER_S = 86_400.0
# In the folder for what workers write: what another launcher needs to know of the job, and how far the workers are.
JOB_FILE, PROGRESS_DIR = "job.json", "progress"


@dataclasses.dataclass(frozen=True)
class Staging:
    """A run's own folder beside its output.

    Attributes:
      run_id: of the run.
      output: folder that the run publishes into.
      work: folder for what workers write.
      final: folder with the layout of `output`, filled by the launcher before it publishes.
    """

    run_id: str
    output: str
    work: str
    final: str


@contextlib.contextmanager
def staging(output: str, run_id: str, *, detach: bool = False) -> Iterator[Staging]:
    """A staging folder that is gone afterwards, whatever happens; what dead runs left goes too.

    Args:
      output: folder that the run publishes into.
      run_id: of the run.
      detach: leave it for a job in a store that goes on alone, unless that could not be started.
    Raises:
      OSError: the output folder cannot be made or written.
    """
    root = files.join(output, STAGING_PREFIX + run_id)
    made = Staging(run_id, output, files.join(root, "work"), files.join(root, "final"))
    if not files.is_local(output):
        with _staging_on_store(output, root, detach):
            yield made
        return
    existed = os.path.isdir(output)
    try:
        alive = _make_staging(made, root)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise ValueError(f"expected an output folder that can be made, got {error.strerror}: {output}") from error
    try:
        yield made
    finally:
        with uninterrupted():  # somebody who waits for the end of this presses Ctrl-C again
            _delete_staging(root)
            if alive is not None:
                os.close(alive)
            if not existed:
                with contextlib.suppress(OSError):
                    os.rmdir(output)  # nothing was published: leave no empty folder behind


@contextlib.contextmanager
def _staging_on_store(output: str, root: str, detach: bool) -> Iterator[None]:
    goes_on = False
    try:
        with store_locks.alive(root):
            for abandoned in store_locks.find_abandoned(output, STAGING_PREFIX, root, _silence_allowed_s):
                _end_job(abandoned)
                files.delete_folder(abandoned)
            yield
            goes_on = detach
    finally:
        if not goes_on:
            remove_staging_on_store(root)


def remove_staging_on_store(root: str) -> None:
    """Remove a run's folder from a store; where that fails, a later run will."""
    try:
        with uninterrupted():
            files.delete_folder(root)
    except OSError as error:
        warn(f"a later run will remove the temporary folder: {error}")


def _silence_allowed_s(root: str) -> float:
    """How long nothing may be heard of a run: one without a launcher may wait for its workers for hours."""
    try:
        detached = json.loads(files.read_bytes(files.join(root, "work", JOB_FILE))).get("detached")
    except (OSError, ValueError):
        detached = False
    return DETACHED_GONE_AFTER_S if detached else store_locks.GONE_AFTER_S


def _make_staging(made: Staging, root: str) -> int | None:
    """Make a run's folders.

    Returns:
      the lock that says for as long as this process lives that they are in use; None on a disk without locks.
    """
    for _ in range(ATTEMPTS):
        os.makedirs(made.output, exist_ok=True)
        # Another run that ends now without a result removes the folder, if it is empty: then once more.
        with contextlib.suppress(FileNotFoundError), locked(made.output):
            _remove_abandoned(made.output)
            os.mkdir(root)
            for folder in (made.work, made.final):
                os.mkdir(folder)
            return try_lock(root)
    raise FileNotFoundError(errno.ENOENT, "another process keeps removing it", made.output)


def _delete_staging(root: str) -> None:
    """Remove a staging folder, though an interrupted job's threads may still be writing into it.

    Under another name nobody finds it any more; what is made again under the old one is removed again.
    """
    for attempt in range(ATTEMPTS):
        if not os.path.lexists(root):
            return
        gone = f"{root}-{attempt}"
        with contextlib.suppress(OSError):
            os.rename(root, gone)
        for _ in range(ATTEMPTS):
            files.delete_folder(gone)
            if not os.path.lexists(gone):
                break


def _remove_abandoned(output: str) -> None:
    for name in os.listdir(output):
        path = os.path.join(output, name)
        if name.startswith(STAGING_PREFIX) and os.path.isdir(path) and (lock := try_lock(path)) is not None:
            _end_job(path)
            files.delete_folder(path)
            os.close(lock)


def _end_job(root: str) -> None:
    """End a job on a cluster whose launcher is gone: nobody would publish what it makes."""
    try:
        job = json.loads(files.read_bytes(files.join(root, "work", JOB_FILE)))["flink"]
        flink.FlinkCluster(job["url"]).cancel(job["job_id"])
    except (OSError, ValueError, KeyError, flink.FlinkError):
        return  # it was no such job, or it has ended
    say(f"cancelled the job of a launcher that is gone: {job['job_id']}")


def is_abandoned(root: str) -> bool:
    """Whether the launcher of a staging folder is gone."""
    if not files.is_local(root):
        return store_locks.is_gone(root)
    try:
        lock = try_lock(root)
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    os.close(lock)
    return True


def try_lock(folder: str) -> int | None:
    """Lock a folder for as long as this process lives; None where another process holds it or it has no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Wait for, then hold the lock of an output folder. The system frees it if the process dies.

    On a disk without locks, as some that are mounted over a network, nothing is held.
    """
    if not files.is_local(folder):
        with store_locks.locked(folder):
            yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
