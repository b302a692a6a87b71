"""What the builtin network learns to tell apart: shapes, letters and textures, as masks and pictures.

Left out on purpose, so that the demo and the digits bar measure transfer:
  - the demo's circle, square, plus and triangle, and what merely is one of them stretched, outlined or turned:
    ring, ellipse, rectangle, rhombus, octagon, the letters O, o, t, X, x, Greek delta and omicron, dots and checks;
  - digits, and letters that are a digit's glyph (Cyrillic Ze and Che).
Near misses that stay are other figures in their own right: trapezoids and slanted parallelograms (no right angles),
kites (clearly longer than wide), half discs, pentagons and hexagons.

Legend: N points.
"""

import functools
import io
import math
import multiprocessing
import pathlib
from concurrent.futures import ProcessPoolExecutor

import matplotlib
import numpy as np
from builtin_shapes import SHAPES
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from bulktag.model.painting import (
    PaintStyle,
    add_grain,
    draw_background,
    draw_colour,
    draw_fractal_noise,
    draw_mask,
    paint_figure,
    rotate,
)

_FONT_FOLDER = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf"
_LATIN_FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
)
# These have Greek and Cyrillic too.
_WIDE_FONTS = _LATIN_FONTS[:6]

# Capital and small letters of the same form are one class.
LETTERS = {
    **{f"letter_{both[0]}": both for both in ("Cc", "Kk", "Pp", "Ss", "Uu", "Vv", "Ww", "Zz", "Jj", "Il", "Yy")},
    **{f"letter_{one}": one for one in "ABDEFGHLMNQRT"},
    **{f"letter_small_{one}": one for one in "abdefghimnqr"},
    **{f"letter_greek_{ord(one):x}": one for one in "αβγεζηθλμξπφψωΓΞΣΦΨΩ"},
    **{f"letter_cyrillic_{ord(one):x}": one for one in "БДЖИЛЦШЫЭЮЯ"},
}


@functools.lru_cache(maxsize=256)
def _font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONT_FOLDER / name), size_px)


