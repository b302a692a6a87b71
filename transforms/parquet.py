"""Parquet files as analysts' tools like them: zstd, row groups of one size, dictionaries where values repeat."""

import collections

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bulktag.model.novelty import NOVEL_FROM
from bulktag.transforms import files
from bulktag.transforms.records import StagedFile
from bulktag.transforms.staging import new_file_uri

# Readers skip whole row groups by their statistics and decode them in parallel; 128k rows is DuckDB's own default
# (122,880) rounded. Source: https://duckdb.org/docs/stable/guides/performance/file_formats
ROW_GROUP_ROWS = 131_072
# Written to disk as one row group before it reaches ROW_GROUP_ROWS if it holds this much, for wide embeddings.
MAX_BUFFER_BYTES = 128 << 20
# Larger columns, such as embeddings, are not copied to be in one piece.
MAX_JOINED_BYTES = 32 << 20

MAX_FILE_BYTES = 512 << 20

# Few distinct values each; names in a table that lacks them do nothing.
DICTIONARY_COLUMNS = [
    "top_label", "label", "tags.list.element.label", "model_id", "run_id", "tagged_at", "stage", "error_type", "at"
]  # fmt: skip


def count_images(rows: pa.RecordBatch | pa.Table) -> tuple[int, dict[str, int]]:
    """Images that rows stand for, and how many of them have each best tag (each type, for errors)."""
    if "rank" in rows.schema.names:  # long: an image's row of rank 1, or of rank null where it has no tag
        rows = rows.filter(pc.fill_null(pc.less_equal(rows["rank"], 1), True))
    column = next(name for name in ("top_label", "label", "error_type") if name in rows.schema.names)
    counts = pc.value_counts(rows[column].drop_null()).to_pylist()
    return rows.num_rows, {entry["values"]: entry["counts"] for entry in counts}


def count_novel(rows: pa.RecordBatch | pa.Table) -> int:
    """Images among the rows that are unlike anything seen in training."""
    if "novelty" not in rows.schema.names:
        return 0
    novel = pc.greater(rows["novelty"], NOVEL_FROM)
    if "rank" in rows.schema.names:
        novel = pc.and_(novel, pc.fill_null(pc.less_equal(rows["rank"], 1), True))
    return pc.sum(novel).as_py() or 0


def _num_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the rows alone: the batches of a run share one dictionary of labels."""
    return sum(
        column.indices.nbytes if pa.types.is_dictionary(column.type) else column.nbytes for column in batch.columns
    )


def _join_chunks(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    """The pieces of a row group as one: thousands of small pieces take four times as long to encode."""
    if pa.types.is_dictionary(column.type):
        if len({chunk.dictionary.buffers()[-1].address for chunk in column.chunks}) > 1:
            column = column.unify_dictionaries()
        # Arrow would compare dictionaries label by label, piece by piece.
        indices = pa.concat_arrays([chunk.indices for chunk in column.chunks])
        return pa.DictionaryArray.from_arrays(indices, column.chunk(0).dictionary, safe=False)
    return column if column.nbytes > MAX_JOINED_BYTES else column.combine_chunks()


class ParquetFile:
    """One Parquet file being written: record batches in, row groups out.

    `num_images`, `num_novel` and `label_counts` say what was written so far; what is buffered comes with `close`.
    """

    def __init__(self, uri: str, schema: pa.Schema):
        self.uri, self.num_images, self.num_novel = uri, 0, 0
        self.label_counts: collections.Counter = collections.Counter()
        self._buffer: list[pa.RecordBatch] = []
        self._buffered_rows = self._buffered_bytes = 0
        self._file = files.create_file(uri)
        self._writer = pq.ParquetWriter(
            self._file, schema, compression="zstd", use_dictionary=DICTIONARY_COLUMNS,
            use_compliant_nested_type=True, coerce_timestamps="us",
        )  # fmt: skip

    @property
    def num_bytes(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        self._buffer.append(batch)
        self._buffered_rows += batch.num_rows
        self._buffered_bytes += _num_bytes(batch)
        while self._buffered_rows >= ROW_GROUP_ROWS or self._buffered_bytes >= MAX_BUFFER_BYTES:
            self._flush()

    def close(self) -> int:
        """Finish the file and return its size in bytes."""
        while self._buffer:
            self._flush()
        self._writer.close()
        num_bytes = self._file.tell()
        self._file.close()
        return num_bytes

    def _flush(self):
        """Write one row group, and keep the rows beyond it for the next one."""
        if not self._buffer:
            return
        table = pa.Table.from_batches(self._buffer)
        rows = table.slice(0, ROW_GROUP_ROWS)
        rows = pa.Table.from_arrays([_join_chunks(column) for column in rows.columns], schema=rows.schema)
        self._writer.write_table(rows, row_group_size=ROW_GROUP_ROWS)
        images, labels = count_images(rows)
        self.num_images += images
        self.num_novel += count_novel(rows)
        self.label_counts.update(labels)
        self._buffer = table.slice(ROW_GROUP_ROWS).to_batches()
        self._buffered_rows = max(0, table.num_rows - ROW_GROUP_ROWS)
        self._buffered_bytes = sum(map(_num_bytes, self._buffer))


class TableFiles:
    """Record batches -> files, a new one where a file is full."""

    def __init__(self, staging_dir: str, table: str, schema: pa.Schema):
        self._staging_dir, self._table, self._schema = staging_dir, table, schema
        self._open: ParquetFile | None = None

    def write(self, batch: pa.RecordBatch) -> list[StagedFile]:
        """Add rows; returns the file that they filled, if they did."""
        if self._open is None:
            self._open = ParquetFile(new_file_uri(self._staging_dir, self._table, ".parquet"), self._schema)
        self._open.write(batch)
        return self.close() if self._open.num_bytes >= MAX_FILE_BYTES else []

    def close(self) -> list[StagedFile]:
        """Finish the open file, if there is one."""
        if self._open is None:
            return []
        file, self._open = self._open, None
        num_bytes = file.close()
        counts = dict(sorted(file.label_counts.items()))
        return [StagedFile(self._table, file.uri, file.num_images, num_bytes, counts, file.num_novel)]
