import hashlib
import os
import threading

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from bulktag.pipeline.failures import find_disk_error
from bulktag.transforms import examples, shards
from bulktag.transforms.examples import (
    NO_LABEL,
    ReadExamples,
    ShardSettings,
    WriteExamples,
    _WriteShards,
    choose_split,
    list_shards,
    read_shard,
    read_shards,
)
from bulktag.transforms.records import SPLITS, ImageInfo, ScoredBatch, pack_images, unpack_images
from bulktag.transforms.shards import ShardWriter, build_example
from bulktag.transforms.staging import CommitFiles, read_manifest

WIDTH = 5


def _sha256(i):
    return hashlib.sha256(str(i).encode()).digest()


def _info(i, labels=("rose",), encoded=None):
    return ImageInfo(f"/i/ü {i}\n.jpg", labels, 100 + i, 1_700_000_000_000_000 + i, _sha256(i), 20 + i, 30 + i, encoded)


def _batch(numbers, labels=("rose",)):
    infos = [_info(i, labels) for i in numbers]
    return ScoredBatch(pack_images(infos), np.array([np.full(WIDTH, i) for i in numbers], np.float32), None)


def test_the_split_has_the_proportions_asked_for():
    proportions = (0.7, 0.1, 0.2)
    counts = {split: 0 for split in SPLITS}
    for i in range(20_000):
        counts[choose_split(_sha256(i), proportions)] += 1
    for split, share in zip(SPLITS, proportions, strict=True):
        sigma = (20_000 * share * (1 - share)) ** 0.5
        assert abs(counts[split] - 20_000 * share) < 4 * sigma


def test_the_split_depends_on_the_content_alone():
    # Written down: a change here moves images between train and test of every dataset that exists.
    fixed = [choose_split(_sha256(i), (0.8, 0.1, 0.1)) for i in range(12)]
    assert fixed == [choose_split(_sha256(i), (0.8, 0.1, 0.1)) for i in range(12)]
    assert choose_split(b"\x00" * 32, (0.8, 0.1, 0.1)) == "train"
    assert choose_split(b"\xcc\xcc" + b"\x00" * 30, (0.8, 0.1, 0.1)) == "train"
    assert choose_split(b"\xcd" + b"\x00" * 31, (0.8, 0.1, 0.1)) == "validation"
    assert choose_split(b"\xff" * 32, (0.8, 0.1, 0.1)) == "test"


def test_another_seed_gives_an_independent_split():
    halves = (0.5, 0.0, 0.5)
    both = sum(
        choose_split(_sha256(i), halves) == choose_split(_sha256(i), halves, seed=1) == "train" for i in range(8000)
    )
    assert abs(both / 8000 - 0.25) < 0.02
    assert {choose_split(_sha256(i), (0.0, 0.0, 1.0), seed) for i in range(50) for seed in (0, 1)} == {"test"}


@pytest.mark.parametrize(
    "changes",
    [
        {"proportions": (0.5, 0.5, 0.5)},
        {"proportions": (1.5, -0.5, 0.0)},
        {"proportions": (0.5, 0.5)},
        {"compression": "zip"},
    ],
)
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=r"expected .*, got"):
        ShardSettings(**changes)


def test_an_example_has_the_features_of_the_contract():
    example = build_example(_info(1, ("b", "ä"), b"bytes"), np.arange(WIDTH, dtype=np.float32), {"ä": 1, "b": 0})
    features = {
        name: list(getattr(feature, feature.WhichOneof("kind")).value)
        for name, feature in example.features.feature.items()
    }
    assert features == {
        "image/uri": ["/i/ü 1\n.jpg".encode()],
        "image/sha256": [_sha256(1)],
        "image/height": [31],
        "image/width": [21],
        "image/bytes": [101],
        "image/modified": [1_700_000_000_000_001],
        "image/generation": [-1],
        "image/md5": [b""],
        "image/class/text": [b"b", "ä".encode()],
        "image/class/label": [0, 1],
        "image/bottleneck": [0.0, 1.0, 2.0, 3.0, 4.0],
        "image/encoded": [b"bytes"],
    }
    assert "image/encoded" not in build_example(_info(1, ()), np.zeros(WIDTH), {}).features.feature


