"""model/novelty.py: labels that were held out stand out, on data of known shape."""

import numpy as np
import pytest
from example_shards import draw_clusters

from bulktag.model.novelty import MIN_VALIDATION_IMAGES, NOVEL_FROM, fit_novelty, load_novelty, measure_novelty


def rows_of(ids_N, num_labels):
    return np.arange(num_labels) == ids_N[:, None]


@pytest.fixture(scope="module")
def known():
    """Bottlenecks and labels of 4 known clusters, for training and validation, and of a fifth that is not."""
    points_ND, ids_N = draw_clusters(1500, 32, 5, spread=0.6)
    train, validation = points_ND[:900], points_ND[900:]
    known_N, known_V = ids_N[:900] < 4, ids_N[900:] < 4
    model = fit_novelty(train[known_N], rows_of(ids_N[:900][known_N], 4), validation[known_V])
    return model, validation[known_V], validation[~known_V]


def test_zero_is_usual_and_one_in_a_hundred_is_above_one(known):
    model, usual, novel = known
    scores = model.score(usual)
    assert np.median(scores) == pytest.approx(0, abs=1e-6)
    assert (scores > NOVEL_FROM).mean() == pytest.approx(0.01, abs=0.005)
    assert (model.score(novel) > NOVEL_FROM).mean() > 0.9
    assert scores.dtype == np.float32 and model.score(usual[:0]).shape == (0,)


def test_saved_model_gives_the_same_scores(known, tmp_path):
    model, usual, _ = known
    model.save(tmp_path / "novelty.npz")
    np.testing.assert_array_equal(load_novelty(tmp_path / "novelty.npz").score(usual), model.score(usual))


def test_quality_is_measured_on_labels_held_out():
    points_ND, ids_N = draw_clusters(1000, 32, 5, spread=0.6)
    # The last label is no cluster: its images lie among all others, and nothing could find them.
    ids_N = np.where(np.random.default_rng(0).random(1000) < 0.1, 5, ids_N)
    rows_NL = rows_of(ids_N, 6)
    quality = measure_novelty(points_ND[:600], rows_NL[:600], points_ND[600:], rows_NL[600:], tuple("abcdef"))
    assert set(quality.by_label) == set("abcdef")
    assert min(quality.by_label[label] for label in "abcde") > 0.85
    assert abs(quality.by_label["f"] - 0.5) < 0.15
    assert quality.auroc == pytest.approx(np.mean(list(quality.by_label.values())))


def test_few_validation_images_or_equal_ones_say_nothing():
    points_ND, ids_N = draw_clusters(200, 8, 2)
    rows_NL = rows_of(ids_N, 2)
    assert fit_novelty(points_ND, rows_NL, points_ND[: MIN_VALIDATION_IMAGES - 1]) is None
    assert fit_novelty(np.ones((200, 8), np.float32), rows_NL, np.ones((200, 8), np.float32)) is None
    assert measure_novelty(points_ND, rows_NL, points_ND[:20], rows_NL[:20], ("a", "b")).auroc is None
