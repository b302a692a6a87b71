"""What a run of a Beam job came to: the counts, whether they add up, and run.json."""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
from collections.abc import Callable
from typing import Any

import apache_beam as beam

import bulktag
from bulktag.pipeline import publish
from bulktag.pipeline.console import OUT, print_table, say, warn
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.workspace import remove_staging_on_store
from bulktag.transforms import files
from bulktag.transforms.records import StagedFile

_VERSIONS = ("apache-beam", "tensorflow", "tensorflow-cpu", "keras", "numpy", "pyarrow", "pillow")
NAMED_SKIPPED_SHOWN = 3


def versions() -> dict[str, str]:
    """Versions of Python, bulktag and what it stands on, as installed."""
    found = {"python": platform.python_version(), "bulktag": bulktag.__version__}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclasses.dataclass
class RunRecord:
    """Facts of one run, gathered while it goes; `to_json` is run.json."""

    job: str
    run_id: str
    config: Any
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    started: datetime.datetime = dataclasses.field(default_factory=lambda: datetime.datetime.now(datetime.UTC))

    @property
    def job_name(self) -> str:
        """As runners show it: lower case letters, digits and hyphens."""
        return f"bulktag-{self.job}-{self.run_id.lower()}"

    def note(self, **facts: Any) -> None:
        """Add facts to run.json."""
        self.facts.update(facts)

    def note_engine(self) -> None:
        """The engines that the workers chose, once the job has ended."""
        names = [name.removeprefix("engine/") for name in sorted(self.facts["counters"]) if name.startswith("engine/")]
        if names:
            self.note(engine="; ".join(names))

    def warn(self, text: str) -> None:
        """Warn on the terminal and in run.json."""
        self.warnings.append(text)
        warn(text)

    def to_json(self, status: str) -> dict[str, Any]:
        """Contents of run.json; `status` is "succeeded" or "failed: why"."""
        # By the clock on the wall: a job that publishes itself does so on another machine than it was started on.
        seconds = (datetime.datetime.now(datetime.UTC) - self.started).total_seconds()
        counts = self.facts.get("counts", {})
        rate = {"images_per_second": round(counts["matched"] / seconds, 2)} if counts.get("matched") else {}
        return {
            "job": self.job,
            "run_id": self.run_id,
            "status": status,
            "started_at": self.started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 2),
            **rate,
            **self.facts,
            "warnings": self.warnings,
            "config": dataclasses.asdict(self.config),
            "versions": versions(),
        }


def count_images(manifest: dict, good_tables: tuple[str, ...]) -> dict[str, int]:
    """Count a run's images from the files that it publishes.

    Args:
      manifest: what `CommitFiles` wrote.
      good_tables: tables whose images were used.
    Returns:
      matched, used, errors.
    Raises:
      AssertionError: they do not add up: an image was lost or stands twice.
    """
    staged: list[StagedFile] = manifest["files"]
    used = sum(file.num_images for file in staged if file.table in good_tables)
    errors = sum(file.num_images for file in staged if file.table == "errors")
    matched = manifest["num_matched"]
    if used + errors != matched:
        raise AssertionError(f"{matched} images matched, but {used} used + {errors} errors = {used + errors}")
    return {"matched": matched, "used": used, "errors": errors}


def sum_labels(staged: list[StagedFile], tables: tuple[str, ...]) -> dict[str, int]:
    """Images per label over the staged files of some tables."""
    totals: dict[str, int] = {}
    for file in staged:
        if file.table in tables:
            for label, count in file.label_counts.items():
                totals[label] = totals.get(label, 0) + count
    return dict(sorted(totals.items()))


def check_counts(counts: dict[str, int], max_error_share: float, verb: str) -> None:
    """No false success.

    Raises:
      JobFailed: nothing matched, nothing could be used, or too much could not.
    """
    if not counts["matched"]:
        raise JobFailed("no image matched the input")
    if not counts["used"]:
        raise JobFailed(f"none of {counts['matched']} images could be {verb}")
    share = counts["errors"] / counts["matched"]
    if share > max_error_share:
        raise JobFailed(
            f"{counts['errors']} of {counts['matched']} images ({share:.1%}) could not be {verb}, "
            f"more than --max-error-share {max_error_share:g}"
        )


def keep_failed(record: RunRecord, made: publish.Staging, failure: JobFailed) -> JobFailed:
    """Keep what a run without success made, marked as such, and say where."""
    if not record.facts["counts"]["matched"]:
        return JobFailed(f"{failure}; nothing was published")
    folder = publish.publish_failed(made, record.to_json(f"failed: {failure}"))
    return JobFailed(f"{failure}; nothing was published, what was made is kept in {folder}")


def report_skipped(skipped: dict[str, dict]) -> None:
    """Name the files of a folder that were no candidates."""
    words = {
        "hidden": ("hidden file", "hidden files"),
        "not_an_image": ("file that is no image", "files that are no images"),
        "not_a_file": ("pipe, socket or device", "pipes, sockets or devices"),
    }
    for reason, found in sorted(skipped.items()):
        names = ", ".join(name.rsplit("/", 1)[-1] for name in found["examples"][:NAMED_SKIPPED_SHOWN])
        more = ", ..." if found["count"] > NAMED_SKIPPED_SHOWN else ""
        one, many = words.get(reason, (reason, reason))
        say(f"skipped {found['count']} {one if found['count'] == 1 else many}: {names}{more}")


def print_errors(errors: dict[str, int]) -> None:
    """A table of what went wrong how often."""
    if errors:
        rows = [(kind, count) for kind, count in sorted(errors.items(), key=lambda item: -item[1])]
        print_table(("error", "images"), rows)
        OUT.print()


def publish_behind(last: beam.PCollection, finish: Callable[..., dict], record: RunRecord, made: publish.Staging,
                   *arguments: Any) -> None:  # fmt: skip
    """Have the last step of a job publish what it made: no launcher waits for it."""
    last | "Publish" >> beam.Map(_publish_on_worker, finish, record, made, arguments)


FAILURE_FILE = "failed.json"


def _publish_on_worker(_, finish: Callable[..., dict], record: RunRecord, made: publish.Staging, arguments) -> None:
    """Publish, or say why not; a worker that is asked again, because its answer was lost, says the same."""
    root = files.join(made.output, publish.STAGING_PREFIX + record.run_id)
    failure_file = files.join(made.work, FAILURE_FILE)
    if files.is_file(failure_file):
        raise JobFailed(json.loads(files.read_bytes(failure_file))["message"])
    if not files.is_folder(made.work):
        return  # published, and cleared away
    if not publish.is_published(made.output, record.run_id):
        try:
            finish(record, made, *arguments)
        except JobFailed as failure:
            files.write_bytes(failure_file, json.dumps({"message": str(failure)}).encode())
            raise
    remove_staging_on_store(root)


def report_detached(record: RunRecord) -> dict:
    """Say that a job goes on alone; returns what is known of it."""
    where = f": {record.facts['dataflow']['url']}" if "dataflow" in record.facts else ", as a template"
    OUT.print(f"{record.job_name} goes on without this machine and publishes at its end{where}", markup=False)
    return record.to_json("started")
