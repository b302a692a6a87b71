"""`bulktag train --sweep`: a head for each of many settings, each an element of a Beam job; the best is kept."""

import csv
import dataclasses
import io
import json
import os

import apache_beam as beam
import tensorflow as tf

from bulktag.model.hardware import choose_training_device
from bulktag.model.sweep import (
    DEFAULT_SPACE,
    Trial,
    TrialResult,
    describe_settings,
    draw_trials,
    rank_trials,
    run_trial,
)
from bulktag.model.sweep_space import parse_space
from bulktag.model.training import TrainOptions
from bulktag.pipeline import publish
from bulktag.pipeline.config import TrainConfig
from bulktag.pipeline.console import ProgressDisplay, print_table, say
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.outcome import RunRecord
from bulktag.pipeline.runners import choose_runner, run_pipeline
from bulktag.transforms import files
from bulktag.transforms.progress import add_progress, flush_progress

TRIALS_SHOWN = 5


def plan_trials(config: TrainConfig, base: TrainOptions) -> list[Trial]:
    """The trials that a request asks for.

    Raises:
      ValueError: values that no head can have.
    """
    return draw_trials(base, parse_space(config.sweep_space) or DEFAULT_SPACE, config.sweep)


def run_sweep(config: TrainConfig, base: TrainOptions, record: RunRecord) -> tuple[TrainConfig, str]:
    """Train a head for each trial.

    Args:
      config: of the training.
      base: its settings.
      record: of the run, which gets a table of the trials.
    Returns:
      the configuration with the settings that were best on validation images, and the table as CSV.
    Raises:
      ValueError: see `plan_trials`.
      JobFailed: no trial could be trained.
    """
    trials = plan_trials(config, base)
    runner = choose_runner(config.beam, config.workers, f"{record.job_name}-sweep", config)
    say(f"sweep: {len(trials)} heads; runner: {runner.name}")
    examples, output = files.normalise(config.examples), files.normalise(config.model)
    with publish.staging(output, f"{record.run_id}-sweep") as made:
        results_dir = files.join(made.work, "trials")

        def build(pipeline: beam.Pipeline, progress_dir: str) -> None:
            elements = pipeline | "Trials" >> beam.Create(trials) | "Spread" >> beam.Reshuffle()
            elements | "Train" >> beam.Map(_run_and_note, examples, base, config.device, results_dir, progress_dir,
                                           len(trials))  # fmt: skip

        with ProgressDisplay("sweep", "heads") as display:
            run_pipeline(runner, build, display, made.work)
        results = rank_trials(_read_results(results_dir, trials))
    best = results[0]
    if best.validation_cross_entropy is None:
        raise JobFailed(f"none of {len(trials)} heads could be trained: {best.error}")
    _print_best(results)
    record.note(trials=[{name: value for name, value in dataclasses.asdict(result).items() if name != "history"}
                        for result in results])  # fmt: skip
    if config.log_dir:
        write_hparams(files.normalise(config.log_dir), results)
    return dataclasses.replace(config, **best.settings), _as_csv(results)


def _run_and_note(
    trial: Trial, examples: str, base: TrainOptions, device: str, results_dir: str, progress_dir: str, num_trials: int
) -> None:
    """On a worker: train one head, and write down what came of it; done again, it gives the same."""
    choose_training_device(device)
    result = run_trial(files.fetch_folder(examples), base, trial)
    content = json.dumps(dataclasses.asdict(result)).encode()
    files.write_bytes(files.join(results_dir, f"{trial.number:05d}.json"), content)
    # All of them, so that the first to end says how many there are.
    add_progress(progress_dir, matched=num_trials if trial.number == 1 else 0, done=1)
    flush_progress(progress_dir)


def _read_results(results_dir: str, trials: list[Trial]) -> list[TrialResult]:
    results = []
    for trial in trials:
        content = json.loads(files.read_bytes(files.join(results_dir, f"{trial.number:05d}.json")))
        results.append(TrialResult(**{**content, "settings": trial.settings}))
    return results


def _rows(results: list[TrialResult]) -> tuple[tuple[str, ...], list[tuple]]:
    names = tuple(results[0].settings)
    header = ("trial", *names, "validation_cross_entropy", "validation_accuracy", "best_epoch", "seconds", "error")
    rows = [
        (result.number, *describe_settings(result.settings).values(), result.validation_cross_entropy,
         result.validation_accuracy, result.best_epoch, round(result.seconds, 1), result.error)
        for result in results
    ]  # fmt: skip
    return header, rows


def _as_csv(results: list[TrialResult]) -> str:
    header, rows = _rows(results)
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _print_best(results: list[TrialResult]) -> None:
    header, rows = _rows([result for result in results if not result.error])
    short = [name.replace("validation_", "val. ").replace("_", " ") for name in header[:-1]]
    print_table(tuple(short), [row[:-1] for row in rows[:TRIALS_SHOWN]], title=f"best of {len(results)} heads")
    failed = [result for result in results if result.error]
    if failed:
        say(f"{len(failed)} heads could not be trained: {failed[0].error}")


def write_hparams(log_dir: str, results: list[TrialResult]) -> None:
    """Write every trial for TensorBoard: its settings, its epochs and how it did, in a folder of its own.

    Args:
      log_dir: local, or on any file system that TensorFlow opens.
      results: of all trials.
    """
    from tensorboard.plugins.hparams import api as hparams

    with tf.summary.create_file_writer(os.path.join(log_dir, "trials")).as_default():
        hparams.hparams_config(
            hparams=[hparams.HParam(name) for name in results[0].settings],
            metrics=[hparams.Metric("validation_cross_entropy"), hparams.Metric("validation_accuracy")],
        )
    for result in results:
        with tf.summary.create_file_writer(os.path.join(log_dir, "trials", f"{result.number:03d}")).as_default():
            texts = describe_settings(result.settings)
            settings = {
                name: value if isinstance(value, float | int) else texts[name]
                for name, value in result.settings.items()
            }
            hparams.hparams(settings, trial_id=f"{result.number:03d}")
            for row in result.history:
                for name in ("cross_entropy", "accuracy", "validation_cross_entropy", "validation_accuracy"):
                    tf.summary.scalar(f"epoch/{name}", row[name], step=row["epoch"])
            if not result.error:
                tf.summary.scalar("validation_cross_entropy", result.validation_cross_entropy, step=result.best_epoch)
                tf.summary.scalar("validation_accuracy", result.validation_accuracy, step=result.best_epoch)
