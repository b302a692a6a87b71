"""Bottlenecks that `retrain.py` cached: which folders hold them, and what their texts may be."""

import json

import numpy as np
import pytest

from bulktag.model.image import BadImage
from bulktag.pipeline.cli import run_command
from bulktag.transforms.bottleneck_texts import parse_bottleneck
from bulktag.transforms.examples import list_shards, read_shards
from bulktag.transforms.sources import parse_source

WIDTH = 48  # of 4x4 pixels


def write(folder, names=("a", "b"), per_label=6, width=WIDTH):
    rng = np.random.default_rng(0)
    for label in names:
        (folder / label).mkdir(parents=True)
        for number in range(per_label):
            text = ",".join(str(value) for value in rng.random(width, np.float32))
            (folder / label / f"{number}_nohash_0.jpg_https~tfhub.dev~google~inception_v3.txt").write_text(text)
    return folder


def extract(folder, output, *options):
    pixels = ["--backbone", "pixels", "--image-size-px", "4", "--split", "1", "0", "0"]
    return run_command(["extract", "--input", str(folder), "--output", str(output), *pixels, *options])


@pytest.mark.parametrize(
    "name, kind",
    [
        ("x.jpg_inception_v3.txt", "bottlenecks"),
        ("x.JPEG.txt", "bottlenecks"),
        ("x.png_https~tfhub.dev~m~1.txt", "bottlenecks"),
        ("notes.txt", "folder"),
        ("x.jpg", "folder"),
    ],
)
def test_a_folder_is_told_by_its_names(name, kind, tmp_path):
    (tmp_path / "label").mkdir()
    (tmp_path / "label" / name).write_text("1,2")
    assert parse_source(str(tmp_path)).kind == kind


def test_texts_become_examples_number_for_number(tmp_path):
    folder = write(tmp_path / "bottlenecks")
    assert extract(folder, tmp_path / "examples") == 0
    (batch,) = read_shards(list_shards(str(tmp_path / "examples")), WIDTH, 100)
    assert len(batch.bottleneck_BD) == 12
    for uri, labels, values_D in zip(
        batch.images["uri"].to_pylist(), batch.images["labels"].to_pylist(), batch.bottleneck_BD, strict=True
    ):
        with open(uri, encoding="ascii") as file:
            np.testing.assert_array_equal(values_D, np.array(file.read().split(","), np.float32))
        assert labels == [uri.split("/")[-2]]


def test_a_broken_text_is_one_error_row(tmp_path):
    folder = write(tmp_path / "bottlenecks")
    (folder / "a" / "9.jpg_inception_v3.txt").write_text("0.1,0.2")
    (folder / "a" / "8.jpg_inception_v3.txt").write_text("0.1,cat," * WIDTH)
    assert extract(folder, tmp_path / "examples", "--max-error-share", "0.5") == 0
    run = json.loads((tmp_path / "examples" / "run.json").read_text())
    assert run["counts"] == {"matched": 14, "used": 12, "errors": 2}
    assert run["errors"] == {"bad_bottleneck": 2}


def test_another_networks_bottlenecks_are_refused_before_work(tmp_path, capsys):
    folder = write(tmp_path / "bottlenecks", width=WIDTH - 1)
    assert extract(folder, tmp_path / "examples") == 2
    assert f"expected bottlenecks of {WIDTH} numbers, as --backbone makes them, got 47" in capsys.readouterr().err


def test_images_and_texts_do_not_mix_and_texts_cannot_be_tagged(tmp_path, capsys, bundle_dir):
    folder = write(tmp_path / "bottlenecks")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"x")
    assert extract(folder, tmp_path / "examples", "--input", str(folder), str(tmp_path / "photos")) == 2
    assert "expected images or texts of bottlenecks, got both" in capsys.readouterr().err
    tag = ["tag", "--input", str(folder), "--model", str(bundle_dir), "--output", str(tmp_path / "tags")]
    assert run_command(tag) == 2
    assert "got texts of bottlenecks" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"", b"1,2", b"1;2;3", b"1,2,nan", b"1,2,inf", b"1,,3", b"\xff\xff"])
def test_texts_of_something_else_are_bad(text):
    with pytest.raises(BadImage, match="expected"):
        parse_bottleneck(text, 3)
