"""Keep libraries from talking over a job's own lines; what goes wrong still shows."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings


def quiet_environment() -> None:
    """Settings that libraries look at when they are loaded; call before anything imports them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    logging.getLogger().addFilter(_is_worth_saying)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    """Not what Beam 2.77 says on the root logger where an extra of its own that no job needs is missing."""
    return not str(record.msg).startswith(("Resource module is not available", "apitools not found"))


def import_tensorflow() -> None:
    """Import TensorFlow without its remarks about the processor.

    TensorFlow 2.21 writes these straight to standard error, whatever its log level says
    (https://github.com/tensorflow/tensorflow/issues/100442), so standard error is held back while it is imported. If
    the import fails, what was held back is printed.

    Raises:
      ImportError: TensorFlow is missing or broken.
    """
    quiet_environment()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, contextlib.ExitStack() as stack:
        saved = os.dup(2)
        stack.callback(os.close, saved)
        os.dup2(held.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        except BaseException:
            os.dup2(saved, 2)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        os.dup2(saved, 2)
    for name in ("tensorflow", "absl"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Beam logs an error and raises it as well: the launcher says what is raised, once.
    logging.getLogger("apache_beam").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"apache_beam\..*")
