"""Painting with a seed: photo-like backgrounds, outlines as masks, figures in colours that stand out.

Everything is a function of a `numpy.random.Generator`, so the same seed paints the same picture. Detail is made on
small grids and enlarged by Pillow, which keeps a picture of 640x480 at a few milliseconds.

Legend: N points, H height, W width, C three channels of RGB.
"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

_SUPERSAMPLING = 2


@dataclasses.dataclass(frozen=True)
class PaintStyle:
    """How a figure is put onto a picture.

    Attributes:
      min_contrast: least distance between the figure's colour and the mean colour below it, in 0..441 (RGB).
      flat_share: share of figures in one flat colour; the rest are gradients and textures.
      shadow_share: share of figures that throw a shadow.
    """

    min_contrast: float = 110.0
    flat_share: float = 0.5
    shadow_share: float = 0.25


def draw_colour(rng: np.random.Generator) -> np.ndarray:
    """Draw one colour, as often muted as vivid.

    Args:
      rng: source of randomness.
    Returns:
      float64[3], RGB in 0..255.
    """
    colour = rng.uniform(0, 255, 3)
    if rng.random() < 0.5:
        colour = colour.mean() + (colour - colour.mean()) * rng.uniform(0.0, 0.5)
    return colour


def _enlarge(grid_HWC: np.ndarray, width: int, height: int) -> Image.Image:
    grid_HWC = np.clip(grid_HWC, 0, 255).astype(np.uint8)
    return Image.fromarray(grid_HWC).resize((width, height), Image.Resampling.BICUBIC)


def draw_fractal_noise(rng: np.random.Generator, width: int, height: int, roughness: float) -> np.ndarray:
    """Add up smooth noise at doubling frequencies.

    Args:
      rng: source of randomness.
      width: W in pixels.
      height: H in pixels.
      roughness: how much of its amplitude each octave hands on to the next finer one, 0 to 1.
    Returns:
      float32[H, W, 1], zero mean, about -1 to 1.
    """
    noise_HW = np.zeros((height, width), np.float32)
    amplitude, total = 1.0, 0.0
    # Non-square cells now and then: bark, water and cloth have a grain direction.
    stretch_x, stretch_y = rng.choice([1, 1, 1, 3]), rng.choice([1, 1, 1, 3])
    for octave in range(1, 6):
        cells = (min(2**octave * stretch_x, width), min(2**octave * stretch_y, height))
        grid = rng.integers(0, 256, (cells[1], cells[0]), dtype=np.uint8)
        smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        noise_HW += amplitude * (np.asarray(smooth, np.float32) - 127.5) / 127.5
        total += amplitude
        amplitude *= roughness
    return noise_HW[:, :, None] / total


def _draw_clutter(rng: np.random.Generator, image: Image.Image, num_items: int, blur_px: float) -> Image.Image:
    """Irregular blobs and strokes, as things out of focus or lying about."""
    width, height = image.size
    layer = image.copy()
    draw = ImageDraw.Draw(layer)
    for _ in range(num_items):
        colour = tuple(int(value) for value in draw_colour(rng))
        centre = rng.uniform(0, 1, 2) * (width, height)
        reach = rng.uniform(0.05, 0.35) * min(width, height)
        num_points = int(rng.integers(5, 10))
        angles = np.sort(rng.uniform(0, 2 * math.pi, num_points))
        radii = reach * rng.uniform(0.3, 1.0, num_points)
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii[:, None] + centre
        # Sharp blobs would be figures of their own; only what is out of focus is filled.
        if blur_px and rng.random() < 0.7:
            draw.polygon(points.ravel().tolist(), fill=colour)
        else:
            draw.line(points[:4].ravel().tolist(), fill=colour, width=max(1, int(reach / 12)))
    return layer.filter(ImageFilter.BoxBlur(blur_px)) if blur_px else layer


def draw_background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw a photo-like scene without a subject: gradients, fractal noise, blurred things, light and grain.

    Args:
      rng: source of randomness.
      width: W in pixels.
      height: H in pixels.
    Returns:
      An RGB image of that size.
    """
    shrink = max(1, round(max(width, height) / 112))
    small_w, small_h = max(8, width // shrink), max(8, height // shrink)
    base = draw_colour(rng)
    spread = rng.choice([15.0, 40.0, 80.0])
    cells = (int(rng.integers(2, 5)), int(rng.integers(2, 5)))
    # Light varies more than hue across a photo.
    corners_HWC = base + rng.normal(0, spread, (*cells, 1)) + rng.normal(0, spread * rng.uniform(0.1, 0.7), (*cells, 3))
    scene = _enlarge(corners_HWC, small_w, small_h)
    if rng.random() < 0.7:
        scene = _draw_clutter(rng, scene, int(rng.integers(1, 7)), blur_px=rng.uniform(1.5, 8.0))
    scene_HWC = np.asarray(scene, np.float32)
    tint_C = rng.normal(0, 1, 3) * 0.3 + 1.0
    noise_HWC = draw_fractal_noise(rng, small_w, small_h, roughness=rng.uniform(0.4, 0.95))
    scene_HWC = scene_HWC + noise_HWC * tint_C.astype(np.float32) * rng.choice([8.0, 30.0, 70.0])
    light_HWC = _enlarge(rng.uniform(140, 255, (2, 2, 1)).repeat(3, 2), small_w, small_h)
    scene_HWC = scene_HWC * (np.asarray(light_HWC, np.float32) / 220.0)
    image = _enlarge(scene_HWC, width, height)
    if rng.random() < 0.35:
        image = _draw_clutter(rng, image, int(rng.integers(1, 5)), blur_px=0)
    return image


def add_grain(rng: np.random.Generator, image: Image.Image, strength: int) -> Image.Image:
    """Add sensor noise.

    Args:
      rng: source of randomness.
      image: an RGB picture.
      strength: largest change of a pixel, 0 to 127.
    Returns:
      A new picture.
    """
    if strength <= 0:
        return image
    grain = Image.fromarray(rng.integers(0, 2 * strength + 1, (image.height, image.width), dtype=np.uint8))
    return ImageChops.add(image, Image.merge("RGB", (grain, grain, grain)), offset=-strength)


def regular_polygon(num_corners: int) -> np.ndarray:
    """Corners of a regular polygon in the unit circle.

    Args:
      num_corners: N; 64 and more look round.
    Returns:
      float64[N, 2], x right and y down.
    """
    angles = np.arange(num_corners) * (2 * math.pi / num_corners)
    return np.stack([np.sin(angles), -np.cos(angles)], 1)


def rotate(points_N2: np.ndarray, angle: float) -> np.ndarray:
    """Rotate points about the origin.

    Args:
      points_N2: float[N, 2].
      angle: radians.
    Returns:
      float64[N, 2].
    """
    cos, sin = math.cos(angle), math.sin(angle)
    return points_N2 @ np.array([[cos, sin], [-sin, cos]])


def draw_mask(outlines: list[np.ndarray], diameter_px: int, stroke_share: float = 0.0) -> Image.Image:
    """Rasterise closed outlines with smooth edges.

    Args:
      outlines: float[N, 2] each, inside the unit circle.
      diameter_px: side of the mask; the unit circle touches its edges.
      stroke_share: 0 fills the outlines; else only a line of this share of the diameter is drawn along them.
    Returns:
      An `L` image of diameter_px squared, 255 where the figure is.
    """
    side = diameter_px * _SUPERSAMPLING
    stroke_px = max(_SUPERSAMPLING, round(stroke_share * side)) if stroke_share else 0
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for outline in outlines:
        points = ((outline * (side - stroke_px) + side) / 2).ravel().tolist()
        if stroke_px:
            draw.line(points + points[:4], fill=255, width=stroke_px, joint="curve")
        else:
            draw.polygon(points, fill=255)
    return mask.reduce(_SUPERSAMPLING)


def _draw_fill(rng: np.random.Generator, colour: np.ndarray, side_px: int, style: PaintStyle) -> Image.Image:
    if rng.random() < style.flat_share:
        return Image.new("RGB", (side_px, side_px), tuple(int(value) for value in colour))
    if rng.random() < 0.5:
        return _enlarge(colour + rng.normal(0, 22, (2, 2, 3)), side_px, side_px)
    small = max(8, side_px // 4)
    noise_HWC = draw_fractal_noise(rng, small, small, roughness=rng.uniform(0.5, 1.0))
    return _enlarge(colour + noise_HWC * rng.uniform(20, 60), side_px, side_px)


def pick_figure_colour(rng: np.random.Generator, below_C: np.ndarray, min_contrast: float) -> np.ndarray:
    """Draw a colour that stands out.

    Args:
      rng: source of randomness.
      below_C: float[3], the colour to stand out from.
      min_contrast: least Euclidean distance in RGB; kept whenever one of ten draws reaches it.
    Returns:
      float64[3], RGB in 0..255.
    """
    best = draw_colour(rng)
    for _ in range(9):
        if np.linalg.norm(best - below_C) >= min_contrast:
            break
        other = draw_colour(rng)
        if np.linalg.norm(other - below_C) > np.linalg.norm(best - below_C):
            best = other
    return best


def paint_figure(
    rng: np.random.Generator, image: Image.Image, mask: Image.Image, left_top: tuple[int, int], style: PaintStyle
) -> np.ndarray:
    """Paint a figure onto a picture, in place.

    Args:
      rng: source of randomness.
      image: RGB picture to paint on.
      mask: `L`, 255 where the figure is.
      left_top: where the mask's corner goes, pixels; parts outside the picture are cut off.
      style: colours, textures and shadows.
    Returns:
      float64[3], the figure's colour, RGB in 0..255.
    """
    left, top = left_top
    below = image.crop((left, top, left + mask.width, top + mask.height)).resize((1, 1), Image.Resampling.BOX)
    colour = pick_figure_colour(rng, np.asarray(below, np.float64)[0, 0], style.min_contrast)
    if rng.random() < style.shadow_share:
        shift = max(1, mask.width // 24)
        shadow = mask.filter(ImageFilter.BoxBlur(shift)).point(lambda value: value // 2)
        image.paste((0, 0, 0), (left + shift, top + shift), shadow)
    image.paste(_draw_fill(rng, colour, mask.width, style), (left, top), mask)
    return colour
