"""`bulktag tag`: every image one row, nothing published that should not be."""

import json
import shutil

import numpy as np
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bulktag.model.bundle import load_bundle
from bulktag.pipeline.classify import run_classify
from bulktag.pipeline.config import ClassifyConfig, ExtractConfig, TagConfig, TrainConfig
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.tag import run_tag
from bulktag.pipeline.train import run_train


def tag(source, bundle_dir, output, **settings):
    sources = tuple(map(str, source)) if isinstance(source, tuple | list) else (str(source),)
    return run_tag(TagConfig(input=sources, model=str(bundle_dir), output=str(output), **settings))


def rows(output, table="tags"):
    return pyarrow.dataset.dataset(f"{output}/{table}", partitioning="hive").to_table().to_pylist()


def test_tags_say_what_is_in_the_pictures(demo_images, bundle_dir, tmp_path):
    run = tag(demo_images, bundle_dir, tmp_path / "out")
    table = rows(tmp_path / "out")
    assert run["counts"] == {"matched": 160, "used": 160, "errors": 0}
    assert len({row["uri"] for row in table}) == 160
    right = sum(row["top_label"] == row["uri"].split("/")[-2] for row in table)
    assert right >= 150
    for row in table:
        best = row["tags"][0] if row["tags"] else {"label": None, "score": None}
        assert best == {"label": row["top_label"], "score": row["top_score"]}
        scores = [entry["score"] for entry in row["tags"]]
        assert scores == sorted(scores, reverse=True) and len(scores) <= 4
        assert row["model_id"] == run["model_id"] and row["run_id"] == run["run_id"]
        assert len(row["sha256"]) == 64 and row["bytes"] > 0 and row["width"] > 0


def test_run_json_says_what_happened(demo_images, bundle_dir, tmp_path):
    tag(demo_images / "circle", bundle_dir, tmp_path / "out", run_date="2026-01-02")
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["status"] == "succeeded" and run["job"] == "tag" and run["run_date"] == "2026-01-02"
    assert run["device"] == "CPU" and run["runner"] == "local"
    assert run["counts"]["matched"] == 40 and run["images_per_second"] > 0
    assert run["config"]["top_k"] == 5 and run["versions"]["apache-beam"]
    assert (tmp_path / "out" / "tags" / "run_date=2026-01-02").is_dir()
    assert (tmp_path / "out" / "_SUCCESS").read_text().strip() == run["run_id"]


