"""How far scores drift when libjpeg decodes large photos at a fraction of their size, and what that saves.

    python -m benchmarks.decode_scales --images PHOTOS --backbone mobilenet_v2 --weights FILE --image-size-px 64

`bulktag.model.image.REDUCING_GAP` says how many samples must be left for each pixel of the network's square. Photos
must be large beside the square to be scaled at all: take a small square for small photos, or enlarge them.

Array suffixes: N images, S side of the network's square, C channels, D bottleneck width, L labels.
"""

import argparse
import io
import math
import pathlib
import time

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from bulktag.model import image as image_module
from bulktag.model.engine import build_head_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.graphs import freeze
from bulktag.model.image import DEFAULT_RESIZE, ImageLimits, load_image
from bulktag.model.imagenet import build_imagenet_classifier
from bulktag.model.tensorflow_engine import TensorFlowEngine

GAPS = (math.inf, 3.0, 2.1, 2.0, 1.5, 1.0)
BATCH = 32
# Standard deviation of the grain that an enlarged photo gets, in levels: what a camera adds at ISO 400 or so.
GRAIN_LEVELS = 4.0


def enlarge(data: bytes, factor: float, seed: int) -> bytes:
    """A JPEG `factor` times as large, with grain, because enlarging alone leaves no fine detail to lose."""
    with Image.open(io.BytesIO(data)) as picture:
        size = tuple(round(side * factor) for side in picture.size)
        pixels_HWC = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS), np.float32)
    grain_HWC = np.random.default_rng(seed).normal(0, GRAIN_LEVELS, pixels_HWC.shape)
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels_HWC + grain_HWC, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
    return out.getvalue()


def load_all(photos: list[bytes], size_px: int, gap: float) -> tuple[np.ndarray, float]:
    """uint8[N, S, S, 3], and milliseconds a photo in one thread."""
    image_module.REDUCING_GAP = gap
    start = time.perf_counter()
    pixels_NSSC = np.stack([load_image(data, size_px, DEFAULT_RESIZE, ImageLimits()).pixels_HWC for data in photos])
    return pixels_NSSC, (time.perf_counter() - start) / len(photos) * 1000


def run_all(engine, rows: np.ndarray) -> np.ndarray:
    """The engine's outputs for any number of rows."""
    return np.concatenate([engine.run(rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)])


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--image-size-px", type=int, default=None)
    parser.add_argument("--enlarge", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=600)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    paths = paths[:: max(1, len(paths) // arguments.count)]
    photos = [path.read_bytes() for path in paths]
    if arguments.enlarge != 1:
        photos = [enlarge(data, arguments.enlarge, i) for i, data in enumerate(photos)]
    backbone, head, _ = build_imagenet_classifier(
        arguments.backbone, arguments.weights, image_size_px=arguments.image_size_px
    )
    network = TensorFlowEngine(backbone.graph_def, BATCH)
    import tensorflow as tf

    spec = tf.TensorSpec([None, backbone.spec.width], tf.float32, "bottleneck")
    head_engine = build_head_engine(freeze(head, spec, "scores"), EngineSettings(BATCH))
    size_px = backbone.spec.image_size_px
    table = Table("gap", "ms a photo", "mean difference, levels", "cosine, least", "same top label",
                  title=f"{len(photos)} photos, {arguments.backbone} at {size_px} px")  # fmt: skip
    for gap in GAPS:
        pixels_NSSC, ms = load_all(photos, size_px, gap)
        bottleneck_ND = run_all(network, pixels_NSSC).astype(np.float64)
        top_N = run_all(head_engine, bottleneck_ND.astype(np.float32)).argmax(axis=1)
        if gap == math.inf:
            full_NSSC, full_ND, full_N = pixels_NSSC.astype(np.int16), bottleneck_ND, top_N
        lengths_N = np.linalg.norm(full_ND, axis=1) * np.linalg.norm(bottleneck_ND, axis=1)
        cosine = ((full_ND * bottleneck_ND).sum(axis=1) / lengths_N).min()
        table.add_row(str(gap), f"{ms:.2f}", f"{np.abs(pixels_NSSC - full_NSSC).mean():.3f}", f"{cosine:.4f}",
                      f"{(top_N == full_N).mean():.1%}")  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
