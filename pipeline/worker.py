"""A worker process of the local runner: Beam's own, started quietly."""

import os
import signal
import sys
import threading
import time

from bulktag.pipeline.quiet import import_tensorflow

LOOK_EVERY_S = 1.0


def _end_with(launcher: int) -> None:
    """End this process when the launcher is gone, however it ended: it can tell nobody after `kill -9`."""
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)


def main(launcher: int) -> None:
    """Serve the launcher, process number `launcher`, until it hangs up."""
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    # Ctrl-C reaches every process of the terminal; the launcher hears it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_tensorflow()
    from apache_beam.runners.worker import sdk_worker_main

    stderr = sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # Beam prints what a bundle raised and sends it to the launcher as well, which says it once.
        sys.stderr = nowhere
        try:
            sdk_worker_main.main([])
        finally:
            sys.stderr = stderr


if __name__ == "__main__":
    main(int(sys.argv[1]))
