"""What an earlier run did already: bottlenecks of images that have not changed since are taken from its shards.

Only names, times and sizes pass a shuffle; each shard is then read once, by whoever writes its bottlenecks anew.

Array suffixes: D bottleneck width.
"""

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from bulktag.transforms import files
from bulktag.transforms.examples import read_identities, read_shards
from bulktag.transforms.progress import add_progress, flush_progress
from bulktag.transforms.records import IMAGES_SCHEMA, ImageRef, ScoredBatch

_LABELS_TYPE = IMAGES_SCHEMA.field("labels").type
KEPT = "kept"


class StoredImage(NamedTuple):
    """What a shard says of an image, and which shard it is."""

    shard: str
    num_bytes: int
    modified_us: int
    generation: int


class _Wanted(NamedTuple):
    """An image of a shard that is still wanted, with the labels that it has now."""

    uri: str
    labels: tuple[str, ...]


for _record in (StoredImage, _Wanted):
    beam.coders.registry.register_coder(_record, beam.coders.RowCoder)


def is_unchanged(ref: ImageRef, stored: StoredImage) -> bool:
    """Whether an image as listed is the one that was stored: the same version, or the same size and time.

    What is unknown is no sign of either, so an image of which neither is known counts as changed.
    """
    if ref.generation >= 0 or stored.generation >= 0:
        return ref.generation == stored.generation
    if ref.num_bytes < 0 or ref.modified_us < 0:
        return False
    return (ref.num_bytes, ref.modified_us) == (stored.num_bytes, stored.modified_us)


def look_at(ref: ImageRef) -> ImageRef:
    """The ref with size and time, which a manifest does not say; as it is where nothing can be learnt."""
    if ref.num_bytes >= 0:
        return ref
    try:
        if files.is_local(ref.uri):
            status = os.stat(ref.uri)
            return ref._replace(num_bytes=status.st_size, modified_us=status.st_mtime_ns // 1000)
        found = files.describe_object(ref.uri)
    except (OSError, ValueError):
        return ref  # reading it will say what is wrong
    return ref._replace(
        num_bytes=found.num_bytes, modified_us=found.modified_us, generation=found.generation, md5=found.md5
    )


class _ListStored(beam.DoFn):
    """Shard -> (URI, what is stored) of each of its images."""

    def process(self, shard: str):
        for uri, num_bytes, modified_us, generation in read_identities(shard):
            yield uri, StoredImage(shard, num_bytes, modified_us, generation)


class _Compare(beam.DoFn):
    """(URI, its ref and what is stored of it) -> the ref, or on the output "kept" (shard, what is wanted of it)."""

    def process(self, keyed):
        uri, found = keyed
        for ref in found["refs"]:
            stored = next(iter(found["stored"]), None)
            if stored is not None and is_unchanged(look_at(ref), stored):
                beam.metrics.Metrics.counter("incremental", "kept").inc()
                yield beam.pvalue.TaggedOutput(KEPT, (stored.shard, _Wanted(uri, tuple(ref.labels))))
            else:
                yield ref


class _CopyShard(beam.DoFn):
    """(Shard, what is wanted of it) -> batches of its bottlenecks, with today's labels."""

    def __init__(self, settings: "ReuseExamples"):
        self._settings = settings

    def process(self, keyed):
        shard, wanted = keyed
        labels = {image.uri: list(image.labels) for image in wanted}
        for batch in self._read(shard, labels):
            add_progress(self._settings.progress_dir, done=batch.images.num_rows)
            yield batch

    def finish_bundle(self):
        flush_progress(self._settings.progress_dir)

    def _read(self, shard: str, labels: dict[str, list[str]]) -> Iterator[ScoredBatch]:
        s = self._settings
        for batch in read_shards((shard,), s.width, s.batch_size, keep_encoded=s.keep_encoded):
            chosen = pc.is_in(batch.images["uri"], value_set=pa.array(list(labels), pa.string()))
            images = batch.images.filter(chosen)
            if not images.num_rows:
                continue
            today = pa.array([labels.pop(uri) for uri in images["uri"].to_pylist()], _LABELS_TYPE)
            images = images.set_column(images.schema.get_field_index("labels"), IMAGES_SCHEMA.field("labels"), today)
            yield ScoredBatch(images, batch.bottleneck_BD[chosen.to_numpy(zero_copy_only=False)], None)


@dataclasses.dataclass(eq=False)
class ReuseExamples(beam.PTransform):
    """Tell images that an earlier run extracted, and that have not changed, from all others.

    Applied to PCollection[ImageRef].

    Attributes:
      shards: URIs of the earlier run's shards.
      width: D.
      batch_size: images a batch.
      keep_encoded: the images' own bytes are stored too, and are wanted.
      progress_dir: see `add_progress`.
    Returns:
      {"refs": PCollection[ImageRef] of new and changed images, "kept": PCollection[ScoredBatch] without scores}
    """

    shards: tuple[str, ...]
    width: int
    batch_size: int
    keep_encoded: bool = False
    progress_dir: str | None = None

    def __post_init__(self):
        super().__init__()

    def expand(self, refs):
        """Wire it."""
        shards = refs.pipeline | "Shards" >> beam.Create(enumerate(self.shards)) | "SpreadShards" >> beam.GroupByKey()
        listed = shards | "TakeShards" >> beam.FlatMapTuple(lambda _, group: group)
        stored = listed | "ListStored" >> beam.ParDo(_ListStored()).with_output_types(tuple[str, StoredImage])
        by_uri = refs | "ByUri" >> beam.Map(_key_by_uri).with_output_types(tuple[str, ImageRef])
        joined = {"refs": by_uri, "stored": stored} | "Join" >> beam.CoGroupByKey()
        compare = beam.ParDo(_Compare()).with_output_types(ImageRef, kept=tuple[str, _Wanted])
        compared = joined | "Compare" >> compare.with_outputs(KEPT, main="refs")
        copy = beam.ParDo(_CopyShard(self)).with_output_types(ScoredBatch)
        kept = compared[KEPT] | "ByShard" >> beam.GroupByKey() | "CopyShards" >> copy
        return {"refs": compared["refs"], KEPT: kept}


def _key_by_uri(ref: ImageRef) -> tuple[str, ImageRef]:
    return ref.uri, ref
