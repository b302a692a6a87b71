"""`bulktag evaluate`: figures, tables, plots and a report."""

import csv
import json
import shutil

import pytest

from bulktag.model.drawing import draw_demo_images
from bulktag.pipeline.config import EvaluateConfig, ExtractConfig, TrainConfig
from bulktag.pipeline.evaluate import run_evaluate
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.train import run_train


def evaluate(examples, model, output, **settings):
    return run_evaluate(EvaluateConfig(examples=str(examples), model=str(model), output=str(output), **settings))


def test_an_evaluation_leaves_figures_tables_plot_and_report(examples_dir, bundle_dir, tmp_path):
    run = evaluate(examples_dir, bundle_dir, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "metrics.json", "per_class.csv", "confusion.csv", "confusion.png", "confused_pairs.csv", "predictions.csv",
        "worst.csv", "report.html", "run.json", "_SUCCESS",
    }  # fmt: skip
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    right = sum(row["actual"] == row["predicted"] for row in rows)
    assert metrics["n"] == len(rows) and metrics["accuracy"] == pytest.approx(right / len(rows))
    assert run["figures"]["accuracy"] == metrics["accuracy"]
    # The bundle's own figure comes from training's code, this one from the stored head: they must agree.
    bundle = json.loads((bundle_dir / "bundle.json").read_text())
    assert metrics["accuracy"] == pytest.approx(bundle["figures"]["test"]["accuracy"], abs=1e-6)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "http://" not in report and "https://" not in report and "circle" in report
    assert "held out, never trained on" in report


def test_all_splits_can_be_evaluated(examples_dir, bundle_dir, tmp_path):
    assert evaluate(examples_dir, bundle_dir, tmp_path / "out", split="all")["figures"]["n"] == 160
    assert "never trained on" not in (tmp_path / "out" / "report.html").read_text()


def test_labels_that_the_model_does_not_know_are_left_out_and_counted(demo_images, bundle_dir, tmp_path):
    lines = [f"{path},{'circle' if i % 2 else 'disc'}" for i, path in enumerate(sorted(demo_images.glob("circle/*")))]
    (tmp_path / "list.csv").write_text("uri,label\n" + "\n".join(lines) + "\n")
    extract = {"input": (str(tmp_path / "list.csv"),), "backbone": "builtin", "split": (0.0, 0.0, 1.0)}
    run_extract(ExtractConfig(output=str(tmp_path / "ex"), **extract))
    run = evaluate(tmp_path / "ex", bundle_dir, tmp_path / "out")
    assert run["figures"]["n"] == 20
    assert any(
        "20 images have labels that the model does not know and are left out: disc (20)" in w for w in run["warnings"]
    )
    run_extract(ExtractConfig(output=str(tmp_path / "ex"), labels="none", **extract))
    with pytest.raises(JobFailed, match="no image of split test has a label of the model"):
        evaluate(tmp_path / "ex", bundle_dir, tmp_path / "out2")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "expected a whole TFRecord shard, got a damaged one"),
        (lambda path: path.write_bytes(b"no TFRecord file"), "expected a whole TFRecord shard, got a damaged one"),
        (lambda path: path.unlink(), "expected 53 images, as examples.json says, got 0"),
    ],
)
def test_shards_that_are_damaged_or_missing_are_named(examples_dir, bundle_dir, tmp_path, damage, message):
    shutil.copytree(examples_dir, tmp_path / "examples")
    for path in (tmp_path / "examples" / "test").iterdir():
        damage(path)
    with pytest.raises(ValueError, match=message):
        evaluate(tmp_path / "examples", bundle_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_split_is_named(demo_images, bundle_dir, tmp_path):
    photos, output = str(demo_images / "plus"), str(tmp_path / "ex")
    run_extract(ExtractConfig(input=(photos,), output=output, backbone="builtin", split=(1, 0, 0)))
    with pytest.raises(ValueError, match="expected images in split test, got none"):
        evaluate(tmp_path / "ex", bundle_dir, tmp_path / "out")


def test_several_labels_are_evaluated_with_all_tables(scenes, tmp_path):
    assert json.loads((scenes / "examples" / "examples.json").read_text())["multi_label"] is True
    run = evaluate(scenes / "examples", scenes / "model", tmp_path / "out")
    assert run["figures"]["mean_average_precision"] > 0.7 and "micro_precision" in run["figures"]["intervals"]
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"confusion.csv", "confusion.png", "worst.csv"}
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert any(";" in row["actual"] for row in rows) and any(not row["actual"] for row in rows)
    report = (tmp_path / "out" / "report.html").read_text()
    assert report.count("data:image/jpeg;base64,") > 20


def test_data_problems_are_found(scenes, tmp_path):
    run = evaluate(scenes / "examples", scenes / "model", tmp_path / "out", split="all")
    report = (tmp_path / "out" / "report.html").read_text()
    for expected in ("Tiny labels: 1", "odd one", "Images that could not be used: 1", "Duplicates across labels: 1"):
        assert expected in report
    assert "Labels that are probably wrong" not in report  # most of these images were trained on
    bundle = json.loads((scenes / "model" / "bundle.json").read_text())
    off = [row["label"] for row in bundle["threshold_basis"] if row["threshold"] is None]
    assert "odd one" in off and run["figures"]["n"] == 501


def test_thumbnails_come_from_stored_images_where_the_files_are_gone(tmp_path):
    draw_demo_images(tmp_path / "images", 20)
    common = {"backbone": "builtin", "split": (0.5, 0.25, 0.25)}
    run_extract(
        ExtractConfig(input=(str(tmp_path / "images"),), output=str(tmp_path / "ex"), store_images=True, **common)
    )
    run_train(TrainConfig(examples=str(tmp_path / "ex"), model=str(tmp_path / "m"), epochs=2))
    shutil.rmtree(tmp_path / "images")
    evaluate(tmp_path / "ex", tmp_path / "m", tmp_path / "out")
    report = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/jpeg;base64," in report and "could not be read" not in report
