"""`bulktag plan`: list the input, measure a sample on this machine, and say what more machines would make of it."""

import dataclasses
import io
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow.parquet as pq

from bulktag.model.bundle import Bundle
from bulktag.model.engine import Tagger, choose_engine
from bulktag.model.hardware import num_cores
from bulktag.model.image import DEFAULT_RESIZE
from bulktag.pipeline.config import PlanConfig, TagConfig
from bulktag.pipeline.console import OUT, print_table, say, working
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.forecast import Costs, Forecast, forecast, steady_s
from bulktag.pipeline.network import resolve_bundle
from bulktag.transforms import files
from bulktag.transforms.loading import LoadSettings, Pace, Patience, load_ref
from bulktag.transforms.matching import find_images
from bulktag.transforms.records import ImageInfo, ImageRef, ScoredBatch, pack_images
from bulktag.transforms.sources import Source, parse_source, split_sources
from bulktag.transforms.tables import TagSettings, build_tags

# Engines are timed for so long, in so many stretches, of which the median counts: clock frequencies and caches settle.
ENGINE_SECONDS, ENGINE_PARTS = 3.0, 5
# Listing stops to be timed, and the sample to be drawn, where nobody would wait for more.
MAX_SAMPLE_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Listing:
    """What the input holds.

    Attributes:
      num_images: found.
      num_bytes: of those whose size is known.
      seconds: that listing took, in one stream.
      streams: parts that can be listed side by side.
      sample: some of them, drawn evenly.
    """

    num_images: int
    num_bytes: int
    seconds: float
    streams: int
    sample: list[ImageRef]


def list_input(sources: tuple[Source, ...], sample_size: int, seed: int = 0) -> Listing:
    """List everything once, and draw a sample on the way: each image is as likely to be in it."""
    parts = split_sources(sources)
    rng, sample, count, num_bytes = random.Random(seed), [], 0, 0  # noqa: S311 - no secrets
    start = time.perf_counter()
    for ref in _images(parts):
        count += 1
        num_bytes += max(ref.num_bytes, 0)
        if len(sample) < sample_size:
            sample.append(ref)
        elif (place := rng.randrange(count)) < sample_size:
            sample[place] = ref
    return Listing(count, num_bytes, time.perf_counter() - start, len(parts), sample)


def _images(parts: Iterable[Source]) -> Iterator[ImageRef]:
    return (item for part in parts for item in find_images(part, "none") if isinstance(item, ImageRef))


@dataclasses.dataclass(frozen=True)
class _Sampled:
    """What the sample cost: seconds an image, and the pictures."""

    read_wait_s: float
    decode_s: float
    infos: list[ImageInfo]
    pixels_NSSC: np.ndarray
    failed: dict[str, int]


def _measure_loading(sample: list[ImageRef], load: LoadSettings) -> _Sampled:
    """Read and decode the sample as workers do, one by one, so that nothing else is in the way."""
    size_px = load.image_size_px
    pixels_NSSC = np.zeros((len(sample), size_px, size_px, 3), np.uint8)
    paces, kept, failed = [], [], {}
    end, patience = time.perf_counter() + MAX_SAMPLE_SECONDS, Patience()
    for i, ref in enumerate(sample):
        pace = Pace(threading.Semaphore())
        result = load_ref(ref, pixels_NSSC[i], load, pace, patience)
        if isinstance(result, ImageInfo):
            kept.append((i, result))
            paces.append(pace)
        else:
            failed[result.error_type] = failed.get(result.error_type, 0) + 1
        if time.perf_counter() > end:
            break
    if not kept:
        raise JobFailed(f"none of {len(sample)} sampled images can be used: "
                        f"{', '.join(f'{kind} {count}' for kind, count in sorted(failed.items()))}")  # fmt: skip
    return _Sampled(
        statistics.fmean(pace.read_s for pace in paces), statistics.fmean(pace.decode_s for pace in paces),
        [info for _, info in kept], pixels_NSSC[[i for i, _ in kept]], failed,
    )  # fmt: skip


