"""`bulktag train`: TFRecord shards -> a head on the backbone, calibrated -> a model bundle."""

import dataclasses

from bulktag.model.backbone import load_backbone
from bulktag.model.bundle import BUNDLE_FILE, save_bundle
from bulktag.model.engine import choose_training_device
from bulktag.model.splits import read_examples_info
from bulktag.model.training import TrainedHead, TrainOptions, train_head
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import TrainConfig
from bulktag.pipeline.console import OUT, TrainingDisplay, print_table, say, working
from bulktag.pipeline.runners import JobFailed
from bulktag.transforms import files
from bulktag.transforms.sources import EXAMPLES_FILE

# bundle.json last: a reader that comes too early finds none, or one whose digests do not fit.
ENTRIES = ("saved_model", "graphs", "backbone", "head.keras", "labels.txt", BUNDLE_FILE)
CHECKPOINTS = ".checkpoints"


def run_train(config: TrainConfig) -> dict:
    """Do the whole job.

    Returns:
      contents of run.json.
    Raises:
      ValueError: the request is wrong.
      JobFailed: the head is less accurate than asked for; nothing was published.
    """
    examples, output = files.normalise(config.examples), files.normalise(config.model)
    if not files.exists(files.join(examples, EXAMPLES_FILE)):
        raise ValueError(f"expected a folder that extract wrote (with {EXAMPLES_FILE}), got {config.examples!r}")
    publish.check_output(output, "train")
    options = _train_options(config, output)
    record = outcome.RunRecord("train", publish.new_run_id(), config)
    record.note(device=choose_training_device(config.device))
    say(f"device: {record.facts['device']}")
    local_examples = files.fetch_folder(examples)
    backbone = load_backbone(files.join(local_examples, "backbone"))

    with publish.staging(output, record.run_id) as made:
        with TrainingDisplay() as display:
            trained = train_head(local_examples, options, display.update)
        for text in trained.warnings:
            record.warn(text)
        figures = {split: dict(values) for split, values in trained.figures.items()}
        record.note(figures=figures, best_epoch=trained.best_epoch, temperature=trained.temperature)
        _print_figures(trained)
        _check_accuracy(config, trained)
        training = {
            "options": dataclasses.asdict(config),
            "best_epoch": trained.best_epoch,
            "warnings": trained.warning_counts,
        }

        def save(folder: str) -> None:
            model_id = save_bundle(
                folder, backbone, trained.model, list(trained.labels), resize=_resize_of(local_examples),
                temperature=trained.temperature, multi_label=config.multi_label, figures=figures, training=training,
            )  # fmt: skip
            record.note(model_id=model_id)

        with working("writing the model"):
            files.write_folder(save, made.final)
        run = record.to_json("succeeded")
        publish.publish(made, ENTRIES, run)
    files.delete_folder(files.join(output, CHECKPOINTS))
    OUT.print(
        f"model {run['model_id']}, {len(trained.labels)} labels, trained in {run['seconds']:.1f} s: {output}",
        markup=False,
    )
    return run


def _train_options(config: TrainConfig, output: str) -> TrainOptions:
    checkpoints = config.checkpoint_dir or (files.join(output, CHECKPOINTS) if files.is_local(output) else "")
    return TrainOptions(
        architecture=config.architecture, hidden=config.hidden, dropout=config.dropout,
        learning_rate=config.learning_rate or None, weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing,
        batch_size=config.batch_size or None, epochs=config.epochs, patience=config.patience,
        class_weights=config.class_weights, seed=config.seed, multi_label=config.multi_label,
        checkpoint_dir=checkpoints or None, log_dir=config.log_dir or None, cache=config.cache,
    )  # fmt: skip


def _resize_of(examples: str) -> str:
    return read_examples_info(examples).content["resize"]


def _print_figures(trained: TrainedHead) -> None:
    rows = [
        (split, values["n"], values["accuracy"], values["cross_entropy"])
        for split, values in trained.figures.items()
        if values["n"]
    ]
    print_table(("split", "images", "accuracy", "cross-entropy"), rows)
    say(f"best epoch {trained.best_epoch} of {len(trained.history)}, temperature {trained.temperature:.2f}")


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
