"""Writes small folders of extracted examples for tests."""

import hashlib
import json
import pathlib

import numpy as np
import tensorflow as tf


def write_examples(folder, bottleneck_ND, label_ids, splits, labels, *, num_shards=3, gzip=True, sha256=None):
    """label_ids: for each image an int or a sequence of ints. splits: for each image its split's name."""
    folder = pathlib.Path(folder)
    suffix, compression = (".tfrecord.gz", "GZIP") if gzip else (".tfrecord", "")
    counts = {}
    for split in ("train", "validation", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        chosen = [i for i, name in enumerate(splits) if name == split]
        counts[split] = {"images": len(chosen), "labels": {}}
        for shard in range(num_shards):
            path = str(folder / split / f"part-{shard:05d}{suffix}")
            with tf.io.TFRecordWriter(path, compression) as writer:
                for i in chosen[shard::num_shards]:
                    digest = sha256[i] if sha256 is not None else hashlib.sha256(f"{i}".encode()).digest()
                    writer.write(_example(f"image-{i}.jpg", digest, bottleneck_ND[i], np.atleast_1d(label_ids[i])))
    info = {
        "backbone": {"name": "pixels"},
        "resize": "crop",
        "width": int(bottleneck_ND.shape[1]),
        "labels": list(labels),
        "counts": counts,
        "compression": "gzip" if gzip else "none",
        "multi_label": False,
    }
    (folder / "examples.json").write_text(json.dumps(info))
    return str(folder)


def _example(uri, digest, bottleneck_D, ids):
    features = {
        "image/uri": tf.train.Feature(bytes_list=tf.train.BytesList(value=[uri.encode()])),
        "image/sha256": tf.train.Feature(bytes_list=tf.train.BytesList(value=[digest])),
        "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[int(i) for i in ids])),
        "image/bottleneck": tf.train.Feature(float_list=tf.train.FloatList(value=bottleneck_D)),
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def draw_clusters(num, width, num_labels, *, seed=0, spread=1.0):
    """Images of a few labels as points around one centre each: float32[num, width], int[num]."""
    centres_LD = np.random.default_rng(99).normal(size=(num_labels, width))
    generator = np.random.default_rng(seed)
    ids = np.arange(num) % num_labels
    points = 3 + centres_LD[ids] + spread * generator.normal(size=(num, width))
    return points.astype(np.float32), ids


def split_names(num):
    """60% train, 20% validation, 20% test, spread evenly over labels."""
    return [("train", "train", "train", "validation", "test")[(i // 7) % 5] for i in range(num)]
