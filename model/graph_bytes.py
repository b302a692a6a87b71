"""Bytes of a file in a string tensor, read with TensorFlow operations."""

import tensorflow as tf


class GraphBytes:
    """A string tensor whose bytes are read at int64 positions (a PNG chunk may claim 4 GiB); zeros lie beyond it."""

    def __init__(self, encoded: tf.Tensor):
        self._padded = tf.io.decode_raw(tf.strings.join([encoded, b"\0"]), tf.uint8)
        self.size = tf.size(self._padded, out_type=tf.int64) - 1

    def at(self, position: tf.Tensor) -> tf.Tensor:
        """The bytes at these positions, int64."""
        inside = (position >= 0) & (position < self.size)
        return tf.cast(tf.gather(self._padded, tf.where(inside, position, self.size)), tf.int64)

    def number(self, position: tf.Tensor, num_bytes: int, is_big_endian: tf.Tensor | bool) -> tf.Tensor:
        """The unsigned numbers of `num_bytes` that begin at these positions, int64."""
        values = [self.at(position + index) for index in range(num_bytes)]
        big = tf.add_n([value * 256 ** (num_bytes - 1 - index) for index, value in enumerate(values)])
        little = tf.add_n([value * 256**index for index, value in enumerate(values)])
        return tf.where(is_big_endian, big, little)

    def has(self, position: tf.Tensor, expected: bytes) -> tf.Tensor:
        """Whether these bytes stand at this one position."""
        positions = position + tf.range(len(expected), dtype=tf.int64)
        return tf.reduce_all(self.at(positions) == tf.constant(list(expected), tf.int64))
