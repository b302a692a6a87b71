"""Encoded bytes -> the network's square of pixels. Beside `codecs` and `colours` nothing else knows an image format.

What a viewer shows is what the network sees: EXIF orientation is applied, transparency is laid on white, palettes,
CMYK and 16-bit samples become 8-bit RGB, and of an animation or a multi-page file the first picture counts. Colour
profiles and PNG gamma are not applied (neither does the network's training code, nor TensorFlow's decoders).

`bulktag.model.serving` does the same inside a TensorFlow graph; the two must change together.

Array suffixes: H height, W width, C channels (RGB), S side of the network's square.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from bulktag.model.codecs import BadImage, ImageLimits, decode_to_rgb

__all__ = [
    "CROP_FRACTION",
    "DEFAULT_RESIZE",
    "IMAGE_SUFFIXES",
    "PAD_VALUE",
    "REDUCING_GAP",
    "RESIZE_MODES",
    "BadImage",
    "ImageLimits",
    "LoadedImage",
    "decode_image",
    "load_image",
    "resize_image",
]

RESIZE_MODES = ("crop", "pad", "squash")
DEFAULT_RESIZE = "crop"

# The central square that "crop" keeps, as a share of the shorter side: the evaluation crop of the Inception papers'
# code (tensorflow/models, inception_preprocessing.py, `central_fraction=0.875`).
CROP_FRACTION = 0.875
# What "pad" puts beside the picture. Most backbones scale [0, 255] to [-1, 1] or subtract a mean near 128, so mid-grey
# is close to the zeros with which their convolutions continue a picture beyond its edge.
PAD_VALUE = 128

# Any file of these kinds in a folder is meant as an image, so it gets a row, of errors where it cannot be decoded.
_DECODED_SUFFIXES = ".jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .dib .tif .tiff .webp .avif .avifs"
_OTHER_SUFFIXES = (
    ".heic .heif .jxl .jp2 .j2k .jpf .jpx .ppm .pgm .pbm .pnm .pfm .tga .ico .cur .icns .psd .svg .eps "
    ".dds .pcx .sgi .xbm .xpm .qoi .exr .hdr .fits .dcm .raw .dng .cr2 .cr3 .nef .arw .orf .rw2 .raf"
)
IMAGE_SUFFIXES = frozenset(f"{_DECODED_SUFFIXES} {_OTHER_SUFFIXES}".split())

# libjpeg can decode at 1/2, 1/4 and 1/8 of the size, several times faster. It is used down to this multiple of the
# network's square, so that the filtered resize still has at least two samples for each output pixel. Measured by
# `benchmarks/decode_scales.py` with MobileNetV2 at 224 px on 650 flower photos, enlarged 4, 6 and 8 times with grain:
# beside full decoding, 99.7% keep their label under a head trained on these flowers, and no bottleneck's cosine is
# below 0.9989; with 2.0, Pillow's own default in `Image.thumbnail`, the least cosine is 0.9965, and with 1.0, 0.977.
# ImageNet's own classifier, of whose classes most of these photos show none, changes its first label on 2%, and just
# as much with a multiple of 3, where libjpeg hardly helps. A photo of 4000 x 3000 pixels is still read at a quarter.
REDUCING_GAP = 2.1


@dataclass(frozen=True)
class LoadedImage:
    """An image as the network takes it.

    Fields:
      pixels_HWC: uint8[S, S, 3], RGB.
      width: of the original as a viewer shows it (after EXIF orientation), pixels.
      height: likewise.
    """

    pixels_HWC: np.ndarray
    width: int
    height: int


def load_image(data: bytes, size_px: int, resize: str, limits: ImageLimits) -> LoadedImage:
    """Decode an image and bring it to the network's square.

    Large JPEGs are decoded at a fraction of their size (REDUCING_GAP), so the pixels may differ by a few levels from
    `resize_image(decode_image(...))`.

    Args:
      data: the whole encoded file.
      size_px: S.
      resize: one of RESIZE_MODES, see `resize_image`.
      limits: checked before decoding.
    Raises:
      BadImage: the bytes cannot be used, for the reason in its `error_type`.
      ValueError: an unknown resize mode.
    """
    _check_resize(resize)
    decoded = decode_to_rgb(data, limits, lambda width, height: _jpeg_scale(width, height, size_px, resize))
    # The square is oriented, not the original: the same picture at a fraction of the copying.
    content = (decoded.width / decoded.scale, decoded.height / decoded.scale)
    square = _orient(_resize(decoded.rgb, content, size_px, resize), decoded.orientation)
    width, height = decoded.width, decoded.height
    if decoded.orientation >= 5:
        width, height = height, width
    return LoadedImage(np.asarray(square), width, height)


def decode_image(data: bytes, limits: ImageLimits) -> np.ndarray:
    """Decode an image at its full size.

    Returns:
      uint8[H, W, 3], RGB, oriented as EXIF says, transparency on white. It may be read-only.
    Raises:
      BadImage: the bytes cannot be used, for the reason in its `error_type`.
    """
    decoded = decode_to_rgb(data, limits, lambda width, height: 1)
    return np.asarray(_orient(decoded.rgb, decoded.orientation))


def resize_image(pixels_HWC: np.ndarray, size_px: int, resize: str) -> np.ndarray:
    """Bring a picture to the network's square, bilinear and antialiased (a triangle as wide as the reduction).

    "crop" takes the central square with CROP_FRACTION of the shorter side, "squash" the whole picture with its aspect
    lost, "pad" the whole picture with its aspect kept, centred on PAD_VALUE.

    Args:
      pixels_HWC: uint8[H, W, 3].
      size_px: S, the side of the square in pixels.
      resize: one of RESIZE_MODES.
    Returns:
      uint8[S, S, 3].
    Raises:
      ValueError: not uint8[H, W, 3], or an unknown mode.
    """
    _check_resize(resize)
    if pixels_HWC.dtype != np.uint8 or pixels_HWC.ndim != 3 or pixels_HWC.shape[2] != 3 or not pixels_HWC.size:
        raise ValueError(f"expected uint8[H, W, 3], got {pixels_HWC.dtype}{list(pixels_HWC.shape)}")
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    return np.asarray(_resize(image, image.size, size_px, resize))


def _check_resize(resize: str) -> None:
    if resize not in RESIZE_MODES:
        raise ValueError(f"expected a resize mode of {', '.join(RESIZE_MODES)}, got {resize!r}")


def _resize(image: Image.Image, content: tuple[float, float], size_px: int, resize: str) -> Image.Image:
    """Resize the top left `content` (width, height; a partly covered last pixel counts in part) of an RGB image."""
    width, height = content
    if resize == "crop":
        side = CROP_FRACTION * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)
    box = (0.0, 0.0, width, height)
    if resize == "squash":
        return image.resize((size_px, size_px), Image.Resampling.BILINEAR, box=box)
    margins = [_pad_margin(side, max(content), size_px) for side in content]
    inner_size = tuple(size_px - 2 * margin for margin in margins)
    square = Image.new("RGB", (size_px, size_px), (PAD_VALUE,) * 3)
    square.paste(image.resize(inner_size, Image.Resampling.BILINEAR, box=box), tuple(margins))
    return square


def _pad_margin(side: float, longer: float, size_px: int) -> int:
    """Pixels beside the picture: the same on both sides, so that a mirrored picture gives the mirrored square."""
    margin = int(size_px * (longer - side) / (2 * longer) + 0.5)
    return min(margin, (size_px - 1) // 2)


def _jpeg_scale(width: int, height: int, size_px: int, resize: str) -> int:
    """How many times smaller a JPEG of this size may be decoded: 1, 2, 4 or 8."""
    shorter, longer = min(width, height), max(width, height)
    kept = {"crop": CROP_FRACTION * shorter, "squash": shorter, "pad": longer}[resize]
    return next((scale for scale in (8, 4, 2) if kept >= scale * REDUCING_GAP * size_px), 1)


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orient(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TRANSPOSES[orientation]) if orientation in _TRANSPOSES else image
