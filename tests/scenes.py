"""Pictures that show several things at once: 1 to 4 figures of 8 kinds, drawn from a seed, and a manifest of them."""

import json
import math
import pathlib

import numpy as np

from bulktag.model.drawing import _plus
from bulktag.model.painting import (
    PaintStyle,
    add_grain,
    draw_background,
    draw_mask,
    paint_figure,
    regular_polygon,
    rotate,
)

SIDE_PX = 160
# At least this contrast, and mostly flat colours: a figure of a third of the side is seen by 96 px as 32.
STYLE = PaintStyle(min_contrast=160.0, flat_share=0.8)


def _polar(radii, turns=1.0):
    angles = np.linspace(0, 2 * math.pi * turns, len(radii), endpoint=False)
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], 1)


def _crescent():
    outer = np.linspace(0.3 * math.pi, 1.7 * math.pi, 60)
    inner = np.linspace(1.62 * math.pi, 0.38 * math.pi, 60)
    outside = np.stack([np.cos(outer), np.sin(outer)], 1)
    inside = np.stack([0.25 + 0.8 * np.cos(inner), 0.8 * np.sin(inner)], 1)
    return np.concatenate([outside, inside])


OUTLINES = {
    "circle": lambda: regular_polygon(96),
    "plus": lambda: _plus(0.25),
    "square": lambda: regular_polygon(4),
    "triangle": lambda: regular_polygon(3),
    "star": lambda: _polar(np.tile([1.0, 0.42], 5)),
    "crescent": _crescent,
    "hourglass": lambda: np.array([[-0.7, -0.8], [0.7, -0.8], [0.1, 0], [0.7, 0.8], [-0.7, 0.8], [-0.1, 0]]),
    "bar": lambda: np.array([[-1, -0.16], [1, -0.16], [1, 0.16], [-1, 0.16]]),
}
KINDS = tuple(OUTLINES)


def draw_scene(rng, kinds):
    """One picture with a figure of each of the kinds, each in a quarter of its own."""
    image = draw_background(rng, SIDE_PX, SIDE_PX)
    for kind, quarter in zip(kinds, rng.permutation(4), strict=False):
        diameter_px = round(SIDE_PX * rng.uniform(0.30, 0.42))
        mask = draw_mask([rotate(OUTLINES[kind](), rng.uniform(0, 2 * math.pi))], diameter_px)
        room = SIDE_PX // 2 - diameter_px
        corner = [int(quarter % 2) * SIDE_PX // 2, int(quarter // 2) * SIDE_PX // 2]
        left_top = tuple(int(edge + rng.integers(0, max(room, 1))) for edge in corner)
        paint_figure(rng, image, mask, left_top, STYLE)
    return add_grain(rng, image, int(rng.integers(0, 8)))


def draw_scenes(folder, num, seed=0, *, empty_share=0.0, rare=None):
    """Draw pictures and `manifest.jsonl`, whose column labels is a list.

    Args:
      folder: where to.
      num: pictures.
      seed: another one gives other pictures.
      empty_share: share of pictures without a figure.
      rare: {kind: how many times as rarely it is drawn}.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.array([1 / (rare or {}).get(kind, 1) for kind in KINDS])
    lines = []
    for number in range(num):
        rng = np.random.default_rng([seed, number])
        count = 0 if rng.random() < empty_share else int(rng.integers(1, 5))
        kinds = [str(kind) for kind in rng.choice(KINDS, count, replace=False, p=weights / weights.sum())]
        name = f"{seed}_{number:05d}.jpg"
        draw_scene(rng, kinds).save(folder / name, quality=90)
        lines.append(json.dumps({"uri": name, "labels": kinds}))
    (folder / "manifest.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder / "manifest.jsonl"
