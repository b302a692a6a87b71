"""Files on the local disk, on Google Cloud Storage and on any other file system that Beam knows, all taken literally.

Beam treats `*`, `?` and `[` in a path as a pattern and unpacks `.gz` by its name. Names of images may hold all of
that, so everything here opens exactly the file that is named and returns exactly its bytes.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import shutil
import tempfile
import types
from collections.abc import Callable, Iterable, Iterator

from bulktag.transforms import beam_store
from bulktag.transforms.paths import absolute_path, is_local, is_utf8, join, normalise, printable, resolve
from bulktag.transforms.stored import StoredObject

__all__ = [
    "absolute_path",
    "create_file",
    "delete_file",
    "delete_folder",
    "delete_generation",
    "describe_object",
    "exists",
    "fetch_file",
    "fetch_folder",
    "has_folders",
    "has_generations",
    "is_file",
    "is_folder",
    "is_local",
    "is_utf8",
    "join",
    "list_below",
    "list_children",
    "list_matching",
    "list_prefix",
    "list_range",
    "move_files",
    "normalise",
    "open_file",
    "printable",
    "read_bytes",
    "read_object",
    "resolve",
    "split_folder",
    "upload_file",
    "write_bytes",
    "write_folder",
    "write_generation",
]

COPY_CHUNK_BYTES = 8 << 20
# Files of one folder that are copied at once.
COPIES_AT_ONCE = 8


def _store(uri: str) -> types.ModuleType:
    """The module that knows the store of a URL: `gcs` or `beam_store`, which have the same functions."""
    if uri.startswith("gs://"):
        from bulktag.transforms import gcs  # needs the extra of this name

        return gcs
    return beam_store


def open_file(uri: str):
    """Open the named file for reading its bytes as they are.

    Raises:
      OSError: it cannot be; stores raise those that a disk would.
    """
    return open(uri, "rb") if is_local(uri) else _store(uri).open_file(uri)


def create_file(uri: str):
    """Open a new file for writing bytes; missing folders are made."""
    if is_local(uri):
        os.makedirs(os.path.dirname(uri), exist_ok=True)
        return open(uri, "wb")
    return _store(uri).create_file(uri)


def read_bytes(uri: str) -> bytes:
    """All bytes of a file."""
    with open_file(uri) as file:
        return file.read()


def read_object(uri: str, max_bytes: int) -> tuple[bytes, StoredObject]:
    """Bytes of an object in a store, at most one more than `max_bytes`, and what the store says of it.

    Raises:
      OSError: see `open_file`.
    """
    return _store(uri).read_object(uri, max_bytes)


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; a reader sees the old bytes or the new ones, never half."""
    if not is_local(uri):
        _store(uri).write_bytes(uri, data)
        return
    path = pathlib.Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not a name that a second writer of the same file could choose too, nor one that is longer than names may be.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".bulktag-")
    try:
        with open(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def has_generations(uri: str) -> bool:
    """Whether the store counts the versions of an object, so that `write_generation` and its like work there."""
    return uri.startswith("gs://")


def write_generation(uri: str, data: bytes, generation: int) -> int:
    """Write an object if the version that is there now is this one, 0 for none.

    Returns:
      the generation of what was written.
    Raises:
      FileExistsError: another version is there.
    """
    return _store(uri).write_bytes(uri, data, if_generation=generation)


def delete_generation(uri: str, generation: int) -> None:
    """Remove an object if the version that is there now is this one.

    Raises:
      FileExistsError: another version is there.
    """
    _store(uri).delete_generation(uri, generation)


def exists(uri: str) -> bool:
    """Whether a file or folder of this name exists."""
    if is_local(uri):
        return os.path.exists(uri)
    return is_file(uri) or is_folder(uri)


def is_file(uri: str) -> bool:
    """Whether a file of this name exists; in a store, an object."""
    return os.path.isfile(uri) if is_local(uri) else _store(uri).exists(uri)


def is_folder(uri: str) -> bool:
    """Whether there is a folder of this name; in a store, whether anything lies below it."""
    if is_local(uri):
        return os.path.isdir(uri)
    with contextlib.suppress(FileNotFoundError):  # no such bucket
        return next(_store(uri).list_objects(uri.rstrip("/") + "/", limit=1), None) is not None
    return False


def has_folders(uri: str) -> bool:
    """Whether a folder that is not hidden lies in the folder `uri`."""
    if is_local(uri):
        try:
            with os.scandir(uri) as entries:
                return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
        except OSError:
            return False  # listing it will say what is wrong
    return _store(uri).has_folders(uri.rstrip("/") + "/")


def list_prefix(prefix: str) -> Iterator[StoredObject]:
    """All objects of a store whose URLs begin with `prefix`, in the order of their names.

    Raises:
      OSError: the store refused or failed.
    """
    return _store(prefix).list_objects(prefix)


def list_below(folder: str) -> Iterator[StoredObject]:
    """All objects below a folder of a store."""
    return list_prefix(folder.rstrip("/") + "/")


def list_children(folder: str) -> Iterator[StoredObject]:
    """The objects that lie in a folder of a store itself."""
    return _store(folder).list_objects(folder.rstrip("/") + "/", children=True)


def list_matching(pattern: str) -> Iterator[StoredObject]:
    """The objects of a store that match a pattern of Beam's kind."""
    return _store(pattern).list_matching(pattern)


def list_range(folder: str, start: str, end: str) -> Iterator[StoredObject]:
    """The objects below a folder of a store whose names, without the bucket, lie in a range; see `split_folder`."""
    return _store(folder).list_objects(folder.rstrip("/") + "/", start=start, end=end)


def split_folder(folder: str) -> list[tuple[str, str]]:
    """Ranges of names that all objects below a folder of a store fall into, to be listed side by side.

    Returns:
      (start, end) of each, in order; ("", "") where the store cannot list a part.
    """
    split = getattr(_store(folder), "split_listing", None)
    return split(folder.rstrip("/") + "/") if split else [("", "")]


def describe_object(uri: str) -> StoredObject:
    """What a store says of one object.

    Raises:
      FileNotFoundError: there is none.
    """
    return _store(uri).stat(uri)


def fetch_folder(uri: str) -> str:
    """A local folder with the files of `uri`: itself, or a temporary copy that lives as long as the process's /tmp.

    Raises:
      FileNotFoundError: there is no such folder.
    """
    if is_local(uri):
        if not os.path.isdir(uri):
            raise FileNotFoundError(f"expected a folder, found none: {uri}")
        return uri
    target = tempfile.mkdtemp(prefix="bulktag-")
    prefix = uri.rstrip("/") + "/"
    names = [found.uri for found in list_below(uri) if not found.uri.endswith("/")]
    if not names:
        raise FileNotFoundError(f"expected a folder, found nothing below: {uri}")
    _copy_all(fetch_file, [(name, os.path.join(target, *name[len(prefix) :].split("/"))) for name in names])
    return target


def write_folder(write: Callable[[str], None], uri: str) -> None:
    """Have `write(path)` fill a local folder, and bring it to `uri`."""
    if is_local(uri):
        os.makedirs(uri, exist_ok=True)
        write(uri)
        return
    with tempfile.TemporaryDirectory(prefix="bulktag-") as folder:
        write(folder)
        paths = sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file())
        _copy_all(upload_file, [(str(path), join(uri, *path.relative_to(folder).parts)) for path in paths])


