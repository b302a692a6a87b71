"""One pass over a split before it is trained on: count, check, take statistics, and keep it in memory if asked to.

Array suffixes: S shards, M records of a split, N of them that can be trained on, B of a batch, D bottleneck width,
L labels.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from bulktag.model.splits import INFO_NAME, ExamplesInfo, read_batches, shard_paths

# Rows whose squares are taken at once: their float64 copies stay in the processor's cache (12 against 2.2 us a row of
# 2,048 numbers).
MOMENT_ROWS = 64


@dataclasses.dataclass
class SplitScan:
    """What one pass over a split found."""

    paths: tuple[str, ...]  # S shards
    shard_sizes_S: np.ndarray  # int64[S], records in each
    num_images: int  # N, usable ones
    label_counts_L: np.ndarray  # int64[L], usable images that carry each label
    unlabelled: int
    several_labels: int
    unknown_label: int
    mean_D: np.ndarray  # float64[D]
    var_D: np.ndarray  # float64[D]
    content_N: np.ndarray  # int64[N], equal for equal sha256
    target_N: np.ndarray | None  # int32[N]; float32[N, L] for multi-label, where it was to be kept
    # Where it was to be kept: the bottlenecks, and for each record, counted through the shards one after the other, the
    # row that it has become; -1: it cannot be trained on.
    bottleneck_ND: np.ndarray | None  # float32[N, D]
    row_of_record_M: np.ndarray | None  # int64[M]

    @property
    def num_records(self) -> int:
        """M, records in the shards, usable or not."""
        return int(self.shard_sizes_S.sum())


def scan_split(info: ExamplesInfo, split: str, *, multi_label: bool, keep: bool) -> SplitScan:
    """Read a split once.

    Args:
      info: from `read_examples_info`.
      split: "train", "validation" or "test".
      multi_label: see `read_batches`.
      keep: keep bottlenecks and targets; without it what stays in memory is a few bytes an image.
    Raises:
      ValueError: a shard is damaged, its bottlenecks have another width or are not finite, or the split has another
        number of images than examples.json says.
    """
    paths = shard_paths(info.folder, split)
    where = tf.io.gfile.join(info.folder, split)
    kept = _Kept(info, split, multi_label=multi_label, keep=keep)
    counts_L = np.zeros(len(info.labels), np.int64)
    totals = {"unlabelled": 0, "several_labels": 0, "unknown_label": 0}
    shards, usable, num_read, moments = [], [], 0, _Moments(info.width)
    for batch in _numpy_batches(info, paths, multi_label, where):
        num_read += len(batch["usable"])
        if num_read > info.num_images[split]:
            break
        for name in totals:
            totals[name] += int(batch[name])
        moments.add(batch["bottleneck"])
        counts_L += _count_labels(batch["target"], len(info.labels))
        shards.append(batch["shard"])
        usable.append(batch["usable"])
        kept.add(batch)
    if num_read != info.num_images[split]:
        raise ValueError(
            f"expected {info.num_images[split]} images, as {INFO_NAME} says, got "
            f"{num_read if num_read < info.num_images[split] else 'more'}: {where}; extract again"
        )
    if not np.isfinite(moments.mean_D).all():
        raise ValueError(f"expected finite bottlenecks, got NaN or infinity: {where}")
    shard_M = np.concatenate([np.zeros(0, np.int32), *shards])
    return SplitScan(
        paths=tuple(paths),
        shard_sizes_S=np.bincount(shard_M, minlength=len(paths)),
        num_images=moments.num,
        label_counts_L=counts_L,
        **totals,
        mean_D=moments.mean_D,
        var_D=moments.var_D,
        content_N=kept.arrays["content"][: moments.num],
        target_N=kept.rows("target"),
        bottleneck_ND=kept.rows("bottleneck"),
        row_of_record_M=_rows_of_records(shard_M, np.concatenate([np.zeros(0, bool), *usable])) if keep else None,
    )


def _rows_of_records(shard_M: np.ndarray, usable_M: np.ndarray) -> np.ndarray:
    """From the order in which the records were read to the order in which they stand in the shards."""
    row_M = np.where(usable_M, np.cumsum(usable_M) - 1, -1)
    return row_M[np.argsort(shard_M, kind="stable")]


def _count_labels(target: np.ndarray, num_labels: int) -> np.ndarray:
    return np.bincount(target, minlength=num_labels) if target.ndim == 1 else target.sum(axis=0).astype(np.int64)


def _numpy_batches(info: ExamplesInfo, paths: list[str], multi_label: bool, where: str):
    try:
        yield from read_batches(info, paths, multi_label=multi_label).as_numpy_iterator()
    except tf.errors.DataLossError as error:
        raise ValueError(f"expected whole TFRecord shards, got a damaged one ({error.message}): {where}") from error
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            f"expected examples with {info.width} numbers in image/bottleneck, got others "
            f"({error.message.splitlines()[0][:200]}): {where}"
        ) from error


class _Kept:
    """Arrays of a split, made at once in the size that examples.json gives, so that they are never held twice."""

    def __init__(self, info: ExamplesInfo, split: str, *, multi_label: bool, keep: bool):
        most = info.num_images[split]
        self.arrays = {"content": np.empty(most, np.int64)}
        # The targets of a split with several labels are L numbers an image, all others one.
        if keep or not multi_label:
            shape, kind = ((most, len(info.labels)), np.float32) if multi_label else (most, np.int32)
            self.arrays["target"] = np.empty(shape, kind)
        if keep:
            self.arrays["bottleneck"] = np.empty((most, info.width), np.float32)
        self._num = 0

    def add(self, batch: dict[str, np.ndarray]) -> None:
        """Append the usable rows of a batch."""
        end = self._num + len(batch["bottleneck"])
        for name, array in self.arrays.items():
            array[self._num : end] = batch[name]
        self._num = end

    def rows(self, name: str) -> np.ndarray | None:
        """What was kept under a name."""
        return self.arrays[name][: self._num] if name in self.arrays else None


class _Moments:
    """Mean and variance of a stream of rows, in float64, as sums of distances from a value near the mean.

    Without that value the variance would be the small difference of two large sums. Source: Chan, Golub and LeVeque,
    Algorithms for computing the sample variance, 1983, section 2.
    """

    def __init__(self, width: int):
        self.num = 0
        self._near_mean_D = np.zeros(width)
        self._sum_D, self._squares_D = np.zeros(width), np.zeros(width)

    def add(self, bottleneck_BD: np.ndarray) -> None:
        if not self.num and len(bottleneck_BD):
            self._near_mean_D = bottleneck_BD[:MOMENT_ROWS].mean(axis=0, dtype=np.float64)
        self.num += len(bottleneck_BD)
        for start in range(0, len(bottleneck_BD), MOMENT_ROWS):
            distance_BD = bottleneck_BD[start : start + MOMENT_ROWS] - self._near_mean_D
            self._sum_D += distance_BD.sum(axis=0)
            self._squares_D += np.einsum("bd,bd->d", distance_BD, distance_BD)

    @property
    def mean_D(self) -> np.ndarray:
        return self._near_mean_D + self._sum_D / max(self.num, 1)

    @property
    def var_D(self) -> np.ndarray:
        num = max(self.num, 1)
        return np.maximum(self._squares_D / num - (self._sum_D / num) ** 2, 0)
