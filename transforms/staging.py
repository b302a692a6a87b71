"""Files that a job writes before anything of it is published.

Workers write files of unique names into the run's staging folder and emit a `StagedFile` for each one that is
complete. A bundle that is tried again writes new files; what the failed attempt left is named by nobody and goes
with the staging folder. One last step writes down which files count: the launcher publishes those and no others.
"""

import dataclasses
import json
import uuid
from collections.abc import Iterable

import apache_beam as beam

from bulktag.transforms import files
from bulktag.transforms.records import SkippedFile, StagedFile
from bulktag.transforms.sources import MAX_NAMED_SKIPPED

MANIFEST_NAME = "manifest.json"


def new_file_uri(staging_dir: str, table: str, suffix: str) -> str:
    """A name in the staging folder that no other attempt uses."""
    return files.join(staging_dir, table, f"{uuid.uuid4().hex}{suffix}")


def read_manifest(staging_dir: str) -> dict:
    """What `CommitFiles` wrote: {"files": [StagedFile...], "num_matched": int, "skipped": {...}, "labels": [...]}."""
    manifest = json.loads(files.read_bytes(files.join(staging_dir, MANIFEST_NAME)))
    manifest["files"] = [StagedFile(*file) for file in manifest["files"]]
    return manifest


def _write_manifest(_, staging_dir: str, staged, num_matched: int, skipped, labels) -> None:
    manifest = {
        "files": sorted(staged, key=lambda file: (file.table, file.uri)),
        "num_matched": num_matched,
        "skipped": {reason: {"count": count, "examples": sorted(examples)} for reason, (count, examples) in skipped},
        "labels": sorted(labels),
    }
    files.write_bytes(files.join(staging_dir, MANIFEST_NAME), json.dumps(manifest).encode())


class _CountAndName(beam.CombineFn):
    """Number of skipped files, and the first few by name."""

    def create_accumulator(self):
        return 0, ()

    def add_input(self, accumulator, uri: str):
        return accumulator[0] + 1, tuple(sorted({*accumulator[1], uri})[:MAX_NAMED_SKIPPED])

    def merge_accumulators(self, accumulators: Iterable):
        count, names = 0, set()
        for other_count, other_names in accumulators:
            count += other_count
            names.update(other_names)
        return count, tuple(sorted(names)[:MAX_NAMED_SKIPPED])

    def extract_output(self, accumulator):
        return accumulator


def count_skipped(skipped: beam.PCollection) -> beam.PCollection:
    """PCollection[SkippedFile] -> one (reason, (count, names)) per reason."""

    def keyed(file: SkippedFile) -> tuple[str, str]:
        return file.reason, file.uri

    return skipped | "KeyByReason" >> beam.Map(keyed) | beam.CombinePerKey(_CountAndName())


@dataclasses.dataclass(eq=False)
class CommitFiles(beam.PTransform):
    """Write down which staged files count, once all of them are complete.

    Applied to the PCollection[StagedFile] of all tables.

    Attributes:
      staging_dir: the run's staging folder.
      num_matched: PCollection[int] of one element, the images that must have a row.
      skipped: PCollection[SkippedFile], or None.
      labels: PCollection[str] of distinct label names, or None.
    """

    staging_dir: str
    num_matched: beam.PCollection
    skipped: beam.PCollection | None = None
    labels: beam.PCollection | None = None

    def __post_init__(self):
        super().__init__()

    def expand(self, staged):
        """Wire it."""
        pipeline = staged.pipeline
        skipped = pipeline | "NoSkipped" >> beam.Create([]) if self.skipped is None else count_skipped(self.skipped)
        labels = pipeline | "NoLabels" >> beam.Create([]) if self.labels is None else self.labels
        return (
            pipeline
            | "Once" >> beam.Create([None])
            | "WriteManifest"
            >> beam.Map(
                _write_manifest,
                self.staging_dir,
                beam.pvalue.AsList(staged),
                beam.pvalue.AsSingleton(self.num_matched, default_value=0),
                beam.pvalue.AsList(skipped),
                beam.pvalue.AsList(labels),
            )
        )
