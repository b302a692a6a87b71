"""A store with the latency of a remote one: `slow:///path` is the local file of that path, each read delayed.

Importing this module is all that Beam needs to know the scheme.
"""

import io
import time

from apache_beam.io.filesystem import CompressionTypes, FileMetadata, FileSystem
from apache_beam.io.localfilesystem import LocalFileSystem

SCHEME = "slow"
# Seconds that each read takes longer; whoever imports this sets it.
DELAY_S = 0.0
_PREFIX = f"{SCHEME}://"


class _SlowReads(io.RawIOBase):
    """A file each of whose reads waits first, as a request to a store does."""

    def __init__(self, path: str):
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 (closed below)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        time.sleep(DELAY_S)
        return self._file.read(size)

    def readinto(self, buffer) -> int:
        time.sleep(DELAY_S)
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


def _local(path: str) -> str:
    return path.removeprefix(_PREFIX)


class SlowFileSystem(FileSystem):
    """Beam's local file system behind a scheme of its own."""

    def __init__(self, pipeline_options):
        super().__init__(pipeline_options)
        self._under = LocalFileSystem(pipeline_options)

    @classmethod
    def scheme(cls) -> str:
        """The part of a URL before the colon."""
        return SCHEME

    def join(self, basepath: str, *paths: str) -> str:
        """Names below a folder."""
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        """Folder and name."""
        folder, _, name = path.rpartition("/")
        return folder, name

    def has_dirs(self) -> bool:
        """Object stores have no folders."""
        return False

    def mkdirs(self, path: str) -> None:
        """Make a folder."""
        self._under.mkdirs(_local(path))

    def _list(self, dir_or_prefix: str):
        for found in self._under._list(_local(dir_or_prefix)):
            yield FileMetadata(_PREFIX + found.path, found.size_in_bytes, found.last_updated_in_seconds)

    def open(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.UNCOMPRESSED):
        """Open for reading."""
        return _SlowReads(_local(path))

    def create(self, path: str, mime_type: str = "", compression_type: str = CompressionTypes.UNCOMPRESSED):
        """Open for writing; not delayed."""
        return self._under.create(_local(path), compression_type=compression_type)

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        """Copy files."""
        self._under.copy([*map(_local, source_file_names)], [*map(_local, destination_file_names)])

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        """Move files."""
        self._under.rename([*map(_local, source_file_names)], [*map(_local, destination_file_names)])

    def exists(self, path: str) -> bool:
        """Whether there is a file; folders do not count, as in an object store."""
        return self._under.exists(_local(path)) and not self._under.exists(_local(path).rstrip("/") + "/.")

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return self._under.size(_local(path))

    def last_updated(self, path: str) -> float:
        """Seconds since the epoch."""
        return self._under.last_updated(_local(path))

    def checksum(self, path: str) -> str:
        """Of the local file system."""
        return self._under.checksum(_local(path))

    def metadata(self, path: str) -> FileMetadata:
        """Size and time of a file."""
        found = self._under.metadata(_local(path))
        return FileMetadata(path, found.size_in_bytes, found.last_updated_in_seconds)

    def delete(self, paths: list[str]) -> None:
        """Remove files."""
        self._under.delete([*map(_local, paths)])
