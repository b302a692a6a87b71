"""Saving, verifying and loading a model bundle."""

import json
import math
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from bulktag.model.backbone import build_backbone
from bulktag.model.bundle import load_bundle, load_bundle_backbone, save_bundle
from bulktag.model.calibration import Calibration
from bulktag.model.engine import EngineSettings, Tagger, build_head_engine
from bulktag.model.head import build_head
from bulktag.model.novelty import NoveltyQuality, fit_novelty
from bulktag.model.thresholds import LabelThreshold, record_thresholds
from bulktag.model.validation import Tuning

SIZE_PX, WIDTH = 8, 8 * 8 * 3
LABELS = ["oak", "pine", "über"]


def make_head(num_labels=3, seed=0) -> keras.Model:
    return build_head(WIDTH, num_labels, architecture="mlp", hidden=(4,), seed=seed)


def make_tuning(thresholds, calibration=None):
    """Of a model that saw 100 images of each label."""
    scores_NL = np.random.default_rng(0).random((300, len(thresholds)))
    targets_NL = np.random.default_rng(1).random(scores_NL.shape) < scores_NL
    images_ND = np.random.default_rng(2).random((300, WIDTH), np.float32)
    rows = [LabelThreshold(f"l{i}", value, 0.9, 0.8, 0.5, 10, 100) for i, value in enumerate(thresholds)]
    return Tuning(
        calibration or Calibration("temperature", np.full(len(thresholds), 1 / 1.5), np.zeros(len(thresholds))),
        record_thresholds(scores_NL, targets_NL),
        rows,
        fit_novelty(images_ND, targets_NL, images_ND),
        NoveltyQuality(0.9, {"oak": 0.9}),
    )


def make_bundle(folder: pathlib.Path, **settings) -> str:
    backbone = build_backbone("pixels", "none", image_size_px=SIZE_PX)
    arguments = {"resize": "squash", "tuning": make_tuning([0.1, 0.2, None]), **settings}
    head = arguments.pop("head", None) or make_head()
    return save_bundle(str(folder), backbone, head, arguments.pop("labels", LABELS), **arguments)


@pytest.fixture(scope="module")
def bundle_folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("bundle") / "model"
    make_bundle(folder)
    return folder


def test_a_bundle_comes_back_as_it_was_saved(bundle_folder):
    bundle = load_bundle(str(bundle_folder))
    assert bundle.labels == tuple(LABELS)
    assert bundle.thresholds == (0.1, 0.2, math.inf)
    assert bundle.resize == "squash" and not bundle.multi_label
    assert bundle.info["temperature"] == pytest.approx(1.5)
    tuning = make_tuning([0.1, 0.2, None])
    assert bundle.calibration.to_json() == tuning.calibration.to_json()
    np.testing.assert_array_equal(bundle.threshold_record().given_LK, tuning.record.given_LK)
    images_BD = np.random.default_rng(3).random((5, WIDTH), np.float32)
    np.testing.assert_array_equal(bundle.novelty_model().score(images_BD), tuning.novelty.score(images_BD))
    assert json.loads((bundle_folder / "bundle.json").read_text())["thresholds"][2] is None  # JSON has no infinity
    assert (bundle.backbone.name, bundle.backbone.width, bundle.backbone.image_size_px) == ("pixels", WIDTH, SIZE_PX)
    assert load_bundle_backbone(bundle).spec == bundle.backbone


def test_graphs_signatures_and_head_agree(bundle_folder):
    bundle = load_bundle(str(bundle_folder))
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), np.uint8)
    tagger = Tagger(bundle.backbone_graph(), bundle.head_graph(), EngineSettings(4, "cpu"))
    bottleneck_BD, scores_BL = tagger.run(pixels_BHWC)
    np.testing.assert_allclose(bottleneck_BD, pixels_BHWC.reshape(3, -1) / 255, atol=1e-6)
    head_engine = build_head_engine(bundle.head_graph(), EngineSettings(3, "cpu"))
    np.testing.assert_allclose(head_engine.run(bottleneck_BD), scores_BL, atol=1e-6)
    head = keras.models.load_model(bundle_folder / "head.keras")
    np.testing.assert_allclose(head.predict(bottleneck_BD, verbose=0), scores_BL, atol=1e-6)
    served = tf.saved_model.load(str(bundle_folder / "saved_model"))
    np.testing.assert_allclose(
        served.signatures["bottlenecks"](bottleneck=bottleneck_BD)["scores"], scores_BL, atol=1e-6
    )
    png = [tf.io.encode_png(image).numpy() for image in pixels_BHWC]
    np.testing.assert_allclose(
        served.signatures["serving_default"](image_bytes=tf.constant(png))["scores"], scores_BL, atol=1e-5
    )


def test_equal_models_have_equal_ids_and_others_do_not(tmp_path):
    first = make_bundle(tmp_path / "a")
    assert make_bundle(tmp_path / "b") == first
    assert make_bundle(tmp_path / "c", labels=["oak", "pine", "elm"]) != first
    assert make_bundle(tmp_path / "d", resize="crop") != first
    assert make_bundle(tmp_path / "e", tuning=make_tuning([0.1, 0.2, 0.4])) != first
    assert make_bundle(tmp_path / "f", head=make_head(seed=1)) != first


def test_a_head_for_other_labels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a head from 192 values to 3 labels, got one from 192 to 4"):
        make_bundle(tmp_path / "model", head=make_head(num_labels=4))


@pytest.mark.parametrize("name", ["graphs/head.pb", "saved_model/saved_model.pb", "head.keras", "backbone/backbone.pb"])
def test_a_file_that_was_changed_is_noticed(bundle_folder, tmp_path, name):
    copy = tmp_path / "model"
    shutil.copytree(bundle_folder, copy)
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(ValueError, match=f"expected {name} as it was saved"):
        load_bundle(str(copy))


def test_a_file_that_is_missing_is_named(bundle_folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(bundle_folder, copy)
    (copy / "graphs" / "head.pb").unlink()
    with pytest.raises(ValueError, match=r"expected file graphs/head\.pb in the bundle, found none"):
        load_bundle(str(copy))


@pytest.mark.parametrize("content", [None, "{", "{}", json.dumps({"schema_version": 99})])
def test_what_is_no_bundle_is_refused_in_one_line(tmp_path, content):
    if content is not None:
        (tmp_path / "bundle.json").write_text(content)
    with pytest.raises(ValueError, match=r"^expected a (model )?bundle") as caught:
        load_bundle(str(tmp_path))
    assert "\n" not in str(caught.value)
