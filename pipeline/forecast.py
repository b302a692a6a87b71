"""How long a job would take on more machines: arithmetic on what one machine showed; nothing is measured here."""

import dataclasses
import math

from bulktag.transforms.parquet import MAX_FILE_BYTES


@dataclasses.dataclass(frozen=True)
class Costs:
    """What one image costs on one worker, and what does not grow with the images.

    Attributes:
      cores: of one worker.
      list_s: to list one image, in one stream.
      list_streams: most streams that the input can be listed in side by side.
      read_wait_s: one image is waited for.
      read_threads: images waited for at once by one worker.
      decode_s: one core needs to decode one image.
      engine_s: one worker's engine needs for one image, with all cores where it is a CPU.
      engine_on_cpu: the engine and the decoding share the cores.
      write_s: one core needs to write one image's row.
      row_bytes: of one image in the tables.
      start_s: from the command to the first batch, and from the last batch to the end.
    """

    cores: int
    list_s: float
    list_streams: int
    read_wait_s: float
    read_threads: int
    decode_s: float
    engine_s: float
    engine_on_cpu: bool
    write_s: float
    row_bytes: float
    start_s: float


@dataclasses.dataclass(frozen=True)
class Forecast:
    """One row of a plan.

    Attributes:
      workers: machines, or processes of this one.
      seconds: of the whole job.
      images_per_s: over the whole job.
      bottleneck: what more of would help most: "listing", "reads", "decode", "engine", "write" or "start".
      engine_busy: share of the job's time that the engines compute, 0 to 1.
      files, num_bytes: of the tables.
      cost: in the currency of the price; None without a price.
    """

    workers: int
    seconds: float
    images_per_s: float
    bottleneck: str
    engine_busy: float
    files: int
    num_bytes: int
    cost: float | None


def steady_s(costs: Costs) -> float:
    """Seconds between two images of one worker that has enough to do.

    What shares cores adds up: `engine + (decode + write) / cores`, as for the limit that benchmarks/limit.py measures.
    What does not, overlaps, and the slowest counts. By Little's law reads come at `read_threads / wait` at most.
    """
    on_cores = (costs.decode_s + costs.write_s) / costs.cores
    computing = costs.engine_s + on_cores if costs.engine_on_cpu else max(costs.engine_s, on_cores)
    return max(computing, costs.read_wait_s / costs.read_threads)


def forecast(costs: Costs, num_images: int, workers: int, price_per_worker_hour: float = 0.0) -> Forecast:
    """A job of so many images on so many workers.

    The listing comes first, because images are spread over the workers only once they are known; the rest overlaps.

    Args:
      costs: of one worker.
      num_images: in all.
      workers: how many.
      price_per_worker_hour: 0: unknown.
    """
    each = num_images / workers
    listing = num_images * costs.list_s / min(workers, costs.list_streams)
    seconds = costs.start_s + listing + each * steady_s(costs)
    parts = {
        "start": costs.start_s,
        "listing": listing,
        "reads": each * costs.read_wait_s / costs.read_threads,
        "decode": each * costs.decode_s / costs.cores,
        "engine": each * costs.engine_s,
        "write": each * costs.write_s / costs.cores,
    }
    num_bytes = round(num_images * costs.row_bytes)
    # Each worker writes at least one file of tags; one more holds the errors.
    files = max(min(workers, num_images), math.ceil(num_bytes / MAX_FILE_BYTES)) + 1
    return Forecast(
        workers=workers,
        seconds=seconds,
        images_per_s=num_images / seconds,
        bottleneck=max(parts, key=parts.get),
        engine_busy=parts["engine"] / seconds,
        files=files,
        num_bytes=num_bytes,
        cost=workers * seconds / 3600 * price_per_worker_hour if price_per_worker_hour else None,
    )
