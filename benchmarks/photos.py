"""Folders of numbered JPEGs for measuring: the user's photos, or drawn ones with the statistics of photos.

Drawn pictures have amplitude spectra of 1/f with correlated colours (Field, 1987; Ruderman and Bialek, 1994), smooth
shading, edges of overlapping figures ("dead leaves": Lee, Mumford and Huang, 2001), grain, and are saved as JPEG of
quality 85 to 95. What matters is that decoding them costs what decoding photos costs.

Array suffixes: H height, W width, C channels (RGB).
"""

import concurrent.futures
import functools
import os
import pathlib
import shutil

import numpy as np
from PIL import Image

SMALL_PX = (500, 375)
LARGE_PX = (4000, 3000)
QUALITIES = (85, 95)
# Distinct pictures; the others are other cuts, mirrored, of another brightness.
NUM_PICTURES = {SMALL_PX: 100, LARGE_PX: 6}
# Wider pictures are drawn at a quarter of the size and enlarged.
_DRAWN_WHOLE_PX = 1200
_FORM = 1  # counted up when drawing changes, so that an old cache is not taken
_SUFFIXES = (".jpg", ".jpeg")


def link_photos(source: pathlib.Path, folder: pathlib.Path, count: int) -> pathlib.Path:
    """A folder with exactly `count` JPEGs, 000000.jpg and on: hard links to those below `source`, in turns.

    Raises:
      ValueError: there are none.
    """
    found = sorted(path for path in source.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise ValueError(f"expected JPEGs, found none: {source}")
    if folder.is_dir() and len(os.listdir(folder)) == count:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for i in range(count):
        _link_or_copy(found[i % len(found)], folder / f"{i:06}.jpg")
    return folder


def _link_or_copy(source: pathlib.Path, target: pathlib.Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def draw_photos(cache: pathlib.Path, count: int, size_px: tuple[int, int] = SMALL_PX, seed: int = 0) -> pathlib.Path:
    """A folder with at least `count` drawn JPEGs, each another; drawn once, and only what is missing.

    Args:
      cache: folder for such folders.
      count: of files.
      size_px: about this width and height; every third picture is a portrait.
      seed: another seed draws other pictures.
    """
    folder = cache / f"drawn-{_FORM}-{size_px[0]}x{size_px[1]}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    have = {path.name for path in folder.glob("*.jpg")}
    missing = [i for i in range(count) if f"{i:06}.jpg" not in have]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda i: _save_photo(folder / f"{i:06}.jpg", i, size_px, seed), missing))
    _draw_picture.cache_clear()
    return folder


def _save_photo(path: pathlib.Path, index: int, size_px: tuple[int, int], seed: int) -> None:
    num_pictures = NUM_PICTURES.get(size_px, 24)
    pixels_HWC = _draw_picture(index % num_pictures, size_px, seed)
    rng = np.random.default_rng((seed, 1, index))
    image = vary_picture(pixels_HWC, rng, size_px)
    if (index // num_pictures + index) % 3 == 2:
        image = image.transpose(Image.Transpose.ROTATE_90)
    temporary = path.with_suffix(".part")
    # Cameras and web sites use both: colours at half the resolution (4:2:0), and at the full one (4:4:4).
    subsampling = "4:4:4" if rng.random() < 0.4 else "4:2:0"
    quality = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1))
    image.save(temporary, "JPEG", quality=quality, subsampling=subsampling)
    temporary.replace(path)


def vary_picture(pixels_HWC: np.ndarray, rng: np.random.Generator, size_px: tuple[int, int]) -> Image.Image:
    """Another cut of a larger picture, perhaps mirrored, of another brightness and contrast."""
    width, height = (round(side * rng.uniform(0.94, 1.0)) for side in size_px)
    top = int(rng.integers(0, pixels_HWC.shape[0] - height + 1))
    left = int(rng.integers(0, pixels_HWC.shape[1] - width + 1))
    cut_HWC = pixels_HWC[top : top + height, left : left + width]
    if rng.random() < 0.5:
        cut_HWC = cut_HWC[:, ::-1]
    curve = 255 * (np.arange(256) / 255) ** rng.uniform(0.7, 1.4) * rng.uniform(0.85, 1.0) + rng.uniform(0, 12)
    return Image.fromarray(np.ascontiguousarray(cut_HWC)).point(np.clip(curve, 0, 255).astype(np.uint8).tolist() * 3)


@functools.lru_cache(maxsize=max(NUM_PICTURES.values()))
def _draw_picture(number: int, size_px: tuple[int, int], seed: int) -> np.ndarray:
    return draw_picture(np.random.default_rng((seed, 0, number)), round(size_px[0] * 1.12), round(size_px[1] * 1.12))


