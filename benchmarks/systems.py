"""What is compared: how each system is started on a folder of JPEGs, in which environment, and what it must leave."""

import dataclasses
import functools
import hashlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import pyarrow.parquet

HERE = pathlib.Path(__file__).resolve().parent
# Name -> script, environment (None: bulktag's own), whether it has a number of model copies to choose.
PEERS = {
    "beam": ("beam_textbook.py", "beam", False),
    "ray": ("ray_data.py", "ray", True),
    "daft": ("daft_udf.py", "daft", True),
    "tf.data": ("tf_data.py", None, False),
}
TITLES = {
    "beam": "textbook Beam pipeline",
    "ray": "Ray Data",
    "daft": "Daft",
    "tf.data": "tf.data + model.predict",
}
# Nothing is sent to anybody while measuring, and no library chats in between.
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_raylet_start_wait_time_s": "120",  # a busy machine is slow to start its daemons
    "DAFT_ANALYTICS_ENABLED": "0",
    "DAFT_PROGRESS_BAR": "0",
    "DO_NOT_TRACK": "1",
}


@dataclasses.dataclass(frozen=True)
class System:
    """One contender.

    Attributes:
      name: in tables and JSON.
      command: folder of images, folder for output -> command line.
      results: glob below the output of Parquet files with one row for each image, named in a column `uri`.
    """

    name: str
    command: Callable[[str, pathlib.Path], list[str]]
    results: str


def bulktag_system(name: str, bundle: pathlib.Path, flags: tuple[str, ...] = (), hooks: tuple[str, ...] = ()) -> System:
    """`bulktag tag` with a bundle.

    Args:
      name: in tables.
      bundle: folder of the model.
      flags: further flags of `bulktag tag`.
      hooks: flags of `benchmarks.run_bulktag`; without any it is the plain command.
    """
    start = ["benchmarks.run_bulktag", *hooks, "--"] if hooks else ["bulktag.pipeline.cli"]
    start = [sys.executable, "-m", *start] if hooks else [sys.executable, "-c", _PLAIN]

    def command(images: str, output: pathlib.Path) -> list[str]:
        return [*start, "tag", "--input", images, "--model", str(bundle), "--output", str(output), *flags]

    return System(name, command, "tags/**/*.parquet")


# What the installed `bulktag` script does, without depending on where it was installed.
_PLAIN = "import sys; from bulktag.pipeline.cli import main; sys.exit(main())"


def peer_system(peer: str, cache: pathlib.Path, model: pathlib.Path, size_px: int, batch_size: int,
                concurrency: int = 1, call: str = "documented") -> System:  # fmt: skip
    """One of PEERS with a Keras model.

    Args:
      peer: its name.
      cache: folder for environments.
      model: Keras file from uint8[B, S, S, 3] to scores.
      size_px: S.
      batch_size: images a call of the model.
      concurrency: copies of the model, for those that have them.
      call: of the model, for the same: "documented", as in their examples, or "compiled" (`predict_on_batch`).
    """
    script, environment, has_copies = PEERS[peer]
    python = sys.executable if environment is None else str(ensure_environment(cache, environment))
    copies = ["--concurrency", str(concurrency), "--call", call] if has_copies else []

    def command(images: str, output: pathlib.Path) -> list[str]:
        return [
            python, str(HERE / "peers" / script), "--images", images, "--model", str(model), "--output", str(output),
            "--size-px", str(size_px), "--batch-size", str(batch_size), *copies,
        ]  # fmt: skip

    return System(TITLES[peer], command, "**/*.parquet")


@functools.cache
def ensure_environment(cache: pathlib.Path, name: str) -> pathlib.Path:
    """Python of a peer's own environment, made from its requirements where it is missing or they have changed.

    Raises:
      subprocess.CalledProcessError: it cannot be installed.
    """
    folder = cache / f"venv-{name}"
    files = [HERE / "peers" / f"requirements-{name}.txt", HERE / "peers" / f"requirements-{name}-nodeps.txt"]
    files = [path for path in files if path.exists()]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    python, stamp = folder / "bin" / "python", folder / f"installed-{digest}"
    if not stamp.exists():
        print(f"making the environment of {name} (some minutes): {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for path in files:
            extra = ["--no-deps"] if path.stem.endswith("-nodeps") else []
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *extra]
            subprocess.run([*pip, "-r", str(path)], check=True)
        stamp.touch()
    return python


def check_results(system: System, output: pathlib.Path, expected: int) -> None:
    """See that there is exactly one row for each image.

    Raises:
      RuntimeError: one is lost, or stands twice.
    """
    uris: list[str] = []
    for path in sorted(output.glob(system.results)):
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows:
                uris += file.read(columns=["uri"])["uri"].to_pylist()
    if len(uris) != expected or len(set(uris)) != expected:
        raise RuntimeError(
            f"expected {expected} rows, one for each image, got {len(uris)} rows of {len(set(uris))}: {system.name}"
        )


def parse_engine(text: str) -> tuple[str, ...]:
    """`auto`, `openvino` or `tensorflow/fp32` -> flags of `bulktag tag`."""
    engine, _, precision = text.partition("/")
    return ("--engine", engine, *(("--precision", precision) if precision else ()))


def warm_up(folder: pathlib.Path) -> None:
    """Read all files once, so that no system finds them colder than another."""
    for entry in os.scandir(folder):
        with open(entry.path, "rb") as file:
            while file.read(1 << 20):
                pass
