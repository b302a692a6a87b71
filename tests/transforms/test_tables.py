import datetime
import os

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from bulktag.pipeline.failures import find_disk_error
from bulktag.transforms import parquet, tables
from bulktag.transforms.parquet import ParquetFile, count_images
from bulktag.transforms.records import ImageError, ImageInfo, ScoredBatch, StagedFile, errors_schema, pack_images
from bulktag.transforms.staging import CommitFiles, read_manifest
from bulktag.transforms.tables import (
    TagSettings,
    WriteErrors,
    WriteTags,
    _WriteTable,
    build_errors,
    build_tags,
    write_empty_table,
)

LABELS = ("cat", "dog", "ü, \n'")
NOW_US = 1_790_000_000_123_456


def _info(i, **changes):
    fields = {"uri": f"/i/{i}\n ü'.jpg", "labels": (), "num_bytes": 10 + i, "modified_us": NOW_US - i,
              "sha256": bytes([i % 256]) * 32, "width": 20, "height": 30}  # fmt: skip
    return ImageInfo(**{**fields, **changes})


def _batch(scores_BL, first=0):
    scores_BL = np.asarray(scores_BL, np.float32)
    infos = [_info(first + i) for i in range(len(scores_BL))]
    return ScoredBatch(pack_images(infos), np.arange(len(infos) * 4, dtype=np.float32).reshape(-1, 4), scores_BL)


def _settings(**changes):
    return TagSettings(**{"labels": LABELS, "thresholds": (0.1, 0.2, 0.1), "model_id": "m", "run_id": "r", **changes})


SCORES = [[0.7, 0.2, 0.1], [0.05, 0.19, 0.0], [0.3, 0.3, 0.4]]


def test_the_best_tags_come_first_and_an_image_without_tags_has_its_row():
    rows = build_tags(_batch(SCORES), _settings(), NOW_US).to_pylist()
    assert [[tag["label"] for tag in row["tags"]] for row in rows] == [list(LABELS), [], [LABELS[2], "cat", "dog"]]
    assert [(row["top_label"], row["top_score"] and round(row["top_score"], 3)) for row in rows] == [
        ("cat", 0.7), (None, None), (LABELS[2], 0.4)
    ]  # fmt: skip
    assert rows[1]["uri"] == "/i/1\n ü'.jpg"
    assert rows[0]["sha256"] == "00" * 32
    assert rows[0]["tagged_at"] == datetime.datetime.fromtimestamp(NOW_US // 10**6, datetime.UTC).replace(
        microsecond=123456
    )
    assert (rows[0]["model_id"], rows[0]["run_id"], rows[2]["bytes"]) == ("m", "r", 12)


def test_top_k_limits_the_tags():
    rows = build_tags(_batch(SCORES), _settings(top_k=1), NOW_US).to_pylist()
    assert [len(row["tags"]) for row in rows] == [1, 0, 1]


def test_what_is_not_known_is_null():
    batch = _batch(SCORES[:1])
    batch.images = pack_images([_info(0, num_bytes=-1, modified_us=-1)])
    row = build_tags(batch, _settings(), NOW_US).to_pylist()[0]
    assert (row["bytes"], row["modified"]) == (None, None)


def test_scores_and_embedding_are_columns_on_demand():
    batch = _batch(SCORES)
    rows = build_tags(batch, _settings(scores=True, embedding=True), NOW_US)
    np.testing.assert_array_equal(np.array(rows["scores"].to_pylist(), np.float32), batch.scores_BL)
    np.testing.assert_array_equal(np.array(rows["embedding"].to_pylist(), np.float32), batch.bottleneck_BD)


def test_the_long_layout_has_a_row_for_each_tag_and_one_for_an_image_without():
    rows = build_tags(_batch(SCORES), _settings(layout="long"), NOW_US).to_pylist()
    assert [(row["uri"][3], row["rank"], row["label"]) for row in rows] == [
        ("0", 1, "cat"), ("0", 2, "dog"), ("0", 3, LABELS[2]),
        ("1", None, None),
        ("2", 1, LABELS[2]), ("2", 2, "cat"), ("2", 3, "dog"),
    ]  # fmt: skip
    assert all(row["run_id"] == "r" and row["width"] == 20 for row in rows)


@pytest.mark.parametrize("scores", [[[0.0, 0.0, 0.0]] * 3, [[1.0, 1.0, 1.0]], np.zeros((0, 3))])
def test_the_long_layout_of_all_nothing_and_everything(scores):
    rows = build_tags(_batch(scores), _settings(layout="long"), NOW_US)
    assert count_images(rows)[0] == len(scores)


