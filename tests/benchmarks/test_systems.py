import pathlib
import time

import pyarrow as pa
import pyarrow.parquet
import pytest

from benchmarks import slow_store
from benchmarks.stored_bottlenecks import write_examples
from benchmarks.systems import System, bulktag_system, check_results, parse_engine
from bulktag.model.bundle import load_bundle
from bulktag.pipeline.network import check_examples
from bulktag.transforms import files
from bulktag.transforms.examples import list_shards, read_shard
from bulktag.transforms.matching import find_images
from bulktag.transforms.sources import parse_source


@pytest.fixture
def results(tmp_path):
    def write(*parts):
        for number, uris in enumerate(parts):
            pyarrow.parquet.write_table(pa.table({"uri": pa.array(uris, pa.string())}), tmp_path / f"{number}.parquet")
        return tmp_path

    return write


SYSTEM = System("some", lambda images, output: [], "**/*.parquet")


def test_one_row_for_each_image_is_right_in_any_number_of_files(results):
    check_results(SYSTEM, results(["a", "b"], [], ["c"]), 3)


@pytest.mark.parametrize("parts", [(["a", "b"],), (["a", "b"], ["b"]), ([],)])
def test_a_lost_or_doubled_row_is_found(results, parts):
    with pytest.raises(RuntimeError, match="expected 3 rows, one for each image"):
        check_results(SYSTEM, results(*parts), 3)


def test_engines_become_flags_of_the_plain_command_unless_a_hook_is_needed():
    assert parse_engine("openvino/int8") == ("--engine", "openvino", "--precision", "int8")
    assert parse_engine("auto") == ("--engine", "auto")
    plain = bulktag_system("x", pathlib.Path("model"), ("--engine", "auto")).command("in", pathlib.Path("out"))
    assert plain[-8:] == ["tag", "--input", "in", "--model", "model", "--output", "out", "--engine", "auto"][-8:]
    assert "benchmarks.run_bulktag" not in plain
    hooked = bulktag_system("x", pathlib.Path("model"), hooks=("--slow-ms", "50")).command("in", pathlib.Path("out"))
    assert hooked[2:6] == ["benchmarks.run_bulktag", "--slow-ms", "50", "--"]


def test_the_slow_store_lists_and_reads_local_files_and_takes_its_time(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(b"some bytes")
    (tmp_path / "b.jpg").write_bytes(b"others")
    monkeypatch.setattr(slow_store, "DELAY_S", 0.05)
    source = parse_source(f"slow://{tmp_path}")
    refs = sorted(find_images(source, "none"))
    assert source.kind == "folder"
    assert [(ref.uri, ref.num_bytes) for ref in refs] == [
        (f"slow://{tmp_path}/a.jpg", 10),
        (f"slow://{tmp_path}/b.jpg", 6),
    ]
    start = time.monotonic()
    assert files.read_bytes(refs[0].uri) == b"some bytes"
    assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_written_bottlenecks_are_what_tag_takes(bundle_dir, tmp_path, compression):
    write_examples(str(bundle_dir), tmp_path, 50, compression)
    bundle = load_bundle(str(bundle_dir))
    assert check_examples(str(tmp_path), bundle) == {"train": 50, "validation": 0, "test": 0}
    shards = list_shards(str(tmp_path))
    batches = [batch for shard in shards for batch in read_shard(shard, bundle.backbone.width, 16)]
    assert sum(len(batch.bottleneck_BD) for batch in batches) == 50
    assert all((batch.bottleneck_BD >= 0).all() and (batch.bottleneck_BD == 0).any() for batch in batches)
