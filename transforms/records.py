"""The records that travel between transforms, the tf.Example features and the Arrow schemas.

Only `ImageRef`, `ImageError`, `SkippedFile` and `StagedFile` ever pass through a shuffle. Batches of pixels,
bottlenecks and scores stay inside one fused stage and are handed over by reference.

Array suffixes: B images in a batch, S side of the network's square, C channels, D bottleneck width, L labels.
"""

import dataclasses
import pickle
from collections.abc import Iterable
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa

from bulktag.model.tags import TAGS_TYPE, TOP_LABEL_TYPE

SPLITS = ("train", "validation", "test")
# The table of what failed, and the output of each transform that leads there.
ERRORS = "errors"


class ImageRef(NamedTuple):
    """An image that a source named and nobody has opened yet."""

    uri: str
    labels: tuple[str, ...]  # as the source gives them; empty: none known
    num_bytes: int  # as listed; -1: the source does not know
    modified_us: int  # microseconds since the epoch, UTC; -1: unknown
    generation: int = -1  # the store's number of this version; -1: it has none, as a local disk
    md5: str = ""  # of the file, hexadecimal, where the store knows it without reading


class ImageError(NamedTuple):
    """Why one image has no tags: one row of the errors table."""

    uri: str
    stage: str  # match, read, decode or infer
    error_type: str  # a stable slug: not_found, truncated, ...
    message: str
    num_bytes: int  # -1: unknown


class SkippedFile(NamedTuple):
    """A file in a folder that is no candidate: counted and named, but not an image and so not a row."""

    reason: str  # hidden, not_an_image or not_a_file
    uri: str


class StagedFile(NamedTuple):
    """A finished file in the staging folder. Only files named by a committed `StagedFile` are published."""

    table: str  # tags, errors, or one of SPLITS
    uri: str
    num_images: int
    num_bytes: int
    label_counts: dict[str, int]  # images per label; for tags, per top label
    num_novel: int = 0  # images unlike anything seen in training, where a table has that column


# Beam encodes these field by field, the same way in every process; without this it would pickle them.
for _record in (ImageRef, ImageError, SkippedFile):
    beam.coders.registry.register_coder(_record, beam.coders.RowCoder)


_TIMESTAMP = pa.timestamp("us", tz="UTC")

# What is known of the images of a batch, a row for each: the columns that the tables and the examples are made of.
IMAGES_SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("bytes", pa.int64()),  # null: unknown
        pa.field("modified", _TIMESTAMP),  # null: unknown
        pa.field("generation", pa.int64()),  # null: the store has none
        pa.field("md5", pa.string()),  # hexadecimal; null: the store does not say
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("width", pa.int32(), nullable=False),  # pixels, after EXIF orientation
        pa.field("height", pa.int32(), nullable=False),
        pa.field("encoded", pa.large_binary()),  # the file's bytes, only where asked for
    ]
)


@dataclasses.dataclass(slots=True)
class ImageInfo:
    """What is known of an image once its bytes were read: one row of `IMAGES_SCHEMA`."""

    uri: str
    labels: tuple[str, ...]
    num_bytes: int
    modified_us: int
    sha256: bytes  # 32 bytes
    width: int  # pixels, after EXIF orientation
    height: int
    encoded: bytes | None = None  # the file's bytes, kept only where asked for
    generation: int = -1  # of the object in its store
    md5: str = ""  # of the object, where the store says it


