"""`bulktag evaluate`: TFRecord shards + model bundle -> figures, tables, plots and one HTML report.

Array suffixes: N images, L labels.
"""

import collections
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from bulktag.model.bundle import Bundle
from bulktag.model.engine import build_head_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.evaluation_files import predictions, write_evaluation
from bulktag.model.metrics import Evaluation, MultiLabelEvaluation, evaluate_multi_label, evaluate_scores
from bulktag.model.report import ReportContext, Sheet, write_report
from bulktag.model.samples import worst_first
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import EvaluateConfig
from bulktag.pipeline.console import OUT, ProgressDisplay, print_table, working
from bulktag.pipeline.evaluation_report import ScoredImages, build_sheets, draw_score_histograms, find_problems
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.network import check_examples, find_bundle, open_bundle
from bulktag.transforms import files
from bulktag.transforms.examples import list_shards, read_shards
from bulktag.transforms.records import SPLITS, ScoredBatch
from bulktag.transforms.sources import EXAMPLES_FILE

ENTRIES = (
    "metrics.json", "per_class.csv", "confusion.csv", "confusion.png", "confused_pairs.csv", "predictions.csv",
    "worst.csv", "report.html",
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
        shards = list_shards(examples, splits)
        scored = _score(config, shards, expected, bundle, record)
        evaluation = _evaluate(scored, bundle)
        rows = predictions(scored.uris, scored.scores_NL, scored.targets_NL, bundle.labels, scored.thresholds_L)
        worst = worst_first(scored.scores_NL, scored.targets_NL, scored.thresholds_L)
        record.note(model_id=bundle.model_id, split=config.split, figures=evaluation.figures())

        def write(folder: str) -> None:
            write_evaluation(evaluation, rows, worst.tolist(), folder)
            context = _context(config, bundle, record, scored, build_sheets(scored, rows, worst, bundle, shards))
            write_report(evaluation, context, f"{folder}/report.html")

        with working("writing the report"):
            files.write_folder(write, made.final)
        run = record.to_json("succeeded")
        publish.publish(made, ENTRIES, run)
    _print_summary(evaluation, output)
    return run


class _Gathered:
    """Scores and true labels of the images that can be evaluated."""

    def __init__(self, num_labels: int):
        self.uris: list[str] = []
        self.sha256: list[bytes] = []
        self.scores: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []  # rows of bool[L]
        self.num_labels = num_labels

    def add(self, images: pa.RecordBatch, scores_BL: np.ndarray, label_ids: "_LabelIds") -> None:
        """Add the images that can be held to the model's labels."""
        keep_B = label_ids.usable_B
        targets_BL = np.zeros((images.num_rows, self.num_labels), bool)
        known = label_ids.known
        targets_BL[label_ids.rows[known], label_ids.ids[known]] = True
        self.uris += images["uri"].filter(pa.array(keep_B)).to_pylist()
        self.sha256 += images["sha256"].filter(pa.array(keep_B)).to_pylist()
        self.scores.append(scores_BL[keep_B])
        self.targets.append(targets_BL[keep_B])

    def join(self, bundle: Bundle) -> ScoredImages:
        """All of them."""
        thresholds_L = np.asarray(bundle.thresholds) if bundle.multi_label else None
        scores_NL, targets_NL = np.concatenate(self.scores), np.concatenate(self.targets)
        return ScoredImages(self.uris, self.sha256, scores_NL, targets_NL, thresholds_L)


def _score(
    config: EvaluateConfig, shards: list[str], expected: int, bundle: Bundle, record: outcome.RunRecord
) -> ScoredImages:
    """Run the head over shards; images whose labels the model cannot be held to are left out and counted."""
    engine = build_head_engine(bundle.head_graph(), EngineSettings(config.batch_size, config.device))
    record.note(device=engine.device)
    label_array = pa.array(bundle.labels, pa.string())
    scored = _Gathered(len(bundle.labels))
    totals: collections.Counter = collections.Counter(matched=expected)
    unknown: collections.Counter = collections.Counter()
    with ProgressDisplay("evaluate") as display:
        for batch in _read(shards, bundle.backbone.width, config.batch_size):
            label_ids = _LabelIds(batch.images["labels"], label_array, bundle.multi_label)
            unknown.update(label_ids.unknown)
            scored.add(batch.images, engine.run(batch.bottleneck_BD), label_ids)
            totals["done"] += batch.images.num_rows
            display.update(totals)
    if totals["done"] != expected:
        raise ValueError(f"expected {expected} images, as {EXAMPLES_FILE} says, got {totals['done']}: "
                         f"{config.examples}; extract again")  # fmt: skip
    record.note(counts={"matched": expected, "used": len(scored.uris), "left_out": expected - len(scored.uris)})
    _warn_of_unusable(record, expected - len(scored.uris), unknown)
    if not scored.uris:
        raise JobFailed(f"no image of split {config.split} has a label of the model: {config.examples}")
    return scored.join(bundle)


def _read(shards: list[str], width: int, batch_size: int) -> Iterator[ScoredBatch]:
    try:
        yield from read_shards(shards, width, batch_size)
    except tf.errors.DataLossError as error:
        raise ValueError(
            f"expected a whole TFRecord shard, got a damaged one: {error.message}; extract again"
        ) from error


class _LabelIds:
    """The labels of a batch as ids of the model's labels.

    Attributes:
      rows, ids, known: int[T], int[T] and bool[T], one entry for each label of each image: whose it is, its id, and
        whether the model knows it (without, its id means nothing).
      usable_B: bool[B], images with labels that the model knows, and with exactly one where it gives one.
      unknown: for each image with labels that the model does not know, the first of them.
    """

    def __init__(self, labels: pa.ListArray, label_array: pa.StringArray, multi_label: bool):
        counts_B = np.diff(labels.offsets.to_numpy())
        names = labels.flatten()
        self.rows = np.repeat(np.arange(len(counts_B)), counts_B)
        found = pc.index_in(names, value_set=label_array)
        self.known = found.is_valid().to_numpy(zero_copy_only=False)
        self.ids = found.fill_null(0).to_numpy()
        strange_rows, first = np.unique(self.rows[~self.known], return_index=True)
        self.unknown = names.take(pa.array(np.flatnonzero(~self.known)[first], pa.int64())).to_pylist()
        self.usable_B = np.full(len(counts_B), True) if multi_label else counts_B == 1
        self.usable_B[strange_rows] = False


def _warn_of_unusable(record: outcome.RunRecord, num_left_out: int, unknown: collections.Counter) -> None:
    num_strange = sum(unknown.values())
    if num_strange:
        names = ", ".join(f"{label} ({count})" for label, count in unknown.most_common(5))
        record.warn(f"{num_strange} images have labels that the model does not know and are left out: {names}")
    if num_left_out > num_strange:
        record.warn(f"{num_left_out - num_strange} images without exactly one label are left out")


def _evaluate(scored: ScoredImages, bundle: Bundle) -> Evaluation | MultiLabelEvaluation:
    scores_NL, targets_NL, thresholds_L = scored.scores_NL, scored.targets_NL, np.asarray(bundle.thresholds)
    before_NL = bundle.calibration.undo(scores_NL)
    if bundle.multi_label:
        return evaluate_multi_label(scores_NL, targets_NL, bundle.labels, thresholds_L, before_NL)
    return evaluate_scores(
        scores_NL, targets_NL.argmax(axis=1), bundle.labels, thresholds_L=thresholds_L, before_NL=before_NL
    )


def _context(
    config: EvaluateConfig, bundle: Bundle, record: outcome.RunRecord, scored: ScoredImages, sheets: list[Sheet]
) -> ReportContext:  # fmt: skip
    facts = {
        "model": bundle.model_id,
        "network": f"{bundle.backbone.name}, weights {bundle.backbone.weights}",
        "examples": f"{config.examples}, split {config.split}",
        "date": f"{record.started:%Y-%m-%d %H:%M} UTC",
    }
    held_out = config.split in ("test", "validation")
    return ReportContext(
        "Evaluation", facts, record.warnings, IMAGES_NOTES[config.split],
        sheets=sheets,
        problems=find_problems(files.normalise(config.examples), scored, bundle, held_out=held_out),
        scores_svg=draw_score_histograms(scored, bundle.multi_label), novelty=bundle.info.get("novelty"),
    )  # fmt: skip


def _print_summary(evaluation: Evaluation | MultiLabelEvaluation, output: str) -> None:
    figures = {name: value for name, value in evaluation.figures().items() if name != "intervals" and value is not None}
    rows = [(name, value, _interval(evaluation.intervals.get(name))) for name, value in figures.items()]
    print_table(("figure", "value", "95% interval"), rows)
    OUT.print()
    if evaluation.most_confused:
        header = ("actual", "predicted") if isinstance(evaluation, Evaluation) else ("missed", "wrongly given")
        rows = [(pair.actual, pair.predicted, pair.count) for pair in evaluation.most_confused[:PAIRS_SHOWN]]
        print_table((f"most confused: {header[0]}", header[1], "images"), rows)
        OUT.print()
    OUT.print(f"report: {files.join(output, 'report.html')}", markup=False)


def _interval(low_high: tuple[float, float] | None) -> str:
    return f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else ""
