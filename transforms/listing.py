"""Folders and patterns -> the images in them, on local disks and in object stores."""

import collections
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from bulktag.model.image import IMAGE_SUFFIXES
from bulktag.transforms import files
from bulktag.transforms.records import ImageError, ImageRef, SkippedFile
from bulktag.transforms.stored import StoredObject

Found = ImageRef | ImageError | SkippedFile


def skip_reason(relative_path: str) -> str | None:
    """Why a file in a folder is no candidate, or None: candidates look like an image or have no suffix at all."""
    if any(part.startswith(".") for part in relative_path.split("/")):
        return "hidden"
    suffix = os.path.splitext(relative_path)[1].lower()
    return None if suffix in ("", ".") or suffix in IMAGE_SUFFIXES else "not_an_image"


def _folders(root: str) -> Iterator[tuple[str, list[str] | OSError]]:
    """(folder, names of its files, or why it cannot be listed) of a local folder and all below it.

    Each folder comes once: the ones that only links lead to last, and never through a loop.
    """
    seen: set[tuple[int, int]] = set()
    folders, links = [root], collections.deque()
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=_entry_name)
        except OSError as error:
            yield folder, error
            continue
        below = [entry for entry in entries if _is_folder(entry)]
        folders += [entry.path for entry in reversed(below) if not entry.is_symlink()]
        links += [entry.path for entry in below if entry.is_symlink()]
        below_names = {entry.name for entry in below}
        yield folder, [entry.name for entry in entries if entry.name not in below_names]


def _entry_name(entry: os.DirEntry) -> str:
    return entry.name


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself, or gone: reading it will say which


def walk_folder(root: str, skip: Callable[[str], str | None] = skip_reason) -> Iterator[Found]:
    """Every file below a local folder, links followed; `skip` says why one is no candidate, see `skip_reason`."""
    prefix = len(root.rstrip("/")) + 1
    for folder, names in _folders(root):
        if isinstance(names, OSError):
            hidden = skip_reason(folder[prefix:]) == "hidden"
            yield SkippedFile("hidden", files.printable(folder)) if hidden else _listing_error(folder, names)
            continue
        for name in names:
            path = os.path.join(folder, name)
            reason = skip(path[prefix:])
            yield SkippedFile(reason, files.printable(path)) if reason else describe_file(path)


def expand_glob(pattern: str) -> Iterator[Found]:
    """A pattern names its files itself, so suffixes are not looked at; folders that match are not descended.

    `**` stands for any number of folders, none of them hidden. (The standard library's follows loops of links.)
    """
    if pattern.endswith("/**"):
        pattern += "/*"
    head, recursive, tail = pattern.partition("/**/")
    if not recursive:
        for path in sorted(glob.iglob(pattern)):
            if not os.path.isdir(path):
                yield describe_file(path)
        return
    for root in sorted(glob.iglob(head)) if head else ["/"]:
        for folder, names in _folders(root) if os.path.isdir(root) else ():
            if skip_reason(folder[len(root.rstrip("/")) + 1 :]) == "hidden":
                continue
            if isinstance(names, OSError):
                yield _listing_error(folder, names)
            else:
                yield from expand_glob(f"{glob.escape(folder.rstrip('/'))}/{tail}")


def describe_file(path: str) -> Found:
    """What one local path is."""
    if not files.is_utf8(path):
        return ImageError(files.printable(path), "match", "bad_name", "expected a file name in UTF-8", -1)
    try:
        status = os.stat(path)
    except OSError:
        return ImageRef(path, (), -1, -1)  # a broken link, or gone already: reading it will say which
    if not stat.S_ISREG(status.st_mode):
        return SkippedFile("not_a_file", path)  # opening a pipe would wait for ever
    return ImageRef(path, (), status.st_size, status.st_mtime_ns // 1000)


def describe_objects(
    found: Iterable[StoredObject], folder: str | None = None, skip: Callable[[str], str | None] = skip_reason
) -> Iterator[Found]:
    """What a store listed; stores have no folders, a name that ends in / stands for one.

    Args:
      found: the objects.
      folder: where only what looks like an image below this folder is wanted; None for all of them.
      skip: says why one is none.
    """
    for stored in found:
        if stored.uri.endswith("/"):
            continue
        reason = skip(stored.uri[len(folder) + 1 :]) if folder else None
        yield (
            SkippedFile(reason, stored.uri)
            if reason
            else ImageRef(stored.uri, (), stored.num_bytes, stored.modified_us, stored.generation, stored.md5)
        )


def _listing_error(folder: str, error: OSError) -> ImageError:
    slug = "permission_denied" if isinstance(error, PermissionError) else "listing_failed"
    return ImageError(files.printable(folder), "match", slug, error.strerror or str(error), -1)
