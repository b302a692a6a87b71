"""Why a job ended without a usable result."""

import errno
import os

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class JobFailed(Exception):
    """The job ended without a usable result; the message says why in one line."""


def find_disk_error(error: BaseException | None) -> str | None:
    """One line for a full, read-only or forbidden disk or a damaged shard behind an error, else None.

    Errors of workers reach the launcher as text.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return f"{error.strerror}: {error.filename or 'while writing'}"
        for number in _DISK_ERRORS:
            if f"[Errno {number}] {os.strerror(number)}" in str(error):
                return f"{os.strerror(number)}, in a worker"
            if type(error).__module__.startswith("tensorflow.") and os.strerror(number) in str(error):
                return f"{os.strerror(number)}, while TensorFlow was reading or writing"
        if "DataLossError" in f"{type(error).__name__}: {error}":
            return "expected whole TFRecord shards, got a damaged one; extract again"
        error = error.__cause__ or error.__context__
    return None