def _measure_engine(tagger: Tagger, pixels_NSSC: np.ndarray, batch_size: int) -> float:
    """Seconds an image of an engine whose pixels are in memory, in full batches."""
    batch_BSSC = np.resize(pixels_NSSC, (batch_size, *pixels_NSSC.shape[1:]))
    tagger.run(batch_BSSC)
    costs = []
    for _ in range(ENGINE_PARTS):
        done, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < ENGINE_SECONDS / ENGINE_PARTS or not done:
            tagger.run(batch_BSSC)
            done += batch_size
        costs.append(seconds / done)
    return statistics.median(costs)


def _measure_writing(sampled: _Sampled, bundle: Bundle, tagger: Tagger, config: PlanConfig) -> tuple[float, float]:
    """(seconds of a core, bytes) that one image's row takes."""
    settings = TagSettings(bundle.labels, bundle.thresholds, model_id=bundle.model_id, run_id="plan")
    rows = []
    for start in range(0, len(sampled.infos), config.batch_size):
        infos = sampled.infos[start : start + config.batch_size]
        bottleneck_BD, scores_BL = tagger.run(sampled.pixels_NSSC[start : start + len(infos)])
        rows.append(ScoredBatch(pack_images(infos), bottleneck_BD, scores_BL))
    begin, buffer = time.process_time(), io.BytesIO()
    with pq.ParquetWriter(buffer, settings.schema, compression="zstd") as writer:
        for batch in rows:
            writer.write_batch(build_tags(batch, settings, 0))
    return (time.process_time() - begin) / len(sampled.infos), len(buffer.getvalue()) / len(sampled.infos)


def _measure_start(config: PlanConfig, sampled: _Sampled) -> float:
    """Seconds of a real job of one batch for each process: what no image is to blame for."""
    uris = [info.uri for info in sampled.infos]
    uris = [uris[i % len(uris)] for i in range(config.batch_size)][: len(uris)]
    with tempfile.TemporaryDirectory(prefix="bulktag-plan-") as folder:
        manifest = files.join(folder, "sample.jsonl")
        files.write_bytes(manifest, "".join(json.dumps({"uri": uri}) + "\n" for uri in uris).encode())
        command = [sys.executable, "-c", "from bulktag.pipeline.cli import main; main()", "tag", "--input", manifest,
                   "--output", files.join(folder, "out"), *_flags(config)]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        raise JobFailed(f"a job of the sample's first images failed: {reason}")
    return seconds


