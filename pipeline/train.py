"""`bulktag train`: TFRecord shards -> a head on the backbone, calibrated -> a model bundle."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator

from bulktag.model.backbone import Backbone, load_backbone
from bulktag.model.bundle import BUNDLE_FILE, save_bundle
from bulktag.model.calibration import Calibration
from bulktag.model.fitting import Progress
from bulktag.model.hardware import choose_training_device
from bulktag.model.splits import ExamplesInfo, read_examples_info
from bulktag.model.thresholds import MIN_IMAGES_FOR_F1
from bulktag.model.training import TrainedHead, TrainOptions, train_head
from bulktag.model.validation import Tuning
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import TrainConfig
from bulktag.pipeline.console import OUT, TrainingDisplay, print_table, say, working
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.thresholds import count_noun, describe_off, name_some
from bulktag.pipeline.workspace import try_lock
from bulktag.transforms import files
from bulktag.transforms.sources import EXAMPLES_FILE

TRIALS_FILE = "trials.csv"
# bundle.json last: a reader that comes too early finds none, or one whose digests do not fit.
ENTRIES = (
    "saved_model", "graphs", "backbone", "head.keras", "labels.txt", "thresholds.npz", "novelty.npz", TRIALS_FILE,
    BUNDLE_FILE,
)  # fmt: skip
CHECKPOINTS = ".checkpoints"


def run_train(config: TrainConfig) -> dict:
    """Do the whole job.

    Returns:
      contents of run.json.
    Raises:
      ValueError: the request is wrong.
      JobFailed: the head is less accurate than asked for; nothing was published.
    """
    check_request(config)
    if not config.remote:
        return train_here(config, publish.new_run_id())
    from bulktag.pipeline.remote import train_remotely  # which calls this module on the worker

    return train_remotely(config)


def check_request(config: TrainConfig) -> None:
    """What can be wrong before anything is done.

    Raises:
      ValueError: no examples, or an output that is something else's.
    """
    if not files.exists(files.join(files.normalise(config.examples), EXAMPLES_FILE)):
        raise ValueError(f"expected a folder that extract wrote (with {EXAMPLES_FILE}), got {config.examples!r}")
    publish.check_output(files.normalise(config.model), "train")
    for folder in filter(None, (config.log_dir, config.checkpoint_dir)):
        publish.check_folder(files.normalise(folder))


def train_here(config: TrainConfig, run_id: str, watch: Callable[[Progress], None] | None = None) -> dict:
    """Train on this machine.

    Args:
      config: what.
      run_id: of the run.
      watch: told how far it is, besides the terminal.
    Returns:
      contents of run.json.
    Raises:
      ValueError, JobFailed: see `run_train`.
    """
    examples, output = files.normalise(config.examples), files.normalise(config.model)
    record = outcome.RunRecord("train", run_id, config)
    record.note(device=choose_training_device(config.device))
    say(f"device: {record.facts['device']}")
    table = ""
    if config.sweep:
        from bulktag.pipeline.sweep import run_sweep  # which few trainings need

        config, table = run_sweep(config, _train_options(config, ""), record)
    local_examples = files.fetch_folder(examples)
    info = read_examples_info(local_examples)
    if not info.labels:
        raise ValueError(f"expected examples with labels, got none: {config.examples}; extract from a folder that "
                         "holds one folder per class, or with --labels COLUMN of a manifest")  # fmt: skip
    backbone = load_backbone(files.join(local_examples, "backbone"))

    with publish.staging(output, record.run_id) as made, _checkpoints(config, output) as checkpoints:
        with TrainingDisplay() as display:
            trained = train_head(local_examples, _train_options(config, checkpoints), _tell(display.update, watch))
        _note_figures(record, trained)
        _check_accuracy(config, trained)
        with working("writing the model"):
            files.write_folder(lambda folder: _save(folder, config, record, backbone, trained, info), made.final)
            if table:
                files.write_bytes(files.join(made.final, TRIALS_FILE), table.encode())
        run = record.to_json("succeeded")
        publish.publish(made, ENTRIES, run)
    print_model(run, len(trained.labels), output)
    return run


def print_model(run: dict, num_labels: int, output: str) -> None:
    """The last line of a training."""
    OUT.print(
        f"model {run['model_id']}, {num_labels} labels, trained in {run['seconds']:.1f} s: {output}",
        markup=False,
    )


def _tell(*listeners: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    def tell(progress: Progress) -> None:
        for listener in filter(None, listeners):
            listener(progress)

    return tell


@contextlib.contextmanager
def _checkpoints(config: TrainConfig, output: str) -> Iterator[str]:
    """The folder for checkpoints, "" for none; a folder of our own is removed once the training is done."""
    folder = files.normalise(config.checkpoint_dir) if config.checkpoint_dir else files.join(output, CHECKPOINTS)
    if not files.is_local(folder):
        yield config.checkpoint_dir
        return
    os.makedirs(folder, exist_ok=True)
    lock = try_lock(folder)
    if lock is None:
        say("another training writes its checkpoints there, this one goes without: " + folder)
        yield ""
        return
    try:
        yield folder
        if not config.checkpoint_dir:
            files.delete_folder(folder)
    finally:
        os.close(lock)
        if not config.checkpoint_dir:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # interrupted before the first one


def _note_figures(record: outcome.RunRecord, trained: TrainedHead) -> None:
    for text in trained.warnings:
        record.warn(text)
    figures = {split: dict(values) for split, values in trained.figures.items()}
    tuning = trained.tuning
    record.note(figures=figures, best_epoch=trained.best_epoch, temperature=tuning.calibration.temperature)
    record.note(resumed_epochs=trained.resumed_epochs)
    if trained.resumed_epochs:
        say(f"went on after epoch {trained.resumed_epochs} of a training that was interrupted")
    print_figures(figures)
    say(f"best epoch {trained.best_epoch} of {len(trained.history)}; {describe_calibration(tuning.calibration)}")
    _note_thresholds(record, tuning)


def _save(
    folder: str, config: TrainConfig, record: outcome.RunRecord, backbone: Backbone, trained: TrainedHead,
    info: ExamplesInfo,
) -> None:  # fmt: skip
    """Write the bundle and note its model_id."""
    training = {
        "options": dataclasses.asdict(config),
        "best_epoch": trained.best_epoch,
        "warnings": trained.warning_counts,
    }
    model_id = save_bundle(
        folder, backbone, trained.model, list(trained.labels), resize=info.content["resize"],
        tuning=trained.tuning, multi_label=config.multi_label, figures=record.facts["figures"], training=training,
    )  # fmt: skip
    record.note(model_id=model_id)


def _train_options(config: TrainConfig, checkpoints: str) -> TrainOptions:
    return TrainOptions(
        architecture=config.architecture, hidden=config.hidden, dropout=config.dropout,
        optimizer=config.optimizer, augment=config.augment == "auto",
        learning_rate=config.learning_rate or None, weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
        batch_size=config.batch_size or None, epochs=config.epochs, patience=config.patience or None,
        class_weights=config.class_weights, seed=config.seed, multi_label=config.multi_label,
        target_precision=config.target_precision,
        checkpoint_dir=checkpoints or None, log_dir=config.log_dir or None, cache=config.cache,
    )  # fmt: skip


def describe_calibration(calibration: Calibration) -> str:
    """In a few words."""
    if calibration.method == "sigmoid":
        return "each label's scores calibrated by a sigmoid"
    if calibration.method == "none":
        return "scores not calibrated: too few validation images"
    return f"scores calibrated by temperature {calibration.temperature:.2f}"


def _note_thresholds(record: outcome.RunRecord, tuning: Tuning) -> None:
    off = [row.label for row in tuning.thresholds if row.threshold is None]
    record.note(labels_switched_off=off)
    if off:
        record.warn(f"{describe_off(off, len(tuning.thresholds))} at the target precision on validation images")
    small = [f"{row.label} ({row.support})" for row in tuning.thresholds if row.support < MIN_IMAGES_FOR_F1]
    if small:
        record.warn(f"{count_noun(len(small), 'label')} with fewer than {MIN_IMAGES_FOR_F1} validation images, too "
                    f"few for a threshold that can be relied on: {name_some(small)}")  # fmt: skip
    if tuning.novelty is not None and tuning.novelty_quality.auroc is not None:
        quality = tuning.novelty_quality
        record.note(novelty=dataclasses.asdict(quality))
        say(f"novelty tells labels that were held out from others with an AUROC of {quality.auroc:.2f} "
            f"(mean of {count_noun(len(quality.by_label), 'label')})")  # fmt: skip


def print_figures(figures: dict[str, dict]) -> None:
    """Accuracy and cross-entropy by split."""
    rows = [
        (split, values["n"], values["accuracy"], values["cross_entropy"])
        for split, values in figures.items()
        if values["n"]
    ]
    print_table(("split", "images", "accuracy", "cross-entropy"), rows)


def _check_accuracy(config: TrainConfig, trained: TrainedHead) -> None:
    """An unattended retraining never publishes a bad model."""
    if not config.min_accuracy:
        return
    test = trained.figures["test"]
    if not test["n"]:
        raise JobFailed("--min-accuracy asks for a test figure, but the test split is empty; nothing was published")
    if test["accuracy"] < config.min_accuracy:
        raise JobFailed(
            f"test accuracy {test['accuracy']:.4f} on {test['n']} images is below --min-accuracy "
            f"{config.min_accuracy:g}; nothing was published"
        )
