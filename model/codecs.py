"""The codecs: encoded bytes -> a Pillow image in 8-bit RGB, or BadImage. Only `bulktag.model.image` uses it."""

import contextlib
import ctypes
import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from PIL import ExifTags, Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile, DibImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from bulktag.model.colours import deep_to_rgb, is_deep, on_white_canvas, to_rgb

# The decoders are called by class, not through `Image.open`: that one would try every format Pillow knows, apply
# Pillow's own pixel limit, and look through a multi-picture JPEG (MPO) for the pictures that are not wanted.
_MAGIC = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    *((magic, TiffImageFile) for magic in (b"II*\0", b"MM\0*", b"MM*\0", b"II\0*", b"II+\0", b"MM\0+")),
)
# Sizes of a BMP's information header, all there are. "BM" alone begins many a text.
_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"crx "})
# Where a TIFF says that its strips or tiles are.
_TIFF_PIECES = ((273, 279), (324, 325))
# Enough of a file for Pillow to name a format that is not decoded here.
_HEADER_BYTES = 65536

# A progressive JPEG may hold any number of passes over the whole picture in a few bytes each. libjpeg-turbo's own
# fuzzers stop at 500 scans (`fuzz/decompress.cc`); a camera's or an encoder's file has at most about 15.
MAX_JPEG_SCANS = 500

# Run-length encoded BMP is decoded in Python, up to a byte at a time, and one of its codes makes Pillow allocate 255
# rows before it looks at the height. A 4K screen, the largest such picture that is plausible, takes a second.
MAX_RLE_PIXELS = 3840 * 2160
MAX_RLE_WIDTH = 65_536

# What Pillow 12 raises on damaged bytes. OSError: a decoder's error code, or data that end early. SyntaxError: a
# header that is refused (`ImageFile` turns IndexError, TypeError, KeyError, EOFError and struct.error of its plugins'
# headers into it). ValueError: values out of range, text-chunk bombs. The other ones come up where a plugin reads on
# while decoding. RuntimeError is libavif's. MemoryError: a file that asks for absurd buffers (pixels were limited
# before). Not among them: TypeError, AttributeError, NameError, AssertionError, which would be our own mistakes.
_CODEC_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    struct.error,
    EOFError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    MemoryError,
    Image.DecompressionBombError,
)

# How Pillow says that a file is sound but of a kind it has no decoder for.
_UNSUPPORTED_MESSAGES = ("unsupported", "not supported", "not yet supported", "cannot handle", "unknown pixel mode")

# Pillow warns and logs about odd metadata of single files; a million files would flood a worker's log with lines that
# name none of them. `warnings.catch_warnings` is not thread-safe in Python 3.11, so this is set once.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
# libtiff prints its errors on stderr, which are raised as well. The symbol is found through Pillow's own extension
# module; where libtiff is linked in some other way, the lines stay.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@dataclass(frozen=True)
class ImageLimits:
    """What an image may cost, checked before it is decoded.

    Fields:
      max_bytes: size of the encoded file in bytes.
      max_pixels: width x height; a decoded pixel takes 4 bytes, and up to 12 while an alpha channel is laid on white.
    """

    max_bytes: int = 64 * 1024 * 1024
    max_pixels: int = 100_000_000


class BadImage(ValueError):
    """These bytes cannot be used as an image.

    Attributes:
      error_type: empty, too_many_bytes, too_many_pixels, not_an_image, unsupported_format, truncated or corrupt.
    """

    def __init__(self, error_type: str, message: str):
        super().__init__(error_type, message)
        self.error_type = error_type

    def __str__(self) -> str:
        return self.args[1]


class DecodedImage(NamedTuple):
    """A decoded picture before its orientation is applied."""

    rgb: Image.Image
    scale: int  # 1, 2, 4 or 8: how many times smaller than the original libjpeg decoded it
    width: int  # of the original, pixels, not yet oriented
    height: int
    orientation: int  # EXIF, 1..8, of which TIFF's is already applied


