"""model/tags.py: ranking against a plain sort, ties, thresholds, and the Arrow arrays."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from bulktag.model import tags
from bulktag.model.tags import TAGS_TYPE, TOP_LABEL_TYPE, rank_tags, tags_array, top_arrays


def rank_plainly(scores_L, thresholds_L, top_k):
    passing = [(-score, i) for i, score in enumerate(scores_L) if score >= thresholds_L[i]]
    return [(i, -negative) for negative, i in sorted(passing)[:top_k]]


# Few distinct values, so that ties and scores equal to their threshold are common.
VALUES = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 1e-30, 0.5, 1.0])


# Of the two ways of ranking, which one takes a batch depends on how many of its scores reach their thresholds.
@pytest.mark.parametrize("max_sorted_share", [-1.0, 1.0])
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), top_k=st.integers(1, 8), num_labels=st.integers(1, 7), num=st.integers(0, 6))
def test_ranking_equals_a_plain_sort_with_ties_in_label_order(
    monkeypatch, max_sorted_share, data, top_k, num_labels, num
):
    monkeypatch.setattr(tags, "MAX_SORTED_SHARE", max_sorted_share)
    scores_BL = data.draw(arrays.arrays(np.float32, (num, num_labels), elements=VALUES))
    thresholds_L = data.draw(arrays.arrays(np.float32, num_labels, elements=VALUES))
    labels = [f"label {i}" for i in range(num_labels)]
    ranked = rank_tags(scores_BL, thresholds_L, top_k)
    expected = [rank_plainly(row, thresholds_L, top_k) for row in scores_BL.tolist()]
    found = tags_array(labels, *ranked)
    found.validate(full=True)
    assert found.type == TAGS_TYPE
    named = [[{"label": labels[i], "score": score} for i, score in row] for row in expected]
    assert found.to_pylist() == named
    top_label, top_score = top_arrays(labels, *ranked)
    assert top_label.to_pylist() == [row[0]["label"] if row else None for row in named]
    assert top_score.to_pylist() == [row[0]["score"] if row else None for row in named]


def test_shapes_and_types_are_as_promised():
    scores_BL = np.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]], np.float32)
    indices_BK, ranked_BK, counts_B = rank_tags(scores_BL, np.full(3, 0.3, np.float32), top_k=2)
    assert (indices_BK.dtype, ranked_BK.dtype, counts_B.dtype) == (np.int32, np.float32, np.int32)
    assert indices_BK.tolist() == [[1, -1], [2, 0]]
    assert counts_B.tolist() == [1, 2]
    assert ranked_BK[0, 1] == 0


def test_score_that_is_not_a_number_is_no_tag():
    indices_BK, _, counts_B = rank_tags(np.array([[np.nan, 0.5]], np.float32), np.zeros(2, np.float32), top_k=2)
    assert counts_B.tolist() == [1]
    assert indices_BK[0, 0] == 1


def test_top_label_is_a_dictionary_with_null_where_no_tag_is():
    ranked = rank_tags(np.array([[0.9, 0.1], [0.2, 0.3]], np.float32), np.full(2, 0.5, np.float32), top_k=1)
    top_label, top_score = top_arrays(pa.array(["cat", "dog"]), *ranked)
    assert top_label.type == TOP_LABEL_TYPE
    assert top_label.to_pylist() == ["cat", None]
    assert top_score.null_count == 1


def test_thousand_labels_rank_fast_enough_for_any_backbone():
    scores_BL = np.random.default_rng(0).random((256, 1000), np.float32)
    indices_BK, _, _ = rank_tags(scores_BL, np.zeros(1000, np.float32), top_k=5)
    np.testing.assert_array_equal(indices_BK, np.argsort(-scores_BL, axis=1)[:, :5])


@pytest.mark.parametrize(("thresholds", "top_k", "message"), [(2, 5, "thresholds"), (3, 0, "top_k of at least 1")])
def test_wrong_request_is_refused(thresholds, top_k, message):
    with pytest.raises(ValueError, match=message):
        rank_tags(np.zeros((1, 3), np.float32), np.zeros(thresholds, np.float32), top_k)
