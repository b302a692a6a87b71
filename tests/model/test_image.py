"""Images of every kind are drawn here, encoded, and decoded through `bulktag.model.image`.

What is expected comes from numpy, never from the code under test. Array suffixes: H height, W width, C channels.
"""

import concurrent.futures
import io
import json
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageSequence

from bulktag.model.image import (
    CROP_FRACTION,
    IMAGE_SUFFIXES,
    PAD_VALUE,
    RESIZE_MODES,
    BadImage,
    ImageLimits,
    decode_image,
    load_image,
    resize_image,
)

LIMITS = ImageLimits()

# pytest puts the interpreter's warning filters in the place of those of `bulktag.model.codecs`; that these hold is
# what the subprocess of `measure` shows.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")


def draw_photo(width=120, height=90):
    """Smooth, lopsided in both directions and in every channel."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x / width
    green = 255 * (y / height) ** 2
    blue = 127 + 120 * np.sin(x / 17 + y / 11)
    return np.stack([red, green, blue], axis=-1).astype(np.uint8)


def encode(pixels, file_format, **options):
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(rows, width, height, bit_depth, colour_type, extra=b""):
    """A PNG from packed rows of bytes; `extra` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def pack_rows(samples, bit_depth):
    """Rows of samples, one after the other, as PNG packs them."""
    if bit_depth == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    if bit_depth == 8:
        return [row.astype(np.uint8).tobytes() for row in samples]
    bits = (samples[..., None] >> np.arange(bit_depth)[::-1]) & 1
    return [np.packbits(row.ravel().astype(np.uint8)).tobytes() for row in bits]


def grey_to_rgb(grey):
    return np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)


def lay_on_white(samples, alpha):
    """8-bit samples and alpha in [0, 255] -> RGB on white."""
    share = alpha[..., None] / 255.0
    return np.rint(samples * share + 255 * (1 - share)).astype(np.uint8)


def assert_refused(data, error_type, limits=LIMITS):
    for load in (lambda: decode_image(data, limits), lambda: load_image(data, 16, "crop", limits)):
        with pytest.raises(BadImage) as refused:
            load()
        assert refused.value.error_type == error_type, str(refused.value)
        assert str(refused.value) and "\n" not in str(refused.value)


# Formats


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("DIB", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_very_pixels(file_format, options):
    photo = draw_photo()
    pixels = decode_image(encode(photo, file_format, **options), LIMITS)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, photo)


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("MPO", {"quality": 95}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_lossy_formats_come_close(file_format, options):
    photo = draw_photo()
    pixels = decode_image(encode(photo, file_format, **options), LIMITS)
    assert np.abs(pixels.astype(int) - photo).mean() < 3


def test_mpo_of_two_pictures_gives_the_first():
    photo = draw_photo()
    data = encode(photo, "MPO", save_all=True, append_images=[Image.fromarray(255 - photo)])
    assert np.abs(decode_image(data, LIMITS).astype(int) - photo).mean() < 8


def test_grey_jpeg_becomes_rgb():
    grey = draw_photo()[..., 0]
    pixels = decode_image(encode(grey, "JPEG", quality=95), LIMITS)
    assert pixels.shape == (90, 120, 3)
    assert np.abs(pixels.astype(int) - grey_to_rgb(grey)).max() < 8


@pytest.mark.parametrize("has_adobe_marker", [True, False])
def test_cmyk_jpeg_shows_its_inks(has_adobe_marker):
    inks = np.zeros((32, 64, 4), np.uint8)
    inks[:, 16:32, 0] = 255  # cyan
    inks[:, 32:48, 1:3] = 255  # magenta and yellow
    inks[:, 48:, 3] = 255  # black
    data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    adobe = data.index(b"\xff\xee\x00\x0eAdobe")
    if not has_adobe_marker:
        data = data[:adobe] + data[adobe + 16 :]
    row = decode_image(data, LIMITS)[16, 8::16].astype(int)
    np.testing.assert_allclose(row, [[255, 255, 255], [0, 255, 255], [255, 0, 0], [0, 0, 0]], atol=3)


def test_cmyk_tiff_shows_its_inks():
    inks = np.random.default_rng(0).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    pixels = decode_image(encode(Image.fromarray(inks, "CMYK"), "TIFF"), LIMITS)
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(pixels - expected).max() <= 1


def test_first_page_of_a_tiff_and_first_frame_of_an_animation():
    photo = draw_photo()
    others = [Image.fromarray(255 - photo)]
    for file_format, options in (("TIFF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encode(photo, file_format, save_all=True, append_images=others, **options)
        with Image.open(io.BytesIO(data)) as image:
            assert len(list(ImageSequence.Iterator(image))) == 2
        np.testing.assert_array_equal(decode_image(data, LIMITS), photo)


def test_gif_gives_its_first_frame_on_white():
    indices = np.arange(20 * 30).reshape(20, 30) % 4
    first = Image.fromarray(indices.astype(np.uint8), "P")
    palette = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250], [9, 8, 7]], np.uint8)
    first.putpalette(palette.tobytes())
    second = Image.new("P", first.size, 3)
    second.putpalette(palette.tobytes())
    data = encode(first, "GIF", save_all=True, append_images=[second], transparency=2, disposal=2)
    expected = palette.copy()
    expected[2] = 255
    np.testing.assert_array_equal(decode_image(data, LIMITS), expected[indices])


