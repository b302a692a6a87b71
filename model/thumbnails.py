"""Small pictures for a page: encoded bytes -> data URIs."""

import base64
import io

from PIL import Image

from bulktag.model.image import BadImage, ImageLimits, load_image

SIDE_PX = 128
QUALITY = 60


def make_thumbnail(data: bytes, limits: ImageLimits) -> str:
    """An image as a `data:` URI of a JPEG of 128 x 128 pixels, about 4 kB; the whole picture, padded to a square.

    Args:
      data: encoded bytes.
      limits: what is refused before it is decoded.
    Returns:
      "" where it cannot be decoded.
    """
    try:
        image = load_image(data, SIDE_PX, "pad", limits)
    except BadImage:
        return ""
    buffer = io.BytesIO()
    Image.fromarray(image.pixels_HWC).save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
