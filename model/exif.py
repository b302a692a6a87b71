"""Where a JPEG, PNG or WebP says how it is to be turned, found with TensorFlow operations.

Source: EXIF 2.32 (APP1 segment, TIFF header, tag 0x0112), the PNG specification (eXIf chunk), the WebP container
specification (EXIF chunk).
"""

from collections.abc import Callable

import tensorflow as tf

_ORIENTATION_TAG = 0x0112
_SHORT, _LONG = 3, 4

# Positions are int64: a PNG chunk may claim 4 GiB.
_NOT_FOUND = -1


class _Bytes:
    """A string tensor, read at any position; beyond its end there are zeros."""

    def __init__(self, encoded: tf.Tensor):
        self.data = tf.io.decode_raw(encoded, tf.uint8)
        self.size = tf.size(self.data, out_type=tf.int64)

    def u8(self, position: tf.Tensor) -> tf.Tensor:
        inside = (position >= 0) & (position < self.size)
        # One zero stands in for an empty file, in which nothing could be gathered.
        padded = tf.concat([self.data, tf.zeros(1, tf.uint8)], axis=0)
        return tf.cast(tf.gather(padded, tf.where(inside, position, self.size)), tf.int64)

    def number(self, position: tf.Tensor, num_bytes: int, is_big_endian: tf.Tensor | bool) -> tf.Tensor:
        values = [self.u8(position + index) for index in range(num_bytes)]
        big = sum(value << (8 * (num_bytes - 1 - index)) for index, value in enumerate(values))
        little = sum(value << (8 * index) for index, value in enumerate(values))
        return tf.where(is_big_endian, big, little)

    def equal(self, position: tf.Tensor, expected: bytes) -> tf.Tensor:
        return tf.reduce_all(self.u8(position + tf.range(len(expected), dtype=tf.int64)) == list(expected))