def write_small_gif_frame():
    """A 2 x 1 red frame at (1, 1) of a 4 x 3 canvas, without transparency."""
    frame = encode(Image.new("P", (2, 1), 0), "GIF")
    body = frame[frame.index(b",", 13) + 10 :]
    palette = b"\xff\0\0" + b"\0\0\0" * 3
    screen = b"GIF89a" + struct.pack("<HHBBB", 4, 3, 0x81, 0, 0) + palette
    flags = frame[frame.index(b",", 13) + 9]
    if flags & 0x80:
        body = body[3 * 2 ** (flags % 8 + 1) :]
    return screen + b"," + struct.pack("<HHHHB", 1, 1, 2, 1, 0) + body


def test_gif_canvas_beside_the_frame_is_white():
    expected = np.full((3, 4, 3), 255, np.uint8)
    expected[1, 1:3] = (255, 0, 0)
    np.testing.assert_array_equal(decode_image(write_small_gif_frame(), LIMITS), expected)


# Depths, palettes, transparency


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("has_transparent_colour", [False, True])
def test_grey_png_of_any_depth(bit_depth, has_transparent_colour):
    samples = np.random.default_rng(bit_depth).integers(0, 2**bit_depth, (16, 16))
    key = int(samples[3, 5])
    extra = chunk(b"tRNS", struct.pack(">H", key)) if has_transparent_colour else b""
    data = write_png(pack_rows(samples, bit_depth), 16, 16, bit_depth, 0, extra)
    expected = samples >> 8 if bit_depth == 16 else samples * 255 // (2**bit_depth - 1)
    if has_transparent_colour:
        expected = np.where(samples == key, 255, expected)
    np.testing.assert_array_equal(decode_image(data, LIMITS), grey_to_rgb(expected))


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("has_transparent_colour", [False, True])
def test_colour_png_of_any_depth(bit_depth, has_transparent_colour):
    samples = np.random.default_rng(bit_depth).integers(0, 2**bit_depth, (16, 16, 3))
    extra = chunk(b"tRNS", struct.pack(">HHH", *samples[3, 5])) if has_transparent_colour else b""
    data = write_png(pack_rows(samples.reshape(16, -1), bit_depth), 16, 16, bit_depth, 2, extra)
    expected = (samples >> (bit_depth - 8)).astype(np.uint8)
    if has_transparent_colour:
        expected[3, 5] = 255
    np.testing.assert_array_equal(decode_image(data, LIMITS), expected)


@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("num_colours", [1, 3])
def test_png_with_alpha_lies_on_white(bit_depth, num_colours):
    samples = np.random.default_rng(bit_depth).integers(0, 2**bit_depth, (16, 16, num_colours + 1))
    samples[0, :2, -1] = 0, 2**bit_depth - 1
    data = write_png(pack_rows(samples.reshape(16, -1), bit_depth), 16, 16, bit_depth, 4 if num_colours == 1 else 6)
    upper = samples >> (bit_depth - 8)
    expected = lay_on_white(np.broadcast_to(upper[..., :-1], (16, 16, 3)), upper[..., -1])
    np.testing.assert_array_equal(decode_image(data, LIMITS), expected)