@pytest.mark.parametrize("layout", ["wide", "long"])
def test_images_are_counted_by_their_best_tag(layout):
    batch = build_tags(_batch(SCORES), _settings(layout=layout), NOW_US)
    assert count_images(batch) == (3, {"cat": 1, LABELS[2]: 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": "tall"}, "expected layout wide or long, got 'tall'"),
        ({"layout": "long", "scores": True}, "expected no scores or embedding column with layout long"),
        ({"top_k": 0}, "expected top_k of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        _settings(**changes)


def _write(path, batches, schema):
    file = ParquetFile(str(path), schema)
    for batch in batches:
        file.write(batch)
    assert file.close() == os.path.getsize(path)
    return file, pq.ParquetFile(path)


def test_the_file_is_what_other_tools_expect(tmp_path):
    settings = _settings(scores=True, embedding=True)
    _, found = _write(tmp_path / "a.parquet", [build_tags(_batch(SCORES), settings, NOW_US)] * 2, settings.schema)
    assert found.schema_arrow == settings.schema  # types and nullability
    leaves = [found.schema.column(i).path for i in range(len(found.schema))]
    assert leaves == [
        "uri", "tags.list.element.label", "tags.list.element.score", "top_label", "top_score", "width", "height",
        "bytes", "modified", "generation", "md5", "sha256", "model_id", "run_id", "tagged_at", "scores.list.element",
        "embedding.list.element",
    ]  # fmt: skip
    columns = {name: found.metadata.row_group(0).column(i) for i, name in enumerate(leaves)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    for name in ("top_label", "tags.list.element.label", "model_id", "run_id"):
        assert "RLE_DICTIONARY" in columns[name].encodings, name
    for name in ("uri", "sha256", "scores.list.element"):
        assert "RLE_DICTIONARY" not in columns[name].encodings, name
    for name in ("modified", "tagged_at"):
        logical = found.schema.column(leaves.index(name)).logical_type.to_json()
        assert '"isAdjustedToUTC": true' in logical and '"timeUnit": "microseconds"' in logical


def test_a_query_finds_the_tags(tmp_path):
    _write(tmp_path / "a.parquet", [build_tags(_batch(SCORES), _settings(), NOW_US)], _settings().schema)
    query = f"SELECT uri, unnest(tags).label AS label FROM '{tmp_path}/a.parquet' WHERE top_score > 0.5 ORDER BY ALL"
    assert duckdb.sql(query).fetchall() == [("/i/0\n ü'.jpg", label) for label in sorted(LABELS)]


def test_row_groups_are_full_whatever_the_batches_are(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 10)
    batches = [
        build_tags(_batch(np.full((n, 3), 0.5), first=i * 100), _settings(), NOW_US)
        for i, n in enumerate([7, 1, 5, 25, 4])
    ]
    file, found = _write(tmp_path / "a.parquet", batches, _settings().schema)
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [10, 10, 10, 10, 2]
    assert file.num_images == 42
    assert found.read()["uri"].to_pylist() == [uri for batch in batches for uri in batch["uri"].to_pylist()]


def test_wide_rows_reach_the_disk_before_a_row_group_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_BUFFER_BYTES", 100_000)
    settings = _settings(embedding=True)
    batch = ScoredBatch(
        pack_images(map(_info, range(8))), np.zeros((8, 2048), np.float32), np.full((8, 3), 0.5, np.float32)
    )
    _, found = _write(tmp_path / "a.parquet", [build_tags(batch, settings, NOW_US)] * 5, settings.schema)
    assert [found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)] == [16, 16, 8]


def test_thousands_of_labels_do_not_fill_the_buffer(tmp_path):
    labels = tuple(f"label number {i}" for i in range(5000))
    settings = _settings(labels=labels, thresholds=(0.5,) * 5000)
    scores_BL = np.eye(4, 5000, dtype=np.float32)
    file = ParquetFile(str(tmp_path / "a.parquet"), settings.schema)
    for i in range(20):
        file.write(build_tags(_batch(scores_BL, first=4 * i), settings, NOW_US))
    assert file._buffered_bytes < 20 * 4 * 500
    file.close()
    assert pq.read_table(tmp_path / "a.parquet")["top_label"].to_pylist() == list(labels[:4]) * 20
    assert file.label_counts == {label: 20 for label in labels[:4]}


def test_batches_with_dictionaries_of_their_own_end_in_one(tmp_path):
    batches = [
        build_tags(_batch(np.eye(3)), _settings(labels=labels), NOW_US) for labels in (("a", "b", "c"), ("c", "d", "a"))
    ]
    file, found = _write(tmp_path / "a.parquet", batches, _settings().schema)
    assert found.read()["top_label"].to_pylist() == ["a", "b", "c", "c", "d", "a"]
    assert found.num_row_groups == 1
    assert file.label_counts == {"a": 2, "b": 1, "c": 2, "d": 1}


def test_columns_too_large_to_be_copied_are_written_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_JOINED_BYTES", 100)
    settings = _settings(embedding=True)
    batches = [build_tags(_batch(SCORES, first=3 * i), settings, NOW_US) for i in range(5)]
    _, found = _write(tmp_path / "a.parquet", batches, settings.schema)
    assert found.read().equals(pa.Table.from_batches(batches))


def test_errors_are_rows_of_their_own_table(tmp_path):
    errors = [
        ImageError("/i/a\n.jpg", "read", "not_found", "No such file", -1),
        ImageError("/i/b", "decode", "empty", "", 0),
    ]
    batch = build_errors(errors, "r", NOW_US)
    file, found = _write(tmp_path / "e.parquet", [batch], errors_schema())
    assert found.schema_arrow == errors_schema()
    rows = found.read().to_pylist()
    assert [(row["uri"], row["bytes"], row["run_id"]) for row in rows] == [("/i/a\n.jpg", None, "r"), ("/i/b", 0, "r")]
    assert file.label_counts == {"not_found": 1, "empty": 1}


def test_an_empty_table_has_its_columns(tmp_path):
    path = str(tmp_path / "deep" / "e.parquet")
    write_empty_table(path, errors_schema())
    assert pq.read_schema(path) == errors_schema()
    assert duckdb.sql(f"SELECT count(*) FROM '{path}'").fetchall() == [(0,)]


def _write_table(folder):
    fn = _WriteTable(str(folder), "tags", _settings().schema, lambda batch: build_tags(batch, _settings(), NOW_US))
    fn.setup()
    return fn


def test_a_full_file_is_closed_and_the_next_one_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_FILE_BYTES", 1)
    monkeypatch.setattr(parquet, "ROW_GROUP_ROWS", 3)
    fn = _write_table(tmp_path)
    fn.start_bundle()
    staged = [file for i in range(3) for file in fn.process(_batch(SCORES, first=3 * i))]
    staged += [item.value for item in fn.finish_bundle()]
    assert [file.num_images for file in staged] == [3, 3, 3]
    for file in staged:
        assert pq.read_metadata(file.uri).num_rows == 3
        assert os.path.getsize(file.uri) == file.num_bytes


def test_a_bundle_that_failed_and_is_tried_again_counts_once(tmp_path):
    fn = _write_table(tmp_path)
    fn.start_bundle()
    assert list(fn.process(_batch(SCORES))) == []  # and now the worker fails
    fn.start_bundle()
    list(fn.process(_batch(SCORES)))
    staged = [item.value for item in fn.finish_bundle()]
    assert [file.num_images for file in staged] == [3]
    assert len(os.listdir(tmp_path / "tags")) == 2  # the first attempt's is named by nobody


def test_what_goes_wrong_in_the_writing_thread_ends_the_bundle(tmp_path):
    def build(_):
        raise RuntimeError("a bug")

    fn = _WriteTable(str(tmp_path), "tags", _settings().schema, build)
    fn.setup()
    fn.start_bundle()
    with pytest.raises(RuntimeError, match="a bug"):
        for _ in range(tables.BATCHES_BEHIND + 1):  # no more than these can wait to be written
            list(fn.process(_batch(SCORES)))
    fn.start_bundle()
    list(fn.process(_batch(SCORES)))
    with pytest.raises(RuntimeError, match="a bug"):
        list(fn.finish_bundle())
    fn.teardown()


def _run(folder, batches, errors):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    tags = pipeline | "Batches" >> beam.Create(batches) | WriteTags(folder, _settings())
    failed = pipeline | "Failed" >> beam.Create(errors).with_output_types(ImageError) | WriteErrors(folder, "r")
    (tags, failed) | beam.Flatten() | CommitFiles(folder, pipeline | "Num" >> beam.Create([len(batches)]))
    pipeline.run().wait_until_finish()


def test_tags_and_errors_reach_their_files_through_beam(tmp_path):
    errors = [ImageError(f"/i/e{i}", "decode", "empty", "", 0) for i in range(250)]
    _run(str(tmp_path), [_batch(SCORES, first=3 * i) for i in range(5)], errors)
    staged = read_manifest(str(tmp_path))["files"]
    uris = {"tags": [], "errors": []}
    for file in staged:
        assert isinstance(file, StagedFile)
        uris[file.table] += pq.read_table(file.uri)["uri"].to_pylist()
    assert sorted(uris["tags"]) == sorted(f"/i/{i}\n ü'.jpg" for i in range(15))
    assert sorted(uris["errors"]) == sorted(error.uri for error in errors)
    assert sum(file.num_images for file in staged) == 265


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_and_no_lost_row(tmp_path, monkeypatch):
    with pytest.raises(OSError, match="No space left on device"):
        _write("/dev/full", [build_tags(_batch(SCORES), _settings(), NOW_US)], _settings().schema)
    monkeypatch.setattr(parquet, "new_file_uri", lambda *_: "/dev/full")
    with pytest.raises(Exception, match="No space left on device") as caught:
        _run(str(tmp_path), [_batch(SCORES)], [])
    assert "No space left on device" in find_disk_error(caught.value)
    assert not (tmp_path / "manifest.json").exists()


def test_tables_are_written_to_a_store(store):
    _run("memory://b/s", [_batch(SCORES)], [])
    (file,) = read_manifest("memory://b/s")["files"]
    assert pq.read_table(pa.BufferReader(store.objects[file.uri])).num_rows == 3
