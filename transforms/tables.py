"""Scores and errors -> Parquet files.

Array suffixes: B images, D bottleneck width, L labels.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.transforms.window import GlobalWindows

from bulktag.model.tags import rank_tags, tags_array, top_arrays
from bulktag.transforms import files
from bulktag.transforms.parquet import TableFiles
from bulktag.transforms.records import (
    ERRORS,
    ImageError,
    ScoredBatch,
    StagedFile,
    errors_schema,
    null_if_negative,
    tags_schema,
)

TAGS = "tags"
# Batches that wait to be written while the next one is on the engine.
BATCHES_BEHIND = 2


@dataclasses.dataclass(frozen=True)
class TagSettings:
    """What stands in a row of tags.

    Attributes:
      labels: the bundle's labels, in the order of its scores.
      thresholds: score from which each label counts as a tag, in the same order.
      top_k: most tags an image.
      layout: "wide", one row per image, or "long", one row per tag.
      scores, embedding: add a column of all scores, of the bottleneck (wide only).
      novelty: add a column that says how unlike the training images each one is.
      model_id, run_id: written into each row.
    """

    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    top_k: int = 5
    layout: str = "wide"
    scores: bool = False
    embedding: bool = False
    novelty: bool = False
    model_id: str = ""
    run_id: str = ""

    def __post_init__(self):
        if self.layout not in ("wide", "long"):
            raise ValueError(f"expected layout wide or long, got {self.layout!r}")
        if self.layout == "long" and (self.scores or self.embedding):
            raise ValueError("expected no scores or embedding column with layout long, got one")
        if self.top_k < 1:
            raise ValueError(f"expected top_k of at least 1, got {self.top_k}")
        assert len(self.labels) == len(self.thresholds)

    @functools.cached_property
    def label_array(self) -> pa.StringArray:
        """The labels as the dictionary that all batches share."""
        return pa.array(self.labels, pa.string())

    @functools.cached_property
    def thresholds_L(self) -> np.ndarray:
        """float32[L]."""
        return np.asarray(self.thresholds, np.float32)

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """Arrow schema of these rows."""
        return tags_schema(layout=self.layout, scores=self.scores, embedding=self.embedding, novelty=self.novelty)


def build_tags(batch: ScoredBatch, settings: TagSettings, tagged_at_us: int) -> pa.RecordBatch:
    """A batch of scores as rows of the tags table.

    Args:
      batch: images and their scores.
      settings: what stands in a row.
      tagged_at_us: microseconds since the epoch, UTC.
    Returns:
      a record batch of `settings.schema`; an image without a tag has one row with an empty list (in the long
      layout, one row of rank null).
    """
    ranked = rank_tags(batch.scores_BL, settings.thresholds_L, settings.top_k)
    tags = tags_array(settings.label_array, *ranked)
    identity = _identity_columns(batch.images, settings, tagged_at_us)
    if settings.novelty:
        identity["novelty"] = pa.array(batch.novelty_B, pa.float32())
    uris = batch.images["uri"]
    if settings.layout == "long":
        return _long_rows(uris, tags, identity, settings.schema)
    top_label, top_score = top_arrays(settings.label_array, *ranked)
    arrays = {"uri": uris, "tags": tags, "top_label": top_label, "top_score": top_score, **identity}
    if settings.scores:
        arrays["scores"] = _list_array(batch.scores_BL)
    if settings.embedding:
        arrays["embedding"] = _list_array(batch.bottleneck_BD)
    schema = settings.schema
    return pa.RecordBatch.from_arrays([arrays[field.name].cast(field.type) for field in schema], schema=schema)


def _identity_columns(images: pa.RecordBatch, settings: TagSettings, tagged_at_us: int) -> dict[str, pa.Array]:
    n = images.num_rows
    return {
        **{name: images[name] for name in ("width", "height", "bytes", "modified", "generation", "md5")},
        "sha256": _hexadecimal(images["sha256"]),
        "model_id": pa.repeat(settings.model_id, n),
        "run_id": pa.repeat(settings.run_id, n),
        "tagged_at": pa.repeat(pa.scalar(tagged_at_us, settings.schema.field("tagged_at").type), n),
    }


# Both digits of each byte, as one number.
_DIGITS = np.array([f"{byte:02x}" for byte in range(256)], "S2").view(np.uint16)


def _hexadecimal(digests: pa.FixedSizeBinaryArray) -> pa.StringArray:
    """Digests as lower-case hexadecimal digits."""
    n, width = len(digests), digests.type.byte_width
    digits = _DIGITS[np.frombuffer(digests.buffers()[1], np.uint8)[digests.offset * width :][: n * width]]
    offsets = np.arange(n + 1, dtype=np.int32) * (2 * width)
    return pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(digits))


def _list_array(values_BN: np.ndarray) -> pa.ListArray:
    num_rows, width = values_BN.shape
    offsets = np.arange(num_rows + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(offsets, pa.array(values_BN.astype(np.float32, copy=False).reshape(-1)))


def _long_rows(uris, tags: pa.ListArray, identity: dict, schema: pa.Schema) -> pa.RecordBatch:
    """Explode lists of tags; an image without tags keeps one row, so that none is lost."""
    counts = np.diff(np.asarray(tags.offsets))
    row_of = np.repeat(np.arange(len(counts)), np.maximum(counts, 1))
    first = np.concatenate([[0], np.cumsum(np.maximum(counts, 1))[:-1]])
    rank = np.arange(len(row_of)) - first[row_of]
    empty = counts[row_of] == 0
    tag_of = np.asarray(tags.offsets)[:-1][row_of] + rank
    labels, scores = tags.values.take(pa.array(tag_of, mask=empty)).flatten()
    arrays = {
        "uri": uris.take(pa.array(row_of)),
        "rank": pa.array((rank + 1).astype(np.int32), mask=empty),
        "label": labels,
        "score": scores,
        **{name: column.take(pa.array(row_of)) for name, column in identity.items()},
    }
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def build_errors(errors: Iterable[ImageError], run_id: str, at_us: int) -> pa.RecordBatch:
    """Errors as rows of the errors table; `at_us` is microseconds since the epoch, UTC."""
    rows = list(errors)
    schema = errors_schema()
    columns = [
        pa.array([row.uri for row in rows], pa.string()),
        pa.array([row.stage for row in rows], pa.string()),
        pa.array([row.error_type for row in rows], pa.string()),
        pa.array([row.message for row in rows], pa.string()),
        null_if_negative([row.num_bytes for row in rows], pa.int64()),
        pa.repeat(run_id, len(rows)),
        pa.repeat(pa.scalar(at_us, schema.field("at").type), len(rows)),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def write_empty_table(uri: str, schema: pa.Schema) -> None:
    """A Parquet file without rows: readers of an empty table find its columns instead of no file."""
    with files.create_file(uri) as file:
        pq.write_table(schema.empty_table(), file)


class _WriteTable(beam.DoFn):
    """Batches of anything -> Parquet files of one bundle.

    A thread builds and writes the rows of one batch while the caller makes the next.

    Args:
      staging_dir, table, schema: where to, and what stands in a row.
      build: makes a record batch of an element; called in the thread.
    """

    def __init__(self, staging_dir: str, table: str, schema: pa.Schema, build: Callable[[Any], pa.RecordBatch]):
        self._staging_dir, self._table, self._schema, self._build = staging_dir, table, schema, build

    def setup(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(1, f"bulktag-{self._table}")

    def teardown(self):
        self._pool.shutdown(wait=False, cancel_futures=True)

    def start_bundle(self):
        # New ones: what a failed attempt left to be written goes to files that nobody names.
        self._files = TableFiles(self._staging_dir, self._table, self._schema)
        self._writing: collections.deque[concurrent.futures.Future] = collections.deque()

    def process(self, element):
        self._writing.append(self._pool.submit(self._write, self._files, element))
        if len(self._writing) > BATCHES_BEHIND:
            yield from self._finished()

    def finish_bundle(self):
        self._writing.append(self._pool.submit(self._files.close))
        while self._writing:
            for file in self._finished():
                yield GlobalWindows.windowed_value(file)

    def _write(self, table_files: TableFiles, element) -> list[StagedFile]:
        return table_files.write(self._build(element))

    def _finished(self) -> Iterator[StagedFile]:
        """Files that the oldest batch filled; what went wrong with it is raised here."""
        for file in self._writing.popleft().result():
            beam.metrics.Metrics.counter(self._table, "written").inc(file.num_images)
            yield file


@dataclasses.dataclass(eq=False)
class WriteTags(beam.PTransform):
    """PCollection[ScoredBatch] -> Parquet files of tags -> PCollection[StagedFile].

    Attributes:
      staging_dir: the run's staging folder.
      settings: what stands in a row.
    """

    staging_dir: str
    settings: TagSettings

    def __post_init__(self):
        super().__init__()

    def expand(self, batches):
        """Wire it."""
        build = functools.partial(_build_tags_now, self.settings)
        write = _WriteTable(self.staging_dir, TAGS, self.settings.schema, build)
        return batches | "WriteTags" >> beam.ParDo(write).with_output_types(StagedFile)


def _build_tags_now(settings: TagSettings, batch: ScoredBatch) -> pa.RecordBatch:
    return build_tags(batch, settings, time.time_ns() // 1000)


def _build_errors_now(run_id: str, errors: list[ImageError]) -> pa.RecordBatch:
    return build_errors(errors, run_id, time.time_ns() // 1000)


@dataclasses.dataclass(eq=False)
class WriteErrors(beam.PTransform):
    """PCollection[ImageError] -> Parquet files of errors -> PCollection[StagedFile].

    Attributes:
      staging_dir: the run's staging folder.
      run_id: written into each row.
    """

    staging_dir: str
    run_id: str

    def __post_init__(self):
        super().__init__()

    def expand(self, errors):
        """Wire it."""
        build = functools.partial(_build_errors_now, self.run_id)
        write = _WriteTable(self.staging_dir, ERRORS, errors_schema(), build)
        return (
            errors
            | beam.BatchElements(min_batch_size=100, max_batch_size=10_000)
            | "WriteErrors" >> beam.ParDo(write).with_output_types(StagedFile)
        )