def draw_letter_mask(rng: np.random.Generator, name: str, side_px: int) -> Image.Image:
    """Draw a letter as if by an unsteady hand: thick or thin, slanted, bent, in many fonts.

    Args:
      rng: source of randomness.
      name: a key of `LETTERS`.
      side_px: side of the mask.
    Returns:
      An `L` mask that the letter fills in height or width.
    """
    text = LETTERS[name]
    text = text[int(rng.integers(len(text)))]
    font = _font(str(rng.choice(_LATIN_FONTS if text.isascii() else _WIDE_FONTS)), 48)
    stroke = int(rng.integers(0, 3))
    left, top, right, bottom = font.getbbox(text, stroke_width=stroke)
    glyph = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(glyph).text((4 - left, 4 - top), text, fill=255, font=font, stroke_width=stroke)
    glyph = glyph.resize((64, 64), Image.Resampling.BILINEAR)
    bent = _bend(rng, glyph)
    # The letter's own proportion, varied; then slant and turn.
    aspect = np.clip((right - left) / (bottom - top), 0.25, 1.5) * math.exp(rng.normal(0, 0.15))
    height = side_px if aspect <= 1 else side_px / aspect
    angle, shear = rng.normal(0, 0.14), rng.normal(0, 0.15)
    to_mask = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    to_mask = to_mask @ np.array([[1, shear], [0, 1]]) @ np.diag([aspect * height / 64, height / 64])
    (a, b), (d, e) = np.linalg.inv(to_mask)
    middle = side_px / 2
    affine = (a, b, 32 - a * middle - b * middle, d, e, 32 - d * middle - e * middle)
    return bent.transform((side_px, side_px), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


def _bend(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Distort by moving the nodes of a coarse grid."""
    cells, side = 3, image.width
    step = side / cells
    nodes = np.stack(np.meshgrid(np.arange(cells + 1), np.arange(cells + 1)), -1) * step
    nodes = nodes + rng.normal(0, rng.uniform(0.0, 0.16) * step, nodes.shape)
    mesh = []
    for row in range(cells):
        for column in range(cells):
            box = (round(column * step), round(row * step), round((column + 1) * step), round((row + 1) * step))
            corners = (nodes[row, column], nodes[row + 1, column], nodes[row + 1, column + 1], nodes[row, column + 1])
            mesh.append((box, tuple(np.concatenate(corners))))
    return image.transform(image.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR)


def _two_colours(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    first, second = draw_colour(rng), draw_colour(rng)
    return first, (second if np.linalg.norm(first - second) > 60 else 255 - first)


def _stripe_phase(rng: np.random.Generator, side_px: int, wobble: float) -> np.ndarray:
    y, x = np.mgrid[0:side_px, 0:side_px] / side_px
    angle = rng.uniform(0, math.pi)
    return (x * math.cos(angle) + y * math.sin(angle)) * rng.uniform(4, 12) + wobble * np.sin(
        (x * math.sin(angle) - y * math.cos(angle)) * rng.uniform(6, 16)
    )


def _noise(rng: np.random.Generator, side_px: int, roughness: float) -> np.ndarray:
    return draw_fractal_noise(rng, side_px, side_px, roughness)[:, :, 0]


def _bricks(rng: np.random.Generator, side_px: int) -> np.ndarray:
    rows = rng.uniform(5, 10)
    y, x = np.mgrid[0:side_px, 0:side_px] / side_px
    row = np.floor(y * rows)
    return ((y * rows) % 1 < 0.16) | ((x * rows / 2.5 + 0.5 * (row % 2)) % 1 < 0.08)


def _scales(rng: np.random.Generator, side_px: int) -> np.ndarray:
    rows = rng.uniform(5, 10)
    y, x = np.mgrid[0:side_px, 0:side_px] / side_px * rows
    x = (x + 0.5 * (np.floor(y) % 2)) % 1 - 0.5
    return np.hypot(x, (y % 1) * 0.9) % 0.5 * 2


# Each gives float or bool [side, side], roughly 0 to 1: the share of the second colour.
TEXTURES = {
    "texture_stripes": lambda rng, side: np.sin(_stripe_phase(rng, side, 0.0) * 2 * math.pi) > rng.uniform(-0.5, 0.5),
    "texture_waves": lambda rng, side: np.sin(_stripe_phase(rng, side, 0.3) * 2 * math.pi) > 0,
    "texture_ramps": lambda rng, side: _stripe_phase(rng, side, 0.0) % 1,
    "texture_wood": lambda rng, side: (_stripe_phase(rng, side, 0.1) / 2 + 0.6 * _noise(rng, side, 0.5)) % 1,
    "texture_marble": lambda rng, side: np.abs(_noise(rng, side, 0.75)) ** 0.5,
    "texture_patches": lambda rng, side: _noise(rng, side, 0.5) > 0,
    "texture_speckle": lambda rng, side: rng.random((side, side)) < rng.uniform(0.1, 0.4),
    "texture_bricks": _bricks,
    "texture_scales": _scales,
}


def draw_texture(rng: np.random.Generator, name: str, side_px: int) -> Image.Image:
    """Draw a picture that is all one texture.

    Args:
      rng: source of randomness.
      name: a key of `TEXTURES`.
      side_px: side of the picture.
    Returns:
      An RGB image.
    """
    share_HW1 = np.asarray(TEXTURES[name](rng, side_px), np.float32)[:, :, None]
    first, second = _two_colours(rng)
    pixels_HWC = first * (1 - share_HW1) + second * share_HW1
    pixels_HWC = pixels_HWC + draw_fractal_noise(rng, side_px, side_px, 0.7) * rng.uniform(0, 40)
    image = Image.fromarray(np.clip(pixels_HWC, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.BoxBlur(rng.uniform(0, 1.2)))


CLASSES = (*SHAPES, *LETTERS, *TEXTURES, "nothing")
# Shapes come twice as often: they are turned freely and so are harder to learn than letters.
_SCHEDULE = np.concatenate([np.arange(len(SHAPES)), np.arange(len(CLASSES))])
_RESAMPLING = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.LANCZOS,
)


def _draw_figure_mask(rng: np.random.Generator, name: str, side_px: int) -> Image.Image:
    if name in LETTERS:
        return draw_letter_mask(rng, name, side_px)
    outline = rotate(SHAPES[name](rng) * (1, rng.uniform(0.8, 1.0)), rng.uniform(0, 2 * math.pi))
    outline = outline / max(1.0, np.linalg.norm(outline, axis=1).max())
    return draw_mask([outline], side_px, rng.uniform(0.04, 0.12) if rng.random() < 0.35 else 0.0)


def _draw_scan(rng: np.random.Generator, name: str, side_px: int) -> tuple[Image.Image, np.ndarray]:
    """A figure alone on plain paper, of very few pixels, enlarged: what a tiny scan looks like."""
    mask = _draw_figure_mask(rng, name, 48)
    cells = int(rng.integers(6, 15))
    paper = Image.new("L", (64, 64))
    spare = 64 - 48
    paper.paste(mask, tuple(int(value) for value in rng.integers(spare // 4, 3 * spare // 4 + 1, 2)))
    crop = int(rng.integers(0, 7))
    paper = paper.crop((crop, crop, 64 - crop, 64 - crop)).resize((cells, cells), Image.Resampling.BOX)
    ink_HW1 = np.asarray(paper, np.float32)[:, :, None] / 255
    ink_HW1 = np.clip(ink_HW1 * rng.uniform(1.0, 2.0), 0, 1)
    if rng.random() < 0.5:
        ink_HW1 = np.round(ink_HW1 * 16) / 16
    dark, light = rng.uniform(0, 70, 3), rng.uniform(170, 255, 3)
    if rng.random() < 0.7:
        dark, light = (np.full(3, value * rng.choice([0.0, 1.0])) for value in (dark[0], light[0]))
        light = 255 - light if light[0] < 128 else light
    ground, ink = (light, dark) if rng.random() < 0.5 else (dark, light)
    pixels_HWC = ground * (1 - ink_HW1) + ink * ink_HW1
    image = Image.fromarray(np.clip(pixels_HWC, 0, 255).astype(np.uint8))
    return image.resize((side_px, side_px), _RESAMPLING[rng.integers(4)]), ink


def _degrade(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Lose resolution, sharpness and quality, as pictures do on their way through the world."""
    side = image.width
    if rng.random() < 0.15:
        small = int(rng.integers(14, 48))
        image = image.resize((small, small), Image.Resampling.BOX).resize((side, side), _RESAMPLING[rng.integers(4)])
    elif rng.random() < 0.15:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.2)))
    if rng.random() < 0.5:
        image = add_grain(rng, image, int(rng.integers(1, 16)))
    if rng.random() < 0.15:
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=int(rng.integers(25, 90)))
        image = Image.open(stored).convert("RGB")
    return image