def _write(folder, batches, labels=("rose",), settings=None):
    fn = _WriteShards(str(folder), settings or ShardSettings())
    fn.start_bundle()
    staged = [file for batch in batches for file in fn.process(batch, list(labels))]
    return staged + [item.value for item in fn.finish_bundle()]


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_what_was_written_is_read_back(tmp_path, compression):
    batches = [_batch(range(50)), _batch(range(50, 60), labels=()), _batch([60], labels=("tulip", "rose"))]
    staged = _write(tmp_path, batches, ("tulip", "rose"), ShardSettings((0.5, 0.2, 0.3), compression=compression))
    assert {file.table for file in staged} == set(SPLITS)
    read = {}
    for file in staged:
        assert file.uri.endswith(shards.SUFFIXES[compression])
        assert file.num_bytes == os.path.getsize(file.uri)
        for batch in read_shard(file.uri, WIDTH, batch_size=7):
            assert batch.images.num_rows <= 7 and batch.scores_BL is None
            for info, bottleneck_D in zip(unpack_images(batch.images), batch.bottleneck_BD, strict=True):
                read[info.uri] = (file.table, info, bottleneck_D.tolist())
    written = [
        (info, row.tolist())
        for batch in batches
        for info, row in zip(unpack_images(batch.images), batch.bottleneck_BD, strict=True)
    ]
    assert {uri: (info, row) for uri, (_, info, row) in read.items()} == {
        info.uri: (info, row) for info, row in written
    }
    assert all(split == choose_split(info.sha256, (0.5, 0.2, 0.3)) for split, info, _ in read.values())
    counts = {label: sum(file.label_counts.get(label, 0) for file in staged) for label in ("rose", "tulip", NO_LABEL)}
    assert counts == {"rose": 51, "tulip": 1, NO_LABEL: 10}


def test_the_same_images_give_the_same_bytes(tmp_path):
    files = [_write(tmp_path / name, [_batch(range(20))])[0].uri for name in "ab"]
    records = [[record.numpy() for record in tf.data.TFRecordDataset(uri)] for uri in files]
    assert records[0] == records[1]


def test_a_full_shard_is_closed_and_the_next_one_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "MAX_SHARD_BYTES", 1000)
    staged = _write(tmp_path, [_batch(range(40))], settings=ShardSettings((1.0, 0.0, 0.0)))
    assert len(staged) > 3
    assert sum(file.num_images for file in staged) == 40
    read = [
        uri for file in staged for batch in read_shard(file.uri, WIDTH, 10) for uri in batch.images["uri"].to_pylist()
    ]
    assert read == [_info(i).uri for i in range(40)]


def _small_shards(folder, monkeypatch, num=40):
    monkeypatch.setattr(examples, "MAX_SHARD_BYTES", 1000)
    return [file.uri for file in _write(folder, [_batch(range(num))], settings=ShardSettings((1.0, 0.0, 0.0)))]


def test_batches_run_across_shards_so_that_only_the_last_is_short(tmp_path, monkeypatch):
    uris = _small_shards(tmp_path, monkeypatch)
    assert len(uris) > 3
    batches = list(read_shards(uris, WIDTH, 7))
    assert [batch.images.num_rows for batch in batches] == [7] * 5 + [5]
    infos = [info for batch in batches for info in unpack_images(batch.images)]
    rows = np.concatenate([batch.bottleneck_BD for batch in batches])
    assert sorted((info.uri, row[0]) for info, row in zip(infos, rows, strict=True)) == sorted(
        (_info(i).uri, float(i)) for i in range(40)
    )


def test_a_damaged_shard_is_named_among_others(tmp_path, store, monkeypatch):
    uris = _small_shards(tmp_path, monkeypatch)
    with open(uris[2], "rb+") as file:
        file.truncate(os.path.getsize(uris[2]) - 20)
    with pytest.raises(tf.errors.DataLossError, match=os.path.basename(uris[2])):
        list(read_shards(uris, WIDTH, 7))
    for uri in uris:
        with open(uri, "rb") as file:
            store.objects["memory://b/" + os.path.basename(uri)] = file.read()
    with pytest.raises(tf.errors.DataLossError, match="memory://b/" + os.path.basename(uris[2])):
        list(read_shards(list(store.objects), WIDTH, 7))


def test_shards_of_two_splits_may_have_the_same_name(tmp_path, store):
    for split, numbers in (("train", range(3)), ("test", range(3, 5))):
        (file,) = _write(tmp_path / split, [_batch(numbers)], settings=ShardSettings((1.0, 0.0, 0.0)))
        with open(file.uri, "rb") as shard:
            store.objects[f"memory://b/{split}/part-00000.tfrecord"] = shard.read()
    rows = [row[0] for batch in read_shards(list(store.objects), WIDTH, 7) for row in batch.bottleneck_BD]
    assert sorted(rows) == [0, 1, 2, 3, 4]


