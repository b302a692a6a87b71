"""What a command costs: seconds, CPU seconds and peak memory of it and of everything that it starts.

    python -m benchmarks.measure --json COST.json [--timeout-s S] -- COMMAND ...

A process of its own, so that it can adopt what the command leaves behind (Ray's daemons, for example) and so that
nothing of the harness is counted. Linux only: it reads /proc.
"""

import argparse
import ctypes
import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import psutil

EVERY_S = 0.1
# Proportional memory takes the kernel milliseconds a process to add up, so it is read only where resident memory, which
# is cheap, says that there may be a new peak; and every so often, for what is shared.
NEW_PEAK = 1.02
AT_LEAST_EVERY_S = 5.0
GRACE_S = 10.0
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes:
      returncode: of the command; -9 where it ran into the timeout.
      seconds: wall clock, from its start to its end.
      cpu_seconds: user and system time of the whole process tree, processes that have ended included.
      peak_mib: largest sum over the tree of proportional memory (PSS: what is shared counts once), MiB.
      peak_processes_mib: PSS of each process of at least 10 MiB at that moment, largest first.
      started: when, in seconds since the epoch.
    """

    returncode: int
    seconds: float
    cpu_seconds: float
    peak_mib: float
    peak_processes_mib: tuple[float, ...]
    started: float


class _Tree:
    """The processes below this one, sampled."""

    def __init__(self):
        self._self = psutil.Process()
        self._cpu_seconds: dict[tuple[int, float], float] = {}
        self._peak_rss = self.peak_bytes = 0
        self.peak_processes: list[int] = []
        self._last_pss = 0.0

    @property
    def cpu_seconds(self) -> float:
        """Sum over all processes that were ever seen, as last seen."""
        return sum(self._cpu_seconds.values())

    def sample(self) -> None:
        """Look once."""
        rss, alive = 0, []
        for process in self._self.children(recursive=True):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._cpu_seconds[process.pid, process.create_time()] = times.user + times.system
                    rss += process.memory_info().rss
                    alive.append(process)
            except psutil.Error:
                continue  # gone since it was listed
        now = time.monotonic()
        if rss > self._peak_rss * NEW_PEAK or now - self._last_pss > AT_LEAST_EVERY_S:
            self._peak_rss, self._last_pss = max(rss, self._peak_rss), now
            sizes = [_pss_bytes(process) for process in alive]
            if sum(sizes) > self.peak_bytes:
                self.peak_bytes, self.peak_processes = sum(sizes), sorted(sizes, reverse=True)


def _pss_bytes(process: psutil.Process) -> int:
    """Proportional memory; resident memory where the kernel does not tell."""
    try:
        with open(f"/proc/{process.pid}/smaps_rollup", "rb") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:")), 0)
    except (OSError, ValueError):
        try:
            return process.memory_info().rss
        except psutil.Error:
            return 0


def watch(command: list[str], timeout_s: float) -> Cost:
    """Run a command to its end in this process, which must have no other children.

    Args:
      command: program and arguments.
      timeout_s: seconds after which it and all its processes are killed.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, start = time.time(), time.monotonic()
    child = subprocess.Popen(command)
    tree, returncode = _Tree(), None
    try:
        while returncode is None:
            tree.sample()
            if time.monotonic() - start > timeout_s:
                child.kill()
            try:
                returncode = child.wait(EVERY_S)
            except subprocess.TimeoutExpired:
                continue
        seconds = time.monotonic() - start
    finally:
        _end_rest(tree)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    # A program that ignores its children's ends keeps their times from those above it: then the samples know more.
    cpu_seconds = max(waited, tree.cpu_seconds)
    peaks = tuple(round(size / MIB, 1) for size in tree.peak_processes if size >= 10 * MIB)
    return Cost(returncode, seconds, cpu_seconds, tree.peak_bytes / MIB, peaks, started)


def _end_rest(tree: _Tree) -> None:
    """Wait for what the command left behind, then kill it."""
    deadline = time.monotonic() + GRACE_S
    while rest := [process for process in psutil.Process().children(recursive=True) if _is_running(process)]:
        tree.sample()
        if time.monotonic() > deadline:
            for process in rest:
                try:
                    process.kill()
                except psutil.Error:
                    continue
        _reap()
        time.sleep(EVERY_S)
    _reap()


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def run_measured(
    command: list[str], log: pathlib.Path, *, timeout_s: float = 3600.0, environment: dict[str, str] | None = None
) -> Cost:
    """Run a command under a watching process of its own.

    Args:
      command: program and arguments.
      log: file for what it prints.
      timeout_s: see `watch`.
      environment: variables beside this process's.
    Raises:
      RuntimeError: the command failed; with the end of what it printed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    watcher = [sys.executable, "-m", "benchmarks.measure", "--json", str(result), "--timeout-s", str(timeout_s)]
    with log.open("wb") as output:
        subprocess.run(
            [*watcher, "--", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
            cwd=pathlib.Path(__file__).parents[1],
            check=False,
        )
    tail = " | ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:])
    if not result.is_file():
        raise RuntimeError(f"expected a measurement of {command[0]}, got none: {log}: {tail}")
    fields = json.loads(result.read_text(encoding="utf-8"))
    cost = Cost(**fields | {"peak_processes_mib": tuple(fields["peak_processes_mib"])})
    if cost.returncode:
        raise RuntimeError(f"expected {' '.join(command[:4])} ... to succeed, got {cost.returncode}: {log}: {tail}")
    return cost


def main() -> None:
    """Measure one command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, type=pathlib.Path)
    parser.add_argument("--timeout-s", type=float, default=3600.0)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    # Whoever ends this process or the one above it means the command: its processes are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    cost = watch(arguments.command, arguments.timeout_s)
    arguments.json.write_text(json.dumps(dataclasses.asdict(cost)), encoding="utf-8")


if __name__ == "__main__":
    main()