def decode_to_rgb(data: bytes, limits: ImageLimits, choose_scale: Callable[[int, int], int]) -> DecodedImage:
    """Check the limits, then decode to RGB; `choose_scale(width, height)` says how small a JPEG may come out."""
    if not data:
        raise BadImage("empty", "expected an image, got 0 bytes")
    if len(data) > limits.max_bytes:
        raise BadImage("too_many_bytes", f"expected at most {limits.max_bytes} bytes, got {len(data)}")
    decoder = _recognise(data)
    # Pillow's own, process-wide limit must not strike before ours; it stays as a backstop inside its plugins.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.max_pixels)
    if decoder is PngImageFile:
        data = _bare_png(data)
    if decoder is GifImageFile:  # Pillow may fill the first frame while it reads the header
        _check_pixels(int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little"), limits)
    with _as_bad_image(data):
        image = decoder(io.BytesIO(data))
    width, height = image.size
    _check_pixels(width, height, limits)
    _check_scans(image, data)
    _check_run_lengths(image)
    scale = choose_scale(width, height) if decoder is JpegImageFile else 1
    covered = image.tile[0].extents if decoder is GifImageFile and image.tile else None
    with _as_bad_image(data, image):
        if scale > 1:
            image.draft(None, (width // scale, height // scale))
        image.load()
        if image.mode in ("P", "PA") and image.palette is None:
            raise BadImage("corrupt", "expected a palette, got none")
        rgb = None if is_deep(image) else to_rgb(image, data)
    if rgb is None:
        rgb = deep_to_rgb(image)
    if covered not in (None, (0, 0, width, height)):
        rgb = on_white_canvas(rgb, covered)
    return DecodedImage(rgb, scale, width, height, _read_orientation(image))


def _recognise(data: bytes) -> type[ImageFile]:
    """The decoder that the first bytes name."""
    for magic, decoder in _MAGIC:
        if data.startswith(magic):
            return decoder
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return WebPImageFile
    brands = _heif_brands(data)
    if brands & {b"avif", b"avis"}:
        return AvifImageFile
    if data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in _BMP_HEADER_SIZES:
        return BmpImageFile
    if int.from_bytes(data[:4], "little") in _BMP_HEADER_SIZES and data[12:14] == b"\x01\0":
        return DibImageFile
    if brands & _HEIF_BRANDS:
        raise BadImage("unsupported_format", "expected JPEG, PNG, GIF, BMP, TIFF, WebP or AVIF, got HEIF")
    other = _name_other_format(data)
    if other:
        raise BadImage("unsupported_format", f"expected JPEG, PNG, GIF, BMP, TIFF, WebP or AVIF, got {other}")
    raise BadImage("not_an_image", f"expected an image, got {len(data)} bytes that begin with {data[:12]!r}")


def _bare_png(data: bytes) -> bytes:
    """A PNG without the chunks that say nothing about its pixels.

    A damaged colour profile, a bomb of compressed text or a broken animation are no reason for a viewer to refuse the
    picture, but they are for Pillow.
    """
    pieces, start = [data[:8]], 8
    while start < len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        # An upper-case first letter marks the critical chunks (PNG specification, 5.4).
        if data[start + 4 : start + 5].isupper() or data[start + 4 : start + 8] in (b"tRNS", b"eXIf"):
            pieces.append(data[start:end])
        start = end
    return b"".join(pieces)


def _heif_brands(data: bytes) -> set[bytes]:
    """The brands in the `ftyp` box of an ISO media file (ISO/IEC 14496-12, 4.3)."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), 1024)
    return {data[8:12], *(data[start : start + 4] for start in range(16, end, 4))}


def _name_other_format(data: bytes) -> str | None:
    head = data[:_HEADER_BYTES]
    if data.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "JPEG XL"
    if head.lstrip().startswith((b"<svg", b"<?xml")) and b"<svg" in head:
        return "SVG"
    try:
        with Image.open(io.BytesIO(head)) as image:
            return image.format
    except _CODEC_ERRORS:
        return None


@contextlib.contextmanager
def _as_bad_image(data: bytes, image: ImageFile | None = None) -> Iterator[None]:
    """What Pillow raises on damaged bytes becomes BadImage. Nothing but calls of Pillow belongs inside."""
    try:
        yield
    except BadImage:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage("too_many_pixels", _one_line(error)) from error
    except _CODEC_ERRORS as error:
        raise BadImage(_error_type(error, data, image), _one_line(error)) from error


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _error_type(error: BaseException, data: bytes, image: ImageFile | None) -> str:
    message = str(error).lower()
    if isinstance(error.__cause__, EOFError | struct.error | IndexError) or "truncated" in message:
        return "truncated"
    if any(words in message for words in _UNSUPPORTED_MESSAGES):
        return "unsupported_format"
    return "truncated" if _is_cut_short(data, image) else "corrupt"


def _is_cut_short(data: bytes, image: ImageFile | None) -> bool:
    """Whether a container says that it goes on behind the end of the data."""
    if data[:4] == b"RIFF":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if data[4:8] == b"ftyp":
        start = 0
        while start < len(data) and (num_bytes := int.from_bytes(data[start : start + 4], "big")) >= 8:
            start += num_bytes
        return start > len(data)
    if isinstance(image, TiffImageFile):
        for offset_tag, count_tag in _TIFF_PIECES:
            pieces = zip(image.tag_v2.get(offset_tag, ()), image.tag_v2.get(count_tag, ()), strict=False)
            if any(isinstance(offset, int) and offset + count > len(data) for offset, count in pieces):
                return True
    # Before there is an image: a TIFF's directory, which often comes last.
    return data[:4] in (b"II*\0", b"MM\0*") and _tiff_directory(data) + 2 > len(data)


def _tiff_directory(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big")


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise BadImage("too_many_pixels", f"expected at most {limits.max_pixels} pixels, got {width} x {height}")


def _check_scans(image: ImageFile, data: bytes) -> None:
    if not image.info.get("progressive"):
        return
    # A start-of-scan marker cannot occur by chance in a JPEG's compressed data, but it can in what phones append to it
    # (a video), once in 65,536 bytes; four times that is allowed for.
    num_scans = data.count(b"\xff\xda")
    if num_scans > MAX_JPEG_SCANS + len(data) // 16384:
        raise BadImage("corrupt", f"expected at most {MAX_JPEG_SCANS} scans in a progressive JPEG, got {num_scans}")


def _check_run_lengths(image: ImageFile) -> None:
    if not isinstance(image, BmpImageFile):
        return
    compression = image.info.get("compression")
    if compression == BmpImageFile.COMPRESSIONS["RLE4"]:
        # Pillow 12.3 loses a nibble of every odd absolute run; the picture comes out as stripes.
        raise BadImage("unsupported_format", "expected another BMP compression, got RLE4")
    if compression == BmpImageFile.COMPRESSIONS["RLE8"]:
        width, height = image.size
        if width > MAX_RLE_WIDTH or width * height > MAX_RLE_PIXELS:
            raise BadImage("too_many_pixels", f"expected at most {MAX_RLE_PIXELS} RLE8 pixels, got {width} x {height}")


def _read_orientation(image: ImageFile) -> int:
    """EXIF orientation, 1 to 8; 1 where there is none or it makes no sense, as in a viewer.

    JPEG, PNG and WebP carry EXIF; Pillow gives an AVIF's own `irot` and `imir` the same form, and has applied a TIFF's
    while decoding it. XMP, which Pillow's `exif_transpose` also heeds, is not looked at: browsers don't either.
    """
    if "exif" not in image.info or isinstance(image, TiffImageFile):
        return 1
    exif = Image.Exif()
    try:
        exif.load(image.info["exif"])
        orientation = exif.get(ExifTags.Base.Orientation)
    except (*_CODEC_ERRORS, TypeError):
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
