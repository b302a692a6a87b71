import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bulktag.transforms.manifests import check_manifest, label_columns, read_manifest, split_labels
from bulktag.transforms.records import ImageError, ImageRef


def _write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def _named(rows):
    return [(row.uri, row.labels) for row in rows if isinstance(row, ImageRef)]


def _errors(rows):
    return [(row.uri, row.error_type) for row in rows if isinstance(row, ImageError)]


def test_csv_from_a_spreadsheet_is_read(tmp_path):
    manifest = _write(
        tmp_path / "m.csv", b'\xef\xbb\xbfuri,label\r\n"a, b.jpg","red, dark"\r\n\r\nsub/c.jpg, blue \r\n'
    )
    assert _named(read_manifest(manifest)) == [
        (f"{tmp_path}/a, b.jpg", ("red, dark",)),
        (f"{tmp_path}/sub/c.jpg", ("blue",)),
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_all_kinds_of_manifests_say_the_same(tmp_path, kind):
    rows = [{"uri": "a#1 ü.jpg", "label": "x"}, {"uri": "/abs/b.jpg", "label": None}, {"uri": "", "label": "x"}]
    path = tmp_path / f"m.{kind.upper()}"
    if kind == "csv":
        _write(path, "uri,label\n" + "".join(f"{row['uri']},{row['label'] or ''}\n" for row in rows))
    elif kind == "jsonl":
        _write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    check_manifest(str(path), ("label",))
    found = list(read_manifest(str(path)))
    assert _named(found) == [(f"{tmp_path}/a#1 ü.jpg", ("x",)), ("/abs/b.jpg", ())]
    assert [slug for _, slug in _errors(found)] == ["no_uri"]


def test_every_row_of_a_broken_jsonl_is_accounted_for(tmp_path):
    lines = [
        b'{"uri": "a.jpg"}', b"not json", b"[1, 2]", b"", b'{"label": "x"}', b'{"uri": 7}', b'{"uri": ["a.jpg"]}',
        b'{"uri": "  "}',
        b"[" * 100_000, b'{"uri": "caf\xe9.jpg"}', b'{"uri": "\\ud800.jpg"}', b'{"uri": "a\\u0000.jpg"}',
        b'{"uri": "b.jpg", "label": "caf\xe9"}', b'{"uri": "file://x"}', b'{"uri": "c.jpg", "label": {"a": 1}}',
    ]  # fmt: skip
    manifest = _write(tmp_path / "m.jsonl", b"\r\n".join(lines))
    found = list(read_manifest(manifest))
    assert len(found) == len(lines) - 1  # the empty line is no row
    assert [uri for uri, _ in _named(found)] == [f"{tmp_path}/a.jpg", f"{tmp_path}/c.jpg"]
    assert _errors(found) == [
        (f"{manifest}#line 2", "bad_row"),
        (f"{manifest}#line 3", "bad_row"),
        (f"{manifest}#line 5", "no_uri"),
        (f"{manifest}#line 6", "no_uri"),
        (f"{manifest}#line 7", "no_uri"),
        (f"{manifest}#line 8", "no_uri"),
        (f"{manifest}#line 9", "bad_row"),
        (f"file://{tmp_path}/caf%E9.jpg", "bad_name"),
        (f"{manifest}#line 11", "bad_uri"),
        (f"{manifest}#line 12", "bad_uri"),
        (f"{manifest}#line 13", "bad_row"),
        (f"{manifest}#line 14", "bad_uri"),
    ]
    assert all(row.uri.encode() and row.message.encode() for row in found if isinstance(row, ImageError))


def test_a_csv_in_another_encoding_spoils_only_the_rows_that_show_it(tmp_path):
    manifest = _write(
        tmp_path / "m.csv", "uri,label\ngood.jpg,x\ncafé.jpg,x\nb.jpg,grün\nlast.jpg,y\n".encode("latin-1")
    )
    found = list(read_manifest(manifest))
    assert [uri for uri, _ in _named(found)] == [f"{tmp_path}/good.jpg", f"{tmp_path}/last.jpg"]
    assert [slug for _, slug in _errors(found)] == ["bad_name", "bad_row"]


def test_a_quote_that_is_never_closed_does_not_go_unnoticed(tmp_path):
    manifest = _write(tmp_path / "m.csv", 'uri,label\na.jpg,x\n"b.jpg,x\nc.jpg,x\n')
    found = list(read_manifest(manifest))
    assert _named(found) == [(f"{tmp_path}/a.jpg", ("x",))]
    assert [slug for _, slug in _errors(found)] == ["bad_row"]


def test_a_cell_longer_than_csv_allows_is_a_bad_row_and_the_next_one_is_read(tmp_path):
    manifest = _write(tmp_path / "m.csv", f"uri\n{'x' * 200_000}\nb.jpg\n")
    found = list(read_manifest(manifest))
    assert [slug for _, slug in _errors(found)] == ["bad_row"]
    assert _named(found) == [(f"{tmp_path}/b.jpg", ())]


def test_rows_that_are_too_short_or_too_long_lose_no_image(tmp_path):
    manifest = _write(tmp_path / "m.csv", "label,uri\nx\nx,a.jpg,more,and more\n")
    found = list(read_manifest(manifest))
    assert _named(found) == [(f"{tmp_path}/a.jpg", ("x",))]
    assert [slug for _, slug in _errors(found)] == ["no_uri"]


def test_parquet_label_columns_of_every_type(tmp_path):
    path = tmp_path / "m.parquet"
    table = pa.table(
        {
            "uri": pa.array([f"{i}.jpg" for i in range(4)]).dictionary_encode(),
            "tags": pa.array([["a", "b", "a"], [], None, ["", "c "]]),
            "number": pa.array([7, None, 8, 9], pa.int64()),
            "share": pa.array([7.0, math.nan, 0.5, None]),
            "flag": pa.array([True, False, None, True]),
            "raw": pa.array([b"r1", None, b"r2", b""]),
        }
    )
    pq.write_table(table, path)
    labels = {
        column: [row.labels for row in read_manifest(str(path), column)]
        for column in ("tags", "number", "share", "raw", "tags,number")
    }
    assert labels == {
        "tags": [("a", "b"), (), (), ("c",)],
        "number": [("7",), (), ("8",), ("9",)],
        "share": [("7",), (), ("0.5",), ()],
        "raw": [("r1",), (), ("r2",), ()],
        "tags,number": [("a", "b", "7"), (), ("8",), ("c", "9")],
    }


def test_parquet_uris_written_without_a_text_type_are_read(tmp_path):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": pa.array([b"a.jpg", b"\xff.jpg"])}), path)
    found = list(read_manifest(str(path)))
    assert _named(found) == [(f"{tmp_path}/a.jpg", ())]
    assert _errors(found) == [(f"file://{tmp_path}/%FF.jpg", "bad_name")]


def test_parquet_columns_that_nobody_asked_for_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uri": ["a.jpg"], "label": ["x"], "image": [b"\0" * 1000]}), path)
    asked = []
    plain = pq.ParquetFile.iter_batches

    def spy(self, *args, columns=None, **kwargs):
        asked.append(columns)
        return plain(self, *args, columns=columns, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert _named(read_manifest(str(path))) == [(f"{tmp_path}/a.jpg", ("x",))]
    assert asked == [["uri", "label"]]


@pytest.mark.parametrize(
    ("cell", "separator", "labels"),
    [
        ("a|b| |a", "|", ["a", "b", "a"]), ("a|b", "", ["a|b"]), (" ", "", []), (None, "|", []), (math.nan, "", []),
        (7, "", ["7"]), (7.0, "", ["7"]), (math.inf, "", ["inf"]), (["a|b", None, " c "], "|", ["a|b", "c"]),
    ],
)  # fmt: skip
def test_split_labels(cell, separator, labels):
    assert split_labels(cell, separator) == labels


def test_labels_can_come_from_the_folder_or_from_nowhere(tmp_path):
    manifest = _write(tmp_path / "m.csv", "uri,label,kind\nroses/a.jpg,x,y\n")
    assert [row.labels for row in read_manifest(manifest, "folder")] == [("roses",)]
    assert [row.labels for row in read_manifest(manifest, "none")] == [()]
    assert [row.labels for row in read_manifest(manifest, "kind, label")] == [("y", "x")]
    assert label_columns("kind, label,") == ("kind", "label")


def test_a_manifest_on_a_store_resolves_against_its_folder(store):
    store.objects["memory://b/m/list.csv"] = b"uri\na.jpg\n../n/b.jpg\nmemory://c/x.jpg\n"
    assert [uri for uri, _ in _named(read_manifest("memory://b/m/list.csv"))] == [
        "memory://b/m/a.jpg", "memory://b/n/b.jpg", "memory://c/x.jpg"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("m.csv", b"path,label\na.jpg,x\n", r"expected a column 'uri', got columns \['label', 'path'\]"),
        ("m.csv", b"", r"expected a column 'uri', got columns \[\]"),
        ("m.csv", b"u" * 200_000, "expected a manifest .*field larger than field limit"),
        ("m.csv", "uri\na.jpg\n".encode("utf-16"), "expected a column 'uri'"),
        ("m.jsonl", b'{"path": "a.jpg"}\n', r"expected a column 'uri', got columns \['path'\]"),
        ("m.jsonl", b"uri\na.jpg\n", "expected a manifest .*expected one JSON object a line.*: line 1"),
        ("m.parquet", b"PAR1 not really", "expected a manifest"),
        ("m.parquet", b"", "expected a manifest"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_refused_before_the_job(tmp_path, name, data, message):
    with pytest.raises(ValueError, match=message):
        check_manifest(_write(tmp_path / name, data), ())


def test_a_label_column_that_is_missing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a column 'species'"):
        check_manifest(_write(tmp_path / "m.csv", "uri,label\n"), ("species",))


def test_a_jsonl_may_lack_the_label_in_its_first_rows(tmp_path):
    check_manifest(_write(tmp_path / "m.jsonl", '{"uri": "a.jpg"}\n{"uri": "b.jpg", "species": "x"}\n'), ("species",))


def test_an_empty_jsonl_names_no_image(tmp_path):
    manifest = _write(tmp_path / "m.jsonl", "")
    check_manifest(manifest, ())
    assert list(read_manifest(manifest)) == []
