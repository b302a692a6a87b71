"""Pictures of ten figures, 32x32, as files in the exact form of `cifar-10-batches-py`; drawn from a seed."""

import pathlib
import pickle

import numpy as np
from PIL import Image
from scenes import OUTLINES

from bulktag.model.painting import PaintStyle, draw_background, draw_mask, paint_figure, rotate

SIDE_PX = 32
_DRAWN_PX = 64
FIGURES = {
    **OUTLINES,
    "arrow": lambda: np.array([[0, -1], [0.7, -0.1], [0.25, -0.1], [0.25, 1], [-0.25, 1], [-0.25, -0.1], [-0.7, -0.1]]),
    "ell": lambda: np.array([[-0.6, -0.8], [-0.1, -0.8], [-0.1, 0.3], [0.6, 0.3], [0.6, 0.8], [-0.6, 0.8]]),
}
NAMES = tuple(sorted(FIGURES))
_STYLE = PaintStyle(min_contrast=160.0, flat_share=0.8)


def draw_picture(rng, name):
    """uint8[32, 32, 3]: one figure on a background, turned by up to 20 degrees, larger or smaller, anywhere."""
    image = draw_background(rng, _DRAWN_PX, _DRAWN_PX)
    diameter_px = round(_DRAWN_PX * rng.uniform(0.6, 0.95))
    outline = rotate(FIGURES[name](), rng.uniform(-0.35, 0.35))
    outline = outline / max(1.0, np.linalg.norm(outline, axis=1).max())
    left_top = tuple(int(value) for value in rng.integers(0, _DRAWN_PX - diameter_px + 1, 2))
    paint_figure(rng, image, draw_mask([outline], diameter_px), left_top, _STYLE)
    return np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX))


def draw_arrays(num, seed):
    """uint8[num, 3072] in CIFAR's order (all red, all green, all blue) and the ids of their figures."""
    pixels, labels = np.empty((num, 3 * SIDE_PX * SIDE_PX), np.uint8), []
    for number in range(num):
        rng = np.random.default_rng([seed, number])
        labels.append(int(rng.integers(len(NAMES))))
        pixels[number] = draw_picture(rng, NAMES[labels[-1]]).transpose(2, 0, 1).ravel()
    return pixels, labels


def dump(path, content):
    """As Python 2 wrote CIFAR's files: protocol 2, texts as bytes."""
    pathlib.Path(path).write_bytes(pickle.dumps(content, protocol=2))


def write_cifar10(folder, per_batch, seed=0):
    """Five training batches and the test batch of drawn pictures, and `batches.meta`."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    meta = {b"label_names": [name.encode() for name in NAMES], b"num_cases_per_batch": per_batch, b"num_vis": 3072}
    dump(folder / "batches.meta", meta)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels, labels = draw_arrays(per_batch, seed * 10 + number)
        filenames = [f"{NAMES[label]}_{i:06d}.png".encode() for i, label in enumerate(labels)]
        title = f"training batch {number + 1} of 5" if number < 5 else "testing batch 1 of 1"
        content = {b"batch_label": title.encode(), b"labels": labels, b"data": pixels, b"filenames": filenames}
        dump(folder / name, content)
    return folder
