"""Stored bottlenecks to tag again: shards such as `bulktag extract` writes, and a bare loop over the same shards.

    python -m benchmarks.stored_bottlenecks write --bundle DIR --folder DIR --count N [--compression none|gzip]
    python -m benchmarks.stored_bottlenecks loop --bundle DIR --folder DIR --json OUT.json

The bare loop is what any TensorFlow program would do at best: parse the bottlenecks in batches, multiply them by the
head, keep the scores' argmax. It reads no URIs and writes nothing.

Array suffixes: B batch, D bottleneck width, N distinct bottlenecks, L labels.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import time

import numpy as np

SPLIT = "train"
DISTINCT = 4096
SHARDS = 16
BATCH = 1024


def draw_bottlenecks(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """float32[N, D]: averages of ReLU features over a picture, never negative, many of them near or at zero."""
    values_ND = rng.gamma(0.6, 0.6, (count, width)) * (rng.random((count, width)) < 0.8)
    return values_ND.astype(np.float32)


def write_examples(bundle_dir: str, folder: pathlib.Path, count: int, compression: str) -> None:
    """Write shards and examples.json, fit for the bundle.

    Args:
      bundle_dir: model bundle.
      folder: new or empty.
      count: of examples, each with a URI and digest of its own.
      compression: "none" or "gzip".
    """
    from bulktag.model.bundle import load_bundle
    from bulktag.transforms.shards import SUFFIXES, ShardWriter

    bundle = load_bundle(bundle_dir)
    serialize = _make_serializer(draw_bottlenecks(np.random.default_rng(0), DISTINCT, bundle.backbone.width))
    for number in range(SHARDS):
        name = f"part-{number:05}-of-{SHARDS:05}{SUFFIXES[compression]}"
        writer = ShardWriter(str(folder / SPLIT / name), compression)
        for index in range(number, count, SHARDS):
            writer.write(serialize(index), ())
        writer.close()
    counts = {split: {"images": 0, "labels": {}, "unlabelled": 0} for split in ("train", "validation", "test")}
    counts[SPLIT].update(images=count, unlabelled=count)
    info = {
        "backbone": dataclasses.asdict(bundle.backbone),
        "width": bundle.backbone.width,
        "resize": bundle.resize,
        "labels": [],
        "counts": counts,
        "split": {"proportions": [1.0, 0.0, 0.0], "seed": 0, "by": "sha256 of the file"},
        "compression": compression,
        "multi_label": False,
        "source": ["drawn"],
        "run_id": f"drawn-{count}",
    }
    (folder / "examples.json").write_text(json.dumps(info, indent=2), encoding="utf-8")


def _make_serializer(bottleneck_ND: np.ndarray):
    """index -> a serialized tf.train.Example with the features that `extract` writes."""
    import tensorflow as tf

    def int64(value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def text(*values: bytes) -> tf.train.Feature:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    stored = [tf.train.Feature(float_list=tf.train.FloatList(value=row_D)) for row_D in bottleneck_ND]

    def serialize(index: int) -> bytes:
        uri = b"/photos/%09d.jpg" % index
        features = {
            "image/uri": text(uri),
            "image/sha256": text(hashlib.sha256(uri).digest()),
            "image/height": int64(375),
            "image/width": int64(500),
            "image/bytes": int64(60_000 + index % 1000),
            "image/modified": int64(1_700_000_000_000_000 + index),
            "image/class/text": text(),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List()),
            "image/bottleneck": stored[index % len(stored)],
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        return example.SerializeToString(deterministic=True)

    return serialize


def run_bare_loop(bundle_dir: str, folder: pathlib.Path) -> dict:
    """Seconds and examples/s of parsing and multiplying, start-up left out."""
    import tensorflow as tf

    from bulktag.model.bundle import load_bundle

    bundle = load_bundle(bundle_dir)
    head = tf.keras.models.load_model(str(pathlib.Path(bundle_dir, "head.keras")), compile=False)
    features = {"image/bottleneck": tf.io.FixedLenFeature([bundle.backbone.width], tf.float32)}
    paths = sorted(str(path) for path in (folder / SPLIT).iterdir())
    compression = "GZIP" if paths[0].endswith(".gz") else ""

    def read(path):
        return tf.data.TFRecordDataset(path, compression, buffer_size=8 << 20).batch(BATCH)

    def parse(serialized_B):
        return tf.io.parse_example(serialized_B, features)["image/bottleneck"]

    shards = tf.data.Dataset.from_tensor_slices(paths)
    batches = shards.interleave(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    batches = batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)

    @tf.function(reduce_retracing=True)
    def score(bottleneck_BD):
        return tf.argmax(head(bottleneck_BD), axis=1)

    score(tf.zeros([BATCH, bundle.backbone.width]))
    done, start = 0, time.perf_counter()
    for bottleneck_BD in batches:
        done += len(score(bottleneck_BD))
    seconds = time.perf_counter() - start
    return {"examples": done, "seconds": seconds, "examples_per_s": done / seconds}


def main() -> None:
    """Write shards, or run the loop."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "loop"))
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--compression", choices=("none", "gzip"), default="none")
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    from bulktag.pipeline.quiet import import_tensorflow, quiet_environment

    quiet_environment()
    import_tensorflow()
    if arguments.what == "write":
        write_examples(arguments.bundle, arguments.folder, arguments.count, arguments.compression)
    else:
        arguments.json.write_text(json.dumps(run_bare_loop(arguments.bundle, arguments.folder)), encoding="utf-8")


if __name__ == "__main__":
    main()
