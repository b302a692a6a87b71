"""Bottlenecks that TensorFlow's `retrain.py` cached: a folder a label, in it a text of numbers for each image.

`LABEL/NAME.jpg_inception_v3.txt`, or with the address of a module in place of the network, holds the numbers with
commas between them. Source: https://github.com/tensorflow/hub/blob/r0.1/examples/image_retraining/retrain.py
(`get_bottleneck_path`, `create_bottleneck_file`)

Array suffixes: B images, D bottleneck width.
"""

import concurrent.futures
import hashlib
import itertools
import os
import re

import apache_beam as beam
import numpy as np
from apache_beam.transforms.window import GlobalWindows

from bulktag.model.image import BadImage
from bulktag.transforms import files
from bulktag.transforms.loading import ReadError, read_image
from bulktag.transforms.progress import add_progress, flush_progress
from bulktag.transforms.records import ERRORS, ImageError, ImageInfo, ImageRef, ScoredBatch, pack_images

_NAME = re.compile(r"[^/]+\.(?:jpe?g|png|gif|bmp)(?:_[^/]*)?\.txt", re.IGNORECASE)
# A bottleneck of 2,048 numbers takes about 20 KB.
MAX_TEXT_BYTES = 1 << 20
_NAMES_LOOKED_AT = 50


def skip_reason(relative_path: str) -> str | None:
    """Why a file in such a folder is no bottleneck, or None."""
    names = relative_path.split("/")
    if any(name.startswith(".") for name in names):
        return "hidden"
    return None if _NAME.fullmatch(names[-1]) else "not_a_bottleneck"


def holds_bottlenecks(folder: str) -> bool:
    """Whether a folder is one of them, judged by the first names in it."""
    try:
        found = list(itertools.islice(_first_names(folder), _NAMES_LOOKED_AT))
    except OSError:
        return False  # listing it will say what is wrong
    return bool(found) and all(_NAME.fullmatch(name) for name in found)


def _first_names(folder: str):
    """Names of some files in the first folder below, or in this one where there is none; not hidden ones."""
    if not files.is_local(folder):
        for stored in itertools.islice(files.list_below(folder), _NAMES_LOOKED_AT):
            yield stored.uri.rsplit("/", 1)[1]
        return
    with os.scandir(folder) as entries:
        below = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    folders = [name for name in below if os.path.isdir(os.path.join(folder, name))]
    for name in os.listdir(os.path.join(folder, folders[0])) if folders else below:
        if not name.startswith("."):
            yield name


def parse_bottleneck(text: bytes, width: int) -> np.ndarray:
    """float32[D] of one text.

    Raises:
      BadImage: it holds something else than `width` finite numbers with commas between them.
    """
    try:
        values_D = np.array(text.decode("ascii").strip().split(","), np.float32)
    except ValueError as error:
        raise BadImage("bad_bottleneck", "expected numbers with commas between them") from error
    if values_D.shape != (width,) or not np.isfinite(values_D).all():
        raise BadImage("bad_bottleneck", f"expected {width} finite numbers, got {values_D.size}")
    return values_D


def check_width(uri: str, width: int) -> None:
    """Look at one text of a folder before a job starts.

    Raises:
      ValueError: it is of another network.
    """
    data, _ = read_image(ImageRef(uri, (), -1, -1), MAX_TEXT_BYTES)
    found = data.count(b",") + 1
    if found != width:
        raise ValueError(f"expected bottlenecks of {width} numbers, as --backbone makes them, got {found}: {uri}")


class _ReadTexts(beam.DoFn):
    """Refs of texts -> batches of bottlenecks."""

    def __init__(self, width: int, batch_size: int, read_threads: int, progress_dir: str | None):
        self._width, self._batch_size, self._read_threads = width, batch_size, read_threads
        self._progress_dir = progress_dir

    def setup(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(self._read_threads, "bulktag-read")

    def teardown(self):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start_bundle(self):
        self._refs: list[ImageRef] = []

    def process(self, ref: ImageRef):
        self._refs.append(ref)
        if len(self._refs) == self._batch_size:
            yield from self._read()

    def finish_bundle(self):
        for item in self._read():
            if isinstance(item, beam.pvalue.TaggedOutput):
                yield beam.pvalue.TaggedOutput(item.tag, GlobalWindows.windowed_value(item.value))
            else:
                yield GlobalWindows.windowed_value(item)
        flush_progress(self._progress_dir)

    def _read(self):
        refs, self._refs = self._refs, []
        good = []
        for result in self._pool.map(self._load, refs):
            if isinstance(result, ImageError):
                beam.metrics.Metrics.counter(result.stage, "failed").inc()
                yield beam.pvalue.TaggedOutput(ERRORS, result)
            else:
                good.append(result)
        add_progress(self._progress_dir, done=len(good), errors=len(refs) - len(good))
        if good:
            yield ScoredBatch(pack_images(info for info, _ in good), np.stack([values for _, values in good]), None)

    def _load(self, ref: ImageRef) -> tuple[ImageInfo, np.ndarray] | ImageError:
        stage = "read"
        try:
            data, ref = read_image(ref, MAX_TEXT_BYTES)
            stage = "decode"
            values_D = parse_bottleneck(data, self._width)
        except (ReadError, BadImage) as error:
            return ImageError(ref.uri, stage, error.error_type, str(error), ref.num_bytes)
        # The picture's size is not known: 0.
        info = ImageInfo(ref.uri, tuple(ref.labels), len(data), ref.modified_us, hashlib.sha256(data).digest(), 0, 0,
                         generation=ref.generation, md5=ref.md5)  # fmt: skip
        return info, values_D


class ReadBottlenecks(beam.PTransform):
    """PCollection[ImageRef] of texts -> {"bottlenecks": PCollection[ScoredBatch], "errors": PCollection[ImageError]}.

    Args:
      width: D.
      batch_size: images a batch.
      read_threads: texts being read at once.
      progress_dir: see `add_progress`.
    """

    def __init__(self, width: int, batch_size: int, read_threads: int, progress_dir: str | None = None):
        super().__init__()
        self._settings = (width, batch_size, read_threads, progress_dir)

    def expand(self, refs):
        """Wire it."""
        read = beam.ParDo(_ReadTexts(*self._settings)).with_output_types(ScoredBatch, errors=ImageError)
        found = refs | read.with_outputs(ERRORS, main="bottlenecks")
        return {"bottlenecks": found["bottlenecks"], ERRORS: found[ERRORS]}
