"""What a larger network makes of pictures, for the builtin network to learn: views of photos, drawn scenes, features.

The teacher is MobileNetV2 with ImageNet weights. A few hundred photos go far when every view of them is another crop in
another light: Asano and Saeed, "The augmented image prior: distilling 1000 classes by extrapolating from a single
image", ICLR 2023. Only photos of one half are looked at, the one that `extract --split 0.5,0,0.5` calls train; the
other half is for measuring.

Legend: N pictures, H W C image axes, D width of the teacher's features, L ImageNet's classes.
"""

import functools
import hashlib
import math
import multiprocessing
import pathlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from builtin_shapes import SHAPES
from PIL import Image, ImageEnhance, ImageOps

from bulktag.model.painting import PaintStyle, draw_background, draw_mask, paint_figure, rotate

TEACHER = "mobilenet_v2"
TEACHER_SIZE_PX = 224
# A view shows at least so much of the photo's area; small ones teach what petals, bark and sky are made of.
MIN_VIEW_SHARE = 0.1
_CHUNK = 64
_CHUNKS_AHEAD = 8
_SUFFIXES = (".jpg", ".jpeg", ".png")


def list_training_photos(folder: pathlib.Path) -> list[str]:
    """Photos below a folder that may be learnt from: half of them, by their contents.

    Raises:
      ValueError: there is none.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    chosen = [str(path) for path in paths if _is_for_training(path)]
    if not chosen:
        raise ValueError(f"expected photos ({', '.join(_SUFFIXES)}), found none: {folder}")
    return chosen


def _is_for_training(path: pathlib.Path) -> bool:
    # As `bulktag.transforms.examples.choose_split` does it with proportions 0.5, 0, 0.5 and seed 0.
    return int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:8], "big") / 2**64 < 0.5


@functools.lru_cache(maxsize=512)
def _open_photo(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def draw_view(rng: np.random.Generator, photo: Image.Image, side_px: int) -> Image.Image:
    """Crop, turn and re-light a photo at random.

    Args:
      rng: source of randomness.
      photo: RGB.
      side_px: side of the square that is returned.
    """
    width, height = photo.size
    area = width * height * math.exp(rng.uniform(math.log(MIN_VIEW_SHARE), 0.0))
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    box_w, box_h = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    left, top = rng.uniform(0, width - box_w), rng.uniform(0, height - box_h)
    if rng.random() < 0.25:
        centre = (left + box_w / 2, top + box_h / 2)
        photo = photo.rotate(rng.normal(0, 12), Image.Resampling.BILINEAR, center=centre)
    box = (left, top, left + box_w, top + box_h)
    view = photo.resize((side_px, side_px), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    if rng.random() < 0.5:
        view = ImageOps.mirror(view)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        if rng.random() < 0.4:
            view = enhance(view).enhance(rng.uniform(0.6, 1.4))
    return view


def draw_scene(rng: np.random.Generator, side_px: int) -> Image.Image:
    """Draw many figures over one another: rosettes, leaves and the shapes, in colours, textures and shadows."""
    image = draw_background(rng, side_px, side_px)
    names = list(SHAPES)
    for _ in range(int(rng.integers(2, 14))):
        diameter = round(side_px * rng.uniform(0.1, 0.75))
        style = PaintStyle(min_contrast=rng.uniform(20, 120), flat_share=0.2, shadow_share=0.5)
        left, top = (int(value) for value in rng.integers(-diameter // 3, side_px - diameter // 2, 2))
        if rng.random() < 0.5:
            outline = SHAPES[names[int(rng.integers(len(names)))]](rng)
            outline = outline / max(1.0, np.linalg.norm(outline, axis=1).max())
            masks = [draw_mask([rotate(outline, rng.uniform(0, 2 * math.pi))], diameter)]
        else:
            masks = _draw_rosette(rng, diameter)
        for mask in masks:
            shift = (diameter - mask.width) // 2
            paint_figure(rng, image, mask, (left + shift, top + shift), style)
    return image


def _draw_rosette(rng: np.random.Generator, diameter: int) -> list[Image.Image]:
    """Petals around a middle, as masks of that diameter and less."""
    num_petals, width, tip = int(rng.integers(4, 22)), rng.uniform(0.08, 0.5), rng.uniform(0.4, 1.6)
    along = np.linspace(0, math.pi, 16)
    half = np.sin(along) ** tip * width * min(1.0, 8 / num_petals)
    reach = 0.5 - 0.5 * np.cos(along)
    petal = np.concatenate([np.stack([reach, half], 1), np.stack([reach, -half], 1)[::-1]])
    turns = np.arange(num_petals) * 2 * math.pi / num_petals + rng.normal(0, 0.05, num_petals)
    petals = draw_mask([rotate(petal, turn) for turn in turns], diameter)
    middle = max(4, round(diameter * rng.uniform(0.1, 0.5)))
    angles = np.linspace(0, 2 * math.pi, 60)
    # Frayed: a plain circle is one of the demo's figures.
    frayed = (
        np.stack([np.cos(angles), np.sin(angles)], 1) * (1 - 0.2 * np.abs(np.sin(angles * num_petals / 2)))[:, None]
    )
    return [petals, draw_mask([frayed], middle)] if rng.random() < 0.8 else [petals]


def _draw_chunk(seed: int, start: int, stop: int, photos: list[str], side_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Views (where there are photos) or scenes, at the teacher's size and at the one of the bank."""
    large, small = [], []
    for number in range(start, stop):
        rng = np.random.default_rng([seed, number, bool(photos)])
        if photos:
            image = draw_view(rng, _open_photo(photos[number % len(photos)]), TEACHER_SIZE_PX)
        else:
            image = draw_scene(rng, side_px).resize((TEACHER_SIZE_PX, TEACHER_SIZE_PX), Image.Resampling.BICUBIC)
        large.append(np.asarray(image))
        small.append(np.asarray(image.resize((side_px, side_px), Image.Resampling.BILINEAR, reducing_gap=2.0)))
    return np.stack(large), np.stack(small)


