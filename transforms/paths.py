"""Paths and URLs of files: one spelling each, taken literally; nothing is opened."""

import os
import pathlib
import posixpath
import urllib.parse

from apache_beam.io.filesystems import FileSystems


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
    if not uri.split("://", 1)[1].strip("/"):
        raise ValueError(f"expected a URL with a bucket, got {uri!r}")
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
