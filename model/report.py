"""Write the report of an evaluation: one HTML file that needs nothing else, with no script and no outside request."""

import base64
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jinja2

from bulktag.model.evaluation_files import draw_confusion
from bulktag.model.metrics import Evaluation, MultiLabelEvaluation

# Rows of predictions that a reader may want to look at; all of them stand in predictions.csv.
MAX_PAIRS_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class ReportContext:
    """What the report says besides the figures. All of it is shown as text."""

    title: str
    facts: dict[str, str] = dataclasses.field(default_factory=dict)  # such as model, backbone, examples, date
    warnings: Sequence[str] = ()
    images_note: str = "held out, never trained on"  # what kind of images the figures rest on


def render_report(evaluation: Evaluation | MultiLabelEvaluation, context: ReportContext) -> str:
    """Render the report as HTML.

    Args:
      evaluation: from `model.metrics`.
      context: title, facts and warnings; labels and these are escaped, so any text is safe.
    """
    single = isinstance(evaluation, Evaluation)
    plot = draw_confusion(evaluation.confusion_LL, evaluation.labels) if single else b""
    return _template().render(
        context=context,
        evaluation=evaluation,
        headline=_headline(evaluation, context.images_note),
        plot_base64=base64.b64encode(plot).decode("ascii"),
        pairs=evaluation.most_confused[:MAX_PAIRS_SHOWN] if single else [],
        per_label=sorted(evaluation.per_label, key=lambda row: (row.support == 0, row.f1)),
    )


def write_report(
    evaluation: Evaluation | MultiLabelEvaluation, context: ReportContext, path: str | pathlib.Path
) -> None:
    """Write the report to a local file."""
    pathlib.Path(path).write_text(render_report(evaluation, context), encoding="utf-8")


def _headline(evaluation: Evaluation | MultiLabelEvaluation, images_note: str) -> list[tuple[str, str, str]]:
    """The figures that stand first: (value, name, what it means)."""
    count = (f"{evaluation.n:,}", "images", images_note)
    if isinstance(evaluation, MultiLabelEvaluation):
        return [
            (f"{evaluation.mean_average_precision:.1%}", "mean average precision", "over labels that occur"),
            (f"{evaluation.micro_f1:.1%}", "F1, all decisions", "at the thresholds of the model"),
            (f"{evaluation.accuracy:.1%}", "best label right", "the best-scored label is one of the image's"),
            count,
        ]
    cards = [(f"{evaluation.accuracy:.1%}", "accuracy", "the best-scored label is right")]
    if len(evaluation.labels) > 5:
        cards.append((f"{evaluation.top_5_accuracy:.1%}", "top-5 accuracy", "the right label is among the best five"))
    return [
        *cards,
        (f"{evaluation.macro_f1:.1%}", "macro F1", "mean over labels, each counting the same"),
        (f"{evaluation.cross_entropy:.3f}", "cross-entropy", "nats per image, lower is better"),
        (f"{evaluation.calibration_error:.1%}", "calibration error", "how far scores are from being right as often"),
        count,
    ]


@functools.cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("report.html")
