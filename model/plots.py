"""Draw what an evaluation found: the confusion matrix as a PNG, reliability and scores as SVG.

Array suffixes: N images, L labels, K bins.
"""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from bulktag.model.reliability import Reliability

# With more labels than this, counts are not written into the cells of the plot: they could not be read.
MAX_LABELS_WITH_COUNTS = 25
MAX_LABELS_WITH_NAMES = 150
MAX_NAME_CHARACTERS = 24
# Colours that the colour-blind can tell apart. Source: Okabe and Ito, "Color universal design", 2008.
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"
HISTOGRAM_BINS = 20
# What rows and columns of a confusion matrix are, with one label an image and with several.
AXES_SINGLE, AXES_MULTI = ("actual", "predicted"), ("missed", "wrongly given")


def draw_confusion(confusion_LL: np.ndarray, labels: Sequence[str], axes_names: tuple[str, str] = AXES_SINGLE) -> bytes:
    """Draw a confusion matrix as a PNG: shares of each row's label, with counts where there is room for them.

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
    axes.set_xlabel(axes_names[1])
    axes.set_ylabel(axes_names[0])
    if num <= MAX_LABELS_WITH_NAMES:
        names = [_plot_text(label) for label in labels]
        axes.set_xticks(range(num), names, rotation=90, fontsize=font_points)
        axes.set_yticks(range(num), names, fontsize=font_points)
    if num <= MAX_LABELS_WITH_COUNTS:
        for actual, predicted in zip(*np.nonzero(confusion_LL), strict=True):
            colour = "white" if share_LL[actual, predicted] > 0.36 else "black"
            text = str(confusion_LL[actual, predicted])
            axes.text(predicted, actual, text, ha="center", va="center", color=colour, fontsize=font_points)
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the row")
    output = io.BytesIO()
    FigureCanvasAgg(figure).print_png(output)
    return output.getvalue()


def _plot_text(label: str) -> str:
    short = label if len(label) <= MAX_NAME_CHARACTERS else label[: MAX_NAME_CHARACTERS - 1] + "…"
    return short.replace("$", r"\$")  # matplotlib reads $...$ as mathematics


def draw_reliability(after: Reliability, before: Reliability) -> str:
    """Draw how often scores were right, bin by bin, with calibration and without it, as SVG."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="honest")
    for name, found, colour, marker in (("before", before, ORANGE, "s"), ("calibrated", after, BLUE, "o")):
        used_K = found.count_K > 0
        axes.plot(
            found.mean_score_K[used_K], found.share_right_K[used_K], color=colour, marker=marker, markersize=4,
            label=f"{name}: error {found.error:.1%}",
        )  # fmt: skip
    axes.set(xlabel="score", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    return _as_svg(figure)


def draw_scores(right_scores: np.ndarray, wrong_scores: np.ndarray, names: tuple[str, str]) -> str:
    """Draw histograms of scores over each other, as SVG; counts on a logarithmic scale, for the wrong ones are few."""
    figure = Figure(figsize=(4.6, 4.0), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, HISTOGRAM_BINS + 1)
    for scores, name, colour in ((right_scores, names[0], BLUE), (wrong_scores, names[1], ORANGE)):
        axes.hist(scores, bins, color=colour, alpha=0.65, label=f"{name}: {len(scores):,}")
    axes.set(xlabel="score", ylabel="number", xlim=(0, 1))
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    return _as_svg(figure)


def _as_svg(figure: Figure) -> str:
    # Text stays text, in the reader's own font; no date and fixed ids: the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bulktag", "font.family": "sans-serif"}):
        output = io.StringIO()
        FigureCanvasSVG(figure).print_svg(output, metadata={"Date": None})
    return output.getvalue()
