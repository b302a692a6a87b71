"""A worker process of the local runner: Beam's own, started quietly."""

import signal

from apache_beam.runners.worker import sdk_worker_main

from bulktag.pipeline.quiet import import_tensorflow

if __name__ == "__main__":
    # Ctrl-C reaches every process of the terminal; the launcher hears it and ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import_tensorflow()
    sdk_worker_main.main([])
