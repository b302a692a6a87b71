"""What was measured on."""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess

import joblib
import psutil

# Instructions that decide how fast a network runs on a CPU.
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "amx_fp16")
_PACKAGES = ("bulktag", "apache-beam", "tensorflow-cpu", "tensorflow", "keras", "openvino", "numpy", "pillow",
             "simplejpeg", "pyarrow")  # fmt: skip
GIB = 1 << 30


def describe_machine() -> dict:
    """Processor, memory, versions, date, and how busy the machine is before the first measurement."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_line("model name") or platform.processor() or platform.machine(),
        "cores": joblib.cpu_count(),
        "cpu_flags": [flag for flag in _FLAGS if flag in (_cpu_line("flags") or "").split()],
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": describe_gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def describe_gpu() -> str | None:
    """The first GPU as nvidia-smi names it; None where there is none."""
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip().splitlines()[0] if found.returncode == 0 and found.stdout.strip() else None


def _cpu_line(name: str) -> str | None:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty"]
    folder = pathlib.Path(__file__).parent
    try:
        found = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def main_line(machine: dict) -> str:
    """One line for above a table."""
    flags = ", ".join(flag for flag in machine["cpu_flags"] if "bf16" in flag or "amx" in flag) or "no bf16"
    gpu = machine["gpu"] or "no GPU"
    return (
        f"{machine['date'][:10]}, {machine['cpu']}, {machine['cores']} cores ({flags}), {machine['memory_gib']} GiB, "
        f"{gpu}; load before {machine['load_average_before'][0]}; commit {machine['commit']}"
    )
