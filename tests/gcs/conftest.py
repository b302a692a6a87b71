"""Google Cloud Storage, emulated, behind a proxy that makes it fail."""

import io
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

REPO = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))


# In each of these days so many, and some beside them.
DAYS, IMAGES_A_DAY, MORE_IMAGES = 4, 2400, 400


def _many_names() -> list[str]:
    """Names of the 10,000 photos in bucket `many`, in which other things lie too."""
    days = [f"photos/{day:02d}/IMG_{number:05d}.jpg" for day in range(DAYS) for number in range(IMAGES_A_DAY)]
    return [*days, *(f"photos/new-{number:03d}.jpg" for number in range(MORE_IMAGES))]


@pytest.fixture(scope="session")
def _proxied_store(request, tmp_path_factory):
    if "gcs" not in request.config.getoption("-m").replace("not gcs", ""):
        pytest.skip("needs an emulator of Google Cloud Storage: make test-gcs")
    sys.path.insert(0, str(REPO / "scripts"))
    import gcs_emulator
    from fault_proxy import FaultProxy

    proxy = FaultProxy()
    emulator = gcs_emulator.Emulator(REPO / ".gcs", public_url=proxy.url)
    proxy.start(emulator.port)
    # It takes half a minute to take in so many, while other tests run.
    full = gcs_emulator.Emulator(REPO / ".gcs", public_url=proxy.url, data=_many_files(tmp_path_factory))
    proxy.full_port = full.port
    yield proxy
    proxy.stop()
    emulator.stop()
    full.stop()


def _many_files(tmp_path_factory) -> pathlib.Path:
    data = tmp_path_factory.mktemp("buckets")
    for name in [*_many_names(), "photographs/other.jpg", "zebra.jpg"]:
        path = data / "many" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return data


@pytest.fixture
def many_names(proxy, monkeypatch):
    """Names of the 10,000 photos in bucket `many`, of a store that has no other."""
    monkeypatch.setattr(proxy, "store_port", proxy.full_port)
    return _many_names()


@pytest.fixture
def proxy(_proxied_store, monkeypatch):
    """The store's proxy, without faults; all of this process's gs:// goes through it."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", _proxied_store.url)
    _proxied_store.reset()
    yield _proxied_store
    _proxied_store.reset()


@pytest.fixture
def bucket(proxy):
    """A new, empty bucket."""
    from bulktag.transforms import gcs_client

    made = gcs_client.get_client().create_bucket(f"bucket-{next(_numbers)}")
    proxy.reset()
    return made


_numbers = iter(range(1_000_000))


def draw(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG of random blocks of colour."""
    rng = np.random.default_rng(seed)
    blocks = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize(size)
    buffer = io.BytesIO()
    blocks.save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture():
    """picture(seed) -> bytes of a JPEG."""
    return draw


def upload_folder(bucket, folder: pathlib.Path, prefix: str) -> int:
    """All files of a folder, as objects; returns their number."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in paths:
        bucket.blob(f"{prefix}/{path.relative_to(folder)}").upload_from_filename(str(path))
    return len(paths)
