"""Write the report of an evaluation: one HTML file that needs nothing else and asks nobody for anything."""

import base64
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jinja2

from bulktag.model.metrics import Evaluation, MultiLabelEvaluation
from bulktag.model.plots import AXES_MULTI, AXES_SINGLE, draw_confusion, draw_reliability

# All of them stand in the CSV files beside the report.
MAX_PAIRS_SHOWN = 20
MAX_PROBLEMS_SHOWN = 30
# From here on a label counts as weak in the summary.
WEAK_F1 = 0.7


class Tile(NamedTuple):
    """One image of a contact sheet."""

    thumbnail: str  # data URI; "" where the image could not be read
    uri: str
    actual: str
    predicted: str
    score: float  # of what was predicted


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A contact sheet."""

    title: str
    note: str
    tiles: Sequence[Tile]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something about the data that a user should look at: a table of texts."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    count: int  # of all, also those that are not shown


@dataclasses.dataclass(frozen=True)
class ReportContext:
    """What the report says besides the figures. All of it is shown as text."""

    title: str
    facts: dict[str, str] = dataclasses.field(default_factory=dict)  # such as model, backbone, examples, date
    warnings: Sequence[str] = ()
    images_note: str = "held out, never trained on"  # what kind of images the figures rest on
    sheets: Sequence[Sheet] = ()
    problems: Sequence[Problem] = ()
    scores_svg: str = ""  # histograms of scores
    novelty: dict | None = None  # bundle.json's: AUROC, also by label held out


def render_report(evaluation: Evaluation | MultiLabelEvaluation, context: ReportContext) -> str:
    """Render the report as HTML.

    Args:
      evaluation: from `model.metrics`.
      context: title, facts and warnings; labels and these are escaped, so any text is safe.
    """
    single = isinstance(evaluation, Evaluation)
    plot = draw_confusion(evaluation.confusion_LL, evaluation.labels, AXES_SINGLE if single else AXES_MULTI)
    return _template().render(
        context=context,
        evaluation=evaluation,
        single=single,
        summary=_summarise(evaluation),
        headline=_headline(evaluation, context.images_note),
        figures=_all_figures(evaluation),
        confusion=_as_uri(plot, "image/png"),
        reliability=_as_uri(draw_reliability(evaluation.reliability, evaluation.reliability_before), "image/svg+xml"),
        scores=_as_uri(context.scores_svg, "image/svg+xml"),
        pairs=evaluation.most_confused[:MAX_PAIRS_SHOWN],
        per_label=sorted(evaluation.per_label, key=lambda row: (row.support == 0, row.f1)),
        off=_switched_off(evaluation),
        max_problems=MAX_PROBLEMS_SHOWN,
    )


def write_report(
    evaluation: Evaluation | MultiLabelEvaluation, context: ReportContext, path: str | pathlib.Path
) -> None:
    """Write the report to a local file."""
    pathlib.Path(path).write_text(render_report(evaluation, context), encoding="utf-8")


def _as_uri(content: bytes | str, kind: str) -> str:
    data = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}" if data else ""


def _switched_off(evaluation: Evaluation | MultiLabelEvaluation) -> list[str]:
    return [row.label for row in evaluation.per_label if row.threshold is None]


def _summarise(evaluation: Evaluation | MultiLabelEvaluation) -> list[str]:
    """A few sentences for who reads nothing else."""
    if isinstance(evaluation, Evaluation):
        sentences = [f"The right label comes first for {evaluation.accuracy:.1%} of the images."]
    else:
        sentences = [
            f"{evaluation.micro_precision:.1%} of the tags given are right, and {evaluation.micro_recall:.1%} of those "
            "that belong are found."
        ]
    weak = sorted((row for row in evaluation.per_label if row.support and row.f1 < WEAK_F1), key=lambda row: row.f1)
    if weak:
        names = ", ".join(f"{row.label} (F1 {row.f1:.0%})" for row in weak[:3])
        verb = "label is" if len(weak) == 1 else "labels are"
        sentences.append(f"{len(weak)} {verb} weak: {names}{', ...' if len(weak) > 3 else ''}.")
    if evaluation.most_confused:
        pair = evaluation.most_confused[0]
        sentences.append(f"Most often confused: {pair.actual} taken for {pair.predicted} ({pair.count}).")
    off = _switched_off(evaluation)
    if off:
        verb = "label is" if len(off) == 1 else "labels are"
        sentences.append(f"{len(off)} {verb} switched off: {', '.join(off[:5])}{', ...' if len(off) > 5 else ''}.")
    if not evaluation.tagged_share:
        sentences.append("No image reaches a threshold.")
    return sentences


def _headline(evaluation: Evaluation | MultiLabelEvaluation, images_note: str) -> list[tuple[str, str, str]]:
    """The figures that stand first: (value, name, what it means)."""

    def card(name: str, title: str, meaning: str) -> tuple[str, str, str]:
        interval = evaluation.intervals.get(name)
        between = f"{interval[0]:.1%} to {interval[1]:.1%}; " if interval else ""
        return f"{getattr(evaluation, name):.1%}", title, between + meaning

    count = (f"{evaluation.n:,}", "images", images_note)
    calibration = card("calibration_error", "calibration error", "how far scores are from being right as often")
    if isinstance(evaluation, MultiLabelEvaluation):
        return [
            card("mean_average_precision", "mean average precision", "over the labels that occur"),
            card("micro_precision", "precision", "share of given tags that are right"),
            card("micro_recall", "recall", "share of the images' labels that were given"),
            calibration,
            count,
        ]
    cards = [card("accuracy", "accuracy", "the best-scored label is right")]
    if len(evaluation.labels) > 5:
        cards.append(card("top_5_accuracy", "top-5 accuracy", "the right label is among the best five"))
    return [*cards, card("macro_f1", "macro F1", "mean over labels, each counting the same"), calibration, count]


_NAMES = {
    "accuracy": "accuracy of the best label", "top_5_accuracy": "top-5 accuracy", "exact_match": "all labels right",
    "macro_precision": "precision, mean over labels", "macro_recall": "recall, mean over labels",
    "macro_f1": "F1, mean over labels", "micro_precision": "precision, all decisions",
    "micro_recall": "recall, all decisions", "micro_f1": "F1, all decisions",
    "mean_average_precision": "mean average precision", "mean_auc": "area under the ROC curve, mean over labels",
    "calibration_error": "calibration error", "calibration_error_before": "calibration error before calibration",
    "tagged_share": "images with a tag at the thresholds", "tag_precision": "tags at the thresholds that are right",
    "cross_entropy": "cross-entropy in nats",
}  # fmt: skip


def _all_figures(evaluation: Evaluation | MultiLabelEvaluation) -> list[tuple[str, str, str]]:
    """(name, value, interval) of every single number."""
    rows = []
    for name, value in evaluation.figures().items():
        if name not in _NAMES or value is None:
            continue
        form = "{:.3f}" if name in ("cross_entropy", "mean_auc") else "{:.1%}"
        low_high = evaluation.intervals.get(name)
        between = " to ".join(form.format(edge) for edge in low_high) if low_high else ""
        rows.append((_NAMES[name], form.format(value), between))
    return rows


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html")
