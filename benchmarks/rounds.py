"""Rounds: every system at every size, then all of them again, so that a slow minute of the machine hits all alike."""

import dataclasses
import pathlib
import shutil
import statistics
import sys
from collections.abc import Callable

from benchmarks.measure import Cost, run_measured
from benchmarks.systems import ENVIRONMENT, System, check_results

MAX_MESSAGE = 400  # characters of a failure that are shown; the log has all
Runs = dict[str, dict[int, list[Cost]]]


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the runs of one system say.

    Attributes:
      name: of the system.
      counts: numbers of images, smallest first.
      seconds: median wall clock at each of them, from the command to its end.
      images_per_s: in total at the largest.
      steady_images_per_s: images more from the smallest to the largest by seconds more; None with one size, or where
        noise was larger than the difference.
      cpu_s_per_image: CPU seconds by images at the largest.
      steady_cpu_s_per_image: CPU seconds more by images more; None as above.
      peak_mib: median of the peaks at the largest.
      steady_by_round: the steady state of each round, for the spread.
    """

    name: str
    counts: tuple[int, ...]
    seconds: tuple[float, ...]
    images_per_s: float
    steady_images_per_s: float | None
    cpu_s_per_image: float
    steady_cpu_s_per_image: float | None
    peak_mib: float
    steady_by_round: tuple[float, ...]


def say(text: str) -> None:
    """A line about the way to the result."""
    print(text, file=sys.stderr, flush=True)


def run_once(system: System, images: str, count: int, work: pathlib.Path, timeout_s: float = 3600.0) -> Cost:
    """Run a system on a folder and see that each image got its row; one that fails gets a second try.

    Raises:
      RuntimeError: it failed twice, or lost rows.
    """
    try:
        return _run(system, images, count, work, timeout_s)
    except RuntimeError as error:
        say(f"  {system.name}, {count} images, failed and is tried again: {str(error)[:MAX_MESSAGE]}")
        return _run(system, images, count, work, timeout_s)


def _run(system: System, images: str, count: int, work: pathlib.Path, timeout_s: float) -> Cost:
    name = "".join(char if char.isalnum() else "-" for char in system.name)
    output = work / "output" / name
    shutil.rmtree(output, ignore_errors=True)
    log = work / "logs" / f"{name}-{count}.log"
    cost = run_measured(system.command(images, output), log, timeout_s=timeout_s, environment=ENVIRONMENT)
    check_results(system, output, count)
    shutil.rmtree(output, ignore_errors=True)
    say(f"  {system.name}, {count} images: {cost.seconds:.1f} s, {count / cost.seconds:.1f} images/s, "
        f"{cost.cpu_seconds:.0f} CPU s, {cost.peak_mib:.0f} MiB")  # fmt: skip
    return cost


def run_rounds(
    systems: list[System],
    folders: dict[int, str],
    repeats: int,
    work: pathlib.Path,
    also: Callable[[], None] | None = None,
) -> tuple[Runs, dict[str, str]]:
    """Measure all systems, interleaved.

    Args:
      systems: contenders, names distinct.
      folders: number of images -> folder or URL with so many.
      repeats: rounds. Ctrl-C after the first ends them, and what was measured counts.
      work: scratch folder.
      also: what else belongs into each round.
    Returns:
      costs by system and count, and the message of each system that failed; such a one is left out of later rounds.
    """
    runs: Runs = {system.name: {count: [] for count in folders} for system in systems}
    failures: dict[str, str] = {}
    for number in range(repeats):
        say(f"round {number + 1} of {repeats}")
        try:
            _run_round(systems, folders, work, runs, failures)
            if also:
                also()
        except KeyboardInterrupt:
            if number == 0:
                raise
            say(f"interrupted: what follows are the figures of {number} rounds")
            for costs in runs.values():
                for done in costs.values():
                    del done[number:]
            break
    return {name: costs for name, costs in runs.items() if name not in failures}, failures


def _run_round(
    systems: list[System], folders: dict[int, str], work: pathlib.Path, runs: Runs, failures: dict[str, str]
) -> None:
    """Each system once at each count, into `runs`; a system that fails goes into `failures`."""
    for system in systems:
        if system.name in failures:
            continue
        try:
            for count in sorted(folders):
                runs[system.name][count].append(run_once(system, folders[count], count, work))
        except RuntimeError as error:
            failures[system.name] = str(error)
            say(f"  {system.name} failed: {str(error)[:MAX_MESSAGE]}")


def summarise(name: str, costs: dict[int, list[Cost]]) -> Summary:
    """Medians and slopes of one system's runs."""
    counts = tuple(sorted(costs))
    seconds = tuple(statistics.median(cost.seconds for cost in costs[count]) for count in counts)
    cpu = tuple(statistics.median(cost.cpu_seconds for cost in costs[count]) for count in counts)
    more = counts[-1] - counts[0]
    rounds = zip(costs[counts[0]], costs[counts[-1]], strict=True)
    by_round = [_rate(more, large.seconds - small.seconds) for small, large in rounds]
    steady_cpu = (cpu[-1] - cpu[0]) / more if more else 0.0
    return Summary(
        name=name,
        counts=counts,
        seconds=seconds,
        images_per_s=counts[-1] / seconds[-1],
        steady_images_per_s=_rate(more, seconds[-1] - seconds[0]),
        cpu_s_per_image=cpu[-1] / counts[-1],
        steady_cpu_s_per_image=steady_cpu if steady_cpu > 0 else None,
        peak_mib=statistics.median(cost.peak_mib for cost in costs[counts[-1]]),
        steady_by_round=tuple(rate for rate in by_round if rate),
    )


def _rate(images: int, seconds: float) -> float | None:
    return images / seconds if images and seconds > 0 else None
