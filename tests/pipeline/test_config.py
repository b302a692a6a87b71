"""Configurations: the same fields from flags and YAML, wrong ones refused in one line."""

import pytest

from bulktag.pipeline.config import EvaluateConfig, ExtractConfig, TagConfig, TrainConfig, build_config

TAG = {"input": ["a"], "model": "m", "output": "o"}


def test_plain_values_become_the_fields_types():
    config = build_config(
        ExtractConfig, {"input": "photos", "output": "out", "split": ["0.5", 0.25, "0.25"], "workers": "2"}
    )
    assert config.input == ("photos",)
    assert config.split == (0.5, 0.25, 0.25)
    assert config.workers == 2


@pytest.mark.parametrize(
    ("backbone", "weights", "resolved"),
    [
        ("inception_v3", "", "imagenet"),
        ("builtin", "", "builtin"),
        ("pixels", "", "none"),
        ("vgg16", "random:1", "random:1"),
    ],
)
def test_weights_follow_the_backbone(backbone, weights, resolved):
    assert TagConfig(**TAG, backbone=backbone, weights=weights).resolved_weights == resolved


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TagConfig, {**TAG, "topk": 3}, "got unknown key 'topk'"),
        (TagConfig, {"input": ["a"], "model": "m"}, "expected output, got none"),
        (TagConfig, {**TAG, "top_k": 0}, "expected top_k above 0, got 0"),
        (TagConfig, {**TAG, "top_k": "many"}, "expected top_k to be a whole number, got 'many'"),
        (TagConfig, {**TAG, "top_k": 2.5}, "expected top_k to be a whole number, got 2.5"),
        (TagConfig, {**TAG, "scores": "maybe"}, "expected scores to be true or false, got 'maybe'"),
        (TagConfig, {**TAG, "layout": "tall"}, "expected layout to be one of wide, long, got 'tall'"),
        (TagConfig, {**TAG, "max_error_share": 5}, "expected max_error_share between 0 and 1, got 5"),
        (TagConfig, {**TAG, "batch_size": 0}, "expected batch_size above 0, got 0"),
        (TrainConfig, {"examples": "e", "model": "m", "dropout": -1}, "expected dropout between 0 and 1, got -1"),
        (EvaluateConfig, {"examples": {}, "model": "m", "output": "o"}, "expected examples to be text, got {}"),
    ],
)
def test_a_wrong_value_is_named(kind, values, message):
    with pytest.raises(ValueError, match="expected") as caught:
        build_config(kind, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
