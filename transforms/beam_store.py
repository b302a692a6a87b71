"""Object stores that Beam knows and this package does not: the functions of `gcs`, through Beam's file systems."""

import errno
import re
from collections.abc import Iterable, Iterator

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from bulktag.transforms.stored import StoredObject, StoreError


def open_file(uri: str):
    """Open an object for reading its bytes as they are stored."""
    return FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)


def create_file(uri: str):
    """Open a new object for writing."""
    return FileSystems.create(uri, compression_type=CompressionTypes.UNCOMPRESSED)


def read_object(uri: str, max_bytes: int) -> tuple[bytes, StoredObject]:
    """Read one object; see `gcs.read_object`."""
    try:
        with open_file(uri) as file:
            data = file.read(max_bytes + 1)
    except BeamIOError as error:
        raise StoreError("io_error", str(error), uri) from error
    return data, StoredObject(uri, len(data), -1)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole object."""
    with create_file(uri) as file:
        file.write(data)


def exists(uri: str) -> bool:
    """Whether there is an object of this name."""
    return FileSystems.exists(uri)


def list_objects(
    prefix: str, *, start: str = "", end: str = "", children: bool = False, limit: int | None = None
) -> Iterator[StoredObject]:
    """Objects whose names begin with a prefix; see `gcs_listing.list_objects`. Parts cannot be asked for."""
    assert not (start or end)
    yield from _match(escape(prefix) + ("*" if children else "**"), limit)


def has_folders(prefix: str) -> bool:
    """Whether a name that begins with a prefix, which ends in "/", has another "/" behind it."""
    return next(_match(escape(prefix) + "*/*", 1), None) is not None


def stat(uri: str) -> StoredObject:
    """What the store says of one object.

    Raises:
      FileNotFoundError: there is none.
    """
    found = next(_match(escape(uri), 1), None)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", uri)
    return found


def list_matching(pattern: str) -> Iterator[StoredObject]:
    """Objects whose URI matches a pattern of Beam's kind."""
    yield from _match(pattern, None)


def _match(pattern: str, limit: int | None) -> Iterator[StoredObject]:
    try:
        found = FileSystems.match([pattern], limits=None if limit is None else [limit])[0].metadata_list
    except BeamIOError as error:
        raise StoreError("listing_failed", str(error), pattern) from error
    for item in found:
        modified = item.last_updated_in_seconds
        yield StoredObject(item.path, item.size_in_bytes, int(modified * 1e6) if modified else -1)


def escape(path: str) -> str:
    """A pattern that matches exactly `path`."""
    return re.sub(r"[*?[]", lambda found: f"[{found[0]}]", path)


def delete(uris: Iterable[str]) -> None:
    """Remove objects."""
    if uris := list(uris):
        _as_os_error(FileSystems.delete, uris)


def move(pairs: Iterable[tuple[str, str]]) -> None:
    """Give objects new names within the store, (old, new)."""
    if pairs := list(pairs):
        old, new = zip(*pairs, strict=True)
        _as_os_error(FileSystems.rename, list(old), list(new))


def _as_os_error(work, *arguments) -> None:
    try:
        work(*arguments)
    except BeamIOError as error:
        raise OSError(errno.EIO, str(error)) from error
