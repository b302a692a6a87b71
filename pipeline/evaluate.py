"""`bulktag evaluate`: TFRecord shards + model bundle -> figures, tables, plots and one HTML report.

Array suffixes: N images, L labels.
"""

import collections
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from bulktag.model.bundle import Bundle
from bulktag.model.engine import Engine
from bulktag.model.evaluation_files import predictions, write_evaluation
from bulktag.model.metrics import Evaluation, MultiLabelEvaluation, evaluate_multi_label, evaluate_scores
from bulktag.model.report import ReportContext, write_report
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import EvaluateConfig
from bulktag.pipeline.console import OUT, ProgressDisplay, print_table
from bulktag.pipeline.network import check_examples, find_bundle, open_bundle
from bulktag.pipeline.runners import JobFailed
from bulktag.transforms import files
from bulktag.transforms.examples import list_shards, read_shard
from bulktag.transforms.records import SPLITS, ScoredBatch
from bulktag.transforms.sources import EXAMPLES_FILE

ENTRIES = (
    "metrics.json", "per_class.csv", "confusion.csv", "confusion.png", "confused_pairs.csv", "predictions.csv",
    "report.html",
)  # fmt: skip
PAIRS_SHOWN = 5
IMAGES_NOTES = {
    "test": "held out, never trained on",
    "validation": "not trained on, but used to stop and to calibrate",
    "train": "trained on: no measure of what new images will see",
    "all": "most of them trained on: no measure of what new images will see",
}


def run_evaluate(config: EvaluateConfig) -> dict:
    """Do the whole job.

    Returns:
      contents of run.json.
    Raises:
      ValueError: the request is wrong.
      JobFailed: there is nothing to evaluate on.
    """
    examples, output = files.normalise(config.examples), files.normalise(config.output)
    if not files.exists(files.join(examples, EXAMPLES_FILE)):
        raise ValueError(f"expected a folder that extract wrote (with {EXAMPLES_FILE}), got {config.examples!r}")
    publish.check_output(output, "evaluate")
    bundle = open_bundle(find_bundle(config.model))
    splits = SPLITS if config.split == "all" else (config.split,)
    counts = check_examples(examples, bundle)
    expected = sum(counts.get(split, 0) for split in splits)
    if not expected:
        raise ValueError(f"expected images in split {config.split}, got none: {config.examples}")
    record = outcome.RunRecord("evaluate", publish.new_run_id(), config)
    with publish.staging(output, record.run_id) as made:
        scored = _score(config, list_shards(examples, splits), expected, bundle, record)
        evaluation = _evaluate(scored, bundle)
        record.note(model_id=bundle.model_id, split=config.split, figures=evaluation.figures())

        def write(folder: str) -> None:
            write_evaluation(evaluation, _rows(scored, bundle), folder)
            write_report(evaluation, _context(config, bundle, record), f"{folder}/report.html")

        files.write_folder(write, made.final)
        run = record.to_json("succeeded")
        publish.publish(made, ENTRIES, run)
    _print_summary(evaluation, output)
    return run


class _Scored:
    """Scores and true labels of the images that can be evaluated."""

    def __init__(self, num_labels: int):
        self.uris: list[str] = []
        self.scores: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []  # rows of bool[L]
        self.num_labels = num_labels

    def add(self, batch: ScoredBatch, scores_BL: np.ndarray, keep: list[int], label_ids: dict[str, int]) -> None:
        targets = np.zeros((len(keep), self.num_labels), bool)
        for row, i in enumerate(keep):
            targets[row, [label_ids[label] for label in batch.images[i].labels if label in label_ids]] = True
        self.uris += [batch.images[i].uri for i in keep]
        self.scores.append(scores_BL[keep])
        self.targets.append(targets)


