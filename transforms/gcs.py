"""Objects of Google Cloud Storage: read, written, moved and removed; `gcs_listing` lists them.

Beam's own file system makes a client, and so a connection, for each object that it opens, asks for the object's facts
before its bytes, and remembers every name that it lists. Here an image is one request on a connection that is open
already, and a listing keeps one page.
"""

import concurrent.futures
import contextlib
import email.utils
import errno
import hashlib
import http
import io
import re
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import requests
from google.api_core import exceptions as api_exceptions
from google.cloud.storage.fileio import BlobReader, BlobWriter

from bulktag.transforms.gcs_client import (
    ANSWER_TIMEOUT_S,
    CONNECT_TIMEOUT_S,
    BrokenBody,
    as_os_errors,
    get_blob,
    get_client,
    retry,
    split_uri,
)
from bulktag.transforms.gcs_listing import (
    describe_blob,
    has_folders,
    hexadecimal,
    list_matching,
    list_objects,
    split_listing,
)
from bulktag.transforms.stored import StoredObject

__all__ = [
    "create_file",
    "delete",
    "delete_generation",
    "exists",
    "has_folders",
    "list_matching",
    "list_objects",
    "move",
    "open_file",
    "read_object",
    "split_listing",
    "stat",
    "write_bytes",
]

# Small requests about many objects, such as moving and deleting, that are on their way at once.
AT_ONCE = 16
CHUNK_BYTES = 8 << 20
READ_BYTES = 1 << 20
# One attempt at one image, however slowly its bytes come.
MAX_BODY_S = 120.0

_T = TypeVar("_T")


def read_object(uri: str, max_bytes: int) -> tuple[bytes, StoredObject]:
    """Read one object with one request.

    Args:
      uri: gs://BUCKET/NAME.
      max_bytes: no more than this and one byte are read.
    Returns:
      its bytes, unpacked where the store says that they are packed, and what the store says of it.
    Raises:
      FileNotFoundError, PermissionError: as a disk would say.
      StoreError: it failed again and again; see `RETRY_FOR_S`.
    """
    bucket, name = split_uri(uri)
    if not bucket or not name:
        raise FileNotFoundError(errno.ENOENT, "expected gs://BUCKET/NAME", uri)
    client = get_client()
    url = (f"{client.api_endpoint}/download/storage/v1/b/{urllib.parse.quote(bucket, safe='')}"
           f"/o/{urllib.parse.quote(name, safe='')}?alt=media")  # fmt: skip
    with as_os_errors(uri):
        data, headers = retry()(_get)(client._http, url, max_bytes)
    facts = StoredObject(
        uri, len(data), _modified_us(headers), int(headers.get("X-Goog-Generation", -1)), _md5(headers)
    )
    if headers.get("Content-Encoding") == "gzip":
        data = _unpack(data, max_bytes)
    return data, facts


def _get(session: requests.Session, url: str, max_bytes: int) -> tuple[bytes, requests.structures.CaseInsensitiveDict]:
    deadline = time.monotonic() + MAX_BODY_S
    # As stored: the store would unpack it where that is not said, and its digest is of the packed bytes.
    headers = {"Accept-Encoding": "gzip"}
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT_S, ANSWER_TIMEOUT_S)) as response:
        if response.status_code != http.HTTPStatus.OK:
            raise api_exceptions.from_http_response(response)
        data = bytearray()
        # Whatever has come by now: a read of a fixed size could wait for a slow server's last byte for hours.
        while len(data) <= max_bytes and (chunk := response.raw.read1(READ_BYTES, decode_content=False)):
            data += chunk
            if time.monotonic() > deadline:
                raise requests.Timeout(f"{len(data)} bytes in {MAX_BODY_S:g} s")
        if len(data) <= max_bytes:
            _check_whole(data, response.headers)
        return bytes(data[: max_bytes + 1]), response.headers


def _check_whole(data: bytearray, headers: requests.structures.CaseInsensitiveDict) -> None:
    expected = headers.get("Content-Length")
    if expected is not None and len(data) != int(expected):
        raise BrokenBody(f"{len(data)} of {expected} bytes came")
    if (digest := _md5(headers)) and hashlib.md5(data, usedforsecurity=False).hexdigest() != digest:
        raise BrokenBody("the bytes are not those that the store's digest is of")


