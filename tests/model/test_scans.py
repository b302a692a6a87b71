"""model/scans.py and model/feed.py: what a pass finds, and in which order training sees it."""

import dataclasses
import itertools

import numpy as np
import pytest
from example_shards import draw_clusters, write_examples

from bulktag.model import feed, splits
from bulktag.model.feed import evaluation_batches, training_batches
from bulktag.model.scans import scan_split
from bulktag.model.splits import read_examples_info
from bulktag.model.training import TrainOptions, resolve

NUM, WIDTH = 230, 4


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks and a shuffle buffer that are smaller than a shard and than the split, as in large data sets."""
    for module in (splits, feed):
        monkeypatch.setattr(module, "READ_BLOCK", 4)
    monkeypatch.setattr(splits, "SHARDS_IN_TURN", 3)
    monkeypatch.setattr(feed, "SHUFFLE_BYTES", 1)
    monkeypatch.setattr(feed, "MIN_SHUFFLE_RECORDS", 20)


@pytest.fixture(params=[False, True], ids=["all usable", "some unusable"])
def info(request, tmp_path):
    """Seven shards of a train split, an image's number in all its features; plain ones, and gzip with unusable ones."""
    x_ND = np.repeat(np.arange(NUM, dtype=np.float32)[:, None], WIDTH, axis=1)
    ids = [i % 3 for i in range(NUM)]
    if request.param:
        ids = [[[], [0, 1], 9][i % 3] if i % 10 == 3 else label for i, label in enumerate(ids)]
    folder = write_examples(tmp_path, x_ND, ids, ["train"] * NUM, ["a", "b", "c"], num_shards=7, gzip=request.param)
    return read_examples_info(folder)


def _scans(info):
    return [scan_split(info, "train", multi_label=False, keep=keep) for keep in (True, False)]


def _numbers(batches):
    return [batch[0].numpy()[:, 0].astype(int).tolist() for batch in batches]


def _training_numbers(info, scan, *, first_epoch=0, epochs=3, seed=0):
    options = resolve(TrainOptions(batch_size=16, epochs=epochs, seed=seed), scan.num_images)
    fed = training_batches(info, scan, options, first_epoch=first_epoch, weights_L=np.array([1.0, 2.0, 3.0]))
    batches = list(fed)
    for bottleneck_BD, target_B, weight_B in batches:
        np.testing.assert_array_equal(target_B, bottleneck_BD[:, 0] % 3)
        np.testing.assert_array_equal(weight_B, 1 + bottleneck_BD[:, 0] % 3)
    return _numbers(batches)


def _usable(info):
    return [i for i in range(NUM) if i % 10 != 3 or info.content["compression"] != "gzip"]


def test_a_stored_and_a_streamed_split_are_fed_in_the_same_order(info, small_blocks):
    stored, streamed = _scans(info)
    assert stored.bottleneck_ND is not None and streamed.bottleneck_ND is None
    fed = _training_numbers(info, stored)
    assert fed == _training_numbers(info, streamed)
    steps = -(-len(_usable(info)) // 16)
    assert len(fed) == 3 * steps
    assert all(len(batch) == 16 for i, batch in enumerate(fed) if i % steps != steps - 1)
    in_order = [_numbers(evaluation_batches(info, scan, multi_label=False)) for scan in (stored, streamed)]
    assert in_order[0] == in_order[1]
    assert sorted(itertools.chain(*in_order[0])) == _usable(info)


def test_every_epoch_feeds_every_image_once_and_starts_with_other_shards(info, small_blocks):
    _, scan = _scans(info)
    fed = _training_numbers(info, scan)
    steps = len(fed) // 3
    epochs = [list(itertools.chain(*fed[start : start + steps])) for start in (0, steps, 2 * steps)]
    for numbers in epochs:
        assert sorted(numbers) == _usable(info)
    # With three shards in turn and a buffer of 20 records, the first ones come from those three and no others.
    first_shards = [{number % 7 for number in numbers[:16]} for numbers in epochs]
    assert all(len(shards) <= 4 for shards in first_shards)
    assert len({frozenset(shards) for shards in first_shards}) > 1


def test_the_order_follows_from_the_seed_and_the_epoch_alone(info, small_blocks):
    _, scan = _scans(info)
    fed = _training_numbers(info, scan)
    assert fed == _training_numbers(info, scan)
    assert fed != _training_numbers(info, scan, seed=1)
    assert _training_numbers(info, scan, first_epoch=2) == fed[2 * len(fed) // 3 :]


def test_a_scan_knows_where_every_record_went(info, small_blocks):
    scan, other = _scans(info)
    assert scan.num_records == NUM
    np.testing.assert_array_equal(scan.shard_sizes_S, [33] * 6 + [32])
    numbers_M = np.concatenate([np.arange(NUM)[shard::7] for shard in range(7)])  # as the shards were written
    usable = _usable(info)
    for number, row in zip(numbers_M, scan.row_of_record_M, strict=True):
        assert (row >= 0) == (number in usable)
        assert row < 0 or scan.bottleneck_ND[row, 0] == number
    for name in ("num_images", "label_counts_L", "content_N", "mean_D", "var_D", "shard_sizes_S"):
        np.testing.assert_array_equal(getattr(scan, name), getattr(other, name))


def test_mean_and_variance_are_those_of_the_usable_images(tmp_path):
    x_ND, ids = draw_clusters(3000, 5, 2)
    x_ND = (x_ND * 1e-3 + 1e3).astype(np.float32)  # far from zero: the squares alone would not tell them apart
    info = read_examples_info(write_examples(tmp_path, x_ND, ids, ["train"] * 3000, ["a", "b"]))
    scan = scan_split(info, "train", multi_label=False, keep=False)
    np.testing.assert_allclose(scan.mean_D, x_ND.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(scan.var_D, x_ND.var(axis=0, dtype=np.float64), rtol=1e-9)


@pytest.mark.parametrize(("says", "got"), [(NUM - 1, "more"), (NUM + 1, "230")])
def test_a_split_of_another_size_than_examples_json_says_is_refused(info, says, got):
    wrong = dataclasses.replace(info, num_images={**info.num_images, "train": says})
    with pytest.raises(ValueError, match=f"expected {says} images, as examples.json says, got {got}"):
        scan_split(wrong, "train", multi_label=False, keep=True)


def test_a_split_without_shards_is_empty(info):
    scan = scan_split(info, "test", multi_label=False, keep=True)
    assert (scan.num_images, scan.num_records, scan.bottleneck_ND.shape) == (0, 0, (0, WIDTH))
    multi = scan_split(info, "test", multi_label=True, keep=True)
    assert multi.target_N.shape == (0, 3)
