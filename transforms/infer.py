"""Beam `ModelHandler`s: batches of pixels or bottlenecks -> bottlenecks and scores.

Elements are whole batches already (`ReadImages`, `ReadExamples`), so the handlers ask Beam for no batching of its
own: each call gets one `PixelBatch` or `ScoredBatch` and returns one `ScoredBatch`, its rows in the same order.
"""

import dataclasses
from collections.abc import Iterable, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, RunInference

from bulktag.model.backbone import load_backbone
from bulktag.model.bundle import load_bundle
from bulktag.model.engine import Tagger, build_backbone_engine, build_head_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.fixed_batch import FixedBatchEngine
from bulktag.model.hardware import describe_device
from bulktag.model.novelty import NoveltyModel
from bulktag.transforms import files
from bulktag.transforms.progress import add_progress
from bulktag.transforms.records import PixelBatch, ScoredBatch


class BundleTagger:
    """A bundle ready to run: pixels or bottlenecks -> bottlenecks, scores and novelty.

    Args:
      engine: of the network and the head, or of the head alone.
      novelty: None where nobody asks for it.
    """

    def __init__(self, engine: Tagger | FixedBatchEngine, novelty: NoveltyModel | None):
        self._engine, self._novelty = engine, novelty

    def describe(self) -> str:
        """Engine, precision and device."""
        return self._engine.describe()

    def run_pixels(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """float32[B, D], float32[B, L] and float32[B]."""
        bottleneck_BD, scores_BL = self._engine.run(pixels_BHWC)
        return bottleneck_BD, scores_BL, self._score(bottleneck_BD)

    def run_bottlenecks(self, bottleneck_BD: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """float32[B, L] and float32[B]."""
        return self._engine.run(bottleneck_BD), self._score(bottleneck_BD)

    def _score(self, bottleneck_BD: np.ndarray) -> np.ndarray | None:
        return None if self._novelty is None else self._novelty.score(bottleneck_BD)


class _WholeBatchHandler(ModelHandler):
    """What the handlers share: one element is one batch, and its size is its array's size.

    Args:
      folder: of the model.
      settings: how it is executed.
      novelty: say how unlike the training images each one is.
    """

    def __init__(self, folder: str, settings: EngineSettings, novelty: bool = False):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._folder, self._settings, self._novelty = folder, settings, novelty
        self._models_loaded = 0  # since it was last counted

    def _count(self, engine: FixedBatchEngine | BundleTagger, num_images: int) -> None:
        """The counters of a run say what scored how many of its images: workers may differ in their processors."""
        beam.metrics.Metrics.counter("engine", engine.describe()).inc(num_images)
        if self._models_loaded:  # only now is there a bundle to count for
            beam.metrics.Metrics.counter("infer", "models_loaded").inc(self._models_loaded)
            self._models_loaded = 0

    def _local_settings(self) -> EngineSettings:
        if not self._settings.quantised:
            return self._settings
        return dataclasses.replace(self._settings, quantised=files.fetch_folder(self._settings.quantised))

    def share_model_across_processes(self) -> bool:
        """Whether the worker processes of a machine use the model of one of them; Beam asks in each of them.

        A GPU's memory holds one copy, and its processes take turns anyhow. On a CPU a copy a process is faster: pixels
        need not travel between them.
        """
        if self._settings.model_copies:
            return True
        return describe_device(self._settings.device) != "CPU"

    def model_copies(self) -> int:
        """How many models the processes of a machine share."""
        return self._settings.model_copies or 1

    def get_num_bytes(self, batch: Sequence) -> int:
        """Bytes of the arrays; the default pickles them."""
        return sum(_nbytes(item) for item in batch)

    def get_metrics_namespace(self) -> str:
        """Where Beam counts batches and latencies."""
        return "infer"


def _nbytes(batch: PixelBatch | ScoredBatch) -> int:
    return (batch.pixels_BHWC if isinstance(batch, PixelBatch) else batch.bottleneck_BD).nbytes


class BackboneHandler(_WholeBatchHandler):
    """PixelBatch -> ScoredBatch with bottlenecks only; `folder` is what `Backbone.save` wrote."""

    def load_model(self) -> FixedBatchEngine:
        """Once a process."""
        self._models_loaded += 1
        backbone = load_backbone(files.fetch_folder(self._folder))
        return build_backbone_engine(backbone.graph_def, self._local_settings())

    def run_inference(
        self, batch: Sequence[PixelBatch], model: FixedBatchEngine, inference_args=None
    ) -> Iterable[ScoredBatch]:
        """One result for each batch."""
        for item in batch:
            self._count(model, item.images.num_rows)
            yield ScoredBatch(item.images, model.run(item.pixels_BHWC), None)


class TaggerHandler(_WholeBatchHandler):
    """PixelBatch -> ScoredBatch with bottlenecks and scores; `folder` is a model bundle."""

    def load_model(self) -> BundleTagger:
        """Once a process."""
        self._models_loaded += 1
        bundle = load_bundle(files.fetch_folder(self._folder))
        tagger = Tagger(bundle.backbone_graph(), bundle.head_graph(), self._local_settings())
        return BundleTagger(tagger, bundle.novelty_model() if self._novelty else None)

    def run_inference(
        self, batch: Sequence[PixelBatch], model: BundleTagger, inference_args=None
    ) -> Iterable[ScoredBatch]:
        """One result for each batch."""
        for item in batch:
            self._count(model, item.images.num_rows)
            yield ScoredBatch(item.images, *model.run_pixels(item.pixels_BHWC))


class HeadHandler(_WholeBatchHandler):
    """ScoredBatch with bottlenecks -> the same with scores; `folder` is a model bundle."""

    def load_model(self) -> BundleTagger:
        """Once a process."""
        self._models_loaded += 1
        bundle = load_bundle(files.fetch_folder(self._folder))
        engine = build_head_engine(bundle.head_graph(), self._settings)
        return BundleTagger(engine, bundle.novelty_model() if self._novelty else None)

    def run_inference(
        self, batch: Sequence[ScoredBatch], model: BundleTagger, inference_args=None
    ) -> Iterable[ScoredBatch]:
        """One result for each batch."""
        for item in batch:
            self._count(model, item.images.num_rows)
            scores_BL, novelty_B = model.run_bottlenecks(item.bottleneck_BD)
            yield ScoredBatch(item.images, item.bottleneck_BD, scores_BL, novelty_B)


def _note_done(batch: ScoredBatch, progress_dir: str | None) -> ScoredBatch:
    beam.metrics.Metrics.counter("infer", "scored").inc(batch.images.num_rows)
    add_progress(progress_dir, done=batch.images.num_rows)
    return batch


@dataclasses.dataclass(eq=False)
class InferBatches(beam.PTransform):
    """Run a handler over batches.

    Attributes:
      handler: one of this module's handlers.
      progress_dir: see `add_progress`.
    """

    handler: ModelHandler
    progress_dir: str | None = None

    def __post_init__(self):
        super().__init__()

    def expand(self, batches):
        """Wire it."""
        return (
            batches
            | RunInference(self.handler).with_output_types(ScoredBatch)
            | "NoteDone" >> beam.Map(_note_done, self.progress_dir).with_output_types(ScoredBatch)
        )
