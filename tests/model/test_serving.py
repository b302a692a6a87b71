"""The graph's preprocessing against `bulktag.model.image`, and its reading of containers against files drawn here.

Array suffixes: B images, S side of the network's square, C channels.
"""

import functools
import io
import struct
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from bulktag.model.exif import read_orientation_in_graph
from bulktag.model.image import RESIZE_MODES, BadImage, ImageLimits, load_image
from bulktag.model.resampling import resize_in_graph
from bulktag.model.serving import load_image_in_graph, load_images_in_graph

SIZE = 48


@functools.cache
def graph(resize, size_px=SIZE):
    return tf.function(
        lambda encoded: load_image_in_graph(encoded, size_px, resize),
        input_signature=[tf.TensorSpec((), tf.string)],
        autograph=False,
    )


def load_both(data, resize="crop"):
    """What the graph and what `load_image` make of a file."""
    in_graph = graph(resize)(tf.constant(data)).numpy()
    return in_graph, load_image(data, SIZE, resize, ImageLimits()).pixels_HWC


def assert_equal(data, resize="crop"):
    np.testing.assert_array_equal(*load_both(data, resize))


def draw_photo(width=120, height=90):
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 127 * np.sin(x / a + y / b) for a, b in ((7, 19), (23, 5), (11, -13))]
    noise = np.random.default_rng(0).integers(0, 8, (height, width, 3))
    return np.clip(np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)


def encode(pixels, file_format, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize(("width", "height"), [(120, 90), (61, 203), (500, 40), (48, 48), (1, 1), (1, 300), (3, 2)])
def test_png_of_any_shape_is_equal(resize, width, height):
    assert_equal(encode(draw_photo(width, height), "PNG"), resize)


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_of_any_orientation_is_equal(resize, orientation):
    assert_equal(encode(draw_photo(131, 97), "JPEG", exif=exif_of(orientation)), resize)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize(("file_format", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_orientation_of_other_formats_is_equal(file_format, options, orientation):
    assert_equal(encode(draw_photo(131, 97), file_format, exif=exif_of(orientation), **options))


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 60}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("L", {}),
    ],
)
def test_jpeg_of_any_kind_is_equal(mode, options):
    assert_equal(encode(Image.fromarray(draw_photo(131, 97)).convert(mode), "JPEG", **options))


