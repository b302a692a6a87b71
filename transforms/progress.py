"""How far a running job is, told by its workers through small files.

Runners report counters only when a stage has ended. So each worker process keeps one file of running totals in the
run's staging folder, and the launcher adds them up. These numbers are for people to watch: what a run states in
the end is counted from the files that it published.
"""

import json
import os
import pathlib
import threading
import time
import uuid
from collections import Counter

WRITE_EVERY_S = 0.5

_totals: dict[str, Counter] = {}
_written: dict[str, float] = {}
_lock = threading.Lock()
# One name per process: several stages of a job add to the same file.
_PROCESS_NAME = uuid.uuid4().hex


def add_progress(folder: str | None, **counts: int) -> None:
    """Add to this process's totals for the run that watches `folder`; nothing happens without a folder.

    Args:
      folder: a local folder, or None where nobody watches.
      **counts: by name, such as matched, done, errors.
    """
    if not folder:
        return
    with _lock:
        totals = _totals.setdefault(folder, Counter())
        totals.update(counts)
        now = time.monotonic()
        if now - _written.get(folder, -WRITE_EVERY_S) < WRITE_EVERY_S:
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
    path = pathlib.Path(folder) / f"{_PROCESS_NAME}.json"
    temporary = path.with_suffix(f".{threading.get_ident()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        # A watcher that is gone, or a full disk: a worker must not fail for the sake of a progress line. The full
        # disk shows itself at once when the worker writes its output.
        return


def read_progress(folder: str) -> Counter:
    """Totals over all worker processes of the run that watches `folder`."""
    totals: Counter = Counter()
    for path in pathlib.Path(folder).glob("*.json"):
        try:
            totals.update(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue  # being replaced at this moment: the next look finds it
    return totals