def _modified_us(headers: requests.structures.CaseInsensitiveDict) -> int:
    try:
        return int(email.utils.parsedate_to_datetime(headers["Last-Modified"]).timestamp() * 1e6)
    except (KeyError, ValueError):
        return -1


def _md5(headers: requests.structures.CaseInsensitiveDict) -> str:
    found = re.search(r"md5=([A-Za-z0-9+/=]+)", headers.get("X-Goog-Hash", ""))
    return hexadecimal(found[1]) if found else ""


def _unpack(data: bytes, max_bytes: int) -> bytes:
    try:
        return zlib.decompressobj(wbits=31).decompress(data, max_bytes + 1)
    except zlib.error:
        return data  # the label lies, as browsers find out every day


class _Reader(BlobReader):
    """An object as a file; what the store refuses is an OSError."""

    def __init__(self, uri: str):
        self._uri = uri
        blob = get_blob(uri)
        with as_os_errors(uri):
            blob.reload(retry=retry())  # is it there? And `seek` needs its size
        super().__init__(blob, chunk_size=CHUNK_BYTES, retry=retry(), raw_download=True)

    def read(self, size: int = -1) -> bytes:
        with as_os_errors(self._uri):
            return super().read(size)


class _Writer(BlobWriter):
    """A new object as a file: it is there, whole, once this is closed, and not at all after an error."""

    def __init__(self, uri: str):
        self._uri = uri
        super().__init__(get_blob(uri), chunk_size=CHUNK_BYTES, ignore_flush=True, retry=retry())

    def write(self, data) -> int:
        with as_os_errors(self._uri):
            return super().write(data)

    def close(self) -> None:
        with as_os_errors(self._uri):
            super().close()


def open_file(uri: str) -> io.BufferedIOBase:
    """Open an object for reading its bytes as they are stored.

    Raises:
      OSError: see `read_object`.
    """
    return _Reader(uri)


def create_file(uri: str) -> io.BufferedIOBase:
    """Open a new object for writing; in a `with` that ends with an error, nothing is written."""
    return _Writer(uri)


def write_bytes(uri: str, data: bytes, *, if_generation: int | None = None) -> int:
    """Write a whole object: a reader sees the old one or the new one.

    Args:
      uri: gs://BUCKET/NAME.
      data: its bytes.
      if_generation: the generation that must be there now, 0 for none; None: whatever is there is replaced.
    Returns:
      its generation.
    Raises:
      FileExistsError: another one is there.
    """
    blob = get_blob(uri)
    with as_os_errors(uri):
        blob.upload_from_string(data, "application/octet-stream", retry=retry(), if_generation_match=if_generation)
    return int(blob.generation or -1)


def exists(uri: str) -> bool:
    """Whether there is an object of this name."""
    with as_os_errors(uri):
        return bool(split_uri(uri)[1]) and get_blob(uri).exists(retry=retry())


def stat(uri: str) -> StoredObject:
    """What the store says of one object.

    Raises:
      FileNotFoundError: there is none.
    """
    blob = get_blob(uri)
    with as_os_errors(uri):
        blob.reload(retry=retry())
    return describe_blob(split_uri(uri)[0], blob)


def delete(uris: Iterable[str]) -> None:
    """Remove objects; one that is not there is fine."""
    _for_each(delete_generation, uris)


def delete_generation(uri: str, generation: int | None = None) -> None:
    """Remove an object, if there is one; with a generation, only if it is still the one that was seen.

    Raises:
      FileExistsError: another one has taken its place.
    """
    with contextlib.suppress(FileNotFoundError), as_os_errors(uri):
        get_blob(uri).delete(retry=retry(), if_generation_match=generation)


def move(pairs: Iterable[tuple[str, str]]) -> None:
    """Give objects new names within the store, (old, new); the bytes stay where they are."""
    _for_each(_move_one, pairs)


def _move_one(pair: tuple[str, str]) -> None:
    source, target = pair
    old, new = get_blob(source), get_blob(target)
    with as_os_errors(source):
        # In pieces, as the store tells: a large object moved to another place takes longer than one answer may.
        token, *_ = new.rewrite(old, retry=retry())
        while token is not None:
            token, *_ = new.rewrite(old, token=token, retry=retry())
    delete_generation(source)


def _for_each(work: Callable[[_T], None], items: Iterable[_T]) -> None:
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE, "bulktag-gcs") as pool:
        for _ in pool.map(work, items):
            pass