def test_shards_are_opened_while_those_before_them_are_being_scored(monkeypatch):
    opened = threading.Event()

    def read(uris, width, batch_size):
        if uris == ("b",):
            opened.set()
        yield _batch([1])
        assert opened.wait(10)
        yield _batch([2])

    monkeypatch.setattr(examples, "read_shards", read)
    fn = examples._ReadShards(WIDTH, 4, None)
    fn.setup()
    fn.start_bundle()
    read_now = [[row[0] for batch in fn.process((uri,)) for row in batch.bottleneck_BD] for uri in ("a", "b")]
    assert read_now == [[], [1, 2]]
    fn.start_bundle()  # the runner tries the bundle again, with the same instance
    assert list(fn.process(("b",))) == []
    assert [row[0] for item in fn.finish_bundle() for row in item.value.bottleneck_BD] == [1, 2]
    fn.teardown()


def test_a_bundle_that_failed_and_is_tried_again_counts_once(tmp_path):
    fn = _WriteShards(str(tmp_path), ShardSettings())
    for _ in range(2):
        fn.start_bundle()
        list(fn.process(_batch(range(30)), ["rose"]))
    assert sum(item.value.num_images for item in fn.finish_bundle()) == 30


def test_a_shard_of_another_width_or_cut_short_is_refused(tmp_path):
    uri = _write(tmp_path, [_batch(range(30))], settings=ShardSettings((1.0, 0.0, 0.0)))[0].uri
    with pytest.raises(tf.errors.OpError):
        list(read_shard(uri, WIDTH + 1, 10))
    with open(uri, "rb+") as file:
        file.truncate(os.path.getsize(uri) - 20)
    with pytest.raises(tf.errors.OpError):
        list(read_shard(uri, WIDTH, 10))


def test_shards_are_listed_by_split_and_nothing_else_is(tmp_path, store):
    for name in ("train/b.tfrecord.gz", "train/a.tfrecord", "train/.hidden.tfrecord", "train/x.txt", "test/c.tfrecord"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        store.objects[f"memory://b/[e]/{name}"] = b""
    found = [os.path.relpath(uri, tmp_path) for uri in list_shards(str(tmp_path))]
    assert found == ["train/a.tfrecord", "train/b.tfrecord.gz", "test/c.tfrecord"]
    assert list_shards(str(tmp_path), ["validation"]) == []
    assert [uri[len("memory://b/[e]/") :] for uri in list_shards("memory://b/[e]")] == found


def _run(folder, batches, settings=None):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    labels = pipeline | "Labels" >> beam.Create(["rose"])
    staged = pipeline | "Batches" >> beam.Create(batches) | WriteExamples(folder, labels, settings or ShardSettings())
    staged | CommitFiles(folder, pipeline | "Num" >> beam.Create([sum(batch.images.num_rows for batch in batches)]))
    pipeline.run().wait_until_finish()
    return read_manifest(folder)["files"]


def test_examples_go_through_beam_to_a_store_and_back(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    staged = _run("memory://b/s", [_batch(range(10)), _batch(range(10, 25))])
    assert os.listdir(tmp_path) == []  # the local copies are gone
    uris = tuple(file.uri for file in staged)

    def check(batches):
        numbers = sorted(int(row[0]) for batch in batches for row in batch.bottleneck_BD)
        assert numbers == list(range(25))

    pipeline = beam.Pipeline(runner=FnApiRunner())
    assert_that(pipeline | ReadExamples(uris, WIDTH, 4), check)
    pipeline.run().wait_until_finish()


def test_no_shard_is_refused_when_the_transform_is_made():
    with pytest.raises(ValueError, match=r"expected shards beside examples\.json, got none"):
        ReadExamples((), WIDTH, 4)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_full_disk_is_an_error_and_no_lost_example(tmp_path, monkeypatch, compression):
    with pytest.raises(OSError, match="No space left on device"):
        writer = ShardWriter("/dev/full", compression)
        for _ in range(10):
            writer.write(os.urandom(1_000_000), ())
        writer.close()
    monkeypatch.setattr(examples, "new_file_uri", lambda *_: "/dev/full")
    with pytest.raises(Exception, match="No space left on device") as caught:
        _run(str(tmp_path), [_batch(range(5))], ShardSettings(compression=compression))
    assert "No space left on device" in find_disk_error(caught.value)
    assert not (tmp_path / "manifest.json").exists()
