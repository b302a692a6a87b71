"""The first frame of a GIF as a viewer shows it, with TensorFlow operations.

`tf.io.decode_gif` decodes every frame, paints transparent pixels black and takes the largest frame for the canvas. So
a file of the first frame alone is made, with its transparent colour white, and what it gives is put on a white canvas.

Source: GIF89a specification (CompuServe, 1990), sections 18 to 23.
"""

import tensorflow as tf

from bulktag.model.graph_bytes import GraphBytes

_EXTENSION, _IMAGE, _GRAPHIC_CONTROL = 0x21, 0x2C, 0xF9
_HEADER_BYTES = 13
_NOT_FOUND = -1


def decode_gif_in_graph(encoded: tf.Tensor) -> tf.Tensor:
    """Decode the first frame of a GIF on its canvas.

    Args:
      encoded: string[].
    Returns:
      uint8[H, W, 3], transparency on white.
    Raises:
      tf.errors.InvalidArgumentError: damaged (while the graph runs).
    """
    file = GraphBytes(encoded)
    control, image, end = _find_first_frame(file)
    frame_HWC = tf.io.decode_gif(_cut_out_frame(encoded, file, control, image, end))[0]
    left, top, width, height = (tf.cast(file.number(image + at, 2, False), tf.int32) for at in (1, 3, 5, 7))
    canvas_width, canvas_height = (tf.cast(file.number(_at(at), 2, False), tf.int32) for at in (6, 8))
    right = tf.maximum(canvas_width - left - width, 0)
    bottom = tf.maximum(canvas_height - top - height, 0)
    return tf.pad(frame_HWC, [[top, bottom], [left, right], [0, 0]], constant_values=tf.constant(255, tf.uint8))


def _find_first_frame(file: GraphBytes) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Where its graphic control extension and its image descriptor begin (or -1), and where its data end."""

    def step(position: tf.Tensor, in_blocks: tf.Tensor, control: tf.Tensor, image: tf.Tensor) -> tuple[tf.Tensor, ...]:
        byte = file.at(position)
        is_extension, is_image = ~in_blocks & (byte == _EXTENSION), ~in_blocks & (byte == _IMAGE)
        is_control = is_extension & (file.at(position + 1) == _GRAPHIC_CONTROL)
        following = tf.case(
            [
                (in_blocks, lambda: position + 1 + byte),
                (is_extension, lambda: position + 2),
                (is_image, lambda: position + 11 + _palette_bytes(file.at(position + 9))),
            ],
            default=lambda: file.size,
        )
        in_blocks = is_extension | is_image | (in_blocks & (byte != 0))
        return following, in_blocks, tf.where(is_control, position, control), tf.where(is_image, position, image)

    def is_inside(position: tf.Tensor, in_blocks: tf.Tensor, control: tf.Tensor, image: tf.Tensor) -> tf.Tensor:
        return (position < file.size) & (in_blocks | (image == _NOT_FOUND))

    start = _HEADER_BYTES + _palette_bytes(file.at(_at(10)))
    not_found = tf.constant(_NOT_FOUND, tf.int64)
    end, _, control, image = tf.while_loop(is_inside, step, (start, tf.constant(False), not_found, not_found))
    return control, image, tf.minimum(end, file.size)


def _palette_bytes(flags: tf.Tensor) -> tf.Tensor:
    return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)


def _cut_out_frame(
    encoded: tf.Tensor, file: GraphBytes, control: tf.Tensor, image: tf.Tensor, end: tf.Tensor
) -> tf.Tensor:
    """A GIF of one frame at the origin, without extensions, its transparent colour white."""
    shared_bytes, own_bytes = _palette_bytes(file.at(_at(10))), _palette_bytes(file.at(image + 9))
    header = _slice(encoded, 0, _HEADER_BYTES + shared_bytes)
    gif = tf.strings.join([header, b",\0\0\0\0", _slice(encoded, image + 5, end - image - 5), b";"])
    palette = tf.where(own_bytes > 0, _HEADER_BYTES + shared_bytes + 10, _HEADER_BYTES)
    colour = 3 * file.at(control + 6)
    is_transparent = (control >= 0) & (file.at(control + 3) % 2 == 1) & (colour < tf.maximum(own_bytes, shared_bytes))

    def whitened() -> tf.Tensor:
        white = palette + colour
        return tf.strings.join([_slice(gif, 0, white), b"\xff\xff\xff", _slice(gif, white + 3, 2**31 - 1)])

    return tf.cond(is_transparent, whitened, lambda: gif)


def _slice(text: tf.Tensor, start: tf.Tensor | int, num_bytes: tf.Tensor | int) -> tf.Tensor:
    return tf.strings.substr(text, tf.cast(start, tf.int64), tf.cast(num_bytes, tf.int64))


def _at(position: int) -> tf.Tensor:
    return tf.constant(position, tf.int64)