def draw_picture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Draw one picture.

    Returns:
      uint8[height, width, 3].
    """
    if width > _DRAWN_WHOLE_PX:
        return _enlarge(rng, draw_picture(rng, -(-width // 4), -(-height // 4)), width, height)
    texture_HWC = _draw_texture(rng, width, height, exponent=rng.uniform(0.95, 1.25))
    picture_HWC = 118 + 42 * _draw_texture(rng, width, height, exponent=rng.uniform(1.2, 1.6))
    for _ in range(int(rng.integers(40, 160))):
        _lay_leaf(rng, picture_HWC, texture_HWC)
    picture_HWC += rng.normal(0, rng.uniform(1.0, 4.0), picture_HWC.shape[:2]).astype(np.float32)[:, :, None]
    return np.clip(picture_HWC, 0, 255).astype(np.uint8)


def _enlarge(rng: np.random.Generator, small_HWC: np.ndarray, width: int, height: int) -> np.ndarray:
    """Four times as large, with fine texture and grain, as a camera's picture has little detail in its last octaves."""
    large_HWC = np.asarray(Image.fromarray(small_HWC).resize((width, height), Image.Resampling.BICUBIC)).astype(
        np.int16
    )
    tile_HWC = _draw_texture(rng, 1024, 1024, exponent=0.8) * rng.uniform(4, 9)
    tile_HWC += rng.normal(0, rng.uniform(1.0, 3.0), (1024, 1024, 1))
    for top in range(0, height, 1024):
        for left in range(0, width, 1024):
            part_HWC = large_HWC[top : top + 1024, left : left + 1024]
            part_HWC += tile_HWC[: part_HWC.shape[0], : part_HWC.shape[1]].astype(np.int16)
    return np.clip(large_HWC, 0, 255).astype(np.uint8)


def _draw_texture(rng: np.random.Generator, width: int, height: int, exponent: float) -> np.ndarray:
    """float32[height, width, 3] with mean 0 and deviation about 1, amplitudes falling with frequency ** exponent."""
    frequency_HW = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width)
    frequency_HW[0, 0] = 1.0
    amplitude_HW = frequency_HW**-exponent
    amplitude_HW[0, 0] = 0.0
    planes = []
    for _ in range(3):
        phase_HW = rng.standard_normal(amplitude_HW.shape) + 1j * rng.standard_normal(amplitude_HW.shape)
        plane_HW = np.fft.irfft2(phase_HW * amplitude_HW, (height, width))
        planes.append(plane_HW / plane_HW.std())
    light_HW, blue_HW, green_HW = planes
    # Most of a photo's variance is lightness; then blue against yellow, then green against red.
    rgb = (light_HW - 0.12 * blue_HW - 0.06 * green_HW, light_HW + 0.06 * green_HW, light_HW + 0.25 * blue_HW)
    return np.stack(rgb, axis=-1).astype(np.float32)


def _lay_leaf(rng: np.random.Generator, picture_HWC: np.ndarray, texture_HWC: np.ndarray) -> None:
    """Lay an ellipse or a turned rectangle of one colour, shaded and textured, over a picture, in place."""
    height, width = picture_HWC.shape[:2]
    # Sizes of things in photos follow a power law: few large ones, many small ones.
    radius = 0.45 * min(height, width) * (0.06 + 0.94 * rng.random() ** 3)
    centre_y, centre_x, turn = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0, np.pi)
    reach = int(radius * 1.5) + 2
    top, left = max(0, int(centre_y) - reach), max(0, int(centre_x) - reach)
    box = (slice(top, int(centre_y) + reach), slice(left, int(centre_x) + reach))
    y_HW, x_HW = np.mgrid[top : min(height, box[0].stop), left : min(width, box[1].stop)].astype(np.float32)
    along_HW = ((x_HW - centre_x) * np.cos(turn) + (y_HW - centre_y) * np.sin(turn)) / radius
    across_HW = ((y_HW - centre_y) * np.cos(turn) - (x_HW - centre_x) * np.sin(turn)) / (radius * rng.uniform(0.3, 1))
    if rng.random() < 0.5:
        distance_HW = np.hypot(along_HW, across_HW)
    else:
        distance_HW = np.maximum(np.abs(along_HW), np.abs(across_HW))
    edge_px = rng.uniform(0.8, 3.0)  # as sharp as a lens draws it
    mask_HW1 = np.clip((1 - distance_HW) * radius / edge_px, 0, 1)[:, :, None]
    colour_C = rng.uniform(25, 230) + rng.normal(0, 24, 3)
    shading_HW1 = (rng.uniform(-30, 30) * along_HW)[:, :, None]
    leaf_HWC = colour_C + shading_HW1 + rng.uniform(5, 28) * texture_HWC[box]
    picture_HWC[box] += (mask_HW1 * (leaf_HWC - picture_HWC[box])).astype(np.float32)