def _copy_all(copy: Callable[[str, str], object], pairs: list[tuple[str, str]]) -> None:
    with concurrent.futures.ThreadPoolExecutor(COPIES_AT_ONCE, "bulktag-copy") as pool:
        for copied in [pool.submit(copy, *pair) for pair in pairs]:
            copied.result()


def fetch_file(uri: str, path: str) -> str:
    """Copy one file to the local `path` and return it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open_file(uri) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)
    return path


def upload_file(path: str, uri: str) -> None:
    """Copy a local file to `uri`."""
    with open(path, "rb") as source, create_file(uri) as target:
        shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)


def delete_file(uri: str) -> None:
    """Remove a file; one that is not there is fine."""
    if is_local(uri):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):
            os.unlink(uri)
    elif is_file(uri):
        _store(uri).delete([uri])


def delete_folder(uri: str) -> None:
    """Remove a folder and all below it; one that is not there is fine."""
    if is_local(uri):
        shutil.rmtree(uri, ignore_errors=True)
    else:
        _store(uri).delete([found.uri for found in list_below(uri)])


def move_files(pairs: Iterable[tuple[str, str]]) -> None:
    """Rename files on one file system, (old, new) each; in a store, many at once."""
    pairs = list(pairs)
    for source, target in pairs:
        if is_local(source):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.replace(source, target)
    remote = [pair for pair in pairs if not is_local(pair[0])]
    if remote:
        _store(remote[0][0]).move(remote)
