"""What flock does on a disk, in a store: who is publishing, and which runs are still alive.

An object that is written again every few seconds stands for a process. Its generation, which the store counts, lets
just one writer have it; where it has stopped changing, its process is gone.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator

from bulktag.pipeline.console import say, warn
from bulktag.transforms import files

LOCK_NAME, ALIVE_NAME = ".bulktag-lock", "alive"
ALIVE = b"alive\n"  # some stores refuse an empty object
RENEW_EVERY_S = 20.0
# A lock that nobody has renewed for so long is broken. Longer than one request is tried again.
LOCK_EXPIRES_S = 90.0
LOOK_EVERY_S = 1.0
# A run that has not said for so long that it lives is gone: longer than a laptop sleeps through a short break.
GONE_AFTER_S = 900.0


@contextlib.contextmanager
def _renewing(renew: Callable[[], None]) -> Iterator[None]:
    """Call `renew` every few seconds, in a thread."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(RENEW_EVERY_S):
            try:
                renew()
            except OSError as error:
                warn(f"the store did not take a sign of life: {error}")

    thread = threading.Thread(target=work, name="bulktag-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextlib.contextmanager
def locked(folder: str) -> Iterator[None]:
    """Wait for, then hold the lock of a folder in a store; nothing is held in one that cannot compare generations."""
    if not files.has_generations(folder):
        yield
        return
    uri, owner = files.join(folder, LOCK_NAME), secrets.token_hex(8).encode()
    held = [_acquire(uri, owner)]

    def renew() -> None:
        held[0] = files.write_generation(uri, owner, held[0])

    try:
        with _renewing(renew):
            yield
    finally:
        with contextlib.suppress(FileExistsError):  # somebody took this process for dead
            files.delete_generation(uri, held[0])


def _acquire(uri: str, owner: bytes) -> int:
    """Write the lock where none is; returns its generation."""
    seen, since = -1, 0.0
    while True:
        try:
            return files.write_generation(uri, owner, 0)
        except FileExistsError:
            pass
        try:
            found = files.describe_object(uri)
            if files.read_bytes(uri) == owner:
                return found.generation  # written, but the answer was lost on the way
        except FileNotFoundError:
            continue
        if found.generation != seen:
            if seen < 0:
                say("another run is publishing there; waiting for it")
            seen, since = found.generation, time.monotonic()
        elif time.monotonic() - since > LOCK_EXPIRES_S:
            say("the run that was publishing there is gone; its lock is removed")
            with contextlib.suppress(FileExistsError):
                files.delete_generation(uri, seen)
        time.sleep(LOOK_EVERY_S)


@contextlib.contextmanager
def alive(root: str) -> Iterator[None]:
    """Have a run's staging folder say that the run lives."""
    uri = files.join(root, ALIVE_NAME)
    files.write_bytes(uri, ALIVE)
    with _renewing(lambda: files.write_bytes(uri, ALIVE)):
        yield


def find_abandoned(output: str, staging_prefix: str, own: str, allowed_s: Callable[[str], float]) -> list[str]:
    """Staging folders in a store whose runs are gone.

    Args:
      output: folder that they lie in.
      staging_prefix: what their names begin with.
      own: the one of this run, which says what time it is at the store.
      allowed_s: how long nothing may be heard of a run.
    """
    newest: dict[str, int] = {}
    for found in files.list_prefix(files.join(output, staging_prefix)):
        if (rest := found.uri[len(output) + 1 :]).count("/"):
            root = files.join(output, rest.split("/", 1)[0])
            newest[root] = max(newest.get(root, -1), found.modified_us)
    now_us = newest.pop(own, 0)
    return [root for root, modified_us in newest.items() if now_us - modified_us > allowed_s(root) * 1e6]


def is_gone(root: str) -> bool:
    """Whether the run of a staging folder in a store has long not said that it lives, by this machine's clock."""
    newest_us = max((found.modified_us for found in files.list_below(root)), default=None)
    return newest_us is not None and time.time() * 1e6 - newest_us > GONE_AFTER_S * 1e6
