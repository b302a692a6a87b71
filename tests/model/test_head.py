"""model/head.py: shapes, standardisation, temperature, and loading in plain Keras."""

import keras
import numpy as np
import pytest

from bulktag.model.head import build_head, build_logits_model, fold_calibration


def randomise(head, seed=0):
    layer = head.get_layer("logits")
    generator = np.random.default_rng(seed)
    layer.set_weights([generator.normal(size=weights.shape).astype(np.float32) for weights in layer.get_weights()])
    return head


@pytest.mark.parametrize("architecture", ["mlp", "linear", "cnn"])
def test_scores_of_every_architecture_are_probabilities(architecture):
    head = randomise(build_head(8 * 8 * 3, 4, architecture=architecture, hidden=(16,)))
    scores_BL = head.predict(np.random.default_rng(0).normal(size=(5, 192)).astype(np.float32), verbose=0)
    assert head.name == "head"
    assert scores_BL.shape == (5, 4)
    assert scores_BL.dtype == np.float32
    np.testing.assert_allclose(scores_BL.sum(axis=1), 1, rtol=1e-5)


def test_multi_label_scores_stand_each_by_itself():
    head = randomise(build_head(8, 3, architecture="linear", multi_label=True))
    x_BD = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    logits_BL = build_logits_model(head).predict(x_BD, verbose=0)
    np.testing.assert_allclose(head.predict(x_BD, verbose=0), 1 / (1 + np.exp(-logits_BL)), rtol=1e-4)


def test_head_standardises_its_input_itself():
    generator = np.random.default_rng(0)
    x_BD = generator.normal(size=(50, 6)).astype(np.float32)
    shift_D, scale_D = generator.normal(size=6) * 10, np.full(6, 7.0)
    moved_BD = (x_BD * scale_D + shift_D).astype(np.float32)
    plain = build_head(6, 3, hidden=(8,), feature_mean=x_BD.mean(0), feature_var=x_BD.var(0))
    moved = build_head(6, 3, hidden=(8,), feature_mean=moved_BD.mean(0), feature_var=moved_BD.var(0))
    randomise(plain), randomise(moved)
    np.testing.assert_allclose(plain.predict(x_BD, verbose=0), moved.predict(moved_BD, verbose=0), atol=1e-4)


def test_feature_that_never_varied_in_training_does_not_explode():
    head = build_head(3, 2, architecture="linear", feature_mean=np.zeros(3), feature_var=np.array([1.0, 1.0, 0.0]))
    head.get_layer("logits").set_weights([np.eye(3, 2, dtype=np.float32)[::-1].copy(), np.zeros(2, np.float32)])
    logits_BL = build_logits_model(head).predict(np.array([[0, 0, 1]], np.float32), verbose=0)
    assert np.abs(logits_BL).max() < 10


def test_same_seed_gives_the_same_weights_and_another_seed_others():
    first, same, other = (build_head(6, 3, hidden=(8, 8), seed=seed).get_weights() for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("slope_L", [[0.5, 0.5, 0.5], [2.0, 1.0, 0.25]], ids=["temperature", "each its own"])
def test_calibration_is_folded_into_the_logits_for_good(slope_L):
    head = randomise(build_head(8, 3, hidden=(16,), multi_label=True))
    x_BD = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    before_BL = build_logits_model(head).predict(x_BD, verbose=0)
    offset_L = np.array([0.0, -1.0, 3.0])
    fold_calibration(head, np.array(slope_L), offset_L)
    expected_BL = 1 / (1 + np.exp(-(before_BL * slope_L + offset_L)))
    np.testing.assert_allclose(head.predict(x_BD, verbose=0), expected_BL, rtol=1e-4)


def test_head_for_several_labels_starts_at_how_often_each_occurs():
    head = build_head(8, 3, hidden=(4,), multi_label=True, shares_L=np.array([0.5, 0.01, 0.0]))
    scores_BL = head.predict(np.ones((2, 8), np.float32), verbose=0)
    np.testing.assert_allclose(scores_BL, [[0.5, 0.01, 1e-4]] * 2, rtol=1e-3)


@pytest.mark.parametrize("architecture", ["mlp", "linear", "cnn"])
def test_saved_head_loads_in_plain_keras_with_safe_mode(tmp_path, architecture):
    mean_D, var_D = np.arange(192.0), np.arange(192.0) + 1
    head = randomise(build_head(192, 4, architecture=architecture, feature_mean=mean_D, feature_var=var_D))
    head.save(tmp_path / "head.keras")
    loaded = keras.saving.load_model(tmp_path / "head.keras", safe_mode=True, custom_objects={})
    x_BD = np.random.default_rng(0).normal(size=(5, 192)).astype(np.float32) * 50
    np.testing.assert_array_equal(loaded.predict(x_BD, verbose=0), head.predict(x_BD, verbose=0))
    assert len(loaded.to_json()) < 20_000  # statistics are weights, not text


def test_cnn_standardises_by_colour_and_not_by_pixel():
    mean_D = np.random.default_rng(0).uniform(size=192)
    head = build_head(192, 4, architecture="cnn", feature_mean=mean_D, feature_var=np.ones(192))
    mean_SS3 = head.get_layer("standardise").get_weights()[0].reshape(8, 8, 3)
    np.testing.assert_allclose(mean_SS3, np.broadcast_to(mean_D.reshape(-1, 3).mean(0), (8, 8, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 2048, "num_labels": 5, "architecture": "cnn"}, r"S \* S \* 3 pixels.*got width 2048"),
        ({"width": 12, "num_labels": 5, "architecture": "cnn"}, "S of at least 8"),
        ({"width": 8, "num_labels": 5, "architecture": "tree"}, "mlp, linear, cnn, got 'tree'"),
        ({"width": 8, "num_labels": 5, "dropout": 1.0}, r"dropout in \[0, 1\), got 1.0"),
        ({"width": 8, "num_labels": 5, "hidden": (0,)}, "at least 1 unit"),
        ({"width": 8, "num_labels": 0}, "at least one feature and one label"),
    ],
)
def test_impossible_head_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_head(**arguments)


def test_slope_that_is_no_positive_number_is_refused():
    head = build_head(4, 2, hidden=(4,))
    for slope in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="slopes above 0"):
            fold_calibration(head, np.array([1.0, slope]), np.zeros(2))
