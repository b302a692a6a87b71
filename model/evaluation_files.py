"""Write an evaluation to a folder: JSON, CSV tables and a plot of the confusion matrix.

Array suffixes: N images, L labels.
"""

import csv
import json
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bulktag.model.metrics import ConfusedPair, Evaluation, LabelFigures, MultiLabelEvaluation
from bulktag.model.plots import AXES_MULTI, AXES_SINGLE, draw_confusion

# Between the labels of one image, in tables.
LABEL_SEPARATOR = "; "
# Wrongly tagged images in worst.csv; all of them stand in predictions.csv.
MAX_WORST = 200


class Prediction(NamedTuple):
    """What was said about one image of the evaluation."""

    uri: str
    actual: str
    predicted: str
    score: float  # of the best-scored label
    correct: bool


def predictions(
    uris: Sequence[str], scores_NL: np.ndarray, targets_NL: np.ndarray, labels: Sequence[str],
    thresholds_L: np.ndarray | None = None,
) -> list[Prediction]:  # fmt: skip
    """Say of every image what it is and what it was taken for.

    Args:
      uris: N.
      scores_NL: float[N, L].
      targets_NL: bool[N, L].
      labels: L names.
      thresholds_L: float[L], with any number of labels an image, which then are joined; None: each has one, and the
        best-scored label is meant.
    """
    best_N = scores_NL.max(axis=1).tolist()
    if thresholds_L is None:
        # Python's own numbers: NumPy's are slow one by one.
        pairs = zip(targets_NL.argmax(axis=1).tolist(), scores_NL.argmax(axis=1).tolist(), strict=True)
        names = [(labels[actual], labels[predicted]) for actual, predicted in pairs]
    else:
        actual, given = _joined(targets_NL, labels), _joined(scores_NL >= thresholds_L, labels)
        names = list(zip(actual, given, strict=True))
    return [
        Prediction(uri, actual, predicted, score, actual == predicted)
        for uri, (actual, predicted), score in zip(uris, names, best_N, strict=True)
    ]


def _joined(has_NL: np.ndarray, labels: Sequence[str]) -> list[str]:
    return [LABEL_SEPARATOR.join(labels[i] for i in np.flatnonzero(row).tolist()) for row in has_NL]


def write_evaluation(
    evaluation: Evaluation | MultiLabelEvaluation, rows: Sequence[Prediction], worst: Sequence[int],
    folder: str | pathlib.Path,
) -> None:  # fmt: skip
    """Write metrics.json, per_class.csv, predictions.csv, worst.csv, confusion.csv, confused_pairs.csv, confusion.png.

    Args:
      evaluation: from `model.metrics`.
      rows: one for each image.
      worst: numbers of those that were tagged wrongly, the surest first.
      folder: a local folder; made where it is missing.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(evaluation.figures(), indent=2) + "\n"
    (folder / "metrics.json").write_text(content, encoding="utf-8")
    _write_csv(folder / "per_class.csv", LabelFigures._fields, evaluation.per_label)
    _write_csv(folder / "predictions.csv", Prediction._fields, rows)
    _write_csv(folder / "worst.csv", Prediction._fields, (rows[i] for i in worst[:MAX_WORST]))
    labels = evaluation.labels
    confusion_rows = ([label, *row] for label, row in zip(labels, evaluation.confusion_LL.tolist(), strict=True))
    axes = AXES_SINGLE if isinstance(evaluation, Evaluation) else AXES_MULTI
    _write_csv(folder / "confusion.csv", [axes[0], *labels], confusion_rows)
    _write_csv(folder / "confused_pairs.csv", ConfusedPair._fields, evaluation.most_confused)
    (folder / "confusion.png").write_bytes(draw_confusion(evaluation.confusion_LL, labels, axes))


def _write_csv(path: pathlib.Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