@pytest.mark.parametrize("bit_depth", [1, 2, 4, 8])
@pytest.mark.parametrize("has_alpha", [False, True])
def test_palette_png(bit_depth, has_alpha):
    rng = np.random.default_rng(bit_depth)
    num_colours = min(2**bit_depth, 40)
    palette, alpha = rng.integers(0, 256, (num_colours, 3)), rng.integers(0, 256, num_colours)
    indices = rng.integers(0, num_colours, (16, 16))
    extra = chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if has_alpha:
        extra += chunk(b"tRNS", alpha.astype(np.uint8).tobytes())
    data = write_png(pack_rows(indices, bit_depth), 16, 16, bit_depth, 3, extra)
    expected = lay_on_white(palette, alpha) if has_alpha else palette.astype(np.uint8)
    np.testing.assert_array_equal(decode_image(data, LIMITS), expected[indices])


@pytest.mark.parametrize("file_format", ["WEBP", "TIFF", "PNG"])
def test_alpha_lies_on_white(file_format):
    photo = draw_photo()
    alpha = np.tile(np.linspace(0, 255, 120), (90, 1)).astype(np.uint8)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    data = encode(np.dstack([photo, alpha]), file_format, **options)
    np.testing.assert_array_equal(decode_image(data, LIMITS), lay_on_white(photo, alpha))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_grey_tiff_keeps_its_upper_byte(byte_order):
    samples = np.random.default_rng(0).integers(0, 65536, (16, 24)).astype(f"{byte_order}u2")
    image = Image.frombytes("I;16" if byte_order == "<" else "I;16B", (24, 16), samples.tobytes())
    np.testing.assert_array_equal(decode_image(encode(image, "TIFF"), LIMITS), grey_to_rgb(samples >> 8))


def test_16_bit_tiff_where_white_is_zero():
    samples = np.random.default_rng(0).integers(0, 65536, (16, 24)).astype("<u2")
    data = encode(Image.frombytes("I;16", (24, 16), samples.tobytes()), "TIFF")
    photometric = data.index(struct.pack("<HHI", 262, 3, 1)) + 8
    data = data[:photometric] + struct.pack("<H", 0) + data[photometric + 2 :]
    np.testing.assert_array_equal(decode_image(data, LIMITS), grey_to_rgb(255 - (samples >> 8)))


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 2**30, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[-5, 0, 65535]], np.int32), [0, 0, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 127, 255]),
        (np.array([[0.0, 100.0, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[np.nan, -1.0, 1.0]], np.float32), [0, 0, 255]),
        (np.array([[0.0, np.inf, 1.0]], np.float32), [0, 0, 255]),
    ],
)
def test_wide_grey_tiff_is_scaled_not_clipped(samples, expected):
    np.testing.assert_array_equal(decode_image(encode(samples, "TIFF"), LIMITS), grey_to_rgb([expected]))


# Orientation

AS_A_VIEWER_TURNS_IT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def exif_of(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("file_format", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("JPEG", {"quality": 98}), ("AVIF", {"quality": 98})],
)
def test_exif_orientation_is_applied(orientation, file_format, options):
    stored = draw_photo()
    data = encode(stored, file_format, exif=exif_of(orientation), **options)
    shown = AS_A_VIEWER_TURNS_IT[orientation](stored)
    pixels = decode_image(data, LIMITS)
    assert pixels.shape == shown.shape
    assert np.abs(pixels.astype(int) - shown).mean() < 3
    loaded = load_image(data, 32, "squash", LIMITS)
    assert (loaded.height, loaded.width) == shown.shape[:2]
    assert np.abs(loaded.pixels_HWC.astype(int) - resize_image(pixels, 32, "squash")).max() <= 1


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"garbage" * 9])
def test_broken_exif_leaves_the_picture_upright(exif):
    photo = draw_photo()
    for data in (
        b"\xff\xd8\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + encode(photo, "JPEG")[2:],
        write_png(pack_rows(photo.reshape(90, -1), 8), 120, 90, 8, 2, chunk(b"eXIf", exif)),
    ):
        assert np.abs(decode_image(data, LIMITS).astype(int) - photo).mean() < 4


# What is refused


