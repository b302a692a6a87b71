"""One TFRecord file being written, and the examples in it.

Array suffixes: D bottleneck width.
"""

import collections
import contextlib
import errno
import os
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow as tf

from bulktag.transforms import files
from bulktag.transforms.records import ImageInfo

SUFFIXES = {"gzip": ".tfrecord.gz", "none": ".tfrecord"}
_ERRNOS = {tf.errors.ResourceExhaustedError: errno.ENOSPC, tf.errors.PermissionDeniedError: errno.EACCES}


def build_example(image: ImageInfo, bottleneck_D: np.ndarray, label_ids: dict[str, int]) -> tf.train.Example:
    """One image as tf.train.Example, with the features that DESIGN calls the TFRecord contract.

    Args:
      image: what is known of it.
      bottleneck_D: float32[D].
      label_ids: id of each label name.
    """
    features = {
        "image/uri": _bytes(image.uri.encode()),
        "image/sha256": _bytes(image.sha256),
        "image/height": _int64(image.height),
        "image/width": _int64(image.width),
        "image/bytes": _int64(image.num_bytes),
        "image/modified": _int64(image.modified_us),
        "image/generation": _int64(image.generation),
        "image/md5": _bytes(image.md5.encode()),
        "image/class/text": _bytes(*(label.encode() for label in image.labels)),
        "image/class/label": _int64(*(label_ids[label] for label in image.labels)),
        "image/bottleneck": _floats(bottleneck_D),
    }
    if image.encoded is not None:
        features["image/encoded"] = _bytes(image.encoded)
    return tf.train.Example(features=tf.train.Features(feature=features))


def _bytes(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _floats(values_D: np.ndarray) -> tf.train.Feature:
    """float32[D] as a Feature, from its bytes as they lie in memory: number by number took 20 times as long.

    Source: https://protobuf.dev/programming-guides/encoding/#packed
    """
    packed = values_D.astype("<f4", copy=False).tobytes()
    float_list = b"\x0a" + _varint(len(packed)) + packed  # field 1, repeated float, packed
    return tf.train.Feature.FromString(b"\x12" + _varint(len(float_list)) + float_list)  # field 2, FloatList


def _varint(number: int) -> bytes:
    """A number as Protocol Buffers write lengths: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _int64(*values: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


class ShardWriter:
    """One TFRecord file being written.

    Args:
      uri: of the new file; one on a store is written on the local disk first.
      compression: "gzip" or "none".
    """

    def __init__(self, uri: str, compression: str):
        self.uri = uri
        self.num_images = self.num_raw_bytes = 0
        self.label_counts: collections.Counter = collections.Counter()
        self._local = uri
        if not files.is_local(uri):
            handle, self._local = tempfile.mkstemp(prefix="bulktag-shard-")
            os.close(handle)
        os.makedirs(os.path.dirname(self._local), exist_ok=True)
        with self._os_errors():
            self._writer = tf.io.TFRecordWriter(self._local, "GZIP" if compression == "gzip" else "")

    @contextlib.contextmanager
    def _os_errors(self) -> Iterator[None]:
        """TensorFlow's errors of writing as the OSErrors that they were."""
        try:
            yield
        except tf.errors.OpError as error:
            number = _ERRNOS.get(type(error), errno.EIO)
            raise OSError(number, os.strerror(number), self._local) from error

    def write(self, serialized: bytes, labels: Iterable[str]) -> None:
        """Add one record.

        Args:
          serialized: a tf.train.Example.
          labels: names that it counts for.
        Raises:
          OSError: the disk is full, and the like.
        """
        with self._os_errors():
            self._writer.write(serialized)
        self.num_images += 1
        self.num_raw_bytes += len(serialized)
        self.label_counts.update(labels)

    def close(self) -> int:
        """Finish the file and return its size in bytes.

        Raises:
          OSError: see `write`.
        """
        with self._os_errors():
            self._writer.close()
        num_bytes = os.path.getsize(self._local)
        if self._local != self.uri:
            files.upload_file(self._local, self.uri)
            os.unlink(self._local)
        return num_bytes