def _score(
    config: EvaluateConfig, shards: list[str], expected: int, bundle: Bundle, record: outcome.RunRecord
) -> _Scored:
    """Run the head over shards; images whose labels the model cannot be held to are left out and counted."""
    engine = Engine(bundle.head_graph(), config.batch_size, config.device, inputs=("bottleneck",), outputs=("scores",))
    record.note(device=engine.device)
    label_ids = {label: i for i, label in enumerate(bundle.labels)}
    scored = _Scored(len(bundle.labels))
    totals: collections.Counter = collections.Counter(matched=expected)
    unknown: collections.Counter = collections.Counter()
    with ProgressDisplay("evaluate") as display:
        for uri in shards:
            for batch in _read(uri, bundle.backbone.width, config.batch_size):
                keep = _usable(batch, label_ids, bundle.multi_label, unknown)
                scored.add(batch, engine.run(batch.bottleneck_BD), keep, label_ids)
                totals["done"] += len(batch.images)
                display.update(totals)
    if totals["done"] != expected:
        raise ValueError(f"expected {expected} images, as {EXAMPLES_FILE} says, got {totals['done']}: "
                         f"{config.examples}; extract again")  # fmt: skip
    record.note(counts={"matched": expected, "used": len(scored.uris), "left_out": expected - len(scored.uris)})
    _warn_of_unusable(record, expected - len(scored.uris), unknown)
    if not scored.uris:
        raise JobFailed(f"no image of split {config.split} has a label of the model: {config.examples}")
    return scored


def _read(uri: str, width: int, batch_size: int) -> Iterator[ScoredBatch]:
    try:
        yield from read_shard(uri, width, batch_size)
    except tf.errors.DataLossError as error:
        raise ValueError(f"expected a whole TFRecord shard, got a damaged one: {uri}; extract again") from error


def _usable(
    batch: ScoredBatch, label_ids: dict[str, int], multi_label: bool, unknown: collections.Counter
) -> list[int]:
    """Rows with labels that the model knows; the others are counted by their first label that it does not."""
    keep = []
    for i, image in enumerate(batch.images):
        strange = [label for label in image.labels if label not in label_ids]
        unknown.update(strange[:1])
        if not strange and (multi_label or len(image.labels) == 1):
            keep.append(i)
    return keep


def _warn_of_unusable(record: outcome.RunRecord, num_left_out: int, unknown: collections.Counter) -> None:
    num_strange = sum(unknown.values())
    if num_strange:
        names = ", ".join(f"{label} ({count})" for label, count in unknown.most_common(5))
        record.warn(f"{num_strange} images have labels that the model does not know and are left out: {names}")
    if num_left_out > num_strange:
        record.warn(f"{num_left_out - num_strange} images without exactly one label are left out")


def _evaluate(scored: _Scored, bundle: Bundle) -> Evaluation | MultiLabelEvaluation:
    scores_NL, targets_NL = np.concatenate(scored.scores), np.concatenate(scored.targets)
    if bundle.multi_label:
        return evaluate_multi_label(scores_NL, targets_NL, bundle.labels, np.asarray(bundle.thresholds))
    return evaluate_scores(scores_NL, targets_NL.argmax(axis=1), bundle.labels)


def _rows(scored: _Scored, bundle: Bundle):
    targets_NL = np.concatenate(scored.targets)
    return predictions(scored.uris, np.concatenate(scored.scores), targets_NL.argmax(axis=1), bundle.labels)


def _context(config: EvaluateConfig, bundle: Bundle, record: outcome.RunRecord) -> ReportContext:
    facts = {
        "model": bundle.model_id,
        "network": f"{bundle.backbone.name}, weights {bundle.backbone.weights}",
        "examples": f"{config.examples}, split {config.split}",
        "date": f"{record.started:%Y-%m-%d %H:%M} UTC",
    }
    return ReportContext("Evaluation", facts, record.warnings, IMAGES_NOTES[config.split])


def _print_summary(evaluation: Evaluation | MultiLabelEvaluation, output: str) -> None:
    print_table(("figure", "value"), list(evaluation.figures().items()))
    OUT.print()
    if isinstance(evaluation, Evaluation) and evaluation.most_confused:
        rows = [(pair.actual, pair.predicted, pair.count) for pair in evaluation.most_confused[:PAIRS_SHOWN]]
        print_table(("most confused: actual", "predicted", "images"), rows)
        OUT.print()
    OUT.print(f"report: {files.join(output, 'report.html')}", markup=False)
