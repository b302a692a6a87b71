"""`bulktag train --remote`: the training as one step of a Beam job, on a worker of its runner.

The worker reads the examples, keeps the checkpoints and publishes the model by itself: what is lost with it is done
again from its last checkpoint. It leaves word of how far it is, and of what came of it, in the run's staging folder.
"""

import dataclasses
import json
import time
from collections import Counter

import apache_beam as beam

from bulktag.model.fitting import Progress
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import TrainConfig
from bulktag.pipeline.console import TrainingDisplay, say
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.runners import choose_runner, run_pipeline
from bulktag.pipeline.train import print_figures, print_model, train_here
from bulktag.transforms import files

PROGRESS_FILE, RESULT_FILE = "training.json", "result.json"
TELL_EVERY_S = 2.0


def train_remotely(config: TrainConfig) -> dict:
    """Train on a worker.

    Returns:
      contents of run.json.
    Raises:
      ValueError, JobFailed: see `bulktag.pipeline.train.run_train`.
    """
    output = files.normalise(config.model)
    record = outcome.RunRecord("train", publish.new_run_id(), config)
    runner = choose_runner(config.beam, 1, record.job_name, config)
    say(f"training on a worker; runner: {runner.name}")
    there = dataclasses.replace(config, remote=False, beam=(), examples=files.normalise(config.examples), model=output)
    with publish.staging(output, record.run_id) as made:

        def build(pipeline: beam.Pipeline, _) -> None:
            step = pipeline | "Config" >> beam.Create([there])
            step | "Train" >> beam.Map(_train_and_tell, record.run_id, made.work)

        with TrainingDisplay() as display:
            run_pipeline(runner, build, _Watch(display, made.work), made.work)
        result = json.loads(files.read_bytes(files.join(made.work, RESULT_FILE)))
    if "failed" in result:
        raise JobFailed(result["failed"])
    if "wrong" in result:
        raise ValueError(result["wrong"])
    run = result["run"]
    print_figures(run["figures"])
    print_model(run, result["labels"], output)
    return run


def _train_and_tell(config: TrainConfig, run_id: str, staging_dir: str) -> None:
    """On the worker: train, and write down what came of it. A mistake of the user's is no reason to try again."""
    try:
        run = train_here(config, f"{run_id}-w", _Teller(staging_dir))
        labels = json.loads(files.read_bytes(files.join(config.model, "bundle.json")))["labels"]
        result = {"run": run, "labels": len(labels)}
    except JobFailed as failure:
        result = {"failed": str(failure)}
    except ValueError as error:
        if not str(error).startswith("expected "):
            raise
        result = {"wrong": str(error)}
    files.write_bytes(files.join(staging_dir, RESULT_FILE), json.dumps(result).encode())


class _Teller:
    """On the worker: writes down how far the training is."""

    def __init__(self, staging_dir: str):
        self._uri, self._last = files.join(staging_dir, PROGRESS_FILE), 0.0

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() - self._last >= TELL_EVERY_S:
            self._last = time.monotonic()
            files.write_bytes(self._uri, json.dumps(dataclasses.asdict(progress)).encode())


class _Watch:
    """On the launcher: shows what the worker wrote down."""

    title = "train"

    def __init__(self, display: TrainingDisplay, staging_dir: str):
        self._display, self._uri, self._looked = display, files.join(staging_dir, PROGRESS_FILE), 0.0

    def update(self, _: Counter) -> None:
        """Look again."""
        if time.monotonic() - self._looked >= TELL_EVERY_S and files.exists(self._uri):
            self._looked = time.monotonic()
            self._display.update(Progress(**json.loads(files.read_bytes(self._uri))))
