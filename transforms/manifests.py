"""Manifests: tables that name images and their labels, one row an image."""

import csv
import io
import itertools
import json
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bulktag.transforms import files
from bulktag.transforms.records import ImageError, ImageRef

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
URI_COLUMN = "uri"
DEFAULT_LABEL_COLUMNS = ("label", "labels")
PARQUET_BATCH_ROWS = 8192
# Keys may be missing from single rows of a .jsonl, so its columns are those of so many first rows together.
JSON_ROWS_CHECKED = 1000


def check_manifest(uri: str, label_columns: tuple[str, ...]) -> None:
    """Read a manifest's beginning.

    Args:
      uri: the manifest.
      label_columns: columns that must be there besides `uri`.
    Raises:
      ValueError: it cannot be parsed, or a column is missing.
    """
    try:
        columns = manifest_columns(uri)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise ValueError(f"expected a manifest ({', '.join(MANIFEST_SUFFIXES)}), got {error}: {uri}") from error
    for name in (URI_COLUMN, *label_columns):
        if name not in columns:
            raise ValueError(f"expected a column {name!r}, got columns {sorted(columns)}: {uri}")


def manifest_columns(uri: str) -> set[str]:
    """Names of a manifest's columns; for .jsonl, the keys of its first rows.

    Raises:
      ValueError: the first row of a .jsonl is no JSON object.
    """
    if uri.lower().endswith(".parquet"):
        with files.open_file(uri) as file:
            return set(pq.ParquetFile(file).schema_arrow.names)
    if uri.lower().endswith(".csv"):
        with _open_text(uri) as text:
            return set(next(csv.reader(text, strict=True), []))
    columns: set[str] = set()
    for number, (where, row) in enumerate(itertools.islice(_rows(uri), JSON_ROWS_CHECKED)):
        if isinstance(row, dict):
            columns.update(row)
        elif number == 0:
            raise ValueError(f"{row}: {where}")
    return columns or {URI_COLUMN}  # an empty file lacks images, not a column


def read_manifest(uri: str, labels: str = "auto", separator: str = "") -> Iterator[ImageRef | ImageError]:
    """Read a manifest row by row.

    Args:
      uri: the manifest; relative URIs in it resolve against its folder.
      labels: "auto" (column `label` or `labels` if there is one), "folder", "none", or column names separated by
        commas.
      separator: splits a text cell into several labels; "" for one label a cell.
    Yields:
      an ImageRef for each row; an ImageError for a row that names no image or cannot be parsed.
    """
    columns = _label_columns(labels)
    folder = uri.rsplit("/", 1)[0] or "/"
    for where, row in _rows(uri, columns):
        try:
            if isinstance(row, str):
                raise _BadRow("bad_row", row)
            name = _read_uri(row.get(URI_COLUMN), folder)
            if labels == "folder":
                names = [name.rsplit("/", 2)[-2]] if name.count("/") > 1 else []
            else:
                names = [label for column in columns for label in split_labels(row.get(column), separator)]
            if not all(map(files.is_utf8, names)):
                raise _BadRow("bad_row", f"expected labels in UTF-8, got {names!r}")
        except _BadRow as error:
            yield ImageError(error.uri or f"{uri}#{where}", "match", error.error_type, str(error), -1)
            continue
        yield ImageRef(name, tuple(dict.fromkeys(names)), -1, -1)


class _BadRow(Exception):
    """A row that names no image that could be read."""

    def __init__(self, error_type: str, message: str, uri: str = ""):
        super().__init__(message)
        self.error_type, self.uri = error_type, uri


def _read_uri(cell, folder: str) -> str:
    name = _text(cell)
    if not isinstance(name, str) or not name.strip():
        raise _BadRow("no_uri", f"expected a uri, got {name!r}")
    try:
        name = files.resolve(folder, name)
    except ValueError as error:
        raise _BadRow("bad_uri", str(error)) from error
    if not files.is_utf8(name):
        raise _BadRow("bad_name", "expected a file name in UTF-8", files.printable(name))
    return name


def split_labels(cell, separator: str) -> list[str]:
    """Labels in one cell: text, a list of text, or nothing.

    Numbers count as names ("7", also where a missing cell turned the column into floats), blanks and NaN as no label.
    """
    cell = _text(cell)
    if cell is None or cell != cell:  # NaN differs from itself
        return []
    if isinstance(cell, list | tuple):
        return [label for item in cell for label in split_labels(item, "")]
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    parts = str(cell).split(separator) if separator else [str(cell)]
    return [part.strip() for part in parts if part.strip()]


def _label_columns(labels: str) -> tuple[str, ...]:
    if labels in ("none", "folder"):
        return ()
    return DEFAULT_LABEL_COLUMNS if labels == "auto" else label_columns(labels)


def label_columns(labels: str) -> tuple[str, ...]:
    """Manifest columns that a `labels` setting asks for by name."""
    if labels in ("auto", "folder", "none"):
        return ()
    return tuple(name.strip() for name in labels.split(",") if name.strip())


def _text(cell):
    """The cell itself, text where it is bytes: writers of Parquet without logical types leave it so."""
    return cell.decode("utf-8", "surrogateescape") if isinstance(cell, bytes) else cell


def _rows(uri: str, label_columns: tuple[str, ...] = ()) -> Iterator[tuple[str, dict | str]]:
    """(place, row) of a manifest; the row is a message where it could not be parsed."""
    if uri.lower().endswith(".parquet"):
        yield from _parquet_rows(uri, {URI_COLUMN, *label_columns})
        return
    with _open_text(uri) as text:
        if uri.lower().endswith(".csv"):
            yield from _csv_rows(text)
            return
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"line {number}", _parse_json(line)


def _parquet_rows(uri: str, wanted: set[str]) -> Iterator[tuple[str, dict]]:
    with files.open_file(uri) as file:
        table = pq.ParquetFile(file)
        # Only these: tables of images often hold the images too.
        columns = [name for name in table.schema_arrow.names if name in wanted]
        number = 0
        for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row


def _csv_rows(text: io.TextIOWrapper) -> Iterator[tuple[str, dict | str]]:
    # Strict: a quote that is never closed would swallow the rest of the file without a word.
    reader = csv.DictReader(text, strict=True)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"line {reader.line_num}", f"expected a row of CSV, got {error}"
            continue
        if row is None:
            return
        yield f"line {reader.line_num}", row


def _parse_json(line: str) -> dict | str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"expected one JSON object a line, got {error}"
    return row if isinstance(row, dict) else f"expected one JSON object a line, got {type(row).__name__}"


def _open_text(uri: str) -> io.TextIOWrapper:
    # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name. surrogateescape: bytes in
    # another encoding spoil the row that they stand in, and not the whole table.
    return io.TextIOWrapper(files.open_file(uri), encoding="utf-8-sig", errors="surrogateescape", newline="")
