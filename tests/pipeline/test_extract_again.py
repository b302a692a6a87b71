"""`bulktag extract` into a folder that holds an earlier extraction: only what is new is computed."""

import json
import shutil

import pytest
from test_extract import extract, records

from bulktag.model.drawing import draw_demo_images
from bulktag.pipeline.cli import run_command
from bulktag.transforms.examples import list_shards


def counted(run):
    """(taken over, computed anew)."""
    kept = run["counters"].get("incremental/kept", 0)
    return kept, run["counts"]["used"] - kept


def as_rows(folder):
    """All examples of a folder, by URI, with their split: serialised without what differs from run to run."""
    return {
        features["image/uri"].bytes_list.value[0]: (split, {name: features[name] for name in sorted(features)})
        for split in ("train", "validation", "test")
        for features in records(folder, (split,))
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(pictures, their examples): the tests work on copies of both, at the same path."""
    folder = tmp_path_factory.mktemp("first")
    draw_demo_images(folder / "photos", 10, seed=4)
    extract(folder / "photos", folder / "examples", split=(0.5, 0.25, 0.25))
    return folder


@pytest.fixture
def again(first, tmp_path):
    """Extract the pictures of `first` once more, after `change(photos)`, and beside it all of them anew."""
    shutil.copytree(first / "examples", tmp_path / "examples")
    shutil.copytree(first / "photos", tmp_path / "before")

    def run(change=lambda photos: None, source=None, **settings):
        change(first / "photos")
        source = source or first / "photos"
        settings = {"split": (0.5, 0.25, 0.25), **settings}
        found = extract(source, tmp_path / "examples", **settings)
        extract(source, tmp_path / "whole", **settings)
        assert as_rows(tmp_path / "examples") == as_rows(tmp_path / "whole")
        both = [json.loads((tmp_path / name / "examples.json").read_text()) for name in ("examples", "whole")]
        for info in both:
            del info["run_id"]
        assert both[0] == both[1]
        return counted(found)

    yield run
    shutil.rmtree(first / "photos")
    shutil.copytree(tmp_path / "before", first / "photos")  # with the times of the files


def test_nothing_is_computed_where_nothing_changed(again):
    assert again() == (40, 0)


def test_new_changed_and_removed_images_and_a_new_class(again):
    def change(photos):
        draw_demo_images(photos.parent / "more", 2, seed=8)
        (photos.parent / "more" / "circle").rename(photos / "ring")  # a class between the others
        (photos / "plus" / "plus_0003.jpg").write_bytes((photos / "ring" / "circle_0001.jpg").read_bytes())
        next(iter(sorted((photos / "square").iterdir()))).unlink()
        shutil.rmtree(photos.parent / "more")

    assert again(change) == (38, 3)


@pytest.mark.slow
def test_labels_are_those_of_today(again, first, tmp_path):
    photos = sorted(path for path in (first / "photos").rglob("*") if path.is_file())
    lines = [json.dumps({"uri": str(path), "label": f"kind {number % 3}"}) for number, path in enumerate(photos)]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    assert again(source=tmp_path / "list.jsonl") == (40, 0)


@pytest.mark.slow
def test_another_split_and_compression_are_no_reason_to_compute(again):
    assert again(split=(0.2, 0.2, 0.6), split_seed=3, compression="gzip") == (40, 0)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"resize": "pad"}, {"store_images": True}, {"recompute": True}])
def test_what_would_give_other_bottlenecks_computes_all(settings, again):
    assert again(**settings) == (0, 40)


@pytest.mark.slow
def test_stored_images_are_taken_over_too(first, tmp_path):
    for expected in ((0, 40), (40, 0)):
        assert counted(extract(first / "photos", tmp_path / "out", store_images=True)) == expected
    for features in records(tmp_path / "out"):
        with open(features["image/uri"].bytes_list.value[0], "rb") as file:
            assert features["image/encoded"].bytes_list.value[0] == file.read()


def test_the_reason_is_told(first, tmp_path, capsys):
    shutil.copytree(first / "examples", tmp_path / "examples")
    extract(first / "photos", tmp_path / "examples", resize="squash", precision="fp32")
    assert "all bottlenecks are computed anew: engine, resize differ" in capsys.readouterr().err


@pytest.mark.slow
def test_a_damaged_shard_tells_the_way_out(first, tmp_path, capsys):
    shutil.copytree(first / "examples", tmp_path / "examples")
    shard = list_shards(str(tmp_path / "examples"))[0]
    with open(shard, "r+b") as file:
        file.seek(40)
        file.write(b"damage")
    command = ["extract", "--input", str(first / "photos"), "--output", str(tmp_path / "examples")]
    assert run_command([*command, "--backbone", "builtin"]) == 1
    assert "got a damaged one; extract again, with --recompute" in capsys.readouterr().err
    assert counted(extract(first / "photos", tmp_path / "examples", recompute=True)) == (0, 40)
