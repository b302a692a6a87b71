"""Tagging stored bottlenecks again, beside a bare loop over the same shards."""

import dataclasses
import json
import pathlib
import shutil
import statistics
import subprocess
import sys

from benchmarks.context import Context
from benchmarks.networks import REPO
from benchmarks.report import SUMMARY_COLUMNS, Bar, Section, summary_cells
from benchmarks.rounds import run_rounds, say, summarise
from benchmarks.systems import bulktag_system, warm_up

RATE, BARE_SHARE = 30_000, 0.7
HIDDEN = (1024, 120)
BACKBONE = "inception_v3"


def run_retag(context: Context) -> Section:
    """`bulktag tag --input EXAMPLES` with a head of 2048-1024-120."""
    bundle = context.bundle(BACKBONE, hidden=HIDDEN)
    counts = (max(1, context.retag_images // 4), context.retag_images)
    folders = {count: ensure_examples(context, bundle, count) for count in counts}
    loops: dict[int, list[dict]] = {count: [] for count in counts}

    def measure_loops() -> None:
        for count, folder in folders.items():
            loops[count].append(_run_loop(context, bundle, folder))
            say(f"  bare loop, {count} bottlenecks: {loops[count][-1]['examples_per_s']:,.0f}/s")

    systems = [bulktag_system("bulktag tag", bundle)]
    texts = {count: str(folder) for count, folder in folders.items()}
    runs, failures = run_rounds(systems, texts, context.repeats, context.work, also=measure_loops)
    section = Section(
        "retag", f"retag: {counts[0]:,} and {counts[1]:,} stored bottlenecks, head 2048-{HIDDEN[0]}-{HIDDEN[1]}, "
        f"shards {'in gzip' if context.compression == 'gzip' else 'not compressed'}", SUMMARY_COLUMNS,
    )  # fmt: skip
    bare = statistics.median(one["examples_per_s"] for one in loops[counts[1]])
    for name, costs in runs.items():
        summary = summarise(name, costs)
        section.rows.append(summary_cells(summary))
        if steady := summary.steady_images_per_s:
            section.bars.append(Bar("images/s in steady state", steady, RATE))
            section.bars.append(Bar("steady state as a share of the bare loop", steady / bare, BARE_SHARE))
    section.rows.append(("bare tf.data parse + matmul loop", None, bare, None, None))
    systems_found = [dataclasses.asdict(summarise(name, costs)) for name, costs in runs.items()]
    section.data = {"systems": systems_found, "runs": runs, "bare_loops": loops, "failures": failures}
    return section


def ensure_examples(context: Context, bundle: pathlib.Path, count: int) -> pathlib.Path:
    """Shards of so many drawn bottlenecks, written once."""
    folder = context.cache / "bottlenecks" / f"{bundle.parent.name}-{count}-{context.compression}"
    if not (folder / "examples.json").exists():
        say(f"writing {count:,} bottlenecks: {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            [*_command("write", bundle, folder), "--count", str(count), "--compression", context.compression],
            check=True, cwd=REPO,
        )  # fmt: skip
    warm_up(folder / "train")
    return folder


def _run_loop(context: Context, bundle: pathlib.Path, folder: pathlib.Path) -> dict:
    result = context.work / "loop.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*_command("loop", bundle, folder), "--json", str(result)], check=True, cwd=REPO,
                   capture_output=True)  # fmt: skip
    return json.loads(result.read_text(encoding="utf-8"))


def _command(what: str, bundle: pathlib.Path, folder: pathlib.Path) -> list[str]:
    return [
        sys.executable, "-m", "benchmarks.stored_bottlenecks", what, "--bundle", str(bundle), "--folder", str(folder)
    ]  # fmt: skip
