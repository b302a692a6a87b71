"""One TFRecord file being written."""

import collections
import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator

import tensorflow as tf

from bulktag.transforms import files

SUFFIXES = {"gzip": ".tfrecord.gz", "none": ".tfrecord"}
_ERRNOS = {tf.errors.ResourceExhaustedError: errno.ENOSPC, tf.errors.PermissionDeniedError: errno.EACCES}


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
            with open(self._local, "rb") as source, files.create_file(self.uri) as target:
                shutil.copyfileobj(source, target, files.COPY_CHUNK_BYTES)
            os.unlink(self._local)
        return num_bytes
