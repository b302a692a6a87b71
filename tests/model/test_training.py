"""model/training.py with splits, fitting and checkpoints: what is learnt, what is warned of, what is repeatable."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from example_shards import draw_clusters, split_names, write_examples
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bulktag.model import feed, fitting, training
from bulktag.model.calibration import MIN_IMAGES, MIN_TEMPERATURE, fit_temperature
from bulktag.model.checkpoints import MIN_IMPROVEMENT
from bulktag.model.head import build_logits_model
from bulktag.model.scans import scan_split
from bulktag.model.splits import read_examples_info
from bulktag.model.training import TrainOptions, resolve, train_head

QUICK = {"hidden": (32,), "epochs": 4, "learning_rate": 0.003, "batch_size": 32}


@pytest.fixture(scope="module")
def clusters(tmp_path_factory):
    """300 images of three labels, 24 numbers each, in gzip shards."""
    x_ND, ids_N = draw_clusters(300, 24, 3, spread=2.0)
    return write_examples(tmp_path_factory.mktemp("clusters"), x_ND, ids_N, split_names(300), ["a", "b", "c"])


@pytest.fixture(scope="module")
def quick_head(clusters):
    """What the quick options and seed 0 make of `clusters`."""
    return train_head(clusters, TrainOptions(**QUICK))


def weights_of(trained):
    return [np.asarray(weights) for weights in trained.model.get_weights()]


def assert_same_head(first, second):
    for ours, theirs in zip(weights_of(first), weights_of(second), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(first.tuning.calibration.slope_L, second.tuning.calibration.slope_L)
    assert first.tuning.thresholds == second.tuning.thresholds
    assert first.figures == second.figures


def test_trained_head_tells_clusters_apart_and_says_how_well(clusters):
    trained = train_head(clusters, TrainOptions(**QUICK | {"epochs": 20}))
    assert trained.labels == ("a", "b", "c")
    assert {split: values["n"] for split, values in trained.figures.items()} == {
        "train": 188, "validation": 56, "test": 56
    }  # fmt: skip
    assert trained.figures["test"]["accuracy"] > 0.8
    assert trained.warnings == []
    assert len(trained.history) >= trained.best_epoch >= 1


def test_figures_are_those_of_the_calibrated_head(clusters, quick_head):
    trained = quick_head
    assert trained.tuning.calibration.temperature != 1.0
    scan = scan_split(read_examples_info(clusters), "test", multi_label=False, keep=True)
    scores_NL = trained.model.predict(scan.bottleneck_ND, verbose=0)
    right_N = scores_NL[np.arange(len(scores_NL)), scan.target_N]
    assert trained.figures["test"]["accuracy"] == pytest.approx((scores_NL.argmax(1) == scan.target_N).mean())
    assert trained.figures["test"]["cross_entropy"] == pytest.approx(-np.log(right_N).mean(), rel=1e-4)


def test_head_carries_its_temperature_so_nothing_is_left_to_calibrate(clusters, quick_head):
    assert MIN_TEMPERATURE < quick_head.tuning.calibration.temperature != 1.0
    scan = scan_split(read_examples_info(clusters), "validation", multi_label=False, keep=True)
    logits_NL = build_logits_model(quick_head.model).predict(scan.bottleneck_ND, verbose=0)
    assert fit_temperature(logits_NL, scan.target_N).temperature == pytest.approx(1, rel=0.01)


def test_same_seed_gives_the_same_head_and_another_seed_another(clusters, quick_head):
    assert_same_head(quick_head, train_head(clusters, TrainOptions(**QUICK, seed=0)))
    other = train_head(clusters, TrainOptions(**QUICK, seed=2))
    assert not np.array_equal(weights_of(quick_head)[-1], weights_of(other)[-1])


def test_streamed_split_gives_the_same_head_as_one_in_memory(clusters, monkeypatch):
    # A shuffle buffer smaller than the split, as a split too large for memory has.
    monkeypatch.setattr(feed, "SHUFFLE_BYTES", 50 * 24 * 4)
    monkeypatch.setattr(feed, "MIN_SHUFFLE_RECORDS", 50)
    in_memory = train_head(clusters, TrainOptions(**QUICK, cache="always"))
    streamed = train_head(clusters, TrainOptions(**QUICK, cache="never"))
    assert (in_memory.cached, streamed.cached) == (True, False)
    assert_same_head(in_memory, streamed)


def test_every_epoch_shows_every_image_once_in_another_order(clusters):
    info = read_examples_info(clusters)
    scan = scan_split(info, "train", multi_label=False, keep=True)
    options = resolve(TrainOptions(**QUICK | {"epochs": 2}), scan.num_images)
    batches_of = feed.training_batches(info, scan, options, first_epoch=0, weights_L=None)
    batches = [batch[0].numpy() for batch in batches_of]
    half = len(batches) // 2
    first_ND, second_ND = np.concatenate(batches[:half]), np.concatenate(batches[half:])
    assert len(first_ND) == len(second_ND) == 188
    assert not np.array_equal(first_ND, second_ND)
    np.testing.assert_array_equal(np.sort(first_ND[:, 0]), np.sort(scan.bottleneck_ND[:, 0]))
    np.testing.assert_array_equal(np.sort(second_ND[:, 0]), np.sort(scan.bottleneck_ND[:, 0]))


class Killed(Exception):
    pass


def kill_in_epoch(epoch):
    def on_step(progress):
        if progress.epoch == epoch:
            raise Killed

    return on_step


def test_killed_training_resumes_and_ends_as_if_it_had_not_been_killed(clusters, quick_head, tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "PROGRESS_EVERY_S", 0)  # so that it is killed at the first step of an epoch
    options = TrainOptions(**QUICK, checkpoint_dir=str(tmp_path / "checkpoints"))
    with pytest.raises(Killed):
        train_head(clusters, options, kill_in_epoch(3))
    seen = []
    resumed = train_head(clusters, options, seen.append)
    assert resumed.resumed_epochs == 2
    assert {progress.resumed_epochs for progress in seen} == {2}
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3, 4]
    assert_same_head(resumed, quick_head)


def test_finished_training_leaves_no_checkpoint_so_the_next_starts_fresh(clusters, tmp_path):
    options = TrainOptions(**QUICK, checkpoint_dir=str(tmp_path))
    train_head(clusters, options)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_other_options_is_not_resumed_from(clusters, quick_head, tmp_path, caplog):
    with pytest.raises(Killed):
        train_head(clusters, TrainOptions(**QUICK | {"hidden": (16,)}, checkpoint_dir=str(tmp_path)), kill_in_epoch(2))
    trained = train_head(clusters, TrainOptions(**QUICK, checkpoint_dir=str(tmp_path)))
    assert trained.resumed_epochs == 0
    assert "starting fresh" in caplog.text
    assert_same_head(trained, quick_head)


def test_training_stops_when_validation_no_longer_improves_and_keeps_its_best(clusters):
    trained = train_head(clusters, TrainOptions(**QUICK | {"epochs": 60, "learning_rate": 0.03}, patience=3))
    losses = [row["validation_loss"] for row in trained.history]
    assert losses[trained.best_epoch - 1] <= min(losses) + MIN_IMPROVEMENT
    assert len(losses) == trained.best_epoch + 3 < 60
    best = trained.history[trained.best_epoch - 1]
    assert trained.figures["validation"]["accuracy"] == pytest.approx(best["validation_accuracy"])


def test_progress_counts_steps_and_carries_the_last_validation_figures(clusters):
    seen = []
    train_head(clusters, TrainOptions(**QUICK), seen.append)
    assert seen[0].validation_accuracy is None
    ends = [progress for progress in seen if progress.epoch_done]
    assert [(progress.epoch, progress.step) for progress in ends] == [(1, 6), (2, 12), (3, 18), (4, 24)]
    assert all(progress.total_steps == 24 and 0 <= progress.validation_accuracy <= 1 for progress in ends)


def test_balanced_class_weights_find_more_of_a_rare_label(tmp_path):
    x_ND, _ = draw_clusters(400, 8, 1, spread=1.0)
    ids_N = (np.arange(400) % 14 == 0).astype(int)
    x_ND[ids_N == 1] += 0.6
    folder = write_examples(tmp_path, x_ND, ids_N, split_names(400), ["common", "rare"])
    scan = scan_split(read_examples_info(folder), "test", multi_label=False, keep=True)
    recalls = []
    for class_weights in ("none", "balanced"):
        options = TrainOptions(
            architecture="linear", dropout=0, class_weights=class_weights, learning_rate=0.02, epochs=10
        )
        scores_NL = train_head(folder, options).model.predict(scan.bottleneck_ND, verbose=0)
        recalls.append((scores_NL.argmax(1) == 1)[scan.target_N == 1].mean())
    assert recalls[1] > recalls[0]


def test_several_labels_per_image_are_learnt_each_by_itself(tmp_path):
    x_ND = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    ids = [[label for label in range(3) if x_ND[i, label] > 0] for i in range(300)]
    folder = write_examples(tmp_path, x_ND, ids, split_names(300), ["a", "b", "c"])
    trained = train_head(folder, TrainOptions(**QUICK | {"epochs": 20}, multi_label=True))
    scores_NL = trained.model.predict(x_ND, verbose=0)
    assert ((scores_NL > 0.5) == (x_ND[:, :3] > 0)).mean() > 0.93
    assert trained.tuning.calibration.method == "sigmoid"
    assert trained.warning_counts["unlabelled"] == sum(not labels for labels in ids)


def test_rare_label_among_several_is_found_more_often_where_it_counts_more(tmp_path):
    x_ND = np.random.default_rng(0).normal(size=(600, 6)).astype(np.float32)
    ids = [[label for label in range(2) if x_ND[i, label] > (0, 1.9)[label]] for i in range(600)]
    folder = write_examples(tmp_path, x_ND, ids, split_names(600), ["common", "rare"])
    found = []
    for class_weights in ("none", "auto"):
        options = TrainOptions(**QUICK | {"epochs": 3}, multi_label=True, class_weights=class_weights)
        trained = train_head(folder, options)
        logits_NL = build_logits_model(trained.model).predict(x_ND, verbose=0)
        calibration = trained.tuning.calibration
        raw_NL = (logits_NL - calibration.offset_L) / calibration.slope_L
        found.append(raw_NL[x_ND[:, 1] > 1.9, 1].mean() - raw_NL[x_ND[:, 0] > 0, 0].mean())
    assert found[1] > found[0] + 0.2


def test_streamed_split_with_several_labels_gives_the_same_head(tmp_path):
    x_ND, _ = draw_clusters(60, 6, 1)
    ids = [[label for label in range(3) if i % (label + 2) == 0] for i in range(60)]
    folder = write_examples(tmp_path, x_ND, ids, split_names(60), ["a", "b", "c"])
    options = [TrainOptions(**QUICK | {"epochs": 2}, multi_label=True, cache=cache) for cache in ("always", "never")]
    assert_same_head(*(train_head(folder, option) for option in options))


def test_small_cnn_learns_from_pixels(tmp_path):
    x_ND, ids_N = draw_clusters(200, 8 * 8 * 3, 2, spread=1.0)
    folder = write_examples(tmp_path, x_ND, ids_N, split_names(200), ["a", "b"])
    trained = train_head(folder, TrainOptions(architecture="cnn", epochs=4, augment=False))
    assert trained.figures["test"]["accuracy"] > 0.9


@pytest.mark.slow
def test_an_augmented_training_that_was_killed_ends_the_same_and_leaves_no_layer_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "PROGRESS_EVERY_S", 0)
    x_ND, ids_N = draw_clusters(200, 8 * 8 * 3, 2, spread=1.0)
    folder = write_examples(tmp_path / "examples", x_ND, ids_N, split_names(200), ["a", "b"])
    options = TrainOptions(architecture="cnn", epochs=3, batch_size=32)
    whole = train_head(folder, options)
    plain = train_head(folder, dataclasses.replace(options, augment=False))
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(weights_of(whole), weights_of(plain), strict=True))
    assert not any("augment" in layer.name for layer in whole.model.layers)
    options = dataclasses.replace(options, checkpoint_dir=str(tmp_path / "checkpoints"))
    with pytest.raises(Killed):
        train_head(folder, options, kill_in_epoch(2))
    resumed = train_head(folder, options)
    assert resumed.resumed_epochs == 1
    assert_same_head(resumed, whole)


def test_sgd_learns_too(clusters):
    trained = train_head(clusters, TrainOptions(**QUICK | {"learning_rate": 0.05, "optimizer": "sgd"}))
    assert trained.figures["test"]["accuracy"] > 0.75


def test_troubles_in_the_examples_are_counted_named_and_left_out(tmp_path):
    x_ND, ids_N = draw_clusters(160, 8, 3)
    ids = [int(i) for i in ids_N]
    ids[0:3] = [[], [], [0, 1]]  # two without a label, one with two
    ids[3] = 7  # no such label
    sha256 = [f"{i}".encode() for i in range(160)]
    sha256[4] = sha256[5]  # one content under two labels
    sha256[7] = sha256[10]  # one content twice under the same label: nothing to warn of
    splits = [name if name != "test" else "train" for name in split_names(160)]
    folder = write_examples(tmp_path, x_ND, ids, splits, ["a", "b", "c", "tiny"], sha256=sha256, gzip=False)
    quick = QUICK | {"epochs": 2}
    trained = train_head(folder, TrainOptions(**quick))
    assert trained.warning_counts == {
        "small_labels": 1, "unlabelled": 2, "several_labels": 1, "unknown_label": 1,
        "duplicates_across_labels": 1, "empty_test": 1,
    }  # fmt: skip
    assert trained.figures["test"] == {"n": 0, "accuracy": None, "cross_entropy": None}
    assert trained.figures["train"]["n"] + trained.figures["validation"]["n"] == 156
    assert "1 labels with fewer than 20 images (tiny: 0)" in trained.warnings
    assert_same_head(trained, train_head(folder, TrainOptions(**quick, cache="never")))


def test_few_validation_images_leave_the_temperature_at_one(tmp_path):
    x_ND, ids_N = draw_clusters(60, 8, 2)
    folder = write_examples(tmp_path, x_ND, ids_N, split_names(60), ["a", "b"])
    assert MIN_IMAGES > 60 / 5
    assert train_head(folder, TrainOptions(**QUICK)).tuning.calibration.method == "none"


def test_empty_split_is_refused_with_its_name(tmp_path):
    x_ND, ids_N = draw_clusters(20, 8, 2)
    folder = write_examples(tmp_path, x_ND, ids_N, ["train"] * 20, ["a", "b"])
    with pytest.raises(ValueError, match="none usable in validation"):
        train_head(folder, TrainOptions(**QUICK))


def test_folder_without_examples_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder of extracted examples with examples.json"):
        train_head(str(tmp_path), TrainOptions())


def test_damaged_missing_and_foreign_shards_are_refused(tmp_path):
    x_ND, ids_N = draw_clusters(60, 8, 2)
    folder = write_examples(tmp_path / "x", x_ND, ids_N, split_names(60), ["a", "b"], gzip=False)
    shard = pathlib.Path(folder) / "train" / "part-00000.tfrecord"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match="damaged"):
        train_head(folder, TrainOptions(**QUICK))
    shard.unlink()
    with pytest.raises(ValueError, match=r"expected \d+ images, as examples.json says, got"):
        train_head(folder, TrainOptions(**QUICK))
    shard.write_bytes(whole)
    info_path = pathlib.Path(folder) / "examples.json"
    info_path.write_text(json.dumps(json.loads(info_path.read_text()) | {"width": 9}))
    with pytest.raises(ValueError, match="9 numbers in image/bottleneck"):
        train_head(folder, TrainOptions(**QUICK))


def test_bottleneck_that_is_not_finite_is_refused(tmp_path):
    x_ND, ids_N = draw_clusters(60, 8, 2)
    x_ND[0, 0] = np.nan
    with pytest.raises(ValueError, match="finite bottlenecks"):
        train_head(write_examples(tmp_path, x_ND, ids_N, split_names(60), ["a", "b"]), TrainOptions(**QUICK))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": "tree"}, "architecture to be one of mlp, linear, cnn, got 'tree'"),
        ({"epochs": 0}, "epochs of at least 1, got 0"),
        ({"learning_rate": -1.0}, "learning_rate above 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing in \[0, 1\)"),
        ({"target_precision": 1.1}, "target_precision between 0 and 1"),
    ],
)
def test_impossible_options_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainOptions(**arguments)


def test_diverging_training_says_what_to_change(clusters):
    with pytest.raises(ValueError, match=r"lower the learning rate, now 1e\+38"):
        train_head(clusters, TrainOptions(**QUICK | {"learning_rate": 1e38}))


def test_tensorboard_logs_hold_the_curves(clusters, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_head(clusters, TrainOptions(**QUICK, log_dir=str(tmp_path)))
    events = event_accumulator.EventAccumulator(str(tmp_path / "validation"))
    events.Reload()
    assert "epoch_accuracy" in events.Tags()["tensors"]
    assert len(events.Tensors("epoch_accuracy")) == 4
    for split, num_points in (("train", 4), ("validation", 4), ("test", 1)):
        events = event_accumulator.EventAccumulator(str(tmp_path / split))
        events.Reload()
        assert [len(events.Tensors(tag)) for tag in ("cost", "error")] == [num_points] * 2


def test_logs_without_tensorboard_installed_are_refused_at_once(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'bulktag\[tensorboard\]'"):
        TrainOptions(log_dir="logs")


def test_splits_are_cached_only_where_they_fit(clusters, monkeypatch):
    info = read_examples_info(clusters)
    needed = 300 * 25 * 4
    for available, expected in ((2 * needed, True), (2 * needed - 4, False)):
        monkeypatch.setattr(
            training.psutil, "virtual_memory", lambda available=available: type("Memory", (), {"available": available})
        )
        assert training._fits_in_memory(info, TrainOptions()) is expected


def reference_accuracy(x_ND, ids_N, splits):
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(x_ND[splits == "train"], ids_N[splits == "train"])
    return model.score(x_ND[splits == "test"], ids_N[splits == "test"])


@pytest.mark.slow
def test_default_head_is_as_good_as_logistic_regression_on_real_inception_bottlenecks(shared_data, tmp_path):
    data = np.load(shared_data / "flowers_inception2015" / "bottlenecks.npz")
    x_ND, ids_N = data["X"], data["y"]
    splits = np.array(["validation", "test", "train"])[data["split"]]
    folder = write_examples(tmp_path, x_ND, ids_N, splits, ["daisy", "dandelion", "roses", "sunflowers", "tulips"])
    accuracies = [train_head(folder, TrainOptions(seed=seed)).figures["test"]["accuracy"] for seed in range(3)]
    assert np.mean(accuracies) >= reference_accuracy(x_ND, ids_N, splits), accuracies


_TWO_DEVICES = """
import sys

sys.path.insert(0, {tests!r})
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from bulktag.model import training

options = training.TrainOptions(hidden=(16,), epochs=4, batch_size=32, dropout=0.0, checkpoint_dir={checkpoints!r})
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
training.training_strategy = lambda: strategy
print(strategy.num_replicas_in_sync, training.train_head({folder!r}, options).figures["test"]["cross_entropy"])
"""


@pytest.mark.slow
def test_training_shared_out_over_two_devices_gives_the_same_head(tmp_path):
    """Two processors of one machine stand in for GPUs."""
    x_ND, ids_N = draw_clusters(320, 8, 3)
    folder = write_examples(tmp_path / "ex", x_ND, ids_N, split_names(320), ["a", "b", "c"])
    script = _TWO_DEVICES.format(
        tests=str(pathlib.Path(__file__).parent), folder=folder, checkpoints=str(tmp_path / "checkpoints")
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    devices, cross_entropy = done.stdout.split()
    options = TrainOptions(hidden=(16,), epochs=4, batch_size=32, dropout=0.0)
    alone = train_head(folder, options).figures["test"]["cross_entropy"]
    assert devices == "2" and float(cross_entropy) == pytest.approx(alone, rel=0.02)
