"""One Parquet file as analysts' tools like it: zstd, row groups of one size, dictionaries where values repeat."""

import collections

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bulktag.transforms import files

# Readers skip whole row groups by their statistics and decode them in parallel; 128k rows is DuckDB's own default
# (122,880) rounded. Source: https://duckdb.org/docs/stable/guides/performance/file_formats
ROW_GROUP_ROWS = 131_072
# Written to disk as one row group before it reaches ROW_GROUP_ROWS if it holds this much, for wide embeddings.
MAX_BUFFER_BYTES = 128 << 20

# Few distinct values each; names in a table that lacks them do nothing.
DICTIONARY_COLUMNS = [
    "top_label", "label", "tags.list.element.label", "model_id", "run_id", "tagged_at", "stage", "error_type", "at"
]  # fmt: skip


def count_images(batch: pa.RecordBatch) -> tuple[int, dict[str, int]]:
    """Images that a batch of rows stands for, and how many of them have each best tag (each type, for errors)."""
    if "rank" in batch.schema.names:  # long: an image's row of rank 1, or of rank null where it has no tag
        batch = batch.filter(pc.fill_null(pc.less_equal(batch["rank"], 1), True))
    column = next(name for name in ("top_label", "label", "error_type") if name in batch.schema.names)
    counts = pc.value_counts(batch[column].drop_null()).to_pylist()
    return batch.num_rows, {entry["values"]: entry["counts"] for entry in counts}


def _num_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of the rows alone: the batches of a run share one dictionary of labels."""
    return sum(
        column.indices.nbytes if pa.types.is_dictionary(column.type) else column.nbytes for column in batch.columns
    )


class ParquetFile:
    """One Parquet file being written: record batches in, row groups out."""

    def __init__(self, uri: str, schema: pa.Schema):
        self.uri, self.num_images = uri, 0
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
        images, labels = count_images(batch)
        self.num_images += images
        self.label_counts.update(labels)
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
        table = pa.Table.from_batches(self._buffer).unify_dictionaries()
        self._writer.write_table(table.slice(0, ROW_GROUP_ROWS), row_group_size=ROW_GROUP_ROWS)
        self._buffer = table.slice(ROW_GROUP_ROWS).to_batches()
        self._buffered_rows = max(0, table.num_rows - ROW_GROUP_ROWS)
        self._buffered_bytes = sum(map(_num_bytes, self._buffer))
