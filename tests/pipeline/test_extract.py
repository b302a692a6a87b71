"""`bulktag extract`: examples by split, with what is needed to train on them."""

import json
import shutil

import pytest
import tensorflow as tf

from bulktag.pipeline.config import ExtractConfig
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.failures import JobFailed
from bulktag.transforms.examples import list_shards


def extract(source, output, **settings):
    sources = tuple(map(str, source)) if isinstance(source, list) else (str(source),)
    return run_extract(ExtractConfig(**{"input": sources, "output": str(output), "backbone": "builtin", **settings}))


def records(folder, splits=("train", "validation", "test")):
    """Every example of some splits, as plain tf.train.Example."""
    found = []
    for uri in list_shards(str(folder), splits):
        for serialized in tf.data.TFRecordDataset(uri, "GZIP" if uri.endswith(".gz") else "").as_numpy_iterator():
            found.append(tf.train.Example.FromString(serialized).features.feature)
    return found


def test_examples_hold_what_the_contract_says(demo_images, examples_dir):
    info = json.loads((examples_dir / "examples.json").read_text())
    assert info["labels"] == ["circle", "plus", "square", "triangle"]
    assert info["backbone"]["name"] == "builtin" and info["width"] == 512 and info["resize"] == "crop"
    assert sum(info["counts"][split]["images"] for split in info["counts"]) == 160
    found = records(examples_dir)
    assert len({features["image/uri"].bytes_list.value[0] for features in found}) == 160
    for features in found:
        label = features["image/class/text"].bytes_list.value[0].decode()
        assert f"/{label}/" in features["image/uri"].bytes_list.value[0].decode()
        assert info["labels"][features["image/class/label"].int64_list.value[0]] == label
        assert len(features["image/bottleneck"].float_list.value) == 512
        assert len(features["image/sha256"].bytes_list.value[0]) == 32
        assert features["image/width"].int64_list.value[0] > 0 and features["image/height"].int64_list.value[0] > 0
        assert "image/encoded" not in features


def test_the_split_depends_on_content_alone(demo_images, examples_dir, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(demo_images, photos)
    (photos / "circle" / "copy.jpg").write_bytes((photos / "circle" / "circle_0001.jpg").read_bytes())
    extract(photos, tmp_path / "out", split=(0.5, 0.2, 0.3))

    def places(folder):
        return {
            split: {features["image/sha256"].bytes_list.value[0] for features in records(folder, (split,))}
            for split in ("train", "validation", "test")
        }

    assert places(tmp_path / "out") == places(examples_dir)
    train, validation, test = places(examples_dir).values()
    assert not (train & validation or train & test or validation & test)


def test_labels_come_from_a_manifest(demo_images, tmp_path):
    images = sorted(demo_images.glob("circle/*"))[:6]
    lines = [f"{path},{'round' if i else ''},extra" for i, path in enumerate(images)]
    (tmp_path / "list.csv").write_text("uri,kind,other\n" + "\n".join(lines) + "\n")
    run = extract(tmp_path / "list.csv", tmp_path / "out", labels="kind", split=(1, 0, 0), store_images=True)
    info = json.loads((tmp_path / "out" / "examples.json").read_text())
    assert info["labels"] == ["round"]
    assert info["counts"]["train"] == {"images": 6, "labels": {"round": 5}, "unlabelled": 1}
    assert any("1 image has no label" in text for text in run["warnings"])
    assert any("fewer than 20 images" in text and "round (5)" in text for text in run["warnings"])
    (features, *_) = records(tmp_path / "out")
    assert features["image/encoded"].bytes_list.value[0] in [path.read_bytes() for path in images]
    with pytest.raises(ValueError, match="expected a column 'species'"):
        extract(tmp_path / "list.csv", tmp_path / "out2", labels="species")


def test_skipped_files_are_counted_and_named(demo_images, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(demo_images / "plus", photos / "plus")
    (photos / "README.txt").write_text("about")
    (photos / ".hidden.jpg").write_bytes(b"x")
    run = extract(photos, tmp_path / "out", compression="none")
    assert {reason: found["count"] for reason, found in run["skipped"].items()} == {"hidden": 1, "not_an_image": 1}
    assert run["counts"]["matched"] == 40
    assert "skipped 1 file that is no image: README.txt" in capsys.readouterr().err
    assert all(uri.endswith(".tfrecord") for uri in list_shards(str(tmp_path / "out")))


def test_a_failed_extraction_leaves_the_last_one(demo_images, tmp_path):
    extract(demo_images / "plus", tmp_path / "out")
    before = (tmp_path / "out" / "examples.json").read_bytes()
    (tmp_path / "empty").mkdir()
    with pytest.raises(JobFailed, match="no image matched"):
        extract(tmp_path / "empty", tmp_path / "out")
    assert (tmp_path / "out" / "examples.json").read_bytes() == before and (tmp_path / "out" / "_SUCCESS").exists()
    extract(demo_images / "circle", tmp_path / "out")
    assert {features["image/class/text"].bytes_list.value[0] for features in records(tmp_path / "out")} == {b"circle"}


def test_weights_are_written_beside_the_output(examples_dir):
    assert (examples_dir / "backbone" / "backbone.pb").exists()
    spec = json.loads((examples_dir / "backbone" / "backbone.json").read_text())
    assert spec["weights"] == "builtin" and len(spec["weights_digest"]) == 64


def test_folders_of_classes_can_be_named_one_by_one(demo_images, tmp_path):
    extract([demo_images / "plus", demo_images / "circle"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "examples.json").read_text())["labels"] == ["circle", "plus"]


def test_files_beside_folders_of_classes_have_no_label(demo_images, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(demo_images / "plus", photos / "plus")
    shutil.copy(next(demo_images.glob("circle/*")), photos / "stray.jpg")
    extract(photos, tmp_path / "out")
    info = json.loads((tmp_path / "out" / "examples.json").read_text())
    assert info["labels"] == ["plus"]
    assert sum(info["counts"][split]["unlabelled"] for split in info["counts"]) == 1