def test_empty_and_too_many_bytes_and_pixels():
    data = encode(draw_photo(), "PNG")
    assert_refused(b"", "empty")
    assert_refused(data, "too_many_bytes", ImageLimits(max_bytes=len(data) - 1))
    assert_refused(data, "too_many_pixels", ImageLimits(max_pixels=120 * 90 - 1))
    decode_image(data, ImageLimits(max_bytes=len(data), max_pixels=120 * 90))


@pytest.mark.parametrize("file_format", ["PNG", "GIF", "TIFF"])
def test_pixel_limit_is_ours_and_not_pillows(monkeypatch, file_format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    data = encode(draw_photo(), file_format)
    assert decode_image(data, ImageLimits(max_pixels=120 * 90)).shape == (90, 120, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"hello, this is a text renamed to .jpg\n" * 20,
        b"BMW is a car and no bitmap. " * 20,
        b"P5 is a motorway. " * 20,
        b"(\0\0\0 begins like a DIB " * 20,
        b"<html><body>404</body></html>",
        b"\0" * 1000,
        b"\xff",
    ],
)
def test_what_is_no_image_is_named_so(data):
    assert_refused(data, "not_an_image")


@pytest.mark.parametrize(
    "data",
    [
        encode(draw_photo(), "PPM"),
        encode(draw_photo(), "ICO"),
        encode(draw_photo(), "TGA"),
        encode(draw_photo(), "JPEG2000"),
        b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100,
        b"\xff\x0a" + b"\0" * 100,
    ],
    ids=["ppm", "ico", "tga", "jp2", "svg", "heic", "jxl"],
)
def test_other_image_formats_are_named_unsupported(data):
    assert_refused(data, "unsupported_format")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("AVIF", {}),
    ],
)
def test_truncated_file_is_named_so(file_format, options, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    data = encode(noise, file_format, **options)
    assert_refused(data[: int(len(data) * share)], "truncated")


def test_damaged_pixels_are_corrupt():
    data = bytearray(encode(draw_photo(), "PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 20] = b"\xaa" * 20
    assert_refused(bytes(data), "corrupt")


def test_damage_beside_the_pixels_of_a_png_is_no_reason_to_refuse_it():
    photo = draw_photo()
    rows = pack_rows(photo.reshape(90, -1), 8)
    bomb = chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 20_000_000)) * 5
    bad_profile = chunk(b"iCCP", b"name\0\x07garbage")
    bad_animation = chunk(b"acTL", struct.pack(">II", 0, 0))
    np.testing.assert_array_equal(
        decode_image(write_png(rows, 120, 90, 8, 2, bomb + bad_profile + bad_animation), LIMITS), photo
    )


def test_progressive_jpeg_with_thousands_of_scans_is_refused():
    data = encode(draw_photo(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert_refused(data[:-2] + data[last:-2] * 2000 + data[-2:], "corrupt")


def test_palette_image_without_palette_is_corrupt():
    assert_refused(write_png(pack_rows(np.zeros((4, 4), int), 8), 4, 4, 8, 3), "corrupt")


def test_run_length_encoded_bmp_is_held_to_a_limit():
    header = struct.pack("<IHHI", 100, 0, 0, 54 + 1024)
    info = struct.pack("<IiiHHIIiiII", 40, 90_000_000, 1, 1, 8, 1, 0, 0, 0, 256, 0)
    assert_refused(b"BM" + header + info + b"\0" * 1024 + b"\0\2\xff\xff" * 10, "too_many_pixels")


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("corrupt", "one line")))
    assert (error.error_type, str(error)) == ("corrupt", "one line")


def test_mistakes_of_the_caller_are_not_the_images_fault():
    data = encode(draw_photo(), "PNG")
    with pytest.raises(ValueError, match="crop, pad, squash, got 'stretch'") as mistake:
        load_image(data, 16, "stretch", LIMITS)
    assert not isinstance(mistake.value, BadImage)
    with pytest.raises(ValueError, match=r"expected uint8\[H, W, 3\], got float32\[4, 4\]"):
        resize_image(np.zeros((4, 4), np.float32), 16, "crop")


def test_suffixes_are_lower_case_with_a_dot():
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
    assert {".jpg", ".png", ".avif", ".heic"} <= IMAGE_SUFFIXES


# Costs

MEASURE = """
import json, pathlib, resource, sys, time
from bulktag.model.image import BadImage, ImageLimits, load_image
load_image(pathlib.Path(sys.argv[1]).read_bytes(), 16, "crop", ImageLimits())
rows = []
for path in sys.argv[2:]:
    data = pathlib.Path(path).read_bytes()
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        loaded = load_image(data, 224, "crop", ImageLimits())
        assert loaded.pixels_HWC.shape == (224, 224, 3) and loaded.pixels_HWC.dtype == "uint8", path
        outcome = "ok"
    except BadImage as error:
        outcome = error.error_type
        assert str(error), path
    seconds = time.perf_counter() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    rows.append((path, outcome, seconds, megabytes))
print(json.dumps(rows))
"""


def measure(paths, tmp_path):
    """Load files in a fresh process: (path, outcome, seconds, growth of its peak memory in MB) of each."""
    ordinary = tmp_path / "ordinary.png"
    ordinary.write_bytes(encode(draw_photo(), "PNG"))
    command = [sys.executable, "-W", "default", "-c", MEASURE, str(ordinary), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_bombs_cost_neither_memory_nor_time(tmp_path):

    def disposed_gif(width, height):
        """Pillow allocates what a frame covers while it reads this header, in case the frame is to be disposed of."""
        screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0)
        control = b"\x21\xf9\x04\x08\0\0\0\0"
        return screen + control + b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x01\0\0;"

    tiff = bytearray(encode(draw_photo(), "TIFF"))
    for tag in (256, 257):
        at = tiff.index(struct.pack("<HH", tag, 4)) if struct.pack("<HH", tag, 4) in tiff else None
        at = tiff.index(struct.pack("<HHI", tag, 3, 1)) if at is None else at
        tiff[at : at + 12] = struct.pack("<HHII", tag, 4, 1, 4_000_000_000)
    bmp_info = struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
    bombs = {
        "50000x50000.png": write_png([b"\0" * 100], 50_000, 50_000, 8, 6),
        "canvas.gif": disposed_gif(65535, 65535),
        "canvas_under_pillows_limit.gif": disposed_gif(16000, 11000),
        "60000x60000.bmp": b"BM" + struct.pack("<IHHI", 100, 0, 0, 54) + bmp_info + b"\0" * 100,
        "absurd.tif": bytes(tiff),
    }
    paths = []
    for name, data in bombs.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(data)
    for path, outcome, seconds, megabytes in measure(paths, tmp_path):
        assert (outcome, seconds < 0.5, megabytes < 10) == ("too_many_pixels", True, True), (path, seconds, megabytes)


def test_many_threads_decode_at_once():
    photo = draw_photo(400, 300)
    files = [
        encode(photo, "JPEG", exif=exif_of(6)),
        encode(photo, "PNG"),
        encode(photo, "TIFF", compression="tiff_lzw"),
        encode(photo, "WEBP"),
        encode(photo, "AVIF"),
        encode(photo, "GIF"),
        b"no image",
    ]

    def load(data):
        try:
            return load_image(data, 64, "crop", LIMITS).pixels_HWC.tobytes()
        except BadImage as error:
            return error.error_type

    alone = [load(data) for data in files]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(load, files * 20))
    assert together == alone * 20


