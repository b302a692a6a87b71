"""A worker process of the local runner: Beam's own, started quietly."""

import os
import signal
import sys

from apache_beam.runners.worker import sdk_worker_main

from bulktag.pipeline.quiet import import_tensorflow


def main() -> None:
    """Serve the launcher until it hangs up."""
    # Ctrl-C reaches every process of the terminal; the launcher hears it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_tensorflow()
    stderr = sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # Beam prints what a bundle raised and sends it to the launcher as well, which says it once.
        sys.stderr = nowhere
        try:
            sdk_worker_main.main([])
        finally:
            sys.stderr = stderr


if __name__ == "__main__":
    main()
