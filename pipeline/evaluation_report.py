"""What an evaluation's report shows beside the figures: images, and what is wrong with the data.

Array suffixes: N images, L labels.
"""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from bulktag.model.bundle import Bundle
from bulktag.model.evaluation_files import Prediction
from bulktag.model.image import ImageLimits
from bulktag.model.label_errors import find_label_errors, find_multi_label_errors
from bulktag.model.plots import draw_scores
from bulktag.model.report import MAX_PROBLEMS_SHOWN, Problem, Sheet, Tile
from bulktag.model.samples import pick_samples
from bulktag.model.splits import MIN_IMAGES_PER_LABEL
from bulktag.transforms import files
from bulktag.transforms.records import ERRORS, SPLITS
from bulktag.transforms.sources import EXAMPLES_FILE
from bulktag.transforms.thumbnails import fetch_thumbnails

IMAGES_A_SHEET = 18


class ScoredImages(NamedTuple):
    """The evaluated images, in any order."""

    uris: list[str]
    sha256: list[bytes]
    scores_NL: np.ndarray  # float32[N, L]
    targets_NL: np.ndarray  # bool[N, L]
    thresholds_L: np.ndarray | None  # with several labels an image; None: each has one, and its best score is meant


def build_sheets(
    scored: ScoredImages, rows: Sequence[Prediction], worst: np.ndarray, bundle: Bundle, shards: list[str]
) -> list[Sheet]:
    """Contact sheets of wrong, doubtful and right images.

    Args:
      scored: the images.
      rows: what is said of each of them.
      worst: numbers of those that were tagged wrongly, the surest first.
      bundle: the model.
      shards: TFRecords that the images stand in.
    """
    samples = pick_samples(scored.scores_NL, scored.targets_NL, scored.thresholds_L, worst, IMAGES_A_SHEET)
    chosen = sorted({row for kind in samples for row in kind})
    thumbnails = fetch_thumbnails([scored.uris[row] for row in chosen], shards, ImageLimits())

    def tiles(numbers: list[int]) -> list[Tile]:
        shown = [rows[number] for number in numbers]
        return [Tile(thumbnails.get(row.uri, ""), row.uri, row.actual, row.predicted, row.score) for row in shown]

    closest = "with labels close to their thresholds" if bundle.multi_label else "whose two best labels are close"
    return [
        Sheet("Wrong", "What the model was surest of, and wrong; the worst of each label first.", tiles(samples.wrong)),
        Sheet("Doubtful", f"Images {closest}: a little more would have changed the answer.", tiles(samples.doubtful)),
        Sheet("Right", "Drawn from those that are right, for comparison.", tiles(samples.right)),
    ]


def draw_score_histograms(scored: ScoredImages, multi_label: bool) -> str:
    """Scores of right and wrong answers, or of images with a label and without, as SVG."""
    if multi_label:
        has_NL = scored.targets_NL
        return draw_scores(scored.scores_NL[has_NL], scored.scores_NL[~has_NL], ("has the label", "has it not"))
    right_N = scored.targets_NL[np.arange(len(scored.uris)), scored.scores_NL.argmax(axis=1)]
    best_N = scored.scores_NL.max(axis=1)
    return draw_scores(best_N[right_N], best_N[~right_N], ("right", "wrong"))


def find_problems(examples: str, scored: ScoredImages, bundle: Bundle, *, held_out: bool) -> list[Problem]:
    """What a user should look at in the data.

    Args:
      examples: folder that extract wrote.
      scored: the evaluated images.
      bundle: the model.
      held_out: whether the model was not trained on them.
    """
    problems = [_tiny_labels(examples), _unreadable(examples), _duplicates(scored, bundle)]
    if held_out:
        problems.append(_label_errors(scored, bundle))
    return [problem for problem in problems if problem.count]


def _tiny_labels(examples: str) -> Problem:
    counts = json.loads(files.read_bytes(files.join(examples, EXAMPLES_FILE)))["counts"]
    totals: collections.Counter = collections.Counter()
    for split in SPLITS:
        totals.update(counts.get(split, {}).get("labels", {}))
    tiny = sorted((count, label) for label, count in totals.items() if count < MIN_IMAGES_PER_LABEL)
    note = f"Fewer than {MIN_IMAGES_PER_LABEL} images over all splits: too few to learn from, or to measure with."
    return Problem("Tiny labels", note, ("label", "images"), [(label, str(n)) for n, label in tiny], len(tiny))


def _unreadable(examples: str) -> Problem:
    """From the errors table beside the examples."""
    counts: collections.Counter = collections.Counter()
    first: dict[str, str] = {}
    folder = files.join(examples, ERRORS)
    paths = sorted(pathlib.Path(files.fetch_folder(folder)).rglob("*.parquet")) if files.is_folder(folder) else []
    for path in paths:
        table = pq.ParquetFile(path).read(["error_type", "uri"])
        counts.update(table["error_type"].to_pylist())
        for kind, name in zip(table["error_type"].to_pylist(), table["uri"].to_pylist(), strict=True):
            first.setdefault(kind, name)
    rows = [(kind, str(count), first[kind]) for kind, count in counts.most_common()]
    note = "Left out when bottlenecks were computed; each has a row in the errors table beside the examples."
    return Problem("Images that could not be used", note, ("reason", "images", "for example"), rows, counts.total())


def _duplicates(scored: ScoredImages, bundle: Bundle) -> Problem:
    """A content stands in one split only, so that all of its copies are here."""
    by_content = collections.defaultdict(list)
    for row, digest in enumerate(scored.sha256):
        by_content[digest].append(row)
    found = []
    for rows in by_content.values():
        labels = {scored.targets_NL[row].tobytes(): row for row in rows}
        if len(labels) > 1:
            names = [_name_labels(scored.targets_NL[row], bundle) for row in labels.values()]
            found.append((" / ".join(names), ", ".join(scored.uris[row] for row in labels.values())))
    note = "The same file under different labels: at least one of them is wrong, or the image has both."
    return Problem("Duplicates across labels", note, ("labels", "files"), found[:MAX_PROBLEMS_SHOWN], len(found))


def _name_labels(targets_L: np.ndarray, bundle: Bundle) -> str:
    return ", ".join(bundle.labels[i] for i in np.flatnonzero(targets_L)) or "(no label)"


def _label_errors(scored: ScoredImages, bundle: Bundle) -> Problem:
    if bundle.multi_label:
        errors = find_multi_label_errors(scored.scores_NL, scored.targets_NL)
    else:
        errors = find_label_errors(scored.scores_NL, scored.targets_NL.argmax(axis=1))
    rows = [
        (
            scored.uris[error.row],
            _name_labels(scored.targets_NL[error.row], bundle),
            f"not {bundle.labels[error.given]}" if error.suggested is None else bundle.labels[error.suggested],
            f"{error.margin:.2f}",
        )
        for error in errors[:MAX_PROBLEMS_SHOWN]
    ]
    note = ("The model, which was not trained on these images, is sure of something else (confident learning). Look at "
            "them before you believe either.")  # fmt: skip
    header = ("image", "labelled", "more likely", "margin")
    return Problem("Labels that are probably wrong", note, header, rows, len(errors))