def pack_images(infos: Iterable[ImageInfo]) -> pa.RecordBatch:
    """Rows -> the columns of `IMAGES_SCHEMA`; once a batch, from images that were read one by one."""
    rows = list(infos)
    columns = [
        pa.array([row.uri for row in rows], pa.string()),
        pa.array([row.labels for row in rows], pa.list_(pa.string())),
        null_if_negative([row.num_bytes for row in rows], pa.int64()),
        null_if_negative([row.modified_us for row in rows], _TIMESTAMP),
        null_if_negative([row.generation for row in rows], pa.int64()),
        pa.array([row.md5 or None for row in rows], pa.string()),
        pa.array([row.sha256 for row in rows], pa.binary(32)),
        pa.array([row.width for row in rows], pa.int32()),
        pa.array([row.height for row in rows], pa.int32()),
        pa.array([row.encoded for row in rows], pa.large_binary()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=IMAGES_SCHEMA)


_FIELD_OF = {"bytes": "num_bytes", "modified": "modified_us"}


def unpack_images(images: pa.RecordBatch) -> list[ImageInfo]:
    """The opposite of `pack_images`."""
    columns = {name: images[name] for name in images.schema.names}
    for name in ("bytes", "modified", "generation"):
        columns[name] = columns[name].cast(pa.int64()).fill_null(-1)
    columns["md5"] = columns["md5"].fill_null("")
    lists = {_FIELD_OF.get(name, name): column.to_pylist() for name, column in columns.items()}
    lists["labels"] = map(tuple, lists["labels"])
    return [ImageInfo(**dict(zip(lists, row, strict=True))) for row in zip(*lists.values(), strict=True)]


def null_if_negative(values_B: np.ndarray | list[int], kind: pa.DataType) -> pa.Array:
    """int[B] as an Arrow array; -1, which stands for unknown, becomes null."""
    values_B = np.asarray(values_B, np.int64)
    return pa.array(values_B, pa.int64(), mask=values_B < 0).cast(kind)


@dataclasses.dataclass(slots=True)
class PixelBatch:
    """Decoded images on their way to the engine."""

    images: pa.RecordBatch  # of IMAGES_SCHEMA
    pixels_BHWC: np.ndarray  # uint8[B, S, S, 3]


@dataclasses.dataclass(slots=True)
class ScoredBatch:
    """What the engine said about a batch; either array may be missing."""

    images: pa.RecordBatch  # of IMAGES_SCHEMA
    bottleneck_BD: np.ndarray | None  # float32[B, D]
    scores_BL: np.ndarray | None  # float32[B, L], calibrated
    novelty_B: np.ndarray | None = None  # float32[B]; 0 is usual, above 1 is unlike anything seen in training


class BatchCoder(beam.coders.Coder):
    """Coder of batches that knows their size without encoding them.

    Beam asks for the size of a sample of what passes every step, the first ten elements among them, and would pickle
    megabytes of pixels to learn it.
    """

    def encode(self, value: PixelBatch | ScoredBatch) -> bytes:
        """Bytes of a batch, for a runner that does not fuse."""
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)

    def decode(self, encoded: bytes) -> PixelBatch | ScoredBatch:
        """The batch again; the bytes come from `encode` in another worker of the same job."""
        return pickle.loads(encoded)  # noqa: S301

    def is_deterministic(self) -> bool:
        """No: never to be a key."""
        return False

    def estimate_size(self, value: PixelBatch | ScoredBatch) -> int:
        """Bytes of the arrays."""
        if isinstance(value, PixelBatch):
            return value.pixels_BHWC.nbytes
        return sum(array.nbytes for array in (value.bottleneck_BD, value.scores_BL) if array is not None)


for _batch in (PixelBatch, ScoredBatch):
    beam.coders.registry.register_coder(_batch, BatchCoder)


def tags_schema(
    *, layout: str = "wide", scores: bool = False, embedding: bool = False, novelty: bool = False
) -> pa.Schema:
    """Arrow schema of the tags table.

    Args:
      layout: "wide", one row per image, or "long", one row per (uri, rank).
      scores: add `scores` list<float>, all labels in the bundle's order (wide only).
      embedding: add `embedding` list<float>, the bottleneck (wide only).
      novelty: add `novelty` float.
    """
    identity = [
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("bytes", pa.int64()),
        pa.field("modified", _TIMESTAMP),
        pa.field("generation", pa.int64()),
        pa.field("md5", pa.string()),
        pa.field("sha256", pa.string()),
        pa.field("model_id", pa.string(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("tagged_at", _TIMESTAMP, nullable=False),
    ]
    if novelty:
        identity.append(pa.field("novelty", pa.float32()))
    if layout == "long":
        row = [pa.field("rank", pa.int32()), pa.field("label", pa.string()), pa.field("score", pa.float32())]
        return pa.schema([pa.field("uri", pa.string(), nullable=False), *row, *identity])
    fields = [
        pa.field("uri", pa.string(), nullable=False),
        pa.field("tags", TAGS_TYPE, nullable=False),
        pa.field("top_label", TOP_LABEL_TYPE),
        pa.field("top_score", pa.float32()),
        *identity,
    ]
    if scores:
        fields.append(pa.field("scores", pa.list_(pa.float32())))
    if embedding:
        fields.append(pa.field("embedding", pa.list_(pa.float32())))
    return pa.schema(fields)


def errors_schema() -> pa.Schema:
    """Arrow schema of the errors table."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("stage", pa.string(), nullable=False),
            pa.field("error_type", pa.string(), nullable=False),
            pa.field("message", pa.string(), nullable=False),
            pa.field("bytes", pa.int64()),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("at", _TIMESTAMP, nullable=False),
        ]
    )