def test_cmyk_jpeg_differs_by_at_most_one_level():
    in_graph, expected = load_both(encode(Image.fromarray(draw_photo(131, 97)).convert("CMYK"), "JPEG"))
    assert np.abs(in_graph.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize("long_side", [200, 401, 803, 1607])
def test_jpeg_decoded_at_a_fraction_is_equal(resize, long_side):
    assert_equal(encode(draw_photo(long_side, long_side * 2 // 3), "JPEG", exif=exif_of(6)), resize)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_png_of_any_mode_is_equal(mode):
    photo = draw_photo()
    if mode == "I;16":
        image = Image.fromarray(photo[..., 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(np.dstack([photo, photo[..., 0]])).convert(mode)
    assert_equal(encode(image, "PNG"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparency", [None, b"\0\x40", 1])
def test_palette_png_of_any_depth_is_equal(bits, transparency):
    image = Image.fromarray(draw_photo()).quantize(2**bits)
    options = {} if transparency is None else {"transparency": transparency}
    assert_equal(encode(image, "PNG", bits=bits, **options))


@pytest.mark.parametrize(
    ("file_format", "options"), [("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("GIF", {})]
)
def test_other_formats_are_equal(file_format, options):
    assert_equal(encode(draw_photo(), file_format, **options))


def test_transparent_webp_is_equal():
    photo = draw_photo()
    assert_equal(encode(np.dstack([photo, photo[..., 0]]), "WEBP", lossless=True))


@pytest.mark.parametrize("transparency", [None, 3])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_gif_first_frame_is_equal(transparency, num_frames):
    frames = [Image.fromarray(np.roll(draw_photo(), 9 * frame, axis=1)).quantize(16) for frame in range(num_frames)]
    options = {} if transparency is None else {"transparency": transparency}
    assert_equal(encode(frames[0], "GIF", save_all=True, append_images=frames[1:], comment=b"x" * 700, **options))


def test_gif_frame_smaller_than_its_canvas_is_equal():
    data = bytearray(encode(Image.fromarray(draw_photo(40, 30)).quantize(16), "GIF"))
    data[6:10] = struct.pack("<HH", 100, 80)
    descriptor = data.index(b"," + struct.pack("<HHHH", 0, 0, 40, 30))
    data[descriptor + 1 : descriptor + 5] = struct.pack("<HH", 17, 23)
    assert_equal(bytes(data))


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4])
def test_orientation_is_found_behind_other_segments_in_either_byte_order(byte_order, kind):
    mark = b"II*\0" if byte_order == "<" else b"MM\0*"
    value = struct.pack(f"{byte_order}H2x" if kind == 3 else f"{byte_order}I", 8)
    entries = (
        struct.pack(f"{byte_order}HHII", 0x010F, 2, 4, 0) + struct.pack(f"{byte_order}HHI", 0x0112, kind, 1) + value
    )
    tiff = mark + struct.pack(f"{byte_order}IH", 8, 2) + entries + b"\0" * 4
    others = ((b"\xe0", b"JFIF\0" + b"\0" * 9), (b"\xe1", b"http://ns.adobe.com/xap/1.0/\0Exif\0\0"))
    segments = b"".join(b"\xff" + code + struct.pack(">H", len(body) + 2) + body for code, body in others)
    exif = b"\xff\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff  # after a fill byte
    data = b"\xff\xd8" + segments + exif + encode(draw_photo(), "JPEG")[2:]
    assert read_orientation_in_graph(tf.constant(data), "JPEG").numpy() == 8
    assert_equal(data)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"II",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"MM\0*\0\0\0\x08\0\1\x01\x12\0\x03\0\0\0\1\0\x09\0\0",
        b"MM\0*\0\0\0\x08\0\1\x01\x12\0\x02\0\0\0\1\0\x06\0\0",
    ],
)
def test_nonsense_in_exif_means_upright(exif):
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 8) + b"Exif\0\0" + exif
    data = b"\xff\xd8" + segment + encode(draw_photo(), "JPEG")[2:]
    assert read_orientation_in_graph(tf.constant(data), "JPEG").numpy() == 1


def test_resize_takes_a_fractional_box_like_pillow():
    photo = draw_photo(97, 61)
    box = (3.25, 7.5, 90.125, 55.0)
    expected = np.asarray(Image.fromarray(photo).resize((40, 23), Image.Resampling.BILINEAR, box=box))
    actual = resize_in_graph(
        tf.constant(photo),
        tf.constant([box[1], box[0]], tf.float64),
        tf.constant([box[3], box[2]], tf.float64),
        tf.constant([23, 40]),
    )
    np.testing.assert_array_equal(actual.numpy(), expected)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"no image at all",
        b"GIF89a",
        b"BM",
        encode(draw_photo(), "TIFF"),
        encode(draw_photo(), "JPEG")[:2000],
        encode(draw_photo(), "PNG")[:300],
        encode(draw_photo(), "WEBP")[:300],
        encode(Image.fromarray(draw_photo()).quantize(16), "GIF")[:300],
        encode(Image.fromarray(draw_photo()).quantize(16), "BMP"),
    ],
)
def test_what_cannot_be_decoded_is_an_error(data):
    with pytest.raises(tf.errors.InvalidArgumentError):
        graph("crop")(tf.constant(data))


def test_unknown_resize_mode_is_refused_while_the_graph_is_built():
    with pytest.raises(ValueError, match="got 'stretch'"):
        load_image_in_graph(tf.constant(b""), SIZE, "stretch")


def test_batch_has_a_static_shape_and_may_be_empty():
    function = tf.function(
        lambda encoded_B: load_images_in_graph(encoded_B, SIZE, "pad"),
        input_signature=[tf.TensorSpec((None,), tf.string)],
        autograph=False,
    )
    assert function.get_concrete_function().structured_outputs.shape.as_list() == [None, SIZE, SIZE, 3]
    files = [encode(draw_photo(), "PNG"), encode(draw_photo(70, 90), "JPEG"), encode(draw_photo(), "GIF")]
    pixels_BHWC = function(tf.constant(files)).numpy()
    for pixels_HWC, data in zip(pixels_BHWC, files, strict=True):
        np.testing.assert_array_equal(pixels_HWC, load_image(data, SIZE, "pad", ImageLimits()).pixels_HWC)
    assert function(tf.zeros((0,), tf.string)).shape == (0, SIZE, SIZE, 3)


@pytest.mark.slow
def test_saved_model_needs_nothing_of_this_project(tmp_path):
    module = tf.Module()
    module.load = graph("crop")
    tf.saved_model.save(module, str(tmp_path / "saved"))
    data = encode(draw_photo(131, 97), "JPEG", exif=exif_of(6))
    (tmp_path / "photo.jpg").write_bytes(data)
    program = (
        "import pathlib, sys, tensorflow as tf\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "load = tf.saved_model.load(str(folder / 'saved')).load\n"
        "pixels = load(tf.constant((folder / 'photo.jpg').read_bytes()))\n"
        "assert not [name for name in sys.modules if name.startswith('bulktag')]\n"
        "(folder / 'pixels').write_bytes(pixels.numpy().tobytes())\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, capture_output=True)
    expected = load_image(data, SIZE, "crop", ImageLimits()).pixels_HWC
    assert (tmp_path / "pixels").read_bytes() == expected.tobytes()


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_real_photos_are_equal(shared_data, resize):
    photos = sorted((shared_data / "flowers").rglob("*.jpg"))[::60]
    assert len(photos) >= 10
    for path in photos:
        assert_equal(path.read_bytes(), resize)


def test_odd_files_are_equal_wherever_both_decode_them(shared_data):
    suffixes = {".jpg", ".png", ".gif", ".bmp", ".webp", ".mpo"}
    paths = [path for path in (shared_data / "odd_images").rglob("*") if path.suffix in suffixes]
    outcomes = {"equal": 0, "only here": 0, "only in the graph": [], "neither": 0}
    for path in sorted(paths):
        data = path.read_bytes()
        try:
            expected = load_image(data, SIZE, "crop", ImageLimits()).pixels_HWC
        except BadImage:
            expected = None
        try:
            in_graph = graph("crop")(tf.constant(data)).numpy()
        except tf.errors.InvalidArgumentError:
            outcomes["neither" if expected is None else "only here"] += 1
            continue
        if expected is None:
            outcomes["only in the graph"].append(path.name)
            continue
        tolerance = 1 if "cmyk" in path.name else 0
        assert np.abs(in_graph.astype(int) - expected).max() <= tolerance, path
        outcomes["equal"] += 1
    assert outcomes["equal"] > 600
    assert not outcomes["only in the graph"]
    assert outcomes["only here"] < 60  # palette and compressed BMP, mostly
