"""What object stores say of their objects, and how they fail; the same for every store."""

import errno
from typing import NamedTuple


class StoredObject(NamedTuple):
    """An object as its store lists it."""

    uri: str
    num_bytes: int  # -1: unknown
    modified_us: int  # microseconds since the epoch, UTC; -1: unknown
    generation: int = -1  # the store's number of this version of the object; -1: it has none
    md5: str = ""  # of the stored bytes, hexadecimal; "": unknown


class StoreError(OSError):
    """A store failed though it was asked again and again; `error_type` is the errors table's slug."""

    def __init__(self, error_type: str, message: str, uri: str):
        super().__init__(errno.EIO, message, uri)
        self.error_type = error_type
