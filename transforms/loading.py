"""Fills batches of pixels by many threads: files are read and decoded while the engine computes.

Array suffixes: B images, H height, W width, S side of the network's square, C channels.
"""

import collections
import concurrent.futures
import dataclasses
import errno
import hashlib
import io
import math
import os
import stat
import threading
import time
from collections.abc import Iterator

import numpy as np

from bulktag.model.hardware import num_cores
from bulktag.model.image import BadImage, ImageLimits, load_image
from bulktag.transforms import cifar, files
from bulktag.transforms.records import ImageError, ImageInfo, ImageRef
from bulktag.transforms.stored import StoreError

_SLUGS = {
    errno.ENOENT: "not_found",
    errno.EACCES: "permission_denied",
    errno.EPERM: "permission_denied",
    errno.EISDIR: "is_a_folder",
    errno.ENOTDIR: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.ELOOP: "link_loop",
    errno.ENXIO: "not_a_file",  # a socket
}


# What a network disk says while its server is away; and how long that may last, in seconds.
_AWAY = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.EREMOTEIO, errno.ETIMEDOUT)
MAX_AWAY_S, LOOK_AGAIN_S = 60.0, 0.5


class ReadError(Exception):
    """The bytes of an image cannot be had; `error_type` is the errors table's slug."""

    def __init__(self, error_type: str, message: str):
        super().__init__(message)
        self.error_type = error_type


def read_image(ref: ImageRef, max_bytes: int) -> tuple[bytes, ImageRef]:
    """Read an image's bytes, never more than the limit.

    Returns:
      the bytes, and the ref of what was read: a manifest does not say size and time, and a file may have been replaced
      since it was listed.
    Raises:
      ReadError: vanished, not allowed, or the store failed.
      BadImage: larger than `max_bytes`.
    """
    _check_size(ref.num_bytes, max_bytes)
    try:
        if member := cifar.split_member(ref.uri):
            data, modified_us = cifar.read_member(*member)
            return data, ref._replace(num_bytes=len(data), modified_us=modified_us)
        read = _read_local if files.is_local(ref.uri) else _read_stored
        data, ref = read(ref, max_bytes)
    except StoreError as error:
        raise ReadError(error.error_type, error.strerror) from error
    except OSError as error:
        raise ReadError(_SLUGS.get(error.errno, "io_error"), error.strerror or str(error)) from error
    except ValueError as error:  # an embedded NUL, a scheme without a file system
        raise ReadError("bad_uri", str(error)) from error
    _check_size(len(data), max_bytes)
    return data, ref


