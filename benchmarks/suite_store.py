"""A real object store's API with a delay: local files beside Google Cloud Storage, emulated."""

import contextlib
import dataclasses
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.context import Context
from benchmarks.report import SUMMARY_COLUMNS, Bar, Section, summary_cells
from benchmarks.rounds import run_rounds, say, summarise
from benchmarks.systems import System, bulktag_system, parse_engine

DELAYED_SHARE, DELAY_MS = 0.85, 50.0


def run_gcs(context: Context) -> Section:
    """Images in an emulated bucket, with 50 ms added to every request, beside the same images on the disk."""
    folders = context.photo_folders(context.counts)
    bundle = context.bundle(context.network)
    flags = (*parse_engine(context.engines[0]), "--batch-size", str(context.batch_size))
    local = bulktag_system("local files", bundle, flags)
    with _delayed_store(list(folders.values())) as setting:
        systems = [local, _in_bucket(local, setting)]
        runs, failures = run_rounds(systems, folders, context.repeats, context.work)
    summaries = {name: summarise(name, costs) for name, costs in runs.items()}
    section = Section(
        "gcs", f"gcs: {context.counts} JPEGs in an emulated bucket, {DELAY_MS:.0f} ms added to every request, "
        f"{context.network}, {context.engines[0]}", SUMMARY_COLUMNS,
        [summary_cells(summary) for summary in summaries.values()],
    )  # fmt: skip
    section.notes.append("the emulator and the delay run on the same cores, and cost some of them")
    if len(summaries) == 2:
        here, there = (summary.steady_images_per_s or summary.images_per_s for summary in summaries.values())
        section.bars.append(Bar("rate as a share of the local files'", there / here, DELAYED_SHARE))
    section.data = {"systems": [*map(dataclasses.asdict, summaries.values())], "runs": runs, "failures": failures}
    return section


@contextlib.contextmanager
def _delayed_store(folders: list[pathlib.Path]) -> Iterator[str]:
    """The emulator with a bucket for each folder; yields the setting that points a program at it."""
    command = [sys.executable, "-m", "benchmarks.delayed_store", "--delay-ms", str(DELAY_MS)]
    for folder in folders:
        command += ["--images", str(folder), "--bucket", _bucket(folder)]
    say("filling the emulated bucket")
    store = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        setting = store.stdout.readline().strip()
        if not setting:
            raise RuntimeError("the emulator did not start")
        yield setting
    finally:
        store.terminate()
        store.wait()


def _bucket(folder: str | pathlib.Path) -> str:
    return f"bench-{pathlib.Path(folder).name.lower()}"


def _in_bucket(local: System, setting: str) -> System:
    def command(images: str, output: pathlib.Path) -> list[str]:
        return ["env", setting, *local.command(f"gs://{_bucket(images)}", output)]

    return dataclasses.replace(local, name=f"gs:// with {DELAY_MS:.0f} ms", command=command)
