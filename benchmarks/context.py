"""What the suites share: options, the cache with photos and networks, and the rows of bulktag."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

from benchmarks.networks import BUNDLE, PEER_MODEL, REPO, ensure_network
from benchmarks.photos import SMALL_PX, draw_photos, link_photos
from benchmarks.systems import System, bulktag_system, parse_engine, warm_up

# Drawn photos that further ones are linked to: beyond this many, contents repeat under other names.
MAX_DRAWN = {SMALL_PX: 3000}
SIZES_PX = {"inception_v3": 299, "mobilenet_v2": 224}


@dataclasses.dataclass(frozen=True)
class Context:
    """Options of a run; see `python -m benchmarks.bench --help`."""

    cache: pathlib.Path
    images: pathlib.Path | None
    counts: tuple[int, ...]
    repeats: int
    engines: tuple[str, ...]
    peers: tuple[str, ...]
    peer_call: str
    batch_size: int
    network: str
    mobilenet_weights: str
    compression: str
    retag_images: int
    large_counts: tuple[int, ...]
    memory_network: str
    memory_counts: tuple[int, ...]
    linear_counts: tuple[int, ...]
    workers: tuple[int, ...]
    seed: int

    @property
    def work(self) -> pathlib.Path:
        """Scratch folder."""
        return self.cache / "work"

    def photo_folder(self, count: int, size_px: tuple[int, int] = SMALL_PX) -> pathlib.Path:
        """A folder with so many numbered JPEGs: the user's, in turns, or drawn ones."""
        if self.images is not None and size_px == SMALL_PX:
            source, kind = self.images, "own"
        else:
            drawn = min(count, MAX_DRAWN.get(size_px, count))
            source, kind = draw_photos(self.cache / "photos", drawn, size_px, self.seed), f"{size_px[0]}x{size_px[1]}"
        folder = link_photos(source, self.cache / "sets" / f"{kind}-{self.seed}-{count}", count)
        warm_up(folder)
        return folder

    def photo_folders(self, counts: tuple[int, ...], size_px: tuple[int, int] = SMALL_PX) -> dict[int, str]:
        """Number -> folder, for `run_rounds`."""
        return {count: str(self.photo_folder(count, size_px)) for count in counts}

    def bundle(self, backbone: str, weights: str = "random:0", hidden: tuple[int, int] | None = None) -> pathlib.Path:
        """A model bundle."""
        return ensure_network(self.cache, backbone, weights, hidden=hidden) / BUNDLE

    def peer_model(self, backbone: str) -> pathlib.Path:
        """The same network for the peers."""
        return ensure_network(self.cache, backbone, peers=True) / PEER_MODEL

    def tag_systems(self, bundle: pathlib.Path, batch_size: int, flags: tuple[str, ...] = ()) -> list[System]:
        """`bulktag tag` with each engine."""
        batch = ("--batch-size", str(batch_size), *flags)
        return [bulktag_system(engine_name(text), bundle, (*parse_engine(text), *batch)) for text in self.engines]

    def measure_limit(self, text: str, bundle: pathlib.Path, images: str, batch_size: int) -> dict:
        """Engine and decoding alone, see `benchmarks.limit`.

        Raises:
          RuntimeError: the engine does not run here.
        """
        return self._run_limit(bundle, images, ["--batch-size", str(batch_size), *parse_engine(text)])

    def measure_decode(self, bundle: pathlib.Path, images: str, flags: tuple[str, ...] = ()) -> dict:
        """Decoding alone, see `benchmarks.limit`."""
        return self._run_limit(bundle, images, ["--decode-only", "--sample", "32", *flags])

    def _run_limit(self, bundle: pathlib.Path, images: str, flags: list[str]) -> dict:
        result = self.work / "limit.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", "benchmarks.limit", "--images", images, "--bundle", str(bundle)]
        run = subprocess.run([*command, "--json", str(result), *flags], capture_output=True, text=True, check=False,
                             cwd=REPO)  # fmt: skip
        if not result.is_file():
            last = (run.stderr.strip().splitlines() or ["nothing said"])[-1]
            raise RuntimeError(f"expected a measurement of the limit ({' '.join(flags)}), got none: {last}")
        return json.loads(result.read_text(encoding="utf-8"))


def engine_name(text: str) -> str:
    """Name of a row of bulktag."""
    return f"bulktag {text.replace('/', ' ')}"


def default_engines() -> tuple[str, ...]:
    """The engines that are installed."""
    return ("tensorflow", "openvino") if importlib.util.find_spec("openvino") else ("tensorflow",)
