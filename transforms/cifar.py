"""CIFAR's batches as images: `cifar-10-batches-py` and `cifar-100-python`, as their authors publish them.

They are pickles, and a pickle can run anything. The reader here knows lists, dicts, texts, numbers and arrays of bytes;
whatever else one asks for is refused before it is made. Format: https://www.cs.toronto.edu/~kriz/cifar.html

Array suffixes: N images of a batch, X its 3,072 numbers: 1,024 of red, then green, then blue, row by row.
"""

import dataclasses
import functools
import io
import os
import pickle
import re
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bulktag.transforms import files
from bulktag.transforms.records import ImageRef

SIDE_PX = 32
PIXELS = SIDE_PX * SIDE_PX * 3
# CIFAR-100's batch of 50,000 images has 155 MB.
MAX_BATCH_BYTES = 256 << 20
# What a batch is to a network's user: bytes of an image file. BMP is the plainest that every reader here knows.
BMP_BYTES = 54 + PIXELS
TEST_BATCHES = ("test_batch", "test")


@dataclasses.dataclass(frozen=True)
class _Form:
    """Names within one of the two sets: its files and the keys of its dicts."""

    meta: str
    batches: tuple[str, ...]
    names_key: str
    labels_key: str


_FORMS = (
    _Form("batches.meta", (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"), "label_names", "labels"),
    _Form("meta", ("train", "test"), "fine_label_names", "fine_labels"),
)
_MEMBER = re.compile(r"(?P<batch>.*/(?:data_batch_[1-5]|test_batch|train|test))#(?P<index>[0-9]{1,6})")


@dataclasses.dataclass(frozen=True)
class Batch:
    """One file of a set.

    Attributes:
      pixels_NX: uint8.
      labels: id of each image's class.
    """

    pixels_NX: np.ndarray
    labels: tuple[int, ...]


def is_cifar(folder: str) -> bool:
    """Whether a folder holds one of the two sets."""
    return _find_form(folder) is not None


def _find_form(folder: str) -> _Form | None:
    for form in _FORMS:
        if all(files.is_file(files.join(folder, name)) for name in (form.meta, form.batches[0])):
            return form
    return None


def check(folder: str) -> None:
    """Read a whole set.

    Raises:
      ValueError: a file is missing, or holds something else than the set's.
    """
    for _ in list_images(folder):
        pass


def list_images(folder: str) -> Iterator[ImageRef]:
    """Every image of a set, named `FOLDER/BATCH#INDEX`, with the name of its class.

    Raises:
      ValueError: see `check`.
    """
    form = _find_form(folder)
    if form is None:
        raise ValueError(f"expected CIFAR's batches, found none: {folder}")
    names = _read_names(form, folder)
    for name in form.batches:
        uri = files.join(folder, name)
        if not files.is_file(uri):
            raise ValueError(f"expected {', '.join(form.batches)} beside {form.meta}, found no {name}: {folder}")
        batch, modified_us = _load(uri)
        if len(batch.labels) and max(batch.labels) >= len(names):
            raise ValueError(f"expected labels below {len(names)}, got {max(batch.labels)}: {uri}")
        for index, label in enumerate(batch.labels):
            yield ImageRef(f"{uri}#{index}", (names[label],), BMP_BYTES, modified_us)


def _read_names(form: _Form, folder: str) -> list[str]:
    uri = files.join(folder, form.meta)
    names = _load_dict(uri).get(form.names_key)
    if not isinstance(names, list) or not all(isinstance(name, str | bytes) and name for name in names):
        raise ValueError(f"expected a list of names {form.names_key!r}: {uri}")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]


def split_member(uri: str) -> tuple[str, int] | None:
    """(batch, index) of what `list_images` named, None for any other URI."""
    match = _MEMBER.fullmatch(uri)
    # A file of that very name is that file.
    if match is None or (files.is_local(uri) and os.path.lexists(uri)):
        return None
    return match["batch"], int(match["index"])


def is_test_image(uri: str) -> bool | None:
    """Whether an image is of the set's own test batch; None for one of no set."""
    match = _MEMBER.fullmatch(uri)
    return None if match is None else match["batch"].rsplit("/", 1)[1] in TEST_BATCHES


def read_member(batch_uri: str, index: int) -> tuple[bytes, int]:
    """One image as the bytes of a BMP file, and when its batch was modified, in microseconds.

    Raises:
      FileNotFoundError: there is no such batch, or not so many images in it.
      ValueError: it is no batch.
    """
    batch, modified_us = _load(batch_uri)
    if index >= len(batch.labels):
        raise FileNotFoundError(2, f"expected an image below {len(batch.labels)}, got {index}", batch_uri)
    return encode_bmp(batch.pixels_NX[index]), modified_us


def encode_bmp(pixels_X: np.ndarray) -> bytes:
    """uint8[3072] as a BMP file of 24 bits a pixel: rows from the bottom, blue first, no padding."""
    rows_HWC = pixels_X.reshape(3, SIDE_PX, SIDE_PX).transpose(1, 2, 0)[::-1, :, ::-1]
    header = struct.pack("<2sIHHI", b"BM", BMP_BYTES, 0, 0, 54)
    header += struct.pack("<IiiHHIIiiII", 40, SIDE_PX, SIDE_PX, 1, 24, 0, PIXELS, 2835, 2835, 0, 0)
    return header + rows_HWC.tobytes()


_loading = threading.Lock()


def _load(uri: str) -> tuple[Batch, int]:
    if files.is_local(uri):
        status = os.stat(uri)
        version, modified_us = (status.st_mtime_ns, status.st_size), status.st_mtime_ns // 1000
    else:
        version, modified_us = (), -1
    with _loading:  # many threads read images of one batch at once
        return _load_batch(uri, version), modified_us


# As many as CIFAR-10 has: the images of all come mixed. 31 MB each.
@functools.lru_cache(maxsize=6)
def _load_batch(uri: str, version: tuple) -> Batch:
    content = _load_dict(uri)
    data = content.get("data")
    labels = next((content[form.labels_key] for form in _FORMS if form.labels_key in content), None)
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != PIXELS:
        got = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise ValueError(f"expected 'data' of shape [N, {PIXELS}], got {got}: {uri}")
    if not isinstance(labels, list) or len(labels) != len(data):
        raise ValueError(f"expected a label for each of {len(data)} images: {uri}")
    if not all(isinstance(label, int) and label >= 0 for label in labels):
        raise ValueError(f"expected labels that are numbers from 0: {uri}")
    return Batch(data, tuple(labels))


def _load_dict(uri: str) -> dict[str, Any]:
    """The dict that a file of a set holds.

    Raises:
      ValueError: it holds, or asks for, anything but lists, dicts, texts, numbers and arrays of bytes.
      OSError: it cannot be read.
    """
    with files.open_file(uri) as file:
        data = file.read(MAX_BATCH_BYTES + 1)
    if len(data) > MAX_BATCH_BYTES:
        raise ValueError(f"expected a batch of at most {MAX_BATCH_BYTES} bytes, got more: {uri}")
    try:
        content = _PlainUnpickler(io.BytesIO(data), encoding="bytes").load()
    except _Refused as refused:
        raise ValueError(f"expected a batch of lists, dicts, texts and arrays, refused {refused}: {uri}") from refused
    except Exception as error:  # whatever a damaged pickle does to the reader
        raise ValueError(f"expected CIFAR's batch, got a damaged one ({type(error).__name__}): {uri}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict, got {type(content).__name__}: {uri}")
    plain = {key.decode("latin-1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
    return {key: value.array if isinstance(value, _Array) else value for key, value in plain.items()}


class _Refused(Exception):
    """A pickle asks for something that it may not have."""


class _Callable:
    """Something that a pickle may call, and do nothing else with.

    No function itself: a pickle may set the attributes of what it has got.
    """

    __slots__ = ("_do",)

    def __init__(self, do: Callable):
        object.__setattr__(self, "_do", do)

    def __call__(self, *arguments):
        return self._do(*arguments)

    def __setstate__(self, state):
        raise _Refused("a change of what it was given")

    def __setattr__(self, name, value):
        raise _Refused("a change of what it was given")


class _Bytes:
    """NumPy's type of single bytes, the only one that an array may have."""

    __slots__ = ()

    def __setstate__(self, state):
        if not (isinstance(state, tuple) and all(value in (-1, 0, 3, 8, None, "|", b"|") for value in state)):
            raise _Refused("an unusual array type")


class _Array:
    """An array that is still without its numbers."""

    __slots__ = ("array",)

    def __setstate__(self, state):
        _, shape, kind, by_columns, raw = state
        if not isinstance(kind, _Bytes) or not isinstance(raw, bytes) or by_columns not in (0, False):
            raise _Refused("an array of something else than bytes")
        self.array = np.frombuffer(raw, np.uint8).reshape(shape)


def _make_dtype(name, *_) -> _Bytes:
    if name not in ("u1", b"u1", "uint8", b"uint8"):
        raise _Refused(f"an array of {name!r}")
    return _Bytes()


def _encode_latin1(text, encoding="latin1") -> bytes:
    # How Python 3 writes bytes in the older protocols.
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _Refused("a codec")
    return text.encode("latin-1")


def _from_buffer(raw, kind, shape, order) -> _Array:
    # How Python 3 writes arrays in the newest protocol.
    array = _Array()
    array.__setstate__((1, shape, kind, order not in ("C", b"C"), bytes(raw) if isinstance(raw, bytearray) else raw))
    return array


# `numpy.core` and `numpy._core` are the same module before and after NumPy 2.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _Callable(lambda *_: _Array()),
    ("numpy._core.multiarray", "_reconstruct"): _Callable(lambda *_: _Array()),
    ("numpy", "ndarray"): _Callable(lambda *_: _Array()),
    ("numpy", "dtype"): _Callable(_make_dtype),
    ("numpy.core.numeric", "_frombuffer"): _Callable(_from_buffer),
    ("numpy._core.numeric", "_frombuffer"): _Callable(_from_buffer),
    ("_codecs", "encode"): _Callable(_encode_latin1),
}


class _PlainUnpickler(pickle.Unpickler):
    """Makes nothing but plain values and arrays of bytes; nothing that a pickle names is imported or called."""

    def find_class(self, module: str, name: str) -> _Callable:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid):
        raise _Refused("an object that lies elsewhere")
