"""The colours of a picture in any of Pillow's modes -> 8-bit RGB as a viewer shows it. For `bulktag.model.codecs`."""

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile


def is_deep(image: ImageFile) -> bool:
    """Whether Pillow holds the image in grey samples of more than 8 bits (modes I;16, I;16B, I and F)."""
    return image.mode[0] in "IF"


def to_rgb(image: ImageFile, data: bytes) -> Image.Image:
    """Any mode of at most 8 bits a sample -> RGB, transparency on white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.format == "PNG" and "transparency" in image.info and image.mode != "P":
        image.info["transparency"] = _png_colour_key(image.info["transparency"], bit_depth=data[24])
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    on_white = Image.new("RGB", rgba.size, (255, 255, 255))
    on_white.paste(rgba, mask=rgba)
    return on_white


def on_white_canvas(rgb: Image.Image, covered: tuple[int, int, int, int]) -> Image.Image:
    """What a GIF's first frame leaves of the canvas is transparent in a viewer; Pillow gives it a palette's colour."""
    canvas = Image.new("RGB", rgb.size, (255, 255, 255))
    canvas.paste(rgb.crop(covered), covered[:2])
    return canvas


def _png_colour_key(key: int | tuple[int, int, int], bit_depth: int) -> int | tuple[int, int, int]:
    """The transparent colour of a PNG, given in samples of the file, in Pillow's 8-bit samples.

    Of 16-bit RGB Pillow keeps the upper bytes only, so colours that share those are transparent too.
    """
    if isinstance(key, tuple):
        return tuple(sample >> (bit_depth - 8) for sample in key)
    return key * 255 // (2**bit_depth - 1) if 1 < bit_depth < 8 else key


def deep_to_rgb(image: ImageFile) -> Image.Image:
    """Grey samples of more than 8 bits (modes I;16, I and F) -> RGB by their range, as viewers do, not clipped.

    Integers of 12 and 16 bits keep their upper 8, like Pillow's and TensorFlow's 16-bit colour. Where the type says
    little about the range (32-bit integers, floats), white is the first usual maximum that no sample exceeds.
    """
    samples = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = int(tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
    is_signed = tags.get(ExifTags.Base.SampleFormat, (1,))[0] == 2
    if image.mode == "F":
        samples = np.where(np.isfinite(samples), samples, 0)
        grey = _scale_to_white(samples, (1, 255, 65535))
    elif image.mode == "I":
        samples = samples if is_signed else samples.view(np.uint32)
        grey = _scale_to_white(samples, (2**15 - 1,) if bits == 16 else (65535, 2 ** (31 if is_signed else 32) - 1))
    else:
        grey = (samples >> (min(bits, 16) - 8)).astype(np.uint8)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    if "transparency" in image.info:
        grey = np.where(samples == image.info["transparency"], np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _scale_to_white(samples: np.ndarray, whites: tuple[int, ...]) -> np.ndarray:
    brightest = samples.max()
    white = next((white for white in whites if brightest <= white), max(brightest, 1))
    return np.clip(samples * (256 / (white + 1) if white > 1 else 255.0), 0, 255).astype(np.uint8)
