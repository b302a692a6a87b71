"""Where a JPEG, PNG or WebP says how it is to be turned, read with TensorFlow operations.

Source: EXIF 2.32 (APP1 segment, TIFF header, tag 0x0112), the PNG specification (eXIf chunk), the WebP container
specification (EXIF chunk).
"""

from collections.abc import Callable

import tensorflow as tf

from bulktag.model.graph_bytes import GraphBytes

_ORIENTATION_TAG = 0x0112
_SHORT, _LONG = 3, 4
_NOT_FOUND = -1


def read_orientation_in_graph(encoded: tf.Tensor, container: str) -> tf.Tensor:
    """Read the EXIF orientation.

    Args:
      encoded: string[], the whole file.
      container: "JPEG", "PNG" or "WEBP".
    Returns:
      int32[], 1 to 8; 1 where there is none or it makes no sense.
    """
    file = GraphBytes(encoded)
    start, step = {"JPEG": (2, _jpeg_step), "PNG": (8, _png_step), "WEBP": (12, _webp_step)}[container]
    exif = _walk(file, start, step)
    exif += tf.where(file.has(exif, b"Exif\0\0"), tf.constant(6, tf.int64), 0)
    return tf.cond(exif >= 0, lambda: _orientation_of_tiff(file, exif), lambda: tf.constant(1))


def _walk(file: GraphBytes, start: int, step: Callable) -> tf.Tensor:
    """Go from segment to segment; `step(file, position)` gives the next position and where EXIF is, or -1."""

    def is_searching(position: tf.Tensor, exif: tf.Tensor) -> tf.Tensor:
        return (exif == _NOT_FOUND) & (position < file.size)

    _, exif = tf.while_loop(
        is_searching,
        lambda position, _: step(file, position),
        (tf.constant(start, tf.int64), tf.constant(_NOT_FOUND, tf.int64)),
    )
    return exif


def _jpeg_step(file: GraphBytes, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    marker = file.at(position + 1)
    is_fill = marker == 0xFF
    following = tf.where(is_fill, position + 1, position + 2 + file.number(position + 2, 2, True))
    # The start of the scan, or what is no marker, ends the header.
    is_over = (file.at(position) != 0xFF) | (marker == 0xDA)
    is_exif = ~is_over & (marker == 0xE1) & file.has(position + 4, b"Exif\0\0")
    return tf.where(is_over, file.size, following), tf.where(is_exif, position + 4, _NOT_FOUND)


def _png_step(file: GraphBytes, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    following = position + 12 + file.number(position, 4, True)
    return following, tf.where(file.has(position + 4, b"eXIf"), position + 8, _NOT_FOUND)


def _webp_step(file: GraphBytes, position: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    num_bytes = file.number(position + 4, 4, False)
    following = position + 8 + num_bytes + num_bytes % 2
    return following, tf.where(file.has(position, b"EXIF"), position + 8, _NOT_FOUND)


def _orientation_of_tiff(file: GraphBytes, start: tf.Tensor) -> tf.Tensor:
    """Orientation in the first directory of the TIFF structure that EXIF is."""
    is_big_endian = file.has(start, b"MM")
    directory = start + file.number(start + 4, 4, is_big_endian)
    num_entries = file.number(directory, 2, is_big_endian)
    entries = directory + 2 + 12 * tf.range(num_entries)
    kind = file.number(entries + 2, 2, is_big_endian)
    is_single = file.number(entries + 4, 4, is_big_endian) == 1
    value = tf.where(
        kind == _SHORT, file.number(entries + 8, 2, is_big_endian), file.number(entries + 8, 4, is_big_endian)
    )
    is_orientation = (
        (file.number(entries, 2, is_big_endian) == _ORIENTATION_TAG)
        & ((kind == _SHORT) | (kind == _LONG))
        & is_single
        & (is_big_endian | file.has(start, b"II"))
    )
    orientation = tf.reduce_max(tf.concat([tf.where(is_orientation, value, 1), tf.ones(1, tf.int64)], axis=0))
    return tf.cast(tf.where(orientation <= 8, orientation, 1), tf.int32)
