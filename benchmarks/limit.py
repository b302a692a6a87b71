"""The limit of a tagging job on this machine: bulktag's engine on pixels in memory, and decoding alone.

    python -m benchmarks.limit --images DIR --bundle DIR --batch-size 32 --engine tensorflow --json OUT.json

An image has to be decoded on some core and computed on all of them, so no job is faster than
1 / (1 / engine + decode / cores), with the engine's rate on all cores and the seconds that one core takes to decode.

Array suffixes: B batch, S side of the network's square, C channels.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import time

import joblib
import numpy as np

# At least this long, so that clock frequencies and caches settle.
MIN_SECONDS = 4.0
PARTS = 5


def measure_decode(paths: list[pathlib.Path], size_px: int, resize: str, num_threads: int) -> float:
    """Images/s of `load_image` over files whose bytes are in memory, in a number of threads."""
    from bulktag.model.image import ImageLimits, load_image

    encoded = [path.read_bytes() for path in paths]
    limits = ImageLimits()

    def decode(data: bytes) -> None:
        load_image(data, size_px, resize, limits)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(decode, encoded[: 2 * num_threads]))
        done, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < MIN_SECONDS / 2:
            list(pool.map(decode, encoded))
            done += len(encoded)
    return done / seconds


def measure_engine(tagger, batches_BSSC: list[np.ndarray]) -> float:
    """Images/s of an engine on pixels in memory: the median over several stretches."""
    for batch_BSSC in batches_BSSC[:2]:
        tagger.run(batch_BSSC)
    rates = []
    for _ in range(PARTS):
        done, seconds, start = 0, 0.0, time.perf_counter()
        while seconds < MIN_SECONDS / PARTS:
            batch_BSSC = batches_BSSC[done // len(batches_BSSC[0]) % len(batches_BSSC)]
            tagger.run(batch_BSSC)
            done += len(batch_BSSC)
            seconds = time.perf_counter() - start
        rates.append(done / seconds)
    return statistics.median(rates)


def combine(engine_rate: float, decode_s: float, cores: int) -> float:
    """Images/s that cannot be passed.

    Args:
      engine_rate: of the engine alone, images/s on all cores.
      decode_s: seconds of one core for one image.
      cores: in number.
    """
    return 1 / (1 / engine_rate + decode_s / cores)


def measure_decoding(paths: list[pathlib.Path], size_px: int, resize: str) -> dict:
    """Decoding alone: in one thread, and in as many as cores."""
    cores = joblib.cpu_count()
    return {
        "cores": cores,
        "decode_images_per_s_one_core": measure_decode(paths, size_px, resize, 1),
        "decode_images_per_s_all_cores": measure_decode(paths, size_px, resize, cores),
    }


def measure_limit(paths: list[pathlib.Path], bundle, settings: dict) -> dict:
    """Engine alone, decoding alone, and what they allow together.

    Args:
      paths: JPEGs.
      bundle: bulktag.model.bundle.Bundle.
      settings: fields of `bulktag.model.engine.EngineSettings`.
    """
    from bulktag.model.engine import EngineSettings, Tagger
    from bulktag.model.image import ImageLimits, load_image

    size_px, batch_size = bundle.backbone.image_size_px, settings["batch_size"]
    tagger = Tagger(bundle.backbone_graph(), bundle.head_graph(), EngineSettings(**settings))
    pixels = [
        load_image(path.read_bytes(), size_px, bundle.resize, ImageLimits()).pixels_HWC
        for path in paths[: 4 * batch_size]
    ]
    batches = [
        np.stack([pixels[(start + i) % len(pixels)] for i in range(batch_size)])
        for start in range(0, len(pixels), batch_size)
    ]
    engine_rate = measure_engine(tagger, batches)
    decoding = measure_decoding(paths, size_px, bundle.resize)
    one_core, all_cores = (decoding[f"decode_images_per_s_{cores}"] for cores in ("one_core", "all_cores"))
    return {
        "engine": tagger.describe(),
        "batch_size": batch_size,
        "engine_images_per_s": engine_rate,
        **decoding,
        "limit_images_per_s": combine(engine_rate, 1 / one_core, decoding["cores"]),
        "limit_images_per_s_threads": 1 / (1 / engine_rate + 1 / all_cores),
    }


def main() -> None:
    """Measure and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--json", required=True, type=pathlib.Path)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--decode-only", action="store_true", help="leave the engine out")
    parser.add_argument("--full-decoding", action="store_true", help="without scaled JPEG decoding")
    parser.add_argument("--sample", type=int, default=200)
    arguments = parser.parse_args()
    from bulktag.model import image
    from bulktag.pipeline.quiet import import_tensorflow, quiet_environment

    quiet_environment()
    import_tensorflow()
    from bulktag.model.bundle import load_bundle

    if arguments.full_decoding:
        image.REDUCING_GAP = float("inf")
    settings = {name: getattr(arguments, name) for name in ("batch_size", "device", "engine", "precision")}
    paths, bundle = sorted(arguments.images.glob("*.jpg"))[: arguments.sample], load_bundle(arguments.bundle)
    if arguments.decode_only:
        found = measure_decoding(paths, bundle.backbone.image_size_px, bundle.resize)
    else:
        found = measure_limit(paths, bundle, settings)
    arguments.json.write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)  # some engines take their time to unload


if __name__ == "__main__":
    main()
