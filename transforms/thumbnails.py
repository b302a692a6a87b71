"""Small pictures of a few images, from their files, or from examples that keep them."""

import concurrent.futures
from collections.abc import Iterable, Sequence

import tensorflow as tf

from bulktag.model.image import BadImage, ImageLimits
from bulktag.model.splits import open_shard
from bulktag.model.thumbnails import make_thumbnail
from bulktag.transforms.examples import local_copies
from bulktag.transforms.loading import ReadError, read_image
from bulktag.transforms.records import ImageRef

READS_AT_ONCE = 16
_FEATURES = {
    "image/uri": tf.io.FixedLenFeature([], tf.string),
    "image/encoded": tf.io.FixedLenFeature([], tf.string, default_value=""),
}


def fetch_thumbnails(uris: Iterable[str], shards: Sequence[str], limits: ImageLimits) -> dict[str, str]:
    """Thumbnails as `data:` URIs; images that cannot be had any more are missing.

    Args:
      uris: of the images, dozens.
      shards: TFRecords of the examples that they stand in.
      limits: what is refused before it is decoded.
    """
    uris = list(dict.fromkeys(uris))

    def fetch(uri: str) -> str:
        try:
            return make_thumbnail(read_image(ImageRef(uri, (), -1, -1), limits.max_bytes)[0], limits)
        except (ReadError, BadImage):
            return ""

    with concurrent.futures.ThreadPoolExecutor(READS_AT_ONCE, "bulktag-thumbnails") as pool:
        found = dict(zip(uris, pool.map(fetch, uris), strict=True))
    missing = {uri for uri, thumbnail in found.items() if not thumbnail}
    if missing:
        found |= {uri: make_thumbnail(data, limits) for uri, data in _read_stored(missing, shards)}
    return {uri: thumbnail for uri, thumbnail in found.items() if thumbnail}


def _read_stored(wanted: set[str], shards: Sequence[str]) -> Iterable[tuple[str, bytes]]:
    """Images' bytes from examples, where `extract --store-images` kept them; the first record tells whether it did."""
    for path in (path for copies in local_copies(shards) for path in copies):
        for serialized_B in open_shard(tf.constant(path)):
            parsed = tf.io.parse_example(serialized_B, _FEATURES)
            if not any(parsed["image/encoded"].numpy()):
                return
            for uri, data in zip(parsed["image/uri"].numpy(), parsed["image/encoded"].numpy(), strict=True):
                if data and uri.decode() in wanted:
                    yield uri.decode(), data
