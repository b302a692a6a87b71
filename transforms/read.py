"""`ImageRef` -> pixels: batches are loaded ahead of the engine, failures go to an output of their own.

Array suffixes: B images, H height, W width, S side of the network's square, C channels.
"""

import dataclasses

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindows

from bulktag.model.image import ImageLimits
from bulktag.transforms.loading import BatchLoader, LoadSettings
from bulktag.transforms.progress import add_progress, flush_progress
from bulktag.transforms.records import ERRORS, ImageError, ImageInfo, ImageRef, PixelBatch, pack_images

# Batches being read and decoded while another one is on the engine: one that is nearly ready, one behind it.
BATCHES_AHEAD = 2


class _LoadImages(beam.DoFn):
    """Hands each batch on while the next ones are being loaded."""

    def __init__(self, settings: "ReadImages"):
        self._settings = settings

    def setup(self):
        s = self._settings
        self._loader = BatchLoader(LoadSettings(s.image_size_px, s.resize, s.limits, s.read_threads, s.keep_encoded))

    def teardown(self):
        self._loader.close()

    def start_bundle(self):
        self._refs: list[ImageRef] = []
        self._loader.forget()  # what a bundle that failed left behind

    def process(self, ref: ImageRef):
        self._refs.append(ref)
        if len(self._refs) == self._settings.batch_size:
            self._start()
            if len(self._loader) > BATCHES_AHEAD:
                yield from self._collect()

    def finish_bundle(self):
        if self._refs:
            self._start()
        while len(self._loader):
            for item in self._collect():
                if isinstance(item, beam.pvalue.TaggedOutput):
                    yield beam.pvalue.TaggedOutput(item.tag, GlobalWindows.windowed_value(item.value))
                else:
                    yield GlobalWindows.windowed_value(item)
        flush_progress(self._settings.progress_dir)

    def _start(self):
        refs, self._refs = self._refs, []
        self._loader.start(refs)

    def _collect(self):
        """Wait for the oldest batch; its failures leave, what is left closes ranks."""
        pixels_BHWC, results = self._loader.finish()
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
            yield PixelBatch(pack_images(results[i] for i in good), pixels_BHWC)


@dataclasses.dataclass(eq=False)
class ReadImages(beam.PTransform):
    """Read and decode images, whole batches at a time.

    Attributes:
      image_size_px: side of the network's square.
      resize: how a picture is brought to it: crop, pad or squash.
      limits: bytes and pixels above which an image is refused before it is decoded.
      batch_size: images a batch; a bundle's last batch and one with failures are shorter.
      read_threads: most images being read at once in one process.
      keep_encoded: carry the files' bytes along, for --store-images.
      progress_dir: see `add_progress`.
    Returns:
      {"batches": PCollection[PixelBatch], "errors": PCollection[ImageError]}
    """

    image_size_px: int
    resize: str
    limits: ImageLimits = dataclasses.field(default_factory=ImageLimits)
    batch_size: int = 32
    read_threads: int = 32
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
