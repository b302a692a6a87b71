"""Serialised tf.train.Examples -> Arrow columns of images and an array of bottlenecks, whole batches at a time.

TensorFlow parses a batch and joins its texts into one; NumPy and Arrow take the results over as they lie in memory.

Array suffixes: B images, T texts, D bottleneck width.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import tensorflow as tf

from bulktag.transforms.records import IMAGES_SCHEMA, ScoredBatch, null_if_negative

FEATURES = {
    "image/uri": tf.io.FixedLenFeature([], tf.string),
    "image/sha256": tf.io.FixedLenFeature([], tf.string),
    "image/height": tf.io.FixedLenFeature([], tf.int64),
    "image/width": tf.io.FixedLenFeature([], tf.int64),
    "image/bytes": tf.io.FixedLenFeature([], tf.int64, -1),
    "image/modified": tf.io.FixedLenFeature([], tf.int64, -1),
    "image/generation": tf.io.FixedLenFeature([], tf.int64, -1),
    "image/md5": tf.io.FixedLenFeature([], tf.string, ""),
    "image/class/text": tf.io.RaggedFeature(tf.string),
}
_NUMBERS = ("bytes", "modified", "generation", "width", "height", "bottleneck")
_DIGEST_BYTES = IMAGES_SCHEMA.field("sha256").type.byte_width


def column_parser(width: int, keep_encoded: bool = False) -> Callable[[tf.Tensor], dict]:
    """A function for `tf.data`: string[B], serialised examples, to the arrays that `build_batch` takes.

    Args:
      width: D, the number of floats of a bottleneck.
      keep_encoded: also the images' own bytes, which all examples must have.
    """
    features = {**FEATURES, "image/bottleneck": tf.io.FixedLenFeature([width], tf.float32)}
    if keep_encoded:
        features["image/encoded"] = tf.io.FixedLenFeature([], tf.string)

    def parse(serialized_B: tf.Tensor) -> dict:
        parsed = tf.io.parse_example(serialized_B, features)
        labels = parsed["image/class/text"]
        return {
            "uri": _join(parsed["image/uri"]),
            "md5": _join(parsed["image/md5"]),
            "labels": _join(labels.flat_values),
            "label_splits": tf.cast(labels.row_splits, tf.int32),
            "sha256": tf.io.decode_raw(parsed["image/sha256"], tf.uint8),
            **{name: parsed[f"image/{name}"] for name in _NUMBERS},
            **({"encoded": parsed["image/encoded"]} if keep_encoded else {}),
        }

    return parse


def _join(text_T: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Lengths of texts in bytes, int32[T], and all of them as one: two arrays instead of T objects of Python's."""
    return tf.strings.length(text_T), tf.strings.reduce_join(text_T)


def build_batch(parsed: dict[str, np.ndarray]) -> ScoredBatch:
    """What `column_parser` made of a batch, as NumPy arrays -> the batch, without scores.

    Raises:
      ValueError: a text is no UTF-8, or a digest has not 32 bytes.
    """
    uris = _string_array(*parsed["uri"])
    digest_BX = parsed["sha256"]
    if digest_BX.shape[1] != _DIGEST_BYTES:
        raise ValueError(f"expected image/sha256 of {_DIGEST_BYTES} bytes, got {digest_BX.shape[1]}: {uris[0]}")
    columns = {
        "uri": uris,
        "labels": pa.ListArray.from_arrays(pa.array(parsed["label_splits"]), _string_array(*parsed["labels"])),
        "bytes": null_if_negative(parsed["bytes"], pa.int64()),
        "modified": null_if_negative(parsed["modified"], IMAGES_SCHEMA.field("modified").type),
        "generation": null_if_negative(parsed["generation"], pa.int64()),
        "md5": _null_if_empty(*parsed["md5"]),
        "sha256": pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(_DIGEST_BYTES), len(uris), [None, pa.py_buffer(digest_BX)]
        ),
        "width": pa.array(parsed["width"]).cast(pa.int32()),
        "height": pa.array(parsed["height"]).cast(pa.int32()),
        "encoded": pa.array(parsed.get("encoded", [None] * len(uris)), pa.large_binary()),
    }
    images = pa.RecordBatch.from_arrays([columns[name] for name in IMAGES_SCHEMA.names], schema=IMAGES_SCHEMA)
    return ScoredBatch(images, parsed["bottleneck"], None)


def _null_if_empty(length_T: np.ndarray, joined: bytes) -> pa.StringArray:
    texts = _string_array(length_T, joined)
    if length_T.all():
        return texts
    validity = pa.py_buffer(np.packbits(length_T > 0, bitorder="little"))
    return pa.StringArray.from_buffers(len(texts), *texts.buffers()[1:], validity)


def _string_array(length_T: np.ndarray, joined: bytes) -> pa.StringArray:
    offsets = np.zeros(len(length_T) + 1, np.int32)
    np.cumsum(length_T, out=offsets[1:])
    array = pa.StringArray.from_buffers(len(length_T), pa.py_buffer(offsets), pa.py_buffer(joined))
    array.validate(full=True)
    return array
