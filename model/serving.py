"""Encoded bytes -> the network's square of pixels, in TensorFlow operations only.

A SavedModel that begins with this runs in TensorFlow Serving and in plain TensorFlow, without this project. It repeats
`bulktag.model.image.load_image`, pixel for pixel where TensorFlow's decoders allow: the same libjpeg scaling, the same
order of steps, and Pillow's resampling with its rounding. The two must change together.

Decoded are JPEG, PNG, WebP, GIF and uncompressed BMP of 24 or 32 bits; anything else is an InvalidArgumentError.
Known differences from `load_image`: CMYK JPEGs differ by up to one level, or wholly where their inks are not inverted
as Adobe does it; there are no limits on bytes or pixels.

Array suffixes: B images, H height, W width, C channels (RGB), S side of the network's square.
"""

import tensorflow as tf

from bulktag.model.exif import read_orientation_in_graph
from bulktag.model.gif import decode_gif_in_graph
from bulktag.model.image import CROP_FRACTION, PAD_VALUE, REDUCING_GAP, RESIZE_MODES
from bulktag.model.resampling import resize_in_graph

# libjpeg's reductions; the index is what `_jpeg_scale_index` gives.
_JPEG_SCALES = (1, 2, 4, 8)
# Longest first bytes looked at: a BMP's header up to its compression.
_HEADER_BYTES = 34


def load_images_in_graph(encoded_B: tf.Tensor, size_px: int, resize: str) -> tf.Tensor:
    """`load_image_in_graph` of every image of a batch.

    Args:
      encoded_B: string[B], encoded files.
      size_px: S.
      resize: one of `bulktag.model.image.RESIZE_MODES`.
    Returns:
      uint8[B, S, S, 3].
    """
    spec = tf.TensorSpec((size_px, size_px, 3), tf.uint8)
    return tf.map_fn(lambda encoded: load_image_in_graph(encoded, size_px, resize), encoded_B, fn_output_signature=spec)


def load_image_in_graph(encoded: tf.Tensor, size_px: int, resize: str) -> tf.Tensor:
    """Decode an image and bring it to the network's square.

    Args:
      encoded: string[], one encoded file.
      size_px: S.
      resize: one of `bulktag.model.image.RESIZE_MODES`.
    Returns:
      uint8[S, S, 3], RGB.
    Raises:
      ValueError: an unknown resize mode (while the graph is built).
      tf.errors.InvalidArgumentError: no image of a format above, or a damaged one (while it runs).
    """
    if resize not in RESIZE_MODES:
        raise ValueError(f"expected a resize mode of {', '.join(RESIZE_MODES)}, got {resize!r}")
    pixels_HWC, content_hw, orientation = _decode(encoded, size_px, resize)
    pixels_HWC = tf.ensure_shape(pixels_HWC, (None, None, 3))
    square = _resize(pixels_HWC, content_hw, size_px, resize)
    return tf.ensure_shape(_orient(square, orientation), (size_px, size_px, 3))