def draw_taught(engine, seed: int, num_pictures: int, photos: list[str], side_px: int):
    """Draw pictures and ask the teacher about them.

    Args:
      engine: from `load_teacher`.
      seed: picture i depends on it and i only.
      num_pictures: N.
      photos: paths to take views of; without any, scenes are drawn.
      side_px: side of the pictures that are kept.
    Returns:
      uint8[N, side, side, 3] and float16[N, D].
    """
    pixels_NHWC = np.empty((num_pictures, side_px, side_px, 3), np.uint8)
    features = []
    chunks = deque(
        (start, min(start + _CHUNK, num_pictures), photos, side_px) for start in range(0, num_pictures, _CHUNK)
    )
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        coming = deque()
        while chunks or coming:
            while chunks and len(coming) < _CHUNKS_AHEAD:
                coming.append((chunks[0][:2], pool.submit(_draw_chunk, seed, *chunks.popleft())))
            (start, stop), drawn = coming.popleft()
            large, pixels_NHWC[start:stop] = drawn.result()
            features.append(engine.run(large).astype(np.float16))
    return pixels_NHWC, np.concatenate(features)


def ask_teacher(engine, pixels_NHWC: np.ndarray) -> np.ndarray:
    """The teacher's features float16[N, D] of pictures of any size, enlarged to its own."""
    size = (TEACHER_SIZE_PX, TEACHER_SIZE_PX)
    parts = []
    for start in range(0, len(pixels_NHWC), _CHUNK):
        pictures = [Image.fromarray(pixels) for pixels in pixels_NHWC[start : start + _CHUNK]]
        large = np.stack([np.asarray(picture.resize(size, Image.Resampling.BILINEAR)) for picture in pictures])
        parts.append(engine.run(large).astype(np.float16))
    return np.concatenate(parts)


def load_teacher(weights: str):
    """The teacher.

    Returns:
      its engine, uint8[n, S, S, 3] -> float32[n, D], and its classifier: kernel float32[D, L] and bias float32[L].
    """
    from bulktag.model.backbone import build_backbone
    from bulktag.model.engine import build_backbone_engine
    from bulktag.model.engine_settings import EngineSettings
    from bulktag.model.weights import load_application

    backbone = build_backbone(TEACHER, weights, image_size_px=TEACHER_SIZE_PX)
    engine = build_backbone_engine(backbone.graph_def, EngineSettings(_CHUNK))
    kernel_DL, bias_L = load_application(TEACHER, TEACHER_SIZE_PX, weights, include_top=True).layers[-1].get_weights()
    return engine, (kernel_DL, bias_L)