def _read_local(ref: ImageRef, max_bytes: int) -> tuple[bytes, ImageRef]:
    with _open_regular(ref.uri) as file:
        status = os.fstat(file.fileno())
        size = status.st_size
        _check_size(size, max_bytes)
        # As much as it should be and one byte more: reading more at once would reserve memory for the limit.
        data = file.read(min(size, max_bytes) + 1)
        if size < len(data) <= max_bytes:  # it has grown
            data += file.read(max_bytes + 1 - len(data))
    return data, ref._replace(num_bytes=len(data), modified_us=status.st_mtime_ns // 1000)


def _read_stored(ref: ImageRef, max_bytes: int) -> tuple[bytes, ImageRef]:
    data, found = files.read_object(ref.uri, max_bytes)
    if found.generation >= 0 and found.generation == ref.generation:
        return data, ref  # the listing tells the time to the microsecond, the answer to a read to the second
    if found.generation >= 0 or ref.num_bytes < 0:
        ref = ref._replace(modified_us=found.modified_us, generation=found.generation, md5=found.md5)
    return data, ref._replace(num_bytes=len(data))


class Patience:
    """Waits for folders that are away: a network disk whose server starts again, a folder that is being replaced.

    A file alone that is gone was deleted. Where its whole folder is gone or empty, that comes back or it does not: all
    readers of a process wait together, a minute in all, and then no more until a file of that folder can be read.
    """

    def __init__(self, max_away_s: float = MAX_AWAY_S):
        self._max_away_s = max_away_s
        self._away_since: dict[str, float] = {}

    def read(self, ref: ImageRef, max_bytes: int) -> tuple[bytes, ImageRef]:
        """See `read_image`."""
        while True:
            try:
                result = read_image(ref, max_bytes)
            except ReadError as error:
                if not self._may_come_back(ref, error):
                    raise
                time.sleep(LOOK_AGAIN_S)
            else:
                if self._away_since:
                    self._away_since.pop(os.path.dirname(ref.uri), None)
                return result

    def _may_come_back(self, ref: ImageRef, error: ReadError) -> bool:
        # A manifest's row, of no known size, may never have had a file.
        if not files.is_local(ref.uri) or ref.num_bytes < 0 or not _is_away(ref.uri, error):
            return False
        since = self._away_since.setdefault(os.path.dirname(ref.uri), time.monotonic())
        return time.monotonic() - since < self._max_away_s


def _is_away(path: str, error: ReadError) -> bool:
    reason = error.__cause__
    if isinstance(reason, OSError) and reason.errno in _AWAY:
        return True
    if error.error_type != "not_found":
        return False
    try:
        with os.scandir(os.path.dirname(path)) as entries:
            return next(entries, None) is None
    except OSError:
        return True


def _open_regular(path: str) -> io.BufferedReader:
    """Open a file and nothing else: opening a pipe would wait for a writer, and a device may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return open(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise ReadError("not_a_file", "expected a file, got a pipe or device")


def _check_size(num_bytes: int, max_bytes: int) -> None:
    if num_bytes > max_bytes:
        raise BadImage("too_many_bytes", f"expected at most {max_bytes} bytes, got at least {num_bytes}")


@dataclasses.dataclass(frozen=True)
class LoadSettings:
    """How images are loaded.

    Attributes:
      image_size_px: S.
      resize, limits: see `bulktag.model.image.load_image`.
      read_threads: most images being read at once.
      keep_encoded: keep the files' bytes.
    """

    image_size_px: int
    resize: str
    limits: ImageLimits = dataclasses.field(default_factory=ImageLimits)
    read_threads: int = 32
    keep_encoded: bool = False


class Pace:
    """How long one thread took, and how many may compute at once."""

    def __init__(self, decoders: threading.Semaphore):
        self.read_s = self.decode_s = 0.0
        self._decoders = decoders
        self._since = 0.0

    def start_reading(self) -> None:
        """A file is being waited for."""
        self._since = time.perf_counter()

    def __enter__(self):
        """It was read; decode it when one of the decoders is free."""
        self.read_s += time.perf_counter() - self._since
        self._decoders.acquire()
        self._since = time.perf_counter()

    def __exit__(self, *_):
        self.decode_s += time.perf_counter() - self._since
        self._decoders.release()


def load_ref(
    ref: ImageRef, pixels_HWC: np.ndarray, settings: LoadSettings, pace: Pace, patience: Patience
) -> ImageInfo | ImageError:
    """Read and decode one image into its place in a batch.

    Args:
      ref: which image.
      pixels_HWC: uint8[S, S, 3], overwritten with the picture.
      settings: how.
      pace: of this thread.
      patience: of this process.
    Returns:
      what is known of the image, or why it cannot be used.
    """
    stage = "read"
    try:
        pace.start_reading()
        data, ref = patience.read(ref, settings.limits.max_bytes)
        stage = "decode"
        with pace:
            image = load_image(data, settings.image_size_px, settings.resize, settings.limits)
            pixels_HWC[:] = image.pixels_HWC
            digest = hashlib.sha256(data).digest()
    except (ReadError, BadImage) as error:
        return ImageError(ref.uri, stage, error.error_type, str(error), ref.num_bytes)
    return ImageInfo(
        ref.uri, tuple(ref.labels), len(data), ref.modified_us, digest, image.width, image.height,
        data if settings.keep_encoded else None, ref.generation, ref.md5,
    )  # fmt: skip


@dataclasses.dataclass
class _Batch:
    pixels_BHWC: np.ndarray
    results: list
    tasks: list[concurrent.futures.Future]


class BatchLoader:
    """Batches being loaded, oldest first.

    Reading waits and decoding computes. As many threads decode as there are cores, and no more: others would take the
    cores from the engine in turns. And as many threads read as keep the decoders busy, at the pace that the store
    showed: three for a local disk on two cores, dozens for a store with a delay. A thread too many costs: on two cores
    with MobileNetV2, 3 threads gave 440 images/s and 16 gave 390.
    """

    def __init__(self, settings: LoadSettings):
        self._settings = settings
        self._num_decoders = num_cores()
        self._decoders = threading.Semaphore(self._num_decoders)
        self._pool = concurrent.futures.ThreadPoolExecutor(settings.read_threads, "bulktag-read")
        self._num_threads = settings.read_threads  # until the store's pace is known
        self._loading: collections.deque[_Batch] = collections.deque()
        self._patience = Patience()

    def __len__(self) -> int:
        return len(self._loading)

    def start(self, refs: list[ImageRef]) -> None:
        """Start loading a batch.

        One task a thread, each of which takes the next image in turn. A task for each image would cost the caller, who
        drives the engine, 0.2 ms each: it loses the interpreter lock at every one.
        """
        size_px = self._settings.image_size_px
        batch = _Batch(np.empty((len(refs), size_px, size_px, 3), np.uint8), [None] * len(refs), [])
        turns = iter(range(len(refs)))  # shared: the interpreter lock gives each number to one task
        for _ in range(min(self._num_threads, len(refs))):
            batch.tasks.append(self._pool.submit(self._load, turns, refs, batch))
        self._loading.append(batch)

    def _load(self, turns: Iterator[int], refs: list[ImageRef], batch: _Batch) -> Pace:
        pace = Pace(self._decoders)
        for i in turns:
            batch.results[i] = load_ref(refs[i], batch.pixels_BHWC[i], self._settings, pace, self._patience)
        return pace

    def finish(self) -> tuple[np.ndarray, list[ImageInfo | ImageError]]:
        """Wait for the oldest batch.

        Returns:
          uint8[B, S, S, 3] and what became of each image; where it failed, its pixels mean nothing.
        Raises:
          Exception: what a thread raised that was no image's fault.
        """
        batch = self._loading.popleft()
        paces = [task.result() for task in batch.tasks]
        read_s, decode_s = sum(pace.read_s for pace in paces), sum(pace.decode_s for pace in paces)
        if decode_s > 0:
            # Little's law: while one image is decoded, read_s / decode_s others must be on their way to each decoder.
            needed = math.ceil(self._num_decoders * (1 + read_s / decode_s)) + 1
            self._num_threads = min(needed, self._settings.read_threads)
        return batch.pixels_BHWC, batch.results

    def forget(self) -> None:
        """Hand out nothing of what was started."""
        self._loading.clear()

    def close(self) -> None:
        """Give up what is being loaded."""
        self._pool.shutdown(wait=False, cancel_futures=True)