# The network's square


def triangle_resize(samples, start, end, size):
    """Antialiased bilinear along axis 0, in floats: the textbook formula."""
    scale = (end - start) / size
    support = max(scale, 1.0)
    centres = start + (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(len(samples)) + 0.5 - centres[:, None]) / support
    weights = np.clip(1 - distances, 0, None)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.tensordot(weights, samples, axes=1)


@pytest.mark.parametrize(("width", "height"), [(120, 90), (61, 203), (300, 40), (7, 5)])
def test_crop_is_the_filtered_central_square(width, height):
    photo = draw_photo(width, height)
    side = CROP_FRACTION * min(width, height)
    top, left = (height - side) / 2, (width - side) / 2
    rows = triangle_resize(photo.astype(float), top, top + side, 32)
    expected = triangle_resize(rows.swapaxes(0, 1), left, left + side, 32).swapaxes(0, 1)
    assert np.abs(resize_image(photo, 32, "crop") - expected).max() <= 1.1


def test_squash_is_the_whole_picture():
    photo = draw_photo(121, 75)
    rows = triangle_resize(photo.astype(float), 0, 75, 32)
    expected = triangle_resize(rows.swapaxes(0, 1), 0, 121, 32).swapaxes(0, 1)
    assert np.abs(resize_image(photo, 32, "squash") - expected).max() <= 1.1


