"""A worker process, Beam's own started quietly: of the local runner, or of a worker pool."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time

from bulktag.pipeline.quiet import import_tensorflow, quiet_environment

LOOK_EVERY_S = 1.0


def _end_with(launcher: int) -> None:
    """End this process when the launcher is gone, however it ended: it can tell nobody after `kill -9`."""
    while os.getppid() == launcher:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)


def _serve_launcher(launcher: int) -> None:
    """Serve the local runner in process number `launcher`, until it hangs up."""
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


def _serve_runner(pool: int, control: str, worker_id: str) -> None:
    """Serve a runner's TaskManager at its control endpoint, until it hangs up or the pool ends."""
    threading.Thread(target=_end_with, args=(pool,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the pool hears it
    # TensorFlow is imported where a stage needs it: a runner starts a worker for each stage, and most do without.
    quiet_environment()
    import grpc
    from apache_beam.runners.worker import sdk_worker

    # A runner that needs a worker no more just hangs up, which Beam would report as an error, thread by thread.
    logging.getLogger("apache_beam.runners.worker.data_plane").setLevel(logging.CRITICAL)
    threading.excepthook = _quiet_about_hanging_up
    with contextlib.suppress(grpc.RpcError):
        # No time limit for buffered data and no cache of state: as Beam's own pool has it.
        sdk_worker.SdkHarness(control, worker_id=worker_id, state_cache_size=0, data_buffer_time_limit_ms=-1).run()


def _quiet_about_hanging_up(failure: threading.ExceptHookArgs) -> None:
    import grpc

    if not issubclass(failure.exc_type, grpc.RpcError):
        threading.__excepthook__(failure)


def main(argv: list[str] | None = None) -> None:
    """Serve until the one who gives the work hangs up."""
    parser = argparse.ArgumentParser(prog="python -m bulktag.pipeline.worker")
    parser.add_argument("--launcher", type=int, required=True, help="process number to end with")
    parser.add_argument("--control", help="control endpoint of a runner's TaskManager")
    parser.add_argument("--id", help="the TaskManager's name for this worker")
    args = parser.parse_args(argv)
    if args.control:
        _serve_runner(args.launcher, args.control, args.id)
    else:
        _serve_launcher(args.launcher)


if __name__ == "__main__":
    main()