def _flags(config: PlanConfig) -> list[str]:
    """What `tag` has in common with `plan`, where it is not the default."""
    flags = []
    names = {field.name for field in dataclasses.fields(TagConfig)} - {"input", "output", "beam", "detach"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in names and value != field.default:
            flags += ["--" + field.name.replace("_", "-"), str(value)]
    return flags


def run_plan(config: PlanConfig) -> list[Forecast]:
    """Measure, compute and print.

    Returns:
      a forecast for each number of workers.
    Raises:
      ValueError: the request is wrong.
      JobFailed: nothing could be measured.
    """
    sources = tuple(parse_source(text) for text in config.input)
    if any(source.kind in ("examples", "bottlenecks") for source in sources):
        raise ValueError("expected images, got a folder of bottlenecks: it holds no images to plan for")
    choice = choose_engine(config.engine_settings)
    with working("listing the input"):
        listing = list_input(sources, config.sample)
    if not listing.num_images:
        raise JobFailed(f"no image matched the input: {', '.join(config.input)}")
    cores = config.worker_cores or max(1, num_cores() // config.workers)
    with tempfile.TemporaryDirectory(prefix="bulktag-plan-") as folder:
        bundle, _ = resolve_bundle(config, folder, DEFAULT_RESIZE)
        graphs = bundle.backbone_graph(), bundle.head_graph()
    load = LoadSettings(bundle.backbone.image_size_px, bundle.resize, config.limits, config.read_threads)
    with working("reading and decoding the sample"):
        sampled = _measure_loading(listing.sample, load)
    start_job_s = 0.0
    if not config.start_s:
        with working("running a job of one batch"):  # while nothing else is loaded here
            start_job_s = _measure_start(config, sampled)
    settings = dataclasses.replace(config.engine_settings, num_threads=min(cores, num_cores()))
    with working("running the network"):
        tagger = Tagger(*graphs, settings)
        engine_s = 1 / config.engine_rate if config.engine_rate else _measure_engine(
            tagger, sampled.pixels_NSSC, config.batch_size)  # fmt: skip
        write_s, row_bytes = _measure_writing(sampled, bundle, tagger, config)
    costs = Costs(
        cores=cores, list_s=listing.seconds / listing.num_images, list_streams=listing.streams,
        read_wait_s=sampled.read_wait_s, read_threads=config.read_threads, decode_s=sampled.decode_s,
        engine_s=engine_s, engine_on_cpu=not config.engine_rate and choice.device == "CPU", write_s=write_s,
        row_bytes=row_bytes, start_s=config.start_s,
    )  # fmt: skip
    if not config.start_s:
        num_run = min(config.batch_size, len(sampled.infos))
        costs = dataclasses.replace(costs, start_s=max(0.0, start_job_s - num_run * steady_s(costs) / config.workers))
    counts = config.worker_counts or (config.workers, *(n for n in (8, 64, 512) if n > config.workers))
    rows = [forecast(costs, listing.num_images, workers, config.price_per_worker_hour) for workers in counts]
    _print(config, listing, sampled, costs, rows, str(choice))
    if config.json:
        content = {"images": listing.num_images, "bytes": listing.num_bytes, "costs": dataclasses.asdict(costs),
                   "forecasts": [dataclasses.asdict(row) for row in rows]}  # fmt: skip
        files.write_bytes(files.normalise(config.json), (json.dumps(content, indent=2) + "\n").encode())
    return rows


def _print(
    config: PlanConfig, listing: Listing, sampled: _Sampled, costs: Costs, rows: list[Forecast], engine: str
) -> None:
    failed = sum(sampled.failed.values())
    say(f"{listing.num_images} images, {_bytes(listing.num_bytes)}; sampled {len(sampled.infos) + failed}, of which "
        f"{failed} cannot be used")  # fmt: skip
    given = "as given" if config.engine_rate else engine
    print_table(("stage", "an image", "measured"), [
        ("listing", f"{costs.list_s * 1e3:.3f} ms", f"one stream, of at most {costs.list_streams}"),
        ("reads", f"{costs.read_wait_s * 1e3:.2f} ms", f"waiting, up to {costs.read_threads} at once"),
        ("decode", f"{costs.decode_s * 1e3:.2f} ms", "of one core"),
        ("engine", f"{costs.engine_s * 1e3:.2f} ms", f"{1 / costs.engine_s:.0f} images/s, {given}"),
        ("write", f"{costs.write_s * 1e3:.3f} ms", f"of one core; {costs.row_bytes:.0f} bytes"),
    ])  # fmt: skip
    price = ("cost",) if config.price_per_worker_hour else ()
    print_table(
        ("workers", "time", "images/s", "bottleneck", "engines busy", "files", "bytes", *price),
        [
            (str(row.workers), _duration(row.seconds), f"{row.images_per_s:.0f}", row.bottleneck,
             f"{row.engine_busy:.0%}", str(row.files), _bytes(row.num_bytes),
             *((f"{row.cost:.2f}",) if row.cost is not None else ()))
            for row in rows
        ],
        title="the whole job",
    )  # fmt: skip
    OUT.print(
        f"A worker: {costs.cores} cores, {costs.start_s:.1f} s to start and end "
        f"({'as given' if config.start_s else 'as measured here; machines that must boot first take longer: --start-s'}"
        "). Assumed: every worker is like this one, the store serves all of them as it served this one, and work is "
        "spread evenly.",
        markup=False,
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
