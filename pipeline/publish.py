"""Staging folders, and how a finished run takes the place of the one before it.

A job writes into `OUTPUT/.bulktag-RUN_ID/`. When all is there, the launcher swaps the finished folders and files into
place, run.json and _SUCCESS last. Whoever waits for _SUCCESS never sees half a run; a run that dies leaves only its
staging folder, which the next run removes.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import json
import os
import secrets
from collections.abc import Iterator

from bulktag.transforms import files
from bulktag.transforms.records import StagedFile

STAGING_PREFIX = ".bulktag-"
SUCCESS, RUN_FILE, FAILED = "_SUCCESS", "run.json", "failed"


def new_run_id(now: datetime.datetime | None = None) -> str:
    """Sortable by time, and unique: UTC time of the start and six random hex digits."""
    now = now or datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


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


def check_output(output: str, job: str) -> None:
    """Refuse to replace a folder that another program filled, or another job of this one.

    Raises:
      ValueError: the folder holds something that no run of `job` wrote.
    """
    if not files.exists(output):
        return
    if files.is_local(output) and not os.path.isdir(output):
        raise ValueError(f"expected a folder or a new name for the output, got a file: {output}")
    run_file = files.join(output, RUN_FILE)
    if files.exists(run_file):
        found = _job_of(run_file)
        if found != job:
            raise ValueError(
                f"expected the output of an earlier {job}, or an empty folder, got that of {found}: {output}"
            )
        return
    if files.is_local(output):
        others = [name for name in os.listdir(output) if not name.startswith(".") and name != FAILED]
        if others:
            raise ValueError(
                f"expected an empty folder or the output of an earlier {job}, got one that holds "
                f"{sorted(others)[0]!r} and no {RUN_FILE}: {output}"
            )


def _job_of(run_file: str) -> str:
    """The job that wrote a run.json."""
    try:
        return json.loads(files.read_bytes(run_file))["job"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected {RUN_FILE} of an earlier run, got something else: {run_file}") from error


@contextlib.contextmanager
def staging(output: str, run_id: str) -> Iterator[Staging]:
    """A staging folder that is gone afterwards, whatever happens; what dead runs left goes too.

    Raises:
      OSError: the output folder cannot be made or written.
    """
    root = files.join(output, STAGING_PREFIX + run_id)
    made = Staging(run_id, output, files.join(root, "work"), files.join(root, "final"))
    if not files.is_local(output):
        try:
            yield made
        finally:
            files.delete_folder(root)
        return
    existed = os.path.isdir(output)
    os.makedirs(output, exist_ok=True)
    with _locked(output):
        _remove_abandoned(output)
        os.makedirs(made.work)
        os.makedirs(made.final)
        alive = _try_lock(root)
    try:
        yield made
    finally:
        files.delete_folder(root)
        if alive is not None:
            os.close(alive)
        if not existed:
            with contextlib.suppress(OSError):
                os.rmdir(output)  # nothing was published: leave no empty folder behind


def _remove_abandoned(output: str) -> None:
    for name in os.listdir(output):
        path = os.path.join(output, name)
        if name.startswith(STAGING_PREFIX) and os.path.isdir(path) and (lock := _try_lock(path)) is not None:
            files.delete_folder(path)
            os.close(lock)


def _try_lock(folder: str) -> int | None:
    """Lock a folder for as long as this process lives, or None where another process holds it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Wait for, then hold the lock of an output folder. The system frees it if the process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def arrange_parts(made: Staging, staged: list[StagedFile], folders: dict[str, str]) -> None:
    """Move the staged files of each table to their names in the final layout.

    Args:
      made: the run's staging folder.
      staged: the files that count.
      folders: folder of each table, relative to the output; `part-00000-of-00002` and so on are made in it.
    """
    for table, folder in folders.items():
        parts = [file for file in staged if file.table == table]
        for i, file in enumerate(sorted(parts, key=lambda part: part.uri)):
            suffix = "." + file.uri.rsplit("/", 1)[-1].split(".", 1)[1]
            name = f"part-{i:05d}-of-{len(parts):05d}{suffix}"
            files.move_file(file.uri, files.join(made.final, folder, name))


def publish(made: Staging, entries: tuple[str, ...], run: dict) -> None:
    """Swap the final layout into the output.

    Args:
      made: the run's staging folder.
      entries: files and folders, relative to the output, that this run replaces; one that the run did not make is
        removed.
      run: contents of run.json.
    """
    if files.is_local(made.output):
        with _locked(made.output):
            _swap(made, entries, run)
    else:
        _swap(made, entries, run)


def _swap(made: Staging, entries: tuple[str, ...], run: dict) -> None:
    for name in (SUCCESS, RUN_FILE):
        _remove(files.join(made.output, name))
    for entry in entries:
        old, new = files.join(made.output, entry), files.join(made.final, entry)
        if files.is_local(old):
            _swap_local(old, new, os.path.join(os.path.dirname(made.final), "old", entry))
        else:
            files.delete_folder(old)
            for path, _, _ in files.list_remote(files.escape(new) + "**"):
                files.move_file(path, old + path[len(new) :])
    _remove(files.join(made.output, FAILED))
    _write_json(files.join(made.output, RUN_FILE), run)
    files.write_bytes(files.join(made.output, SUCCESS), (run["run_id"] + "\n").encode())


def _swap_local(old: str, new: str, aside: str) -> None:
    if os.path.lexists(old):
        os.makedirs(os.path.dirname(aside), exist_ok=True)
        os.replace(old, aside)
    if os.path.lexists(new):
        os.makedirs(os.path.dirname(old), exist_ok=True)
        os.replace(new, old)


def _remove(path: str) -> None:
    if files.is_local(path) and os.path.isfile(path):
        os.unlink(path)
    else:
        files.delete_folder(path)


def publish_failed(made: Staging, run: dict) -> str:
    """Keep what a failed run made under `OUTPUT/failed`, in place of an earlier failed run; the output stays as it was.

    Returns:
      the folder.
    """
    target = files.join(made.output, FAILED)
    _write_json(files.join(made.final, RUN_FILE), run)
    if files.is_local(made.output):
        with _locked(made.output):
            _swap_local(target, made.final, os.path.join(os.path.dirname(made.final), "old", FAILED))
    else:
        files.delete_folder(target)
        for path, _, _ in files.list_remote(files.escape(made.final) + "/**"):
            files.move_file(path, target + path[len(made.final) :])
    return target


def _write_json(path: str, content: dict) -> None:
    files.write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
