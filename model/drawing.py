"""The demo's pictures: circles, pluses, squares and triangles on photo-like backgrounds, drawn from a seed.

They take no part in the training of the `builtin` backbone (`scripts/train_builtin.py`), which learns other shapes on
the same kind of background; telling them apart with its features is transfer learning.
"""

import math
import os
import pathlib
import zlib

import numpy as np
from PIL import Image, ImageFilter

from bulktag.model.painting import (
    PaintStyle,
    add_grain,
    draw_background,
    draw_mask,
    paint_figure,
    regular_polygon,
    rotate,
)

DEMO_CLASSES = ("circle", "plus", "square", "triangle")

# Width x height of the demo's pictures, each also used as portrait: phone thumbnails up to VGA.
_DEMO_SIZES_PX = ((160, 120), (200, 150), (240, 240), (256, 192), (320, 240), (400, 300), (480, 320), (640, 480))
# The part of the shorter side that `resize=crop` keeps; a figure lies inside it.
_KEPT_SHARE = 0.875
# Diameter of a demo figure's surrounding circle, as a share of the shorter side.
_DEMO_DIAMETER_SHARES = (0.25, 0.70)
# Most photos are JPEG; its quality is drawn per picture. PNG and WebP in their fast settings.
_ENCODINGS = ((".jpg", {}), (".png", {"compress_level": 1}), (".webp", {"quality": 80, "method": 0}))


def _plus(arm: float) -> np.ndarray:
    """A plus whose arms are 2*arm wide, scaled to touch the unit circle."""
    quarter = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    turns = [np.array([[0, -1], [1, 0]]), np.array([[1, 0], [0, 1]])]
    corners, turn = [], turns[1]
    for _ in range(4):
        corners.append(quarter @ turn.T)
        turn = turns[0] @ turn
    return np.concatenate(corners) / math.hypot(1.0, arm)


def draw_demo_picture(rng: np.random.Generator, name: str) -> Image.Image:
    """Draw one picture of a demo class.

    Args:
      rng: source of randomness.
      name: one of `DEMO_CLASSES`.
    Returns:
      An RGB image, 160x120 to 640x480 pixels, landscape, square or portrait.
    Raises:
      ValueError: the name is not a demo class.
    """
    if name not in DEMO_CLASSES:
        raise ValueError(f"expected one of {', '.join(DEMO_CLASSES)}, got {name!r}")
    # Small pictures are the common case, as in thumbnails; they are also the fast one.
    weights = 1.0 / np.arange(1, len(_DEMO_SIZES_PX) + 1)
    width, height = _DEMO_SIZES_PX[rng.choice(len(_DEMO_SIZES_PX), p=weights / weights.sum())]
    if rng.random() < 0.35:
        width, height = height, width
    shorter = min(width, height)
    diameter_px = round(shorter * rng.uniform(*_DEMO_DIAMETER_SHARES))
    outline = {
        "circle": lambda: regular_polygon(96),
        "plus": lambda: _plus(rng.uniform(0.16, 0.36)),
        "square": lambda: regular_polygon(4),
        "triangle": lambda: regular_polygon(3),
    }[name]()
    outline = rotate(outline, rng.uniform(0, 2 * math.pi))
    stroke_share = rng.uniform(0.05, 0.11) if rng.random() < 0.3 else 0.0
    mask = draw_mask([outline], diameter_px, stroke_share)
    room = max(0.0, shorter * _KEPT_SHARE - diameter_px) / 2
    centre = np.array([width, height]) / 2 + rng.uniform(-room, room, 2)
    image = draw_background(rng, width, height)
    left_top = tuple(int(value) for value in np.round(centre - diameter_px / 2))
    paint_figure(rng, image, mask, left_top, PaintStyle())
    if rng.random() < 0.2:
        image = image.filter(ImageFilter.BoxBlur(shorter / 240))
    return add_grain(rng, image, int(rng.integers(0, 14)))


def draw_demo_images(folder: str | os.PathLike, per_class: int, seed: int = 0) -> list[pathlib.Path]:
    """Draw the demo's pictures as `folder/CLASS/CLASS_0000.jpg` (about one in six is .png or .webp).

    Args:
      folder: where to write; made when missing.
      per_class: pictures of each of the four classes.
      seed: picture i of a class depends on the seed, the class and i only.
    Returns:
      The files written, by class and number.
    Raises:
      ValueError: per_class is negative.
      OSError: a file cannot be written.
    """
    if per_class < 0:
        raise ValueError(f"expected per_class of 0 or more, got {per_class}")
    paths = []
    for name in DEMO_CLASSES:
        target = pathlib.Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
            image = draw_demo_picture(rng, name)
            suffix, options = _ENCODINGS[rng.choice(3, p=(0.84, 0.10, 0.06))]
            if suffix == ".jpg":
                options = {"quality": int(rng.integers(40, 96))}
            paths.append(target / f"{name}_{number:04d}{suffix}")
            image.save(paths[-1], **options)
    return paths
