"""Pillow's bilinear, antialiased resize as TensorFlow operations, bit for bit.

Source: Pillow's `src/libImaging/Resample.c` (`precompute_coeffs`, `normalize_coeffs_8bpc`,
`ImagingResampleHorizontal_8bpc`): a horizontal pass, then a vertical one, each with integer weights and rounded to
8 bits. `tf.image.resize(antialias=True)` has the same filter, but rounds once and takes no fractional box.

Array suffixes: H height, W width, C channels, N samples along one axis, O outputs along it, T taps of the filter.
"""

import tensorflow as tf

# Weights are multiples of 2**-22: what fits 32 bits beside an 8-bit sample and two spare bits (Resample.c).
_PRECISION_BITS = 32 - 8 - 2


def resize_in_graph(pixels_HWC: tf.Tensor, start_hw: tf.Tensor, end_hw: tf.Tensor, size_hw: tf.Tensor) -> tf.Tensor:
    """`Image.resize((width, height), Resampling.BILINEAR, box=...)`.

    Args:
      pixels_HWC: uint8[H, W, C].
      start_hw: float64[2], top and left of the box.
      end_hw: float64[2], bottom and right of the box.
      size_hw: int32[2], height and width of the result.
    Returns:
      uint8[height, width, C].
    """
    in_size = tf.shape(pixels_HWC)
    rows_O, row_weights_OT = _filter_weights(in_size[0], start_hw[0], end_hw[0], size_hw[0])
    columns_O, column_weights_OT = _filter_weights(in_size[1], start_hw[1], end_hw[1], size_hw[1])
    # Rows that no output needs take no part in the horizontal pass.
    last_row = tf.minimum(rows_O[-1] + tf.shape(row_weights_OT)[1], in_size[0])
    narrow_HWC = _resample(pixels_HWC[rows_O[0] : last_row], columns_O, column_weights_OT, axis=1)
    return _resample(narrow_HWC, rows_O - rows_O[0], row_weights_OT, axis=0)


def _filter_weights(
    num_samples: tf.Tensor, start: tf.Tensor, end: tf.Tensor, num_outputs: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """First sample, int32[O], and weights, int32[O, T], of every output along one axis."""
    # Pillow takes the box in float32 and goes on in float64.
    start, end = tf.cast(start, tf.float32), tf.cast(end, tf.float32)
    scale = tf.cast(end - start, tf.float64) / tf.cast(num_outputs, tf.float64)
    support = tf.maximum(scale, 1.0)  # of the triangle, in samples
    num_taps = tf.cast(tf.math.ceil(support), tf.int32) * 2 + 1
    centre_O = tf.cast(start, tf.float64) + (tf.cast(tf.range(num_outputs), tf.float64) + 0.5) * scale
    first_O = tf.maximum(tf.cast(centre_O - support + 0.5, tf.int32), 0)
    last_O = tf.minimum(tf.cast(centre_O + support + 0.5, tf.int32), num_samples)
    sample_OT = first_O[:, None] + tf.range(num_taps)[None, :]
    distance_OT = (tf.cast(sample_OT, tf.float64) - centre_O[:, None] + 0.5) * (1.0 / support)
    weights_OT = tf.maximum(1.0 - tf.abs(distance_OT), 0.0)
    weights_OT = tf.where(sample_OT < last_O[:, None], weights_OT, 0.0)
    weights_OT /= tf.reduce_sum(weights_OT, axis=1, keepdims=True)
    return first_O, tf.cast(weights_OT * 2**_PRECISION_BITS + 0.5, tf.int32)


def _resample(pixels_HWC: tf.Tensor, first_O: tf.Tensor, weights_OT: tf.Tensor, axis: int) -> tf.Tensor:
    """Weighted sums along one axis, a tap at a time: never more than one copy of the result in 32 bits."""
    last_sample = tf.shape(pixels_HWC)[axis] - 1
    shape = tf.concat([tf.shape(pixels_HWC)[:axis], tf.shape(first_O), tf.shape(pixels_HWC)[axis + 1 :]], axis=0)

    def add_tap(tap: tf.Tensor, total_HWC: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        samples_HWC = tf.gather(pixels_HWC, tf.minimum(first_O + tap, last_sample), axis=axis)
        weight = tf.reshape(weights_OT[:, tap], (1, -1, 1) if axis == 1 else (-1, 1, 1))
        return tap + 1, total_HWC + tf.cast(samples_HWC, tf.int32) * weight

    _, total_HWC = tf.while_loop(
        lambda tap, _: tap < tf.shape(weights_OT)[1],
        add_tap,
        (tf.constant(0), tf.fill(shape, 2 ** (_PRECISION_BITS - 1))),
        shape_invariants=(tf.TensorShape(()), tf.TensorShape((None, None, None))),
    )
    return tf.cast(tf.clip_by_value(tf.bitwise.right_shift(total_HWC, _PRECISION_BITS), 0, 255), tf.uint8)