def _decode(encoded: tf.Tensor, size_px: int, resize: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """uint8[H, W, 3], float64[2] height and width of what is picture in it, and int32[] EXIF orientation."""
    # Zeros behind a short file, so that every slice below is inside.
    head = tf.strings.join([tf.strings.substr(encoded, 0, _HEADER_BYTES), b"\0" * _HEADER_BYTES])

    def starts_with(magic: bytes, at: int = 0) -> tf.Tensor:
        return tf.equal(tf.strings.substr(head, at, len(magic)), magic)

    return tf.case(
        [
            (starts_with(b"\xff\xd8\xff"), lambda: _decode_jpeg(encoded, size_px, resize)),
            (starts_with(b"\x89PNG"), lambda: _decode_png(encoded, head)),
            (starts_with(b"RIFF") & starts_with(b"WEBP", at=8), lambda: _decode_webp(encoded)),
            (starts_with(b"GIF8"), lambda: _whole(decode_gif_in_graph(encoded))),
            (starts_with(b"BM"), lambda: _decode_bmp(encoded, head)),
        ],
        default=_refuse,
    )


def _whole(pixels_HWC: tf.Tensor, orientation: tf.Tensor | int = 1) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    return pixels_HWC, tf.cast(tf.shape(pixels_HWC)[:2], tf.float64), tf.constant(1) * orientation


def _decode_jpeg(encoded: tf.Tensor, size_px: int, resize: str) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    height_width = tf.image.extract_jpeg_shape(encoded)[:2]
    index = _jpeg_scale_index(height_width, size_px, resize)

    def decode(scale: int) -> tf.Tensor:
        # What Pillow asks libjpeg for; the faster default of TensorFlow differs by a few levels.
        return tf.io.decode_jpeg(encoded, 3, ratio=scale, fancy_upscaling=True, dct_method="INTEGER_ACCURATE")

    pixels_HWC = tf.switch_case(index, [lambda scale=scale: decode(scale) for scale in _JPEG_SCALES])
    content_hw = tf.cast(height_width, tf.float64) / tf.cast(tf.gather(_JPEG_SCALES, index), tf.float64)
    return pixels_HWC, content_hw, read_orientation_in_graph(encoded, "JPEG")


def _jpeg_scale_index(height_width: tf.Tensor, size_px: int, resize: str) -> tf.Tensor:
    """Which of _JPEG_SCALES; see `bulktag.model.image._jpeg_scale`."""
    height_width = tf.cast(height_width, tf.float64)
    shorter, longer = tf.reduce_min(height_width), tf.reduce_max(height_width)
    kept = {"crop": CROP_FRACTION * shorter, "squash": shorter, "pad": longer}[resize]
    needed = tf.constant([scale * REDUCING_GAP * size_px for scale in _JPEG_SCALES[1:]], tf.float64)
    return tf.reduce_sum(tf.cast(kept >= needed, tf.int32))


def _decode_png(encoded: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    # With four channels TensorFlow makes pictures of fewer than 8 bits nearly transparent; with the file's own it
    # ignores the transparent colour of those that have 8 or 16.
    bit_depth = tf.io.decode_raw(tf.strings.substr(head, 24, 1), tf.uint8)[0]
    pixels_HWA = tf.cond(
        bit_depth < 8,
        lambda: tf.ensure_shape(tf.io.decode_png(encoded), (None, None, None)),
        lambda: tf.ensure_shape(tf.io.decode_png(encoded, channels=4), (None, None, None)),
    )
    return _whole(_on_white(pixels_HWA), read_orientation_in_graph(encoded, "PNG"))


def _decode_webp(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    frames = tf.io.decode_webp(encoded)
    first = tf.reshape(frames, tf.concat([[-1], tf.shape(frames)[-3:]], axis=0))[0]
    return _whole(_on_white(first), read_orientation_in_graph(encoded, "WEBP"))


def _decode_bmp(encoded: tf.Tensor, head: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    # TensorFlow takes a palette's indices for grey levels and never looks at the compression.
    layout = tf.io.decode_raw(tf.strings.substr(head, 28, 6), tf.uint8)
    is_plain = tf.reduce_all(layout[1:] == 0) & ((layout[0] == 24) | (layout[0] == 32))
    with tf.control_dependencies([tf.Assert(is_plain, ["expected an uncompressed BMP of 24 or 32 bits a pixel"])]):
        return _whole(tf.io.decode_bmp(encoded)[:, :, :3])


def _refuse() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    with tf.control_dependencies([tf.Assert(False, ["expected JPEG, PNG, WebP, GIF or BMP"])]):
        return _whole(tf.zeros((1, 1, 3), tf.uint8))


def _on_white(pixels_HWA: tf.Tensor) -> tf.Tensor:
    """uint8[H, W, 1 to 4], grey or RGB, with alpha or without -> uint8[H, W, 3], with Pillow's rounding of x / 255."""
    shape = tf.shape(pixels_HWA)
    has_alpha = shape[2] % 2 == 0
    rgb_HWC = tf.broadcast_to(
        tf.cond(has_alpha, lambda: pixels_HWA[:, :, :-1], lambda: pixels_HWA), tf.concat([shape[:2], [3]], axis=0)
    )

    def blend() -> tf.Tensor:
        alpha = tf.cast(pixels_HWA[:, :, -1:], tf.int32)
        times_255 = tf.cast(rgb_HWC, tf.int32) * alpha + 255 * (255 - alpha) + 128
        return tf.cast(tf.bitwise.right_shift(tf.bitwise.right_shift(times_255, 8) + times_255, 8), tf.uint8)

    return tf.cond(has_alpha, blend, lambda: rgb_HWC)


def _resize(pixels_HWC: tf.Tensor, content_hw: tf.Tensor, size_px: int, resize: str) -> tf.Tensor:
    """See `bulktag.model.image._resize`."""
    square = tf.constant([size_px, size_px])
    if resize == "crop":
        side = CROP_FRACTION * tf.reduce_min(content_hw)
        start = (content_hw - side) / 2
        return resize_in_graph(pixels_HWC, start, start + side, square)
    zeros = tf.zeros(2, tf.float64)
    if resize == "squash":
        return resize_in_graph(pixels_HWC, zeros, content_hw, square)
    longer = tf.reduce_max(content_hw)
    margin = tf.cast(size_px * (longer - content_hw) / (2 * longer) + 0.5, tf.int32)
    margin = tf.minimum(margin, (size_px - 1) // 2)
    inner = resize_in_graph(pixels_HWC, zeros, content_hw, square - 2 * margin)
    paddings = tf.concat([tf.stack([margin, margin], axis=1), [[0, 0]]], axis=0)
    return tf.pad(inner, paddings, constant_values=tf.constant(PAD_VALUE, tf.uint8))


def _orient(square: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """uint8[S, S, 3] as a viewer shows it; orientation is EXIF's 1 to 8."""
    transposed = tf.transpose(square, (1, 0, 2))
    return tf.switch_case(
        orientation - 1,
        [
            lambda: square,
            lambda: tf.reverse(square, [1]),
            lambda: tf.reverse(square, [0, 1]),
            lambda: tf.reverse(square, [0]),
            lambda: transposed,
            lambda: tf.reverse(transposed, [1]),
            lambda: tf.reverse(transposed, [0, 1]),
            lambda: tf.reverse(transposed, [0]),
        ],
    )
