"""How a job scales: memory, cost by images, start-up, worker processes, a GPU."""

import dataclasses
import json
import statistics
import subprocess
import sys
import threading

import numpy as np

from benchmarks.context import Context
from benchmarks.machine import describe_gpu
from benchmarks.measure import Cost, run_measured
from benchmarks.report import SUMMARY_COLUMNS, Bar, Section, summary_cells
from benchmarks.rounds import run_once, run_rounds, summarise
from benchmarks.systems import ENVIRONMENT, bulktag_system, parse_engine

MEMORY_MIB, LINEAR_SHARE, STARTUP_S, GPU_BUSY = 150 * 1e6 / 2**20, 0.10, 5.0, 0.90
GPU_EVERY_MS = 200


def run_memory(context: Context) -> Section:
    """Peak memory of many images and of few."""
    folders = context.photo_folders(context.memory_counts)
    bundle = context.bundle(context.memory_network)
    systems = context.tag_systems(bundle, context.batch_size)
    runs, failures = run_rounds(systems, folders, context.repeats, context.work)
    few, many = min(folders), max(folders)
    section = Section(
        "memory", f"memory: peaks at {few:,} and {many:,} images, {context.memory_network}, batch {context.batch_size}",
        ("system", f"MiB at {few:,}", f"MiB at {many:,}", "MiB more"),
    )  # fmt: skip
    for name, costs in runs.items():
        peaks = [statistics.median(cost.peak_mib for cost in costs[count]) for count in (few, many)]
        section.rows.append((name, *map(round, peaks), round(peaks[1] - peaks[0])))
        section.bars.append(Bar(f"{name}: MiB more (150 MB)", peaks[1] - peaks[0], MEMORY_MIB, at_most=True))
    if context.memory_network != context.network:
        section.notes.append(f"a small network, so that {many:,} images are affordable; --memory-network changes it")
    section.data = {"runs": runs, "failures": failures}
    return section


def run_linear(context: Context) -> Section:
    """Seconds by number of images: a line."""
    folders = context.photo_folders(context.linear_counts)
    systems = context.tag_systems(context.bundle(context.network), context.batch_size)[:1]
    runs, failures = run_rounds(systems, folders, context.repeats, context.work)
    section = Section("linear", f"linear: {context.network}, {context.engines[0]}",
                      ("images", "seconds", "on the line", "off by"))  # fmt: skip
    for costs in runs.values():
        counts = sorted(costs)
        seconds = [statistics.median(cost.seconds for cost in costs[count]) for count in counts]
        line, off = fit_line(counts, seconds)
        section.rows += [(count, took, at, f"{share:+.1%}")
                         for count, took, at, share in zip(counts, seconds, line, off, strict=True)]  # fmt: skip
        section.bars.append(Bar("largest distance from the line, as a share", max(map(abs, off)), LINEAR_SHARE, True))
    section.data = {"runs": runs, "failures": failures}
    return section


def fit_line(counts: list[int], seconds: list[float]) -> tuple[list[float], list[float]]:
    """The least-squares line: its values, and how far off each point is as a share of its value."""
    slope, start = np.polyfit(counts, seconds, 1)
    line = [float(start + slope * count) for count in counts]
    return line, [took / at - 1 for took, at in zip(seconds, line, strict=True)]


def run_startup(context: Context) -> Section:
    """From the command to the first batch, beyond importing TensorFlow."""
    count = context.batch_size
    folder = str(context.photo_folder(count))
    bundle = context.bundle(context.network)
    first = context.work / "first_batch.json"
    title = f"startup: {context.network}, a first batch of {count}, medians of {context.repeats}"
    columns = ("system", "s to the first batch", "s of import tensorflow", "s beyond it", "s in all")
    section = Section("startup", title, columns)
    data = {}
    for text in context.engines:
        flags = (*parse_engine(text), "--batch-size", str(count))
        hooked = bulktag_system(f"bulktag {text}", bundle, flags, hooks=("--first-batch", str(first)))
        firsts, imports, totals = [], [], []
        for _ in range(context.repeats):
            first.unlink(missing_ok=True)
            cost = run_once(hooked, folder, count, context.work)
            totals.append(cost.seconds)
            firsts.append(json.loads(first.read_text(encoding="utf-8"))["first_batch"] - cost.started)
            log = context.work / "logs" / "import.log"
            command = [sys.executable, "-c", "import tensorflow"]
            imports.append(run_measured(command, log, environment=ENVIRONMENT).seconds)
        medians = [statistics.median(values) for values in (firsts, imports, totals)]
        beyond = medians[0] - medians[1]
        section.rows.append((hooked.name, medians[0], medians[1], beyond, medians[2]))
        section.bars.append(Bar(f"{text}: seconds beyond import tensorflow", beyond, STARTUP_S, at_most=True))
        data[text] = {"first_batch_s": firsts, "import_tensorflow_s": imports, "total_s": totals}
    section.data = {"runs": data}
    return section


