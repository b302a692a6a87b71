"""Manifests: tables that name images and their labels, one row an image."""

import csv
import io
import json
import os
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from bulktag.transforms import files
from bulktag.transforms.records import ImageError, ImageRef

MANIFEST_SUFFIXES = (".csv", ".jsonl", ".parquet")
URI_COLUMN = "uri"
DEFAULT_LABEL_COLUMNS = ("label", "labels")
PARQUET_BATCH_ROWS = 8192


def check_manifest(uri: str, label_columns: tuple[str, ...]) -> None:
    """Read a manifest's first row.

    Args:
      uri: the manifest.
      label_columns: columns that must be there besides `uri`.
    Raises:
      ValueError: it cannot be parsed, or a column is missing.
    """
    try:
        columns = manifest_columns(uri)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"expected a manifest ({', '.join(MANIFEST_SUFFIXES)}), got {error}: {uri}") from error
    for name in (URI_COLUMN, *label_columns):
        if name not in columns:
            raise ValueError(f"expected a column {name!r}, got columns {sorted(columns)}: {uri}")


def manifest_columns(uri: str) -> set[str]:
    """Names of a manifest's columns (for .jsonl, the keys of its first row)."""
    if uri.lower().endswith(".parquet"):
        with files.open_file(uri) as file:
            return set(pq.ParquetFile(file).schema_arrow.names)
    if uri.lower().endswith(".csv"):
        with _open_text(uri) as text:
            return set(next(csv.reader(text), []))
    return set(next((row for _, row in _rows(uri)), {URI_COLUMN: None}))


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
    base = uri.rsplit("/", 1)[0]
    for where, row in _rows(uri):
        if isinstance(row, str):
            yield ImageError(f"{uri}#{where}", "match", "bad_row", row, -1)
            continue
        name = row.get(URI_COLUMN)
        if not isinstance(name, str) or not name:
            yield ImageError(f"{uri}#{where}", "match", "no_uri", f"expected a uri, got {name!r}", -1)
            continue
        if files.is_local(name) and not name.startswith("file://"):
            name = os.path.normpath(os.path.join(base, name)) if files.is_local(uri) else files.join(base, name)
        elif name.startswith("file://"):
            name = files.normalise(name)
        if labels == "folder":
            names = (name.rsplit("/", 2)[-2],) if name.count("/") > 1 else ()
        else:
            names = tuple(label for column in columns for label in split_labels(row.get(column), separator))
        yield ImageRef(name, tuple(dict.fromkeys(names)), -1, -1)


def split_labels(cell, separator: str) -> list[str]:
    """Labels in one cell: text, a list of text, or nothing.

    Numbers count as names ("7"), blanks and NaN as no label.
    """
    if cell is None or cell != cell:  # NaN differs from itself
        return []
    if isinstance(cell, list | tuple):
        return [label for item in cell for label in split_labels(item, "")]
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


def _rows(uri: str) -> Iterator[tuple[str, dict | str]]:
    """(place, row) of a manifest; the row is a message where it could not be parsed."""
    if uri.lower().endswith(".parquet"):
        with files.open_file(uri) as file:
            number = 0
            for batch in pq.ParquetFile(file).iter_batches(PARQUET_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
        return
    with _open_text(uri) as text:
        if uri.lower().endswith(".csv"):
            reader = csv.DictReader(text)
            for row in reader:
                yield f"line {reader.line_num}", row
            return
        for number, line in enumerate(text, start=1):
            if line.strip():
                yield f"line {number}", _parse_json(line)


def _parse_json(line: str) -> dict | str:
    try:
        row = json.loads(line)
    except ValueError as error:
        return f"expected one JSON object a line, got {error}"
    return row if isinstance(row, dict) else f"expected one JSON object a line, got {type(row).__name__}"


def _open_text(uri: str) -> io.TextIOWrapper:
    # utf-8-sig: spreadsheets put a byte order mark in front of the first column's name.
    return io.TextIOWrapper(files.open_file(uri), encoding="utf-8-sig", newline="")
