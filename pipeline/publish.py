"""How a finished run takes the place of the one before it.

A job writes into `OUTPUT/.bulktag-RUN_ID/`. When all is there, the launcher swaps the finished folders and files into
place, run.json and _SUCCESS last. Whoever waits for _SUCCESS never sees half a run; a run that dies leaves only its
staging folder, which the next run removes.
"""

import datetime
import json
import os
import secrets
from collections.abc import Iterable

from bulktag.pipeline.signals import uninterrupted
from bulktag.pipeline.workspace import STAGING_PREFIX, Staging, locked, staging
from bulktag.transforms import files
from bulktag.transforms.records import StagedFile

__all__ = [
    "STAGING_PREFIX",
    "Staging",
    "arrange_parts",
    "check_apart",
    "check_folder",
    "check_output",
    "new_run_id",
    "publish",
    "publish_failed",
    "staging",
]

SUCCESS, RUN_FILE, FAILED = "_SUCCESS", "run.json", "failed"
PUBLISHING = "publishing.json"


def new_run_id(now: datetime.datetime | None = None) -> str:
    """Sortable by time, and unique: UTC time of the start and six random hex digits."""
    now = now or datetime.datetime.now(datetime.UTC)
    return f"{now:%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def is_published(output: str, run_id: str) -> bool:
    """Whether this run is the one that the output holds, whole."""
    try:
        return files.read_bytes(files.join(output, SUCCESS)).decode().strip() == run_id
    except FileNotFoundError:
        return False


def check_output(output: str, job: str) -> None:
    """Refuse to replace a folder that another program filled, or another job of this one.

    Raises:
      ValueError: the folder holds something that no run of `job` wrote.
    """
    check_folder(output)
    try:
        _check_published(output, job)
    except PermissionError as error:
        raise ValueError(f"expected an output folder that may be read, got {error.strerror}: {output}") from error


def _check_published(output: str, job: str) -> None:
    if not files.exists(output):
        return
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


def check_folder(uri: str) -> None:
    """Refuse a name that no folder for writing can have, before hours of work go into it; local ones only.

    Raises:
      ValueError: with the reason.
    """
    if not files.is_local(uri):
        return
    try:
        os.lstat(uri)
    except (FileNotFoundError, NotADirectoryError):
        pass  # the loop below finds what is there instead
    except OSError as error:
        raise ValueError(f"expected a folder that can be made, got {error.strerror}: {uri}") from error
    folder = uri
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        raise ValueError(f"expected a folder or a new name, got a file: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"expected a folder that may be written, got one that may not: {folder}")


def check_apart(output: str, sources: Iterable[str]) -> None:
    """Refuse an output that a later run would read as its own input.

    Args:
      output: absolute path or URL.
      sources: folders that are read with all below them.
    Raises:
      ValueError: the output is one of them or lies below one.
    """
    for source in sources:
        if _resolved(output) == _resolved(source) or _resolved(output).startswith(_resolved(source) + "/"):
            raise ValueError(f"expected an output outside of the input folder {source}, got {output}")


def _resolved(uri: str) -> str:
    return (os.path.realpath(uri) if files.is_local(uri) else uri).rstrip("/")


def _job_of(run_file: str) -> str:
    """The job that wrote a run.json."""
    try:
        return json.loads(files.read_bytes(run_file))["job"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"expected {RUN_FILE} of an earlier run, got something else: {run_file}") from error


def arrange_parts(made: Staging, staged: list[StagedFile], folders: dict[str, str]) -> None:
    """Move the staged files of each table to their names in the final layout.

    Args:
      made: the run's staging folder.
      staged: the files that count.
      folders: folder of each table, relative to the output; `part-00000-of-00002` and so on are made in it.
    """
    moves = []
    for table, folder in folders.items():
        parts = [file for file in staged if file.table == table]
        for i, file in enumerate(sorted(parts, key=lambda part: part.uri)):
            suffix = "." + file.uri.rsplit("/", 1)[-1].split(".", 1)[1]
            name = f"part-{i:05d}-of-{len(parts):05d}{suffix}"
            moves.append((file.uri, files.join(made.final, folder, name)))
    files.move_files(moves)


def publish(made: Staging, entries: tuple[str, ...], run: dict) -> None:
    """Swap the final layout into the output.

    Args:
      made: the run's staging folder.
      entries: files and folders, relative to the output, that this run replaces; one that the run did not make is
        removed.
      run: contents of run.json.
    """
    # All that needs room on the disk is written before anything of the last run is touched.
    _write_json(files.join(made.final, PUBLISHING), {**run, "status": "publishing"})
    _write_json(files.join(made.final, RUN_FILE), run)
    files.write_bytes(files.join(made.final, SUCCESS), (run["run_id"] + "\n").encode())
    done = False
    try:
        with locked(made.output), uninterrupted():
            _swap_all(made, entries)
            done = True
    except KeyboardInterrupt as stop:
        stop.args = ("the run had been published",) if done else ()
        raise


def _swap_all(made: Staging, entries: tuple[str, ...]) -> None:
    _remove(files.join(made.output, SUCCESS))
    # Says whose the folder is, should the process die before the last line: the next run may replace it.
    _swap(made, PUBLISHING, RUN_FILE)
    for entry in entries:
        _swap(made, entry, entry)
    _remove(files.join(made.output, FAILED))
    _swap(made, RUN_FILE, RUN_FILE)
    _swap(made, SUCCESS, SUCCESS)


def _swap(made: Staging, entry: str, target: str) -> None:
    """Put `entry` of the finished layout in the place of `target`, which is removed where there is no such entry."""
    old, new = files.join(made.output, target), files.join(made.final, entry)
    if files.is_local(old):
        _swap_local(old, new, os.path.join(os.path.dirname(made.final), "old", secrets.token_hex(4)))
        return
    _remove(old)
    found = [new] if files.is_file(new) else [stored.uri for stored in files.list_below(new)]
    files.move_files((path, old + path[len(new) :]) for path in found)


def _swap_local(old: str, new: str, aside: str) -> None:
    if os.path.lexists(old):
        os.makedirs(os.path.dirname(aside), exist_ok=True)
        os.replace(old, aside)
    if os.path.lexists(new):
        os.makedirs(os.path.dirname(old), exist_ok=True)
        os.replace(new, old)


def _remove(path: str) -> None:
    files.delete_file(path)
    files.delete_folder(path)


def publish_failed(made: Staging, run: dict) -> str:
    """Keep what a failed run made under `OUTPUT/failed`, in place of an earlier failed run; the output stays as it was.

    Returns:
      the folder.
    """
    target = files.join(made.output, FAILED)
    _write_json(files.join(made.final, RUN_FILE), run)
    with locked(made.output), uninterrupted():
        if files.is_local(made.output):
            _swap_local(target, made.final, os.path.join(os.path.dirname(made.final), "old", secrets.token_hex(4)))
        else:
            files.delete_folder(target)
            files.move_files((stored.uri, target + stored.uri[len(made.final) :])
                             for stored in files.list_below(made.final))  # fmt: skip
    return target


def _write_json(path: str, content: dict) -> None:
    files.write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
