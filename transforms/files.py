"""Files on any file system that Beam knows, local paths taken literally.

Beam treats `*`, `?` and `[` in a path as a pattern and unpacks `.gz` by its name. Names of images may hold all of
that, so everything here opens exactly the file that is named and returns exactly its bytes.
"""

import os
import pathlib
import posixpath
import shutil
import tempfile
import urllib.parse
from collections.abc import Callable

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

COPY_CHUNK_BYTES = 8 << 20


def is_local(uri: str) -> bool:
    """Whether `uri` is a path on this machine's disk."""
    return FileSystems.get_scheme(uri) is None


def normalise(uri: str) -> str:
    """Absolute form of a path; `file://` becomes a plain path, other URLs stay as they are.

    Raises:
      ValueError: the URL's scheme belongs to no file system that is installed, or the path is not in UTF-8.
    """
    if is_local(uri) or _is_file_url(uri):
        path = absolute_path(_path_of_file_url(uri) if _is_file_url(uri) else os.path.expanduser(uri))
        if not is_utf8(path):
            raise ValueError(f"expected a path in UTF-8, got {uri!r}")
        return path
    try:
        FileSystems.get_filesystem(uri)
    except ValueError as error:
        scheme = uri.split("://", 1)[0]
        raise ValueError(
            f"expected a local path or a URL of an installed file system (for gs://: pip install 'bulktag[gcp]'), "
            f"got scheme {scheme!r}: {uri}"
        ) from error
    return uri.rstrip("/")


def absolute_path(path: str) -> str:
    """One spelling of a local path: absolute, without `.`, `..`, doubled or trailing slashes. Links stay.

    `link/..` is the folder above the one that the link leads to, as the system takes it, and not the link's own.

    Raises:
      ValueError: an embedded NUL.
    """
    if "\0" in path:
        raise ValueError(f"expected a path without NUL, got {path!r}")
    if not path.startswith("/"):
        path = os.path.join(os.getcwd(), path)
    names = path.split("/")
    if ".." in names:
        last = len(names) - 1 - names[::-1].index("..")
        above = "/".join(names[: last + 1])
        if os.path.realpath(above) != os.path.realpath(os.path.normpath(above)):
            path = "/".join([os.path.realpath(above), *names[last + 1 :]])
    return "/" + os.path.normpath(path).lstrip("/")  # POSIX lets two leading slashes stand


def is_utf8(text: str) -> bool:
    """Whether a text has no lone surrogates: they stand for bytes of a file name that are no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """The path itself where it is in UTF-8, else its `file://` URL: no two paths have the same."""
    return path if is_utf8(path) else pathlib.PurePosixPath(path).as_uri()


def _is_file_url(uri: str) -> bool:
    return uri[:7].lower() == "file://"


def _path_of_file_url(url: str) -> str:
    host, slash, path = url[7:].partition("/")
    if not slash or host not in ("", "localhost"):
        raise ValueError(f"expected file:///ABSOLUTE/PATH, got {url!r}")
    # `?` and `#` separate nothing in it: many programs write them unquoted.
    return os.fsdecode(urllib.parse.unquote_to_bytes(os.fsencode("/" + path)))


def resolve(folder: str, name: str) -> str:
    """The URI that `name` stands for in a table that lies in `folder`.

    Args:
      folder: absolute path or URL.
      name: relative to it, absolute, `file://` or any other URL.
    Raises:
      ValueError: it can name no file.
    """
    try:
        if _is_file_url(name):
            return absolute_path(_path_of_file_url(name))
        if not is_local(name):
            name.encode()
            return name
        os.fsencode(name)
        if is_local(folder) or name.startswith("/"):
            return absolute_path(os.path.join(folder, name))
        scheme, path = folder.split("://", 1)
        return f"{scheme}://{posixpath.normpath(posixpath.join(path, name))}"
    except UnicodeEncodeError as error:
        raise ValueError(f"expected text, got a lone surrogate: {name!r}") from error


def join(folder: str, *names: str) -> str:
    """`folder/name/...` on its file system."""
    return os.path.join(folder, *names) if is_local(folder) else "/".join([folder.rstrip("/"), *names])


def open_file(uri: str):
    """Open the named file for reading its bytes as they are."""
    if is_local(uri):
        return open(uri, "rb")
    return FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED)


def create_file(uri: str):
    """Open a new file for writing bytes; missing folders are made."""
    return FileSystems.create(uri, compression_type=CompressionTypes.UNCOMPRESSED)


def read_bytes(uri: str) -> bytes:
    """All bytes of a file."""
    with open_file(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file; on a local disk a reader sees the old bytes or the new ones, never half."""
    if not is_local(uri):
        with create_file(uri) as file:
            file.write(data)
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


def exists(uri: str) -> bool:
    """Whether a file or folder of this name exists."""
    if is_local(uri):
        return os.path.exists(uri)
    return FileSystems.exists(uri) or is_folder(uri)


def is_folder(uri: str) -> bool:
    """Whether anything lies below `uri`."""
    if is_local(uri):
        return os.path.isdir(uri)
    return next(iter(_match(escape(uri.rstrip("/")) + "/**", limit=1)), None) is not None


def has_folders(uri: str) -> bool:
    """Whether a folder that is not hidden lies in the folder `uri`."""
    if is_local(uri):
        try:
            with os.scandir(uri) as entries:
                return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
        except OSError:
            return False  # listing it will say what is wrong
    return next(iter(_match(escape(uri.rstrip("/")) + "/*/*", limit=1)), None) is not None


def escape(path: str) -> str:
    """A pattern that matches exactly `path`."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in path)


def _match(pattern: str, limit: int | None = None):
    try:
        limits = None if limit is None else [limit]
        return FileSystems.match([pattern], limits=limits)[0].metadata_list
    except BeamIOError:
        return []


def list_remote(pattern: str):
    """(uri, num_bytes, modified_us) of every object that matches, on a file system other than the local one.

    Raises:
      BeamIOError: the store refused or failed.
    """
    for found in FileSystems.match([pattern])[0].metadata_list:
        modified = found.last_updated_in_seconds
        yield found.path, found.size_in_bytes, int(modified * 1e6) if modified else -1


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
    names = [path for path, _, _ in list_remote(escape(prefix) + "**")]
    if not names:
        raise FileNotFoundError(f"expected a folder, found nothing below: {uri}")
    for name in names:
        fetch_file(name, os.path.join(target, *name[len(prefix) :].split("/")))
    return target


def write_folder(write: Callable[[str], None], uri: str) -> None:
    """Have `write(path)` fill a local folder, and bring it to `uri`."""
    if is_local(uri):
        os.makedirs(uri, exist_ok=True)
        write(uri)
        return
    with tempfile.TemporaryDirectory(prefix="bulktag-") as folder:
        write(folder)
        for path in sorted(path for path in pathlib.Path(folder).rglob("*") if path.is_file()):
            with open(path, "rb") as source, create_file(join(uri, *path.relative_to(folder).parts)) as target:
                shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)


def fetch_file(uri: str, path: str) -> str:
    """Copy one file to the local `path` and return it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open_file(uri) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)
    return path


def delete_folder(uri: str) -> None:
    """Remove a folder and all below it; one that is not there is fine."""
    if is_local(uri):
        shutil.rmtree(uri, ignore_errors=True)
    elif names := [found.path for found in _match(escape(uri.rstrip("/")) + "/**")]:
        FileSystems.delete(names)


def move_file(source: str, target: str) -> None:
    """Rename a file, on one file system."""
    if is_local(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(source, target)
    else:
        FileSystems.rename([source], [target])