def run_workers(context: Context) -> Section:
    """Several worker processes: rate and memory of each."""
    folders = context.photo_folders(context.counts)
    bundle = context.bundle(context.network)
    flags = (*parse_engine(context.engines[0]), "--batch-size", str(context.batch_size))
    systems = [bulktag_system(f"--workers {number}", bundle, (*flags, "--workers", str(number)))
               for number in context.workers]  # fmt: skip
    runs, failures = run_rounds(systems, folders, context.repeats, context.work)
    section = Section("workers", f"workers: {context.counts} JPEGs, {context.network}, {context.engines[0]}",
                      (*SUMMARY_COLUMNS, "MiB of each process"))  # fmt: skip
    for name, costs in runs.items():
        largest = max(costs[max(costs)], key=lambda cost: cost.peak_mib).peak_processes_mib
        section.rows.append((*summary_cells(summarise(name, costs)), ", ".join(f"{size:.0f}" for size in largest)))
    section.data = {"runs": runs, "failures": failures}
    return section


class GpuSampler:
    """What nvidia-smi says of the first GPU's use while something runs."""

    def __init__(self):
        self._command = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--id=0",
                         "--format=csv,noheader,nounits", f"--loop-ms={GPU_EVERY_MS}"]  # fmt: skip
        self.samples: list[tuple[float, float]] = []

    def __enter__(self):
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._process.terminate()
        self._process.wait()
        self._thread.join(timeout=5)

    def _read(self) -> None:
        for line in self._process.stdout:
            values = [part.strip() for part in line.split(",")]
            if len(values) == 2 and all(value.isdigit() for value in values):
                self.samples.append((int(values[0]) / 100, float(values[1])))


def steady_share(samples: list[tuple[float, float]]) -> float | None:
    """Mean use between the first and the last moment at which the GPU was busy at all."""
    busy = [i for i, (share, _) in enumerate(samples) if share > 0]
    return statistics.mean(share for share, _ in samples[busy[0] : busy[-1] + 1]) if busy else None


def run_gpu(context: Context) -> Section:
    """The same loader in front of a GPU: how busy it is, images/s, and cores needed."""
    gpu = describe_gpu()
    section = Section("gpu", f"gpu: {gpu or 'none'}, {context.network}")
    if gpu is None:
        section.notes.append("no GPU here (nvidia-smi finds none): nothing was measured; run it on a machine with one")
        return section
    folders = context.photo_folders(context.counts)
    flags = ("--device", "gpu", "--batch-size", str(context.batch_size))
    system = bulktag_system("bulktag --device gpu", context.bundle(context.network), flags)
    few, many = min(folders), max(folders)
    costs: dict[int, list[Cost]] = {few: [], many: []}
    shares, samples = [], []
    for _ in range(context.repeats):
        costs[few].append(run_once(system, folders[few], few, context.work))
        with GpuSampler() as sampler:
            costs[many].append(run_once(system, folders[many], many, context.work))
        samples.append(sampler.samples)
        shares += [share] if (share := steady_share(sampler.samples)) is not None else []
    summary = summarise(system.name, costs)
    rate, cpu = summary.steady_images_per_s, summary.steady_cpu_s_per_image
    busy = statistics.median(shares) if shares else None
    section.columns = (*SUMMARY_COLUMNS, "cores used", "GPU busy")
    section.rows.append((*summary_cells(summary), rate * cpu if rate and cpu else None, busy))
    if busy is not None:
        section.bars.append(Bar("GPU busy between its first and last batch", busy, GPU_BUSY))
    section.data = {"systems": [dataclasses.asdict(summary)], "runs": costs, "samples": samples}
    return section