def test_an_empty_folder_fails_and_publishes_nothing(bundle_dir, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    with pytest.raises(JobFailed, match="no image matched the input"):
        tag(tmp_path / "photos", bundle_dir, tmp_path / "out")
    assert not (tmp_path / "out" / "_SUCCESS").exists() and not (tmp_path / "out" / "tags").exists()


def test_too_many_errors_fail_and_the_last_good_output_stays(demo_images, bundle_dir, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(demo_images / "circle", photos)
    tag(photos, bundle_dir, tmp_path / "out")
    before = rows(tmp_path / "out")
    for i in range(3):
        (photos / f"broken{i}.jpg").write_bytes(b"this is no image")
    with pytest.raises(
        JobFailed, match=r"3 of 43 images \(7.0%\) could not be tagged, more than --max-error-share 0.05"
    ):
        tag(photos, bundle_dir, tmp_path / "out")
    assert rows(tmp_path / "out") == before
    failed = tmp_path / "out" / "failed"
    assert len(rows(failed)) == 40 and len(rows(failed, "errors")) == 3
    assert json.loads((failed / "run.json").read_text())["status"].startswith("failed: 3 of 43")
    run = tag(photos, bundle_dir, tmp_path / "out", max_error_share=0.1)
    assert run["errors"] == {"not_an_image": 3}
    assert not failed.exists()


def test_nothing_tagged_is_a_failure_whatever_is_allowed(bundle_dir, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    with pytest.raises(JobFailed, match="none of 1 images could be tagged"):
        tag(tmp_path / "photos", bundle_dir, tmp_path / "out", max_error_share=1.0)
    assert rows(tmp_path / "out" / "failed", "errors")[0]["error_type"] == "empty"


def test_running_twice_replaces_the_date_whole(demo_images, bundle_dir, tmp_path):
    tag(demo_images, bundle_dir, tmp_path / "out", run_date="2026-01-01")
    tag(demo_images, bundle_dir, tmp_path / "out", run_date="2026-01-02")
    run = tag(demo_images / "plus", bundle_dir, tmp_path / "out", run_date="2026-01-02")
    table = rows(tmp_path / "out")
    assert len(table) == 160 + 40
    assert {row["run_id"] for row in table if len(table) and "/plus/" not in row["uri"]} != {run["run_id"]}
    leftovers = [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_stored_bottlenecks_give_the_same_table_without_images(demo_images, bundle_dir, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(demo_images, photos)
    run_extract(ExtractConfig(input=(str(photos),), output=str(tmp_path / "examples"), backbone="builtin"))
    tag(photos, bundle_dir, tmp_path / "a")
    shutil.rmtree(photos)
    tag(tmp_path / "examples", bundle_dir, tmp_path / "b", embedding=True, scores=True)
    first = {row["uri"]: row for row in rows(tmp_path / "a")}
    second = {row["uri"]: row for row in rows(tmp_path / "b")}
    assert first.keys() == second.keys()
    for uri, row in second.items():
        for column in ("top_label", "width", "height", "bytes", "modified", "sha256", "model_id"):
            assert row[column] == first[uri][column]
        assert len(row["embedding"]) == 512 and np.isclose(sum(row["scores"]), 1, atol=1e-4)


def test_the_long_layout_has_a_row_for_every_tag(demo_images, bundle_dir, tmp_path):
    run = tag(demo_images / "plus", bundle_dir, tmp_path / "out", layout="long", top_k=2, min_score=0.0)
    table = rows(tmp_path / "out")
    assert len(table) == 80 and run["counts"]["used"] == 40
    assert sorted({row["rank"] for row in table}) == [1, 2]


def test_images_without_a_tag_keep_their_row(demo_images, bundle_dir, tmp_path):
    run = tag(demo_images / "plus", bundle_dir, tmp_path / "out", min_score=1.0)
    table = rows(tmp_path / "out")
    assert len(table) == 40 and run["counts"]["used"] == 40
    assert any(row["tags"] == [] and row["top_label"] is None and row["top_score"] is None for row in table)


def test_the_parquet_is_what_engines_expect(demo_images, bundle_dir, tmp_path):
    tag(demo_images / "plus", bundle_dir, tmp_path / "out")
    (path,) = (tmp_path / "out" / "tags").rglob("*.parquet")
    file = pq.ParquetFile(path)
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert "tags.list.element.label" in [file.schema.column(i).path for i in range(len(file.schema))]
    assert str(file.schema_arrow.field("tagged_at").type) == "timestamp[us, tz=UTC]"
    (empty,) = (tmp_path / "out" / "errors").rglob("*.parquet")
    assert pq.read_table(empty).num_rows == 0


def test_what_does_not_fit_the_model_is_refused(demo_images, bundle_dir, tmp_path):
    assert load_bundle(str(bundle_dir)).resize == "crop"
    with pytest.raises(ValueError, match="expected resize crop, which the model was trained with, got pad"):
        tag(demo_images, bundle_dir, tmp_path / "out", resize="pad")
    run_extract(
        ExtractConfig(input=(str(demo_images / "plus"),), output=str(tmp_path / "ex"), backbone="builtin", resize="pad")
    )
    with pytest.raises(ValueError, match="expected bottlenecks of the model's network"):
        tag(tmp_path / "ex", bundle_dir, tmp_path / "out")
    with pytest.raises(ValueError, match="got both"):
        tag((tmp_path / "ex", demo_images), bundle_dir, tmp_path / "out")


def test_a_damaged_model_is_refused(demo_images, bundle_dir, tmp_path):
    shutil.copytree(bundle_dir, tmp_path / "model")
    with (tmp_path / "model" / "graphs" / "head.pb").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"expected graphs/head\.pb as it was saved"):
        tag(demo_images, tmp_path / "model", tmp_path / "out")


def test_a_missing_shard_is_no_success(examples_dir, bundle_dir, tmp_path):
    shutil.copytree(examples_dir, tmp_path / "examples")
    for path in (tmp_path / "examples" / "test").iterdir():
        path.unlink()
    with pytest.raises(JobFailed, match=r"expected 160 images, as examples.json says, got 107"):
        tag(tmp_path / "examples", bundle_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_inside_the_input_is_refused(demo_images, bundle_dir):
    with pytest.raises(ValueError, match="expected an output outside of the input folder"):
        tag(demo_images, bundle_dir, demo_images / "circle" / "tags")


@pytest.mark.parametrize("content", ["[]", '{"schema_version": 1}', "{"])
def test_a_bundle_json_that_is_damaged_is_refused(demo_images, bundle_dir, tmp_path, content):
    shutil.copytree(bundle_dir, tmp_path / "model")
    (tmp_path / "model" / "bundle.json").write_text(content)
    with pytest.raises(ValueError, match="expected"):
        tag(demo_images, tmp_path / "model", tmp_path / "out")


def thresholds_of(model):
    return json.loads((model / "bundle.json").read_text())["thresholds"]


def test_without_wishes_the_models_thresholds_decide(scenes, tmp_path):
    run = tag(scenes / "examples", scenes / "model", tmp_path / "out", scores=True)
    labels = json.loads((scenes / "model" / "bundle.json").read_text())["labels"]
    expected = {label: value for label, value in zip(labels, thresholds_of(scenes / "model"), strict=True)}
    assert run["thresholds"] == pytest.approx(expected, abs=1e-6)
    assert expected["odd one"] is None  # too few images to reach a precision
    for row in rows(tmp_path / "out"):
        above = {label for label, score in zip(labels, row["scores"], strict=True)
                 if expected[label] is not None and score >= np.float32(expected[label])}  # fmt: skip
        assert {entry["label"] for entry in row["tags"]} == above
    assert any(len(row["tags"]) > 1 for row in rows(tmp_path / "out"))


def test_a_score_or_a_precision_that_the_user_wants_replaces_them(scenes, tmp_path):
    run = tag(scenes / "examples", scenes / "model", tmp_path / "all", min_score=0.0, top_k=9)
    assert set(run["thresholds"].values()) == {0.0}
    assert all(len(row["tags"]) == 9 for row in rows(tmp_path / "all"))  # also those that are switched off
    strict = tag(scenes / "examples", scenes / "model", tmp_path / "strict", target_precision=0.9, min_score=0.3)
    assert strict["thresholds"]["odd one"] is None
    assert any("switched off" in text and "odd one" in text and "0.9" in text for text in strict["warnings"])
    assert min(value for value in strict["thresholds"].values() if value is not None) >= 0.3
    truth = {json.loads(line)["uri"]: json.loads(line)["labels"] for line in (scenes / "images/manifest.jsonl").open()}
    given = [(entry["label"], truth[row["uri"].rsplit("/", 1)[-1]]) for row in rows(tmp_path / "strict")
             for entry in row["tags"]]  # fmt: skip
    assert len(given) > 300 and np.mean([label in labels for label, labels in given]) > 0.9
    with pytest.raises(ValueError, match="expected a target_precision that a label reaches, got 1, which none does"):
        tag(scenes / "examples", scenes / "model", tmp_path / "no", target_precision=1.0)


@pytest.mark.slow
def test_images_unlike_those_of_the_training_are_flagged(demo_images, tmp_path, capsys):
    source, examples, model = (str(demo_images),), str(tmp_path / "ex"), tmp_path / "model"
    run_extract(ExtractConfig(input=source, output=examples, backbone="builtin", split=(0.5, 0.5, 0.0)))
    run_train(TrainConfig(examples=examples, model=str(model), epochs=2))
    # Noise, and nothing that was ever drawn.
    (tmp_path / "noise").mkdir()
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "noise" / f"{number}.png")
    known = tag(examples, model, tmp_path / "known", novelty=True)
    assert sum(row["novelty"] > 1 for row in rows(tmp_path / "known")) == known["novel"] < 5
    strange = tag(tmp_path / "noise", model, tmp_path / "strange", novelty=True, layout="long", min_score=0.0)
    assert strange["novel"] == 20 and len(rows(tmp_path / "strange")) == 80
    assert all(row["novelty"] > 1 for row in rows(tmp_path / "strange"))
    run_classify(ClassifyConfig(images=(str(tmp_path / "noise" / "0.png"),), model=str(model)))
    assert "0.png: unlike anything the model was trained on (novelty" in capsys.readouterr().err


def test_novelty_is_refused_where_the_model_does_not_know(demo_images, bundle_dir, tmp_path):
    with pytest.raises(ValueError, match="expected novelty only for a model that train made from 50 validation images"):
        tag(demo_images, bundle_dir, tmp_path / "out", novelty=True)