def draw_example(rng: np.random.Generator, name: str, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one training picture.

    Args:
      rng: source of randomness.
      name: one of `CLASSES`.
      side_px: side of the picture.
    Returns:
      uint8[side, side, 3] and float64[3], the colour of its figure (of the whole, where there is none).
    """
    if name in TEXTURES or name == "nothing":
        image = draw_texture(rng, name, side_px) if name in TEXTURES else draw_background(rng, side_px, side_px)
        colour = np.asarray(image.resize((1, 1), Image.Resampling.BOX), np.float64)[0, 0]
    elif rng.random() < (0.4 if name in LETTERS else 0.06):
        image, colour = _draw_scan(rng, name, side_px)
    else:
        image = draw_background(rng, side_px, side_px)
        diameter = round(side_px * rng.uniform(0.25, 0.92))
        mask = _draw_figure_mask(rng, name, diameter)
        left_top = tuple(int(value) for value in rng.integers(0, side_px - diameter + 1, 2))
        colour = paint_figure(rng, image, mask, left_top, PaintStyle(min_contrast=rng.uniform(50, 140)))
    image = _degrade(rng, image)
    if rng.random() < 0.1:
        image = image.convert("L").convert("RGB")
        colour = np.full(3, colour @ (0.299, 0.587, 0.114))
    return np.asarray(image), colour


def _draw_chunk(seed: int, indices: range, side_px: int) -> tuple[np.ndarray, np.ndarray]:
    drawn = [
        draw_example(np.random.default_rng([seed, i]), CLASSES[_SCHEDULE[i % len(_SCHEDULE)]], side_px) for i in indices
    ]
    return np.stack([pixels for pixels, _ in drawn]), np.stack([colour for _, colour in drawn])


def draw_bank(seed: int, num_pictures: int, side_px: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the training pictures with two processes.

    Args:
      seed: picture i depends on the seed and i only; the classes take turns.
      num_pictures: how many.
      side_px: side of the pictures.
    Returns:
      uint8[num, side, side, 3], pixels; int64[num], indices into `CLASSES`; float32[num, 3], figure colours, 0..255.
    """
    pixels_NHWC = np.empty((num_pictures, side_px, side_px, 3), np.uint8)
    colours_NC = np.empty((num_pictures, 3), np.float32)
    chunks = [range(start, min(start + 500, num_pictures)) for start in range(0, num_pictures, 500)]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        drawn = pool.map(_draw_chunk, [seed] * len(chunks), chunks, [side_px] * len(chunks))
        for chunk, (pixels, colours) in zip(chunks, drawn, strict=True):
            pixels_NHWC[chunk.start : chunk.stop] = pixels
            colours_NC[chunk.start : chunk.stop] = colours
    return pixels_NHWC, _SCHEDULE[np.arange(num_pictures) % len(_SCHEDULE)], colours_NC
