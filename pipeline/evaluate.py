"""`bulktag evaluate`: TFRecord shards + model bundle -> figures, tables, plots and one HTML report.

Array suffixes: N images, L labels.
"""

import collections

import numpy as np

from bulktag.model.bundle import Bundle, load_bundle
from bulktag.model.engine import Engine
from bulktag.model.evaluation_files import predictions, write_evaluation
from bulktag.model.metrics import Evaluation, MultiLabelEvaluation, evaluate_multi_label, evaluate_scores
from bulktag.model.report import ReportContext, write_report
from bulktag.model.splits import read_examples_info
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import EvaluateConfig
from bulktag.pipeline.console import OUT, ProgressDisplay, print_table
from bulktag.pipeline.network import check_examples, find_bundle
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
    bundle = load_bundle(files.fetch_folder(find_bundle(config.model)))
    check_examples(examples, bundle)
    record = outcome.RunRecord("evaluate", publish.new_run_id(), config)
    with publish.staging(output, record.run_id) as made:
        scored = _score(config, examples, bundle, record)
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


def _score(config: EvaluateConfig, examples: str, bundle: Bundle, record: outcome.RunRecord) -> _Scored:
    """Run the head over a split; images whose labels the model cannot be held to are left out and counted."""
    splits = SPLITS if config.split == "all" else (config.split,)
    engine = Engine(bundle.head_graph(), config.batch_size, config.device, inputs=("bottleneck",), outputs=("scores",))
    record.note(device=engine.device)
    label_ids = {label: i for i, label in enumerate(bundle.labels)}
    scored = _Scored(len(bundle.labels))
    totals: collections.Counter = collections.Counter(matched=_num_images(examples, splits))
    unknown: collections.Counter = collections.Counter()
    with ProgressDisplay("evaluate") as display:
        for uri in list_shards(examples, splits):
            for batch in read_shard(uri, bundle.backbone.width, config.batch_size):
                keep = _usable(batch, label_ids, bundle.multi_label, unknown)
                scored.add(batch, engine.run(batch.bottleneck_BD), keep, label_ids)
                totals["done"] += len(batch.images)
                display.update(totals)
    _warn_of_unusable(record, totals["done"], len(scored.uris), unknown)
    if not scored.uris:
        raise JobFailed(f"no image of split {config.split} has a label of the model: {examples}")
    return scored


def _num_images(examples: str, splits: tuple[str, ...]) -> int:
    counts = read_examples_info(files.fetch_folder(examples)).num_images
    return sum(counts[split] for split in splits)


def _usable(
    batch: ScoredBatch, label_ids: dict[str, int], multi_label: bool, unknown: collections.Counter
) -> list[int]:
    """Rows with labels that the model knows; the others' labels are counted."""
    keep = []
    for i, image in enumerate(batch.images):
        strange = [label for label in image.labels if label not in label_ids]
        unknown.update(strange)
        if not strange and (multi_label or len(image.labels) == 1):
            keep.append(i)
    return keep


def _warn_of_unusable(record: outcome.RunRecord, num_read: int, num_used: int, unknown: collections.Counter) -> None:
    if unknown:
        names = ", ".join(f"{label} ({count})" for label, count in unknown.most_common(5))
        record.warn(
            f"{sum(unknown.values())} images have labels that the model does not know and are left out: {names}"
        )
    if num_read - num_used - sum(unknown.values()) > 0:
        record.warn(f"{num_read - num_used - sum(unknown.values())} images without exactly one label are left out")


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
    return ReportContext("Evaluation", facts, record.warnings)


def _print_summary(evaluation: Evaluation | MultiLabelEvaluation, output: str) -> None:
    print_table(("figure", "value"), list(evaluation.figures().items()))
    OUT.print()
    if isinstance(evaluation, Evaluation) and evaluation.most_confused:
        rows = [(pair.actual, pair.predicted, pair.count) for pair in evaluation.most_confused[:PAIRS_SHOWN]]
        print_table(("most confused: actual", "predicted", "images"), rows)
        OUT.print()
    OUT.print(f"report: {files.join(output, 'report.html')}", markup=False)
