import collections

import numpy as np
import pytest
import tensorflow as tf

from bulktag.model.backbone import build_backbone
from bulktag.model.folding import fold_graph
from bulktag.model.graphs import freeze
from bulktag.model.tensorflow_engine import TensorFlowEngine

PIXELS_BHWC = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), np.uint8)
RNG = np.random.default_rng(1)
FILTER, DEPTHWISE = (RNG.normal(0, 0.1, shape).astype(np.float32) for shape in ((3, 3, 3, 8), (3, 3, 8, 2)))
CHANNELS, PAIRS = (RNG.normal(1, 0.5, (4, n)).astype(np.float32) for n in (8, 16))


def frozen(function):
    def bottleneck(pixels):
        result = function(tf.cast(pixels, tf.float32) / 255.0)
        return tf.reshape(result, [-1, int(np.prod(result.shape[1:]))])

    return freeze(bottleneck, tf.TensorSpec([None, 12, 12, 3], tf.uint8, "pixels"), "bottleneck")


def convolution(x):
    return tf.nn.conv2d(x, FILTER, 1, "SAME")


def norm(x, values=CHANNELS):
    scale, offset, mean, variance = values
    return tf.compat.v1.nn.fused_batch_norm(x, scale, offset, mean, np.abs(variance), 1e-3, is_training=False)[0]


FOLDED = {
    "batch norm": lambda x: tf.nn.relu(norm(convolution(x))),
    "arithmetic": lambda x: tf.nn.relu6((convolution(x) * CHANNELS[0] - CHANNELS[1]) / CHANNELS[2] + 0.5),
    "constant first": lambda x: tf.nn.relu(CHANNELS[1] + CHANNELS[0] * convolution(x)),
    "bias": lambda x: tf.nn.relu(tf.nn.bias_add(convolution(x), CHANNELS[0])),
    "nothing": lambda x: tf.nn.relu(convolution(x)),
    "depthwise": lambda x: tf.nn.relu(
        norm(tf.nn.depthwise_conv2d(convolution(x), DEPTHWISE, [1, 1, 1, 1], "SAME"), PAIRS)
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_what_follows_a_convolution_becomes_its_filter_and_bias(name):
    graph_def = frozen(FOLDED[name])
    folded = fold_graph(graph_def, "bottleneck")
    ops = collections.Counter(node.op for node in folded.node)
    assert ops["BiasAdd"] == ops["Conv2D"] + ops["DepthwiseConv2dNative"]
    behind = {node.op for node in folded.node if any("/folded_convolution" in name for name in node.input)}
    assert behind == {"BiasAdd"}
    assert not {"FusedBatchNormV3", "Sub", "AddV2"} & set(ops)
    expected, actual = (TensorFlowEngine(graph, 3, "cpu").run(PIXELS_BHWC) for graph in (graph_def, folded))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scales", [True, False])
def test_batch_norm_of_the_2015_graphs_is_folded(scales):
    graph_def = frozen(lambda x: norm(convolution(x)))
    (node,) = (node for node in graph_def.node if node.op == "FusedBatchNormV3")
    x, gamma, beta, mean, variance = node.input
    old = node.__class__(name=node.name, op="BatchNormWithGlobalNormalization", input=[x, mean, variance, beta, gamma])
    old.attr["T"].CopyFrom(node.attr["T"])
    old.attr["variance_epsilon"].f = 1e-3
    old.attr["scale_after_normalization"].b = scales
    node.CopyFrom(old)
    graph_def.versions.producer = 8  # TensorFlow has it only in graphs as old as this

    folded = fold_graph(graph_def, "bottleneck")
    assert not any(node.op == "BatchNormWithGlobalNormalization" for node in folded.node)
    gamma, beta, mean, variance = CHANNELS.astype(np.float64)
    plain = TensorFlowEngine(frozen(convolution), 3, "cpu").run(PIXELS_BHWC).reshape(-1, 8)
    expected = (plain - mean) * (gamma if scales else 1) / np.sqrt(np.abs(variance) + 1e-3) + beta
    actual = TensorFlowEngine(folded, 3, "cpu").run(PIXELS_BHWC).reshape(-1, 8)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def used_twice(x):
    y = convolution(x)
    return y * CHANNELS[0] + tf.nn.relu(y)


def not_by_channel(x):
    return convolution(x) * np.linspace(0, 1, 12, dtype=np.float32).reshape(1, 12, 1, 1)


def divided(x):
    return CHANNELS[0] / (convolution(x) + 100.0)


@pytest.mark.parametrize("function", [used_twice, not_by_channel, divided])
def test_what_is_no_change_of_single_channels_stays_as_it_is(function):
    graph_def = frozen(function)
    expected, actual = (
        TensorFlowEngine(graph, 3, "cpu").run(PIXELS_BHWC) for graph in (graph_def, fold_graph(graph_def, "bottleneck"))
    )
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())


def test_a_folded_graph_can_be_folded_again():
    graph_def = build_backbone("builtin", "builtin").graph_def
    again = fold_graph(graph_def, "bottleneck")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    first, second = (TensorFlowEngine(graph, 2).run(pixels) for graph in (graph_def, again))
    np.testing.assert_allclose(second, first, rtol=1e-4, atol=1e-4)


def test_a_graph_without_convolutions_keeps_its_function_and_loses_what_it_does_not_need():
    graph_def = frozen(lambda x: x * 2.0)
    node = graph_def.node.add(name="unused", op="Placeholder")
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    folded = fold_graph(graph_def, "bottleneck")
    assert "unused" not in {node.name for node in folded.node}
    expected = PIXELS_BHWC.reshape(3, -1) / 255 * 2
    np.testing.assert_allclose(TensorFlowEngine(folded, 3, "cpu").run(PIXELS_BHWC), expected, rtol=1e-6)
