import hashlib

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from bulktag.transforms.columns import build_batch, column_parser
from bulktag.transforms.records import IMAGES_SCHEMA, ImageInfo, pack_images, unpack_images
from bulktag.transforms.shards import build_example

WIDTH = 3


def _info(i, **changes):
    fields = {"uri": f"/i/ü {i}\n.jpg", "labels": ("a", "ü"), "num_bytes": 100 + i, "modified_us": 1_700_000_000_000,
              "sha256": hashlib.sha256(str(i).encode()).digest(), "width": 20 + i, "height": 30}  # fmt: skip
    return ImageInfo(**{**fields, **changes})


def _parse(serialized):
    dataset = tf.data.Dataset.from_tensors(tf.constant(serialized, tf.string)).map(column_parser(WIDTH))
    return build_batch(next(dataset.as_numpy_iterator()))


def _serialize(info):
    ids = {label: i for i, label in enumerate(info.labels)}
    return build_example(info, np.full(WIDTH, info.width, np.float32), ids).SerializeToString()


def test_columns_of_examples_are_what_rows_would_be():
    infos = [
        _info(0), _info(1, labels=()), _info(2, uri="日本", labels=("one",)), _info(3, num_bytes=-1, modified_us=-1),
        _info(4, num_bytes=0, labels=("", "x" * 300)),
    ]  # fmt: skip
    batch = _parse([_serialize(info) for info in infos])
    batch.images.validate(full=True)
    assert batch.images == pack_images(infos)
    assert unpack_images(batch.images) == infos
    np.testing.assert_array_equal(batch.bottleneck_BD, [[20 + i] * WIDTH for i in range(5)])
    assert batch.scores_BL is None


def test_what_is_not_known_is_null():
    images = _parse([_serialize(_info(0, num_bytes=-1, modified_us=-1)), _serialize(_info(1))]).images
    assert images["bytes"].to_pylist() == [None, 101]
    assert images["modified"].is_null().to_pylist() == [True, False]
    assert images["encoded"].null_count == 2
    assert images.schema == IMAGES_SCHEMA


def test_examples_of_other_programs_may_lack_bytes_and_modified():
    example = build_example(_info(0), np.zeros(WIDTH, np.float32), {"a": 0, "ü": 1})
    for name in ("image/bytes", "image/modified", "image/class/text"):
        del example.features.feature[name]
    (info,) = unpack_images(_parse([example.SerializeToString()]).images)
    assert (info.num_bytes, info.modified_us, info.labels) == (-1, -1, ())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("image/uri", b"\xff", "UTF8"),
        ("image/class/text", b"a\xff", "UTF8"),
        ("image/sha256", b"x" * 20, r"expected image/sha256 of 32 bytes, got 20: /i/ü 0"),
    ],
)
def test_examples_of_other_programs_that_break_the_contract_are_refused(name, value, message):
    example = build_example(_info(0, labels=("a",)), np.zeros(WIDTH, np.float32), {"a": 0})
    example.features.feature[name].bytes_list.value[0] = value
    with pytest.raises(ValueError, match=message):
        _parse([example.SerializeToString()])


def test_rows_and_columns_hold_the_same():
    infos = [_info(0, encoded=b"bytes"), _info(1, labels=()), _info(2, num_bytes=-1, modified_us=-1)]
    images = pack_images(infos)
    assert unpack_images(images) == infos
    assert unpack_images(images.slice(1)) == infos[1:]
    assert pack_images([]) == pa.RecordBatch.from_pylist([], schema=IMAGES_SCHEMA)