@pytest.mark.parametrize(("size_px", "margin"), [(32, 8), (33, 8)])
def test_pad_keeps_the_aspect_and_centres(size_px, margin):
    photo = draw_photo(200, 100)
    square = resize_image(photo, size_px, "pad")
    assert (square[:margin] == PAD_VALUE).all()
    assert (square[-margin:] == PAD_VALUE).all()
    inner = square[margin:-margin].astype(float)
    rows = triangle_resize(photo.astype(float), 0, 100, len(inner))
    expected = triangle_resize(rows.swapaxes(0, 1), 0, 200, size_px).swapaxes(0, 1)
    assert np.abs(inner - expected).max() <= 1.1


@pytest.mark.parametrize("resize", RESIZE_MODES)
def test_mirrored_picture_gives_the_mirrored_square(resize):
    photo = draw_photo(123, 77)
    for turn in (lambda pixels: pixels[:, ::-1], lambda pixels: pixels[::-1]):
        mirrored = resize_image(np.ascontiguousarray(turn(photo)), 40, resize)
        assert np.abs(mirrored.astype(int) - turn(resize_image(photo, 40, resize))).max() <= 1


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (2000, 1), (3, 2)])
@pytest.mark.parametrize("size_px", [8, 9])
def test_tiny_and_thin_pictures_work(resize, width, height, size_px):
    pixels = np.full((height, width, 3), 200, np.uint8)
    square = resize_image(pixels, size_px, resize)
    assert square.shape == (size_px, size_px, 3)
    assert set(np.unique(square)) <= ({200, PAD_VALUE} if resize == "pad" else {200})
    assert square[size_px // 2, size_px // 2, 0] == 200


@pytest.mark.parametrize("resize", RESIZE_MODES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_decoded_small_shows_the_same(resize, orientation):
    photo = draw_photo(1501, 1003)
    data = encode(photo, "JPEG", quality=95, exif=exif_of(orientation))
    loaded = load_image(data, 48, resize, LIMITS)
    whole = resize_image(decode_image(data, LIMITS), 48, resize)
    assert (loaded.width, loaded.height) == ((1501, 1003) if orientation == 1 else (1003, 1501))
    assert np.abs(loaded.pixels_HWC.astype(int) - whole).mean() < 1


# Real files


def test_every_odd_file_is_loaded_or_refused_at_a_bounded_cost(shared_data, tmp_path):
    paths = sorted(path for path in (shared_data / "odd_images").rglob("*") if path.is_file())
    rows = measure(paths, tmp_path)
    assert len(rows) == len(paths)
    for path, outcome, seconds, megabytes in rows:
        known = {"ok", "empty", "too_many_pixels", "not_an_image", "unsupported_format", "truncated", "corrupt"}
        assert outcome in known, path
        assert seconds < 2, path
        assert megabytes < 500, path
    assert sum(outcome == "ok" for _, outcome, _, _ in rows) >= 0.8 * len(rows)


def read_png_by_the_book(data):
    """A PNG without interlace -> RGB on white, from the specification: an independent reference."""
    start, chunks = 8, {}
    while start < len(data):
        num_bytes, kind = struct.unpack_from(">I4s", data, start)
        chunks[kind] = chunks.get(kind, b"") + data[start + 8 : start + 8 + num_bytes]
        start += 12 + num_bytes
    width, height, depth, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert not interlace
    num_channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    row_bytes, step = (width * num_channels * depth + 7) // 8, max(num_channels * depth // 8, 1)
    raw, above, rows = zlib.decompress(chunks[b"IDAT"]), bytearray(row_bytes), []
    for y in range(height):
        kind, *line = raw[y * (row_bytes + 1) : (y + 1) * (row_bytes + 1)]
        for i in range(row_bytes):
            left, up, corner = (line[i - step], above[i], above[i - step]) if i >= step else (0, above[i], 0)
            paeth = min(
                (abs(up - corner), 0, left), (abs(left - corner), 1, up), (abs(left + up - 2 * corner), 2, corner)
            )
            line[i] = (line[i] + (0, left, up, (left + up) // 2, paeth[2])[kind]) % 256
        above = line
        rows.append(line)
    rows = np.array(rows, np.uint8)
    if depth == 16:
        samples = rows.view(">u2").astype(int)
    else:
        bits = np.unpackbits(rows, axis=1)[:, : width * num_channels * depth].reshape(height, -1, depth)
        samples = bits @ (1 << np.arange(depth)[::-1])
    samples = samples.reshape(height, width, num_channels)
    key = chunks.get(b"tRNS", b"")
    if colour_type == 3:
        palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
        alpha = np.full(len(palette), 255)
        alpha[: len(key)] = list(key)
        return lay_on_white(palette, alpha)[samples[..., 0]]
    scaled = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    if colour_type in (4, 6):
        return lay_on_white(np.broadcast_to(scaled[..., :-1], (height, width, 3)), scaled[..., -1])
    shown = np.broadcast_to(scaled, (height, width, 3)).astype(np.uint8)
    if key:
        shown[(samples == np.frombuffer(key, ">u2")).all(axis=2)] = 255
    return shown


def test_pngsuite_is_shown_as_the_specification_says(shared_data):
    folder = shared_data / "odd_images" / "pngsuite"
    num_compared = 0
    for path in sorted(folder.glob("*.png")):
        if path.name.startswith("x") or path.name[3] == "i":  # corrupt, interlaced
            continue
        data = path.read_bytes()
        np.testing.assert_array_equal(decode_image(data, LIMITS), read_png_by_the_book(data), err_msg=path.name)
        num_compared += 1
    assert num_compared > 100
    for path in sorted(folder.glob("basi*.png")):
        twin = folder / path.name.replace("basi", "basn")
        np.testing.assert_array_equal(
            decode_image(path.read_bytes(), LIMITS), decode_image(twin.read_bytes(), LIMITS), err_msg=path.name
        )


@pytest.mark.parametrize(
    ("name", "reference", "max_mean"),
    [
        ("tiff_16bit_RGB.tiff", "tiff_16bit_RGB_target.png", 0),
        ("tiff_16bit_RGBa.tiff", "tiff_16bit_RGBa_target.png", 0),
        ("tiff_strip_planar_16bit_RGB.tiff", "tiff_16bit_RGB_target.png", 0),
        ("tiff_tiled_planar_16bit_RGB.tiff", "tiff_16bit_RGB_target.png", 0),
        ("hopper2I.tif", "hopper2.tif", 0),
        ("hopper4I.tif", "hopper4.tif", 0),
        ("g4-fillorder-test.tif", "g4-fillorder-test.png", 0),
        ("pal8os2v2.bmp", "pal8.png", 0.1),
        ("pal8rle.bmp", "pal8.png", 0.1),
        ("pal8rletrns.bmp", "pal8rletrns.png", 0),
        ("rgb32.bmp", "rgb24.png", 0),
        ("rgb32fakealpha.bmp", "rgb24.png", 0),
        ("pil168.tif", "pil168.png", 0),
        ("pil_sample_cmyk.jpg", "pil_sample_rgb.jpg", 6),
        ("tiff_strip_cmyk_jpeg.tif", "pil_sample_rgb.jpg", 6),
    ],
)
def test_variant_shows_the_same_picture_as_its_plain_twin(shared_data, name, reference, max_mean):
    folder = shared_data / "odd_images" / "pillow"
    pixels = decode_image((folder / name).read_bytes(), LIMITS).astype(int)
    with Image.open(folder / reference) as image:
        rgba = np.asarray(image.convert("RGBA"))
    expected = lay_on_white(rgba[..., :3], rgba[..., 3])
    assert np.abs(pixels - expected).mean() <= max_mean


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_real_files_of_any_orientation_show_the_same(shared_data, orientation, suffix):
    folder = shared_data / "odd_images" / "pillow"
    turned = decode_image((folder / f"hopper_orientation_{orientation}.{suffix}").read_bytes(), LIMITS)
    upright = decode_image((folder / f"hopper.{suffix}").read_bytes(), LIMITS)
    assert np.abs(turned.astype(int) - upright).mean() < 8


def test_rle4_bmp_is_refused_because_pillow_shows_stripes(shared_data):
    assert_refused((shared_data / "odd_images" / "pillow" / "pal4rle.bmp").read_bytes(), "unsupported_format")
