"""How far a running job is, told by its workers through small files.

Runners report counters only when a stage has ended. So each worker process keeps one file of running totals in the
run's staging folder, and whoever watches adds them up. These numbers are for people to watch: work that was lost and
done again counts twice. What a run states in the end is counted from the files that it published.
"""

import json
import os
import pathlib
import threading
import time
import uuid
from collections import Counter

from bulktag.transforms import files

WRITE_EVERY_S = 0.5
# A store counts requests, and takes a tenth of a second for each.
WRITE_TO_STORE_EVERY_S = 5.0

_totals: dict[str, Counter] = {}
_written: dict[str, float] = {}
_lock = threading.Lock()
# One name per process: several stages of a job add to the same file.
_PROCESS_NAME = uuid.uuid4().hex


def add_progress(folder: str | None, **counts: int) -> None:
    """Add to this process's totals for the run that watches `folder`; nothing happens without a folder.

    Args:
      folder: one that the workers and those who watch reach, or None where nobody watches.
      **counts: by name, such as matched, done, errors.
    """
    if not folder:
        return
    with _lock:
        totals = _totals.setdefault(folder, Counter())
        totals.update(counts)
        now = time.monotonic()
        every_s = WRITE_EVERY_S if files.is_local(folder) else WRITE_TO_STORE_EVERY_S
        if now - _written.get(folder, -every_s) < every_s:
            return
        _written[folder] = now
        text = json.dumps(totals)
    _write(folder, text)


def flush_progress(folder: str | None) -> None:
    """Write this process's totals now."""
    if folder and folder in _totals:
        with _lock:
            text = json.dumps(_totals[folder])
        _write(folder, text)


def _write(folder: str, text: str) -> None:
    uri = files.join(folder, f"{_PROCESS_NAME}.json")
    try:
        if files.is_local(folder):  # and still there: a folder that was removed stays away
            temporary = pathlib.Path(folder) / f".{_PROCESS_NAME}.{threading.get_ident()}"
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, uri)
        else:
            files.write_bytes(uri, text.encode())
    except Exception:
        # A watcher that is gone, a full disk, a store that is away: a worker must not fail for the sake of a progress
        # line. What is wrong shows itself when the worker writes its output.
        return


def read_progress(folder: str) -> Counter:
    """Totals over all worker processes of the run that watches `folder`."""
    totals: Counter = Counter()
    for uri in _list(folder):
        try:
            totals.update(json.loads(files.read_bytes(uri)))
        except (OSError, ValueError):
            continue  # being replaced at this moment: the next look finds it
    return totals


def _list(folder: str) -> list[str]:
    if files.is_local(folder):
        return [str(path) for path in pathlib.Path(folder).glob("[!.]*.json")]
    return [found.uri for found in files.list_children(folder)]
