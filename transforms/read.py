"""`ImageRef` -> pixels: concurrent, prefetching, failures to an output of their own.

Array suffixes: B images, H height, W width, S side of the network's square, C channels.
"""

import collections
import concurrent.futures
import dataclasses
import errno
import hashlib
import io
import os
import stat

import apache_beam as beam
import numpy as np
from apache_beam.io.filesystem import BeamIOError
from apache_beam.transforms.window import GlobalWindows

from bulktag.model.image import BadImage, ImageLimits, load_image
from bulktag.transforms import files
from bulktag.transforms.progress import add_progress, flush_progress
from bulktag.transforms.records import ImageError, ImageInfo, ImageRef, PixelBatch
from bulktag.transforms.sources import ERRORS

# Batches being read and decoded while another one is on the engine: one that is nearly ready, one behind it.
BATCHES_AHEAD = 2

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


class ReadError(Exception):
    """The bytes of an image cannot be had; `error_type` is the errors table's slug."""

    def __init__(self, error_type: str, message: str):
        super().__init__(message)
        self.error_type = error_type


def read_image(ref: ImageRef, max_bytes: int) -> tuple[bytes, int]:
    """Read an image's bytes, never more than the limit.

    Returns:
      the bytes, and when they were last modified in microseconds since the epoch (-1: unknown).
    Raises:
      ReadError: vanished, not allowed, or the store failed.
      BadImage: larger than `max_bytes`.
    """
    _check_size(ref.num_bytes, max_bytes)
    modified_us, size = ref.modified_us, ref.num_bytes
    try:
        with _open_regular(ref.uri) if files.is_local(ref.uri) else files.open_file(ref.uri) as file:
            if files.is_local(ref.uri):
                # A manifest does not say, and the file may have been replaced since it was listed.
                status = os.fstat(file.fileno())
                modified_us, size = status.st_mtime_ns // 1000, status.st_size
                _check_size(size, max_bytes)
            # As much as it should be and one byte more: reading more at once would reserve memory for the limit.
            data = file.read(min(size, max_bytes) + 1 if size >= 0 else max_bytes + 1)
            if 0 <= size < len(data) <= max_bytes:  # it has grown
                data += file.read(max_bytes + 1 - len(data))
    except OSError as error:
        raise ReadError(_SLUGS.get(error.errno, "io_error"), error.strerror or str(error)) from error
    except BeamIOError as error:
        raise ReadError("io_error", str(error)) from error
    except ValueError as error:  # an embedded NUL, a scheme without a file system
        raise ReadError("bad_uri", str(error)) from error
    _check_size(len(data), max_bytes)
    return data, modified_us


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


def load_ref(
    ref: ImageRef, pixels_HWC: np.ndarray, resize: str, limits: ImageLimits, keep_encoded: bool
) -> ImageInfo | ImageError:
    """Read and decode one image into its place in a batch.

    Args:
      ref: which image.
      pixels_HWC: uint8[S, S, 3], overwritten with the picture.
      resize, limits: see `bulktag.model.image.load_image`.
      keep_encoded: keep the file's bytes in the result.
    Returns:
      what is known of the image, or why it cannot be used.
    """
    stage = "read"
    num_bytes = ref.num_bytes
    try:
        data, modified_us = read_image(ref, limits.max_bytes)
        num_bytes = len(data)
        stage = "decode"
        image = load_image(data, pixels_HWC.shape[0], resize, limits)
    except (ReadError, BadImage) as error:
        return ImageError(ref.uri, stage, error.error_type, str(error), num_bytes)
    pixels_HWC[:] = image.pixels_HWC
    digest = hashlib.sha256(data).digest()
    encoded = data if keep_encoded else None
    return ImageInfo(ref.uri, tuple(ref.labels), num_bytes, modified_us, digest, image.width, image.height, encoded)


class _LoadImages(beam.DoFn):
    """Fills batches in a thread pool and hands each on while the next ones are being filled."""

    def __init__(self, settings: "ReadImages"):
        self._settings = settings

    def setup(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(self._settings.read_threads, "bulktag-read")

    def teardown(self):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start_bundle(self):
        self._refs: list[ImageRef] = []
        self._in_flight: collections.deque = collections.deque()

    def process(self, ref: ImageRef):
        self._refs.append(ref)
        if len(self._refs) == self._settings.batch_size:
            self._submit()
            if len(self._in_flight) > BATCHES_AHEAD:
                yield from self._collect()

    def finish_bundle(self):
        if self._refs:
            self._submit()
        while self._in_flight:
            for item in self._collect():
                if isinstance(item, beam.pvalue.TaggedOutput):
                    yield beam.pvalue.TaggedOutput(item.tag, GlobalWindows.windowed_value(item.value))
                else:
                    yield GlobalWindows.windowed_value(item)
        flush_progress(self._settings.progress_dir)

    def _submit(self):
        s = self._settings
        pixels_BHWC = np.empty((len(self._refs), s.image_size_px, s.image_size_px, 3), np.uint8)
        loading = [
            self._pool.submit(load_ref, ref, pixels_BHWC[i], s.resize, s.limits, s.keep_encoded)
            for i, ref in enumerate(self._refs)
        ]
        self._in_flight.append((pixels_BHWC, loading))
        self._refs = []

    def _collect(self):
        """Wait for the oldest batch; its failures leave, what is left closes ranks."""
        pixels_BHWC, loading = self._in_flight.popleft()
        results = [future.result() for future in loading]
        good = [i for i, result in enumerate(results) if isinstance(result, ImageInfo)]
        beam.metrics.Metrics.counter("read", "loaded").inc(len(good))
        if len(good) < len(results):
            for result in results:
                if isinstance(result, ImageError):
                    beam.metrics.Metrics.counter(result.stage, "failed").inc()
                    yield beam.pvalue.TaggedOutput(ERRORS, result)
            add_progress(self._settings.progress_dir, errors=len(results) - len(good))
            pixels_BHWC = pixels_BHWC[good]
        if good:
            yield PixelBatch([results[i] for i in good], pixels_BHWC)


@dataclasses.dataclass(eq=False)
class ReadImages(beam.PTransform):
    """Read and decode images, whole batches at a time.

    Attributes:
      image_size_px: side of the network's square.
      resize: how a picture is brought to it: crop, pad or squash.
      limits: bytes and pixels above which an image is refused before it is decoded.
      batch_size: images a batch; a bundle's last batch and one with failures are shorter.
      read_threads: images being read or decoded at once in one process.
      keep_encoded: carry the files' bytes along, for --store-images.
      progress_dir: see `add_progress`.
    Returns:
      {"batches": PCollection[PixelBatch], "errors": PCollection[ImageError]}
    """

    image_size_px: int
    resize: str
    limits: ImageLimits = dataclasses.field(default_factory=ImageLimits)
    batch_size: int = 32
    read_threads: int = 16
    keep_encoded: bool = False
    progress_dir: str | None = None

    def __post_init__(self):
        super().__init__()
        for name in ("image_size_px", "batch_size", "read_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")

    def expand(self, refs):
        """Wire it."""
        load = beam.ParDo(_LoadImages(self)).with_output_types(PixelBatch, errors=ImageError)
        loaded = refs | load.with_outputs(ERRORS, main="batches")
        return {"batches": loaded["batches"], ERRORS: loaded[ERRORS]}
