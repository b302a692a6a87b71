"""Listing Google Cloud Storage: page by page, by pattern, and in parts that many workers list side by side."""

import base64
import concurrent.futures
import re
from collections.abc import Iterator

from apache_beam.io.filesystem import FileSystem
from google.api_core.page_iterator import HTTPIterator
from google.cloud import storage

from bulktag.transforms.gcs_client import SCHEME, as_os_errors, get_client, retry, split_uri
from bulktag.transforms.stored import StoredObject

# The most that one page can hold. Source: https://cloud.google.com/storage/docs/json_api/v1/objects/list
PAGE_OBJECTS = 1000
# Fewer objects than these pages hold are listed by one worker; more are split until there are so many parts.
PAGES_OF_ONE, PARTS, MAX_PARTS = 5, 64, 256
PROBES_AT_ONCE = 16

_FIELDS = "items(name,size,updated,generation,md5Hash),nextPageToken"


def list_objects(
    prefix: str, *, start: str = "", end: str = "", children: bool = False, limit: int | None = None
) -> Iterator[StoredObject]:
    """Objects in the order of their names, page by page.

    Args:
      prefix: gs://BUCKET/ and what their names begin with.
      start, end: only names from `start` on and before `end`; "": no bound.
      children: only those without a further "/" behind the prefix.
      limit: at most so many.
    Raises:
      OSError: the store refused or failed.
    """
    bucket, _ = split_uri(prefix)
    most = {"max_results": limit, "page_size": min(limit or PAGE_OBJECTS, PAGE_OBJECTS)}
    with as_os_errors(prefix):
        for blob in _list(prefix, _FIELDS, start, end, delimiter="/" if children else None, **most):
            yield describe_blob(bucket, blob)


def _list(prefix: str, fields: str, start: str = "", end: str = "", **options) -> HTTPIterator:
    """Blobs in pages, as the client gives them; nothing is asked before the first one is."""
    bucket, name = split_uri(prefix)
    return get_client().list_blobs(
        bucket, prefix=name or None, start_offset=start or None, end_offset=end or None, fields=fields, retry=retry(),
        **{"page_size": PAGE_OBJECTS, **options},
    )  # fmt: skip


def has_folders(prefix: str) -> bool:
    """Whether a name that begins with a prefix, which ends in "/", has another "/" behind it."""
    _, name = split_uri(prefix)
    with as_os_errors(prefix):
        found = _list(prefix, "prefixes,nextPageToken", delimiter="/")
        return any(not folder[len(name) :].startswith(".") for _ in found.pages for folder in found.prefixes)


def describe_blob(bucket: str, blob: storage.Blob) -> StoredObject:
    """What the store has said of an object."""
    modified_us = int(blob.updated.timestamp() * 1e6) if blob.updated else -1
    size = -1 if blob.size is None else blob.size
    uri = f"{SCHEME}{bucket}/{blob.name}"
    return StoredObject(uri, size, modified_us, int(blob.generation or -1), hexadecimal(blob.md5_hash))


def list_matching(pattern: str) -> Iterator[StoredObject]:
    """Objects whose URI matches a pattern of Beam's kind."""
    wanted = re.compile(FileSystem.translate_pattern(pattern))
    prefix = re.match(r"[^*?[]*", pattern)[0]
    for found in list_objects(prefix):
        if wanted.fullmatch(found.uri):
            yield found


def hexadecimal(digest: str | None) -> str:
    """A digest in base64, as the store writes it; "" where it has none, as for composed objects."""
    return base64.b64decode(digest).hex() if digest else ""


def split_listing(prefix: str) -> list[tuple[str, str]]:
    """Ranges of names that together hold every object below a prefix, for workers to list side by side.

    A store lists in the order of names, a thousand at a time, and tells nothing of how many there are. So ranges are
    cut where names differ first: `IMG_2023...` and `IMG_2024...` at the digit, folders at their first letters. Those
    that hold more than one page are cut again until there are enough. Whatever is guessed wrongly about the names, each
    of them lies in just one range.

    Args:
      prefix: gs://BUCKET/ and what the names begin with.
    Returns:
      (start, end) of each, in order, "" for no bound: from `start` on and before `end`.
    """
    if _holds_few(prefix, PAGES_OF_ONE):
        return [("", "")]
    ranges = [("", "", True)]
    with concurrent.futures.ThreadPoolExecutor(PROBES_AT_ONCE, "bulktag-list") as pool:
        while len(ranges) < PARTS and any(large for *_, large in ranges):
            cut = pool.map(lambda part: _cut(prefix, *part[:2]) if part[2] else [part], ranges)
            finer = [piece for pieces in cut for piece in pieces]
            if len(finer) == len(ranges) or len(finer) > MAX_PARTS:
                ranges = finer if len(finer) <= 2 * MAX_PARTS else ranges
                break
            ranges = finer
    return [(start, end) for start, end, _ in ranges]


def _holds_few(prefix: str, pages: int) -> bool:
    limit = pages * PAGE_OBJECTS
    return sum(1 for _ in list_objects(prefix, limit=limit + 1)) <= limit


def _cut(prefix: str, start: str, end: str) -> list[tuple[str, str, bool]]:
    """A range as the ranges of the characters in which its names differ first; the flag says that one is large."""
    first, _ = _probe(prefix, start, end)
    if not first:
        return [(start, end, False)]
    length = _common_length(prefix, first, end)
    cuts, large, at = [], [], start
    while True:
        name, is_large = _probe(prefix, at, end)
        if not name:
            break
        cuts.append(name[: length + 1])
        branch_end = _after(name[: length + 1])
        if is_large and len(name) > length:
            # The page may have run into the next branch.
            _, is_large = _probe(prefix, cuts[-1], branch_end)
        large.append(is_large and len(name) > length)
        at = branch_end if len(name) > length else name + "\x01"
        if not at:
            break
    bounds = [start, *cuts[1:], end]
    return [(low, high, big) for low, high, big in zip(bounds[:-1], bounds[1:], large, strict=True)]


def _common_length(prefix: str, first: str, end: str) -> int:
    """How many characters all names from `first` on and before `end` have in common."""
    low, high = len(split_uri(prefix)[1]), len(first)
    while low < high:  # do all names share first[:middle]?
        middle = (low + high + 1) // 2
        beyond = _after(first[:middle])
        if beyond and _probe(prefix, beyond, end)[0]:
            high = middle - 1
        else:
            low = middle
    return low


def _after(text: str) -> str:
    """The smallest text behind all that begin with this one; "" where there is none."""
    for length in range(len(text), 0, -1):
        code = ord(text[length - 1]) + 1
        if code == 0xD800:
            code = 0xE000  # surrogates are no characters
        if code <= 0x10FFFF:
            return text[: length - 1] + chr(code)
    return ""


def _probe(prefix: str, start: str, end: str) -> tuple[str, bool]:
    """The first name of a range, "" for none, and whether there are more than one page."""
    if start and end and start >= end:
        return "", False
    with as_os_errors(prefix):
        found = _list(prefix, "items(name),nextPageToken", start, end)
        page = next(found.pages, None)
        first = next(iter(page), None) if page is not None else None
        return (first.name, found.next_page_token is not None) if first is not None else ("", False)
