"""Why a job ended without a usable result."""

import errno
import os
import re

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


# As Beam tells it of a worker, with the name of the step behind it.
_STORE_ERROR = re.compile(r"StoreError: \[Errno \d+\] (.*?)(?: \[while running|\n|$)")


class JobFailed(Exception):
    """The job ended without a usable result; the message says why in one line."""


def find_disk_error(error: BaseException | None) -> str | None:
    """One line for a full, read-only or forbidden disk, a store that failed or a damaged shard, else None.

    Errors of workers reach the launcher as text.
    """
    seen: set[int] = set()  # Beam's chains of errors may lead back to where they began
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return f"{error.strerror}: {error.filename or 'while writing'}"
        if found := _STORE_ERROR.search(str(error)):
            return found[1]
        for number in _DISK_ERRORS:
            if f"[Errno {number}] {os.strerror(number)}" in str(error):
                return f"{os.strerror(number)}, in a worker"
            if type(error).__module__.startswith("tensorflow.") and os.strerror(number) in str(error):
                return f"{os.strerror(number)}, while TensorFlow was reading or writing"
        if "DataLossError" in f"{type(error).__name__}: {error}":
            return "expected whole TFRecord shards, got a damaged one; extract again, with --recompute"
        error = error.__cause__ or error.__context__
    return None
