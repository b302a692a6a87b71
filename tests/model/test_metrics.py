"""model/metrics.py and model/evaluation_files.py: figures against plain counting, and the files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy.special import softmax
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score, top_k_accuracy_score

from bulktag.model.evaluation_files import predictions, write_evaluation
from bulktag.model.metrics import evaluate_multi_label, evaluate_scores
from bulktag.model.plots import draw_confusion
from bulktag.model.reliability import calibration_error
from bulktag.model.samples import pick_samples, worst_first


def draw_scores(num=300, num_labels=8, seed=0):
    generator = np.random.default_rng(seed)
    ids_N = generator.integers(num_labels, size=num)
    logits_NL = generator.normal(size=(num, num_labels)) + 1.5 * np.eye(num_labels)[ids_N]
    return softmax(logits_NL, axis=1).astype(np.float32), ids_N, [f"label {i}" for i in range(num_labels)]


def test_figures_equal_scikit_learn_and_plain_counting():
    scores_NL, ids_N, labels = draw_scores()
    found = evaluate_scores(scores_NL, ids_N, labels)
    assert found.n == 300
    assert found.accuracy == pytest.approx((scores_NL.argmax(1) == ids_N).mean())
    assert found.top_5_accuracy == pytest.approx(top_k_accuracy_score(ids_N, scores_NL, k=5))
    assert found.cross_entropy == pytest.approx(log_loss(ids_N, scores_NL, labels=np.arange(8)), rel=1e-4)
    for i, row in enumerate(found.per_label):
        given, real = scores_NL.argmax(1) == i, ids_N == i
        assert row.support == real.sum()
        assert row.precision == pytest.approx((given & real).sum() / given.sum())
        assert row.recall == pytest.approx((given & real).sum() / real.sum())
    assert found.confusion_LL.sum() == 300
    assert found.confusion_LL[2, 5] == ((ids_N == 2) & (scores_NL.argmax(1) == 5)).sum()
    assert found.macro_recall == pytest.approx(np.mean([row.recall for row in found.per_label]))


def test_ties_go_to_the_lower_label_in_every_figure():
    found = evaluate_scores(np.full((4, 4), 0.25, np.float32), np.array([0, 1, 2, 3]), list("abcd"))
    assert found.accuracy == 0.25
    assert found.confusion_LL[:, 0].tolist() == [1, 1, 1, 1]


def test_score_of_zero_for_the_right_label_keeps_cross_entropy_finite():
    found = evaluate_scores(np.array([[1.0, 0.0]], np.float32), np.array([1]), ["a", "b"])
    assert found.cross_entropy == pytest.approx(87.3, abs=0.1)


def test_label_that_never_occurs_is_left_out_of_averages():
    scores_NL, ids_N, labels = draw_scores(num_labels=3)
    more = evaluate_scores(np.c_[scores_NL, np.zeros(len(scores_NL), np.float32)], ids_N, [*labels, "never"])
    assert more.macro_f1 == pytest.approx(evaluate_scores(scores_NL, ids_N, labels).macro_f1)
    assert more.per_label[3].support == 0


def test_most_confused_pairs_come_most_frequent_first_with_their_share():
    ids_N = np.array([0, 0, 0, 0, 1, 1, 2])
    given_N = np.array([1, 1, 1, 0, 2, 1, 2])
    found = evaluate_scores(np.eye(3, dtype=np.float32)[given_N], ids_N, ["rose", "tulip", "daisy"])
    assert found.most_confused == [("rose", "tulip", 3, 0.75), ("tulip", "daisy", 1, 0.5)]


def test_calibration_error_is_zero_when_scores_come_true_and_large_when_not():
    correct_N = np.arange(1000) % 10 < 8
    assert calibration_error(np.full(1000, 0.8), correct_N) == pytest.approx(0, abs=1e-9)
    assert calibration_error(np.full(1000, 1.0), correct_N) == pytest.approx(0.2)


def test_multi_label_figures_equal_scikit_learn():
    generator = np.random.default_rng(0)
    targets_NL = generator.random((200, 4)) < 0.3
    targets_NL[:, 3] = False  # never occurs: no average precision is defined
    scores_NL = np.clip(targets_NL * 0.4 + generator.random((200, 4)) * 0.6, 0, 1)
    found = evaluate_multi_label(scores_NL, targets_NL, list("abcd"), np.full(4, 0.5))
    expected = np.mean([average_precision_score(targets_NL[:, i], scores_NL[:, i]) for i in range(3)])
    assert found.mean_average_precision == pytest.approx(expected)
    given_NL = scores_NL >= 0.5
    assert found.micro_precision == pytest.approx((given_NL & targets_NL).sum() / given_NL.sum())
    assert found.per_label[3].average_precision is None and found.per_label[3].auc is None
    assert found.mean_auc == pytest.approx(roc_auc_score(targets_NL[:, :3], scores_NL[:, :3]))
    missed_NL, wrong_NL = targets_NL & ~given_NL, given_NL & ~targets_NL
    assert found.confusion_LL[0, 2] == (missed_NL[:, 0] & wrong_NL[:, 2]).sum()
    assert found.micro_recall == pytest.approx((given_NL & targets_NL).sum() / targets_NL.sum())


@pytest.mark.parametrize(
    ("scores", "ids", "message"),
    [
        (np.zeros((0, 2)), [], "at least one image"),
        (np.zeros((2, 3)), [0, 1], r"scores\[N, 2\]"),
        (np.zeros((2, 2)), [0, 2], r"label ids in \[0, 2\)"),
        (np.full((1, 2), np.nan), [0], "finite scores"),
    ],
)
def test_wrong_input_is_refused(scores, ids, message):
    with pytest.raises(ValueError, match=message):
        evaluate_scores(scores, np.array(ids, int), ["a", "b"])


def test_files_say_what_was_found(tmp_path):
    scores_NL, ids_N, labels = draw_scores(num_labels=6)
    labels[0] = 'a, "quoted" $label$ – ünïcode'
    found = evaluate_scores(scores_NL, ids_N, labels)
    targets_NL = np.eye(6)[ids_N] > 0
    rows = predictions([f"gs://b/{i}.jpg" for i in range(300)], scores_NL, targets_NL, labels)
    write_evaluation(found, rows, worst_first(scores_NL, targets_NL, None), tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    assert figures["accuracy"] == found.accuracy
    tables = {path.name: list(csv.reader(path.open(encoding="utf-8", newline=""))) for path in folder.glob("*.csv")}
    assert tables["confusion.csv"][0] == ["actual", *labels]
    assert [[int(n) for n in row[1:]] for row in tables["confusion.csv"][1:]] == found.confusion_LL.tolist()
    assert tables["per_class.csv"][0][:6] == ["label", "precision", "recall", "f1", "support", "predicted"]
    assert tables["confused_pairs.csv"][0] == ["actual", "predicted", "count", "share"]
    assert tables["predictions.csv"][0] == ["uri", "actual", "predicted", "score", "correct"]
    assert len(tables["predictions.csv"]) == 301
    worst = tables["worst.csv"][1:]
    assert {row[4] for row in worst} == {"False"} and len(worst) == round((1 - found.accuracy) * 300)
    assert [float(row[3]) for row in worst] == sorted((float(row[3]) for row in worst), reverse=True)
    assert sum(row[4] == "True" for row in tables["predictions.csv"]) == round(found.accuracy * 300)


def test_images_with_several_labels_are_listed_with_all_of_them():
    scores_NL = np.array([[0.9, 0.8, 0.1], [0.2, 0.3, 0.1]])
    targets_NL = np.array([[1, 1, 0], [0, 1, 0]]) > 0
    rows = predictions(["a", "b"], scores_NL, targets_NL, ["x", "y", "z"], np.full(3, 0.5))
    assert [tuple(row) for row in rows] == [("a", "x; y", "x; y", 0.9, True), ("b", "y", "", 0.3, False)]
    assert worst_first(scores_NL, targets_NL, np.full(3, 0.5)).tolist() == [1]


def test_samples_are_wrong_doubtful_and_right_and_spread_over_labels():
    scores_NL, ids_N, _ = draw_scores(num_labels=6)
    targets_NL = np.eye(6)[ids_N] > 0
    samples = pick_samples(scores_NL, targets_NL, None, worst_first(scores_NL, targets_NL, None), 12)
    predicted_N = scores_NL.argmax(axis=1)
    assert all(predicted_N[row] != ids_N[row] for row in samples.wrong)
    assert all(predicted_N[row] == ids_N[row] for row in samples.right)
    assert {int(predicted_N[row]) for row in samples.right} == set(range(6)) and len(samples.right) == 12
    gaps_N = np.diff(np.sort(scores_NL, axis=1)[:, -2:], axis=1)[:, 0]
    assert set(samples.doubtful) == set(np.argsort(gaps_N, kind="stable")[:12].tolist())


def test_intervals_hold_the_figures_and_narrow_with_more_images():
    few, many = (evaluate_scores(*draw_scores(num=num)) for num in (100, 3000))
    for found in (few, many):
        for name, (low, high) in found.intervals.items():
            assert low <= getattr(found, name) + 0.02 and high >= getattr(found, name) - 0.02, name
    width = {found.n: np.diff(found.intervals["accuracy"])[0] for found in (few, many)}
    # The binomial's: 2 * 1.96 * sqrt(p * (1 - p) / n).
    for found in (few, many):
        expected = 2 * 1.96 * np.sqrt(found.accuracy * (1 - found.accuracy) / found.n)
        assert width[found.n] == pytest.approx(expected, rel=0.25)
    generator = np.random.default_rng(0)
    targets_NL = generator.random((400, 3)) < 0.3
    scores_NL = np.clip(targets_NL * 0.4 + generator.random((400, 3)) * 0.6, 0, 1)
    several = evaluate_multi_label(scores_NL, targets_NL, list("abc"), np.full(3, 0.5))
    low, high = several.intervals["mean_average_precision"]
    assert low < several.mean_average_precision < high < low + 0.1


def test_tags_at_the_thresholds_and_labels_switched_off_are_counted():
    scores_NL = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]])
    found = evaluate_scores(scores_NL, np.array([0, 1, 1, 1]), ["a", "b"], thresholds_L=np.array([0.5, np.inf]))
    assert (found.tagged_share, found.tag_precision) == (0.5, 0.5)
    assert [row.threshold for row in found.per_label] == [0.5, None]
    assert (
        evaluate_scores(scores_NL, np.array([0, 1, 1, 1]), ["a", "b"], thresholds_L=np.full(2, np.inf)).tag_precision
        is None
    )


@pytest.mark.parametrize("num_labels", [1, 5, 120, 300])
def test_confusion_plot_has_a_readable_size_for_few_and_many_labels(tmp_path, num_labels):
    path = tmp_path / "confusion.png"
    path.write_bytes(draw_confusion(np.eye(num_labels, dtype=np.int64) * 7, [f"label {i}" for i in range(num_labels)]))
    with Image.open(path) as image:
        image.verify()
        assert 400 <= image.size[1] <= 2600
