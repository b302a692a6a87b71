"""A worker process of the local runner: Beam's own, started quietly."""

from apache_beam.runners.worker import sdk_worker_main

from bulktag.pipeline.quiet import import_tensorflow

if __name__ == "__main__":
    import_tensorflow()
    sdk_worker_main.main([])
