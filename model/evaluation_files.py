"""Write an evaluation to a folder: JSON, CSV tables and a plot of the confusion matrix.

Array suffixes: N images, L labels.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from bulktag.model.metrics import ConfusedPair, Evaluation, LabelFigures, MultiLabelEvaluation

# With more labels than this, counts are not written into the cells of the plot: they could not be read.
MAX_LABELS_WITH_COUNTS = 25
MAX_LABELS_WITH_NAMES = 150
MAX_NAME_CHARACTERS = 24


class Prediction(NamedTuple):
    """What was said about one image of the evaluation."""

    uri: str
    actual: str
    predicted: str
    score: float  # of the predicted label
    correct: bool


def predictions(
    uris: Sequence[str], scores_NL: np.ndarray, label_ids_N: np.ndarray, labels: Sequence[str]
) -> list[Prediction]:
    """Pair every image with its best-scored label."""
    predicted_N = scores_NL.argmax(axis=1)
    best_N = np.take_along_axis(scores_NL, predicted_N[:, None], axis=1)[:, 0]
    # Python's own numbers: NumPy's are slow one by one.
    columns = (label_ids_N.tolist(), predicted_N.tolist(), best_N.tolist())
    return [
        Prediction(uri, labels[actual], labels[best], score, best == actual)
        for uri, actual, best, score in zip(uris, *columns, strict=True)
    ]


def write_evaluation(
    evaluation: Evaluation | MultiLabelEvaluation, rows: Iterable[Prediction], folder: str | pathlib.Path
) -> None:
    """Write metrics.json, per_class.csv, predictions.csv, and for one label per image also confusion.csv,
    confused_pairs.csv and confusion.png.

    Args:
      evaluation: from `model.metrics`.
      rows: one for each image; an iterator is written as it comes.
      folder: a local folder; made where it is missing.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(evaluation.figures(), indent=2) + "\n"
    (folder / "metrics.json").write_text(content, encoding="utf-8")
    _write_csv(folder / "per_class.csv", LabelFigures._fields, evaluation.per_label)
    _write_csv(folder / "predictions.csv", Prediction._fields, rows)
    if isinstance(evaluation, Evaluation):
        labels = evaluation.labels
        confusion_rows = ([label, *row] for label, row in zip(labels, evaluation.confusion_LL.tolist(), strict=True))
        _write_csv(folder / "confusion.csv", ["actual", *labels], confusion_rows)
        _write_csv(folder / "confused_pairs.csv", ConfusedPair._fields, evaluation.most_confused)
        (folder / "confusion.png").write_bytes(draw_confusion(evaluation.confusion_LL, labels))


def draw_confusion(confusion_LL: np.ndarray, labels: Sequence[str]) -> bytes:
    """Draw a confusion matrix as a PNG: shares of each actual label, with counts where there is room for them.

    The plot grows with the labels, up to about 2,400 pixels a side, and names every label up to 150 of them.
    """
    num = len(labels)
    side_inches = float(np.clip(2.5 + 0.32 * num, 4.5, 20.0))
    font_points = float(np.clip(72 * (side_inches - 2.5) / max(num, 1) * 0.62, 3.5, 10.0))
    # Figure without pyplot: no global state, no display, safe in any thread.
    figure = Figure(figsize=(side_inches + 0.8, side_inches), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    share_LL = confusion_LL / np.maximum(confusion_LL.sum(axis=1, keepdims=True), 1)
    # The square root of the share as darkness: a pair mixed up in one case of fifty would be white otherwise.
    image = axes.imshow(share_LL, cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    if num <= MAX_LABELS_WITH_NAMES:
        names = [_plot_text(label) for label in labels]
        axes.set_xticks(range(num), names, rotation=90, fontsize=font_points)
        axes.set_yticks(range(num), names, fontsize=font_points)
    if num <= MAX_LABELS_WITH_COUNTS:
        for actual, predicted in zip(*np.nonzero(confusion_LL), strict=True):
            colour = "white" if share_LL[actual, predicted] > 0.36 else "black"
            text = str(confusion_LL[actual, predicted])
            axes.text(predicted, actual, text, ha="center", va="center", color=colour, fontsize=font_points)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the actual label")
    output = io.BytesIO()
    FigureCanvasAgg(figure).print_png(output)
    return output.getvalue()


def _plot_text(label: str) -> str:
    short = label if len(label) <= MAX_NAME_CHARACTERS else label[: MAX_NAME_CHARACTERS - 1] + "…"
    return short.replace("$", r"\$")  # matplotlib reads $...$ as mathematics


def _write_csv(path: pathlib.Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
