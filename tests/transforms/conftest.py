"""Pictures, and an object store that lives in memory."""

import contextlib
import io
import os
import pathlib
import tempfile

import numpy as np
import pytest
from apache_beam.io.filesystem import BeamIOError, CompressionTypes, FileMetadata, FileSystem
from PIL import Image


def draw(seed: int = 0, size: tuple[int, int] = (24, 16), kind: str = "PNG") -> bytes:
    """An image file of random colours; another seed gives other bytes."""
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture():
    """picture(seed, size, kind) -> bytes of an image file."""
    return draw


class MemoryStore(FileSystem):
    """Objects by name, as in a bucket: no folders, and no file descriptors."""

    objects: dict = {}  # noqa: RUF012 - shared on purpose: Beam makes instances of its own
    failing: set = set()  # noqa: RUF012

    @classmethod
    def scheme(cls):
        return "memory"

    def join(self, basepath, *paths):
        return "/".join([basepath.rstrip("/"), *paths])

    def split(self, path):
        return tuple(path.rsplit("/", 1))

    def mkdirs(self, path):
        pass

    def has_dirs(self):
        return False

    def _list(self, dir_or_prefix):
        if "listing" in self.failing:
            raise BeamIOError("the store is down")
        for path in sorted(self.objects):
            if path.startswith(dir_or_prefix):
                yield FileMetadata(path, len(self.objects[path]), 1_700_000_000.5)

    def create(self, path, mime_type=None, compression_type=CompressionTypes.AUTO):
        assert compression_type == CompressionTypes.UNCOMPRESSED
        store = self.objects

        class _Upload(io.BytesIO):
            def close(self):
                store[path] = self.getvalue()
                super().close()

        return _Upload()

    def open(self, path, mime_type=None, compression_type=CompressionTypes.AUTO):
        assert compression_type == CompressionTypes.UNCOMPRESSED
        if path in self.failing:
            raise BeamIOError("the store is down")
        if path not in self.objects:
            raise FileNotFoundError(2, "Not found", path)
        return io.BytesIO(self.objects[path])

    def copy(self, source_file_names, destination_file_names):
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            self.objects[target] = self.objects[source]

    def rename(self, source_file_names, destination_file_names):
        self.copy(source_file_names, destination_file_names)
        self.delete(source_file_names)

    def exists(self, path):
        return path in self.objects

    def size(self, path):
        return len(self.objects[path])

    def last_updated(self, path):
        return 1_700_000_000.5

    def checksum(self, path):
        return ""

    def metadata(self, path):
        return FileMetadata(path, self.size(path))

    def delete(self, paths):
        for path in paths:
            del self.objects[path]


@pytest.fixture
def store():
    """Objects of memory://, by URI: a dict to fill."""
    MemoryStore.objects.clear()
    MemoryStore.failing.clear()
    yield MemoryStore
    MemoryStore.objects.clear()
    MemoryStore.failing.clear()


NOBODY = 65534


@pytest.fixture
def open_folder():
    """A folder that any user may enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


@pytest.fixture
def without_root():
    """with without_root(): the rights of an ordinary user, where tests run as root, to whom nothing is forbidden."""

    @contextlib.contextmanager
    def ordinary_user():
        user = os.geteuid()
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(user)

    return ordinary_user
