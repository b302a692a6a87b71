"""The journey on real photos and real weights; skipped with a reason where that data is missing."""

import json

import duckdb
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bulktag.pipeline.classify import run_classify
from bulktag.pipeline.config import ClassifyConfig, EvaluateConfig, ExtractConfig, TagConfig, TrainConfig
from bulktag.pipeline.evaluate import run_evaluate
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.tag import run_tag
from bulktag.pipeline.train import run_train
from bulktag.transforms.examples import list_shards, read_shard

SEEDS = (0, 1, 2)
MOBILENET = "weights/mobilenet_v2_imagenet.weights.h5"


def read_split(folder, split):
    """Bottlenecks and labels of one split, as any other program would read them."""
    batches = [batch for uri in list_shards(str(folder), (split,)) for batch in read_shard(uri, 1280, 256)]
    features_ND = np.concatenate([batch.bottleneck_BD for batch in batches])
    return features_ND, np.concatenate([batch.images["labels"].flatten() for batch in batches])


@pytest.mark.slow
def test_flowers_head_is_within_a_point_of_logistic_regression(shared_data, tmp_path):
    ours, reference = [], []
    for seed in SEEDS:
        examples, model = tmp_path / f"examples{seed}", tmp_path / f"model{seed}"
        run_extract(
            ExtractConfig(
                input=(str(shared_data / "flowers"),),
                output=str(examples),
                backbone="mobilenet_v2",
                weights=str(shared_data / MOBILENET),
                split=(0.4, 0.1, 0.5),
                split_seed=seed,
            )
        )
        run_train(TrainConfig(examples=str(examples), model=str(model), seed=seed))
        report = run_evaluate(
            EvaluateConfig(examples=str(examples), model=str(model), output=str(tmp_path / f"report{seed}"))
        )
        ours.append(report["figures"]["accuracy"])
        train_x, train_y = read_split(examples, "train")
        test_x, test_y = read_split(examples, "test")
        assert report["figures"]["n"] == len(test_y) > 250
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(train_x, train_y)
        reference.append(classifier.score(test_x, test_y))
    print(f"flowers, half held out: ours {np.round(ours, 4)}, logistic regression {np.round(reference, 4)}")
    assert np.mean(ours) >= np.mean(reference) - 0.01


@pytest.mark.slow
def test_builtin_is_of_use_on_photos_that_it_never_saw(shared_data, tmp_path):
    # The half that its training may not look at: see scripts/builtin_teacher.py.
    extract = {"backbone": "builtin", "split": (0.4, 0.1, 0.5)}
    run_extract(ExtractConfig(input=(str(shared_data / "flowers"),), output=str(tmp_path / "examples"), **extract))
    run = run_train(TrainConfig(examples=str(tmp_path / "examples"), model=str(tmp_path / "model")))
    print(f"flowers, builtin: {run['figures']}")
    assert run["figures"]["test"]["n"] > 250
    assert run["figures"]["test"]["accuracy"] >= 0.70


@pytest.mark.slow
def test_imagenet_model_names_the_panda(shared_data, tmp_path):
    network = {"model": "imagenet", "backbone": "mobilenet_v2", "weights": str(shared_data / MOBILENET)}
    panda = str(shared_data / "known" / "cropped_panda.jpg")
    (best, score), *_ = run_classify(ClassifyConfig(images=(panda,), **network))[panda]
    assert best == "giant panda"
    run = run_tag(TagConfig(input=(panda,), output=str(tmp_path / "tags"), scores=True, precision="fp32", **network))
    assert run["counts"] == {"matched": 1, "used": 1, "errors": 0}
    rows = duckdb.sql(f"SELECT top_label, top_score, len(scores) FROM '{tmp_path}/tags/tags/**/*.parquet'").fetchall()
    assert rows == [("giant panda", pytest.approx(score, abs=1e-3), 1000)]


def test_every_odd_image_ends_in_exactly_one_row(shared_data, bundle_dir, tmp_path):
    everything = [path for path in (shared_data / "odd_images").rglob("*") if path.is_file()]
    config = TagConfig(
        input=(f"{shared_data}/odd_images/**",),
        model=str(bundle_dir),
        output=str(tmp_path / "tags"),
        max_error_share=1.0,
    )
    run = run_tag(config)
    rows = duckdb.sql(
        f"SELECT uri FROM '{tmp_path}/tags/tags/**/*.parquet' UNION ALL "
        f"SELECT uri FROM '{tmp_path}/tags/errors/**/*.parquet'"
    ).fetchall()
    assert sorted(uri for (uri,) in rows) == sorted(map(str, everything))
    assert run["counts"]["matched"] == len(everything) and run["counts"]["errors"] > 0
    assert json.loads((tmp_path / "tags" / "run.json").read_text())["errors"].keys() <= {
        "empty", "too_many_bytes", "too_many_pixels", "not_an_image", "unsupported_format", "truncated", "corrupt",
    }  # fmt: skip
