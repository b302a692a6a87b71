"""Frozen graphs of other makers, drawn here in small: same names, operations and fixed batches as the real ones."""

import numpy as np
import pytest
import tensorflow as tf

from bulktag.model.backbone import build_backbone
from bulktag.model.frozen import adapt_graph
from bulktag.model.tensorflow_engine import TensorFlowEngine

v1 = tf.compat.v1
SIZE_PX, WIDTH = 19, 6
PIXELS_BHWC = np.random.default_rng(0).integers(0, 256, (3, SIZE_PX, SIZE_PX, 3), np.uint8)


def _convolve(scaled, seed=0):
    kernel = np.random.default_rng(seed).normal(size=(3, 3, 3, WIDTH)).astype(np.float32)
    return tf.nn.relu(tf.nn.conv2d(scaled, kernel, 2, "VALID"), name="conv")


def _classify(rows, width=WIDTH, name="softmax/logits"):
    kernel = np.random.default_rng(1).normal(size=(width, 4)).astype(np.float32)
    return tf.nn.softmax(tf.matmul(rows, kernel, name=f"{name}/MatMul"), name=name)


def inception_2015_graph() -> v1.GraphDef:
    """The form of classify_image_graph_def.pb: from a JPEG, with one picture built in, down to the classifier."""
    with tf.Graph().as_default() as graph:
        picture = tf.io.decode_jpeg(tf.constant(b"", name="DecodeJpeg/contents"), 3, name="DecodeJpeg")
        batch_of_one = tf.expand_dims(tf.cast(picture, tf.float32, name="Cast"), 0, name="ExpandDims")
        size = tf.constant([SIZE_PX, SIZE_PX], name="ResizeBilinear/size")
        resized = tf.raw_ops.ResizeBilinear(images=batch_of_one, size=size, name="ResizeBilinear")
        centred = tf.subtract(resized, tf.constant(128.0, name="Sub/y"), name="Sub")
        scaled = tf.multiply(centred, tf.constant(1 / 128, name="Mul/y"), name="Mul")
        checked = tf.debugging.check_numerics(_convolve(scaled), "not finite", name="CheckNumerics")
        small = tf.nn.avg_pool2d(checked, 2, 1, "SAME", name="pool_2")
        pooled = tf.nn.avg_pool2d(small, 9, 1, "VALID", name="pool_3")
        _classify(tf.reshape(pooled, [1, WIDTH], name="pool_3/_reshape"))
    return graph.as_graph_def()


def expected_2015(pixels_BHWC):
    checked = _convolve((pixels_BHWC.astype(np.float32) - 128) / 128)
    return tf.reduce_mean(tf.nn.avg_pool2d(checked, 2, 1, "SAME"), [1, 2]).numpy()


def hub_retrain_graph() -> v1.GraphDef:
    """The form of retrain.py with a hub module: a free batch, pixels in [0, 1], a head behind a placeholder."""
    with tf.Graph().as_default() as graph:
        picture = v1.placeholder(tf.float32, [None, SIZE_PX, SIZE_PX, 3], "Placeholder")
        doubled = tf.multiply(picture, 2.0, name="module_apply_default/hub_input/Mul")
        scaled = tf.subtract(doubled, 1.0, name="module_apply_default/hub_input/Sub")
        pooled = tf.reduce_mean(_convolve(scaled), [1, 2], name="module_apply_default/pool")
        _classify(v1.placeholder_with_default(pooled, [None, WIDTH], "input/BottleneckInputPlaceholder"))
    return graph.as_graph_def()


def unnamed_graph(*, num_pools=1, pixels_dtype=tf.float32) -> v1.GraphDef:
    """A network with no known name, a squeeze-and-excite pool inside, and a head for each pool at its end."""
    with tf.Graph().as_default() as graph:
        picture = v1.placeholder(pixels_dtype, [None, SIZE_PX, SIZE_PX, 3], "picture")
        features = _convolve(tf.cast(picture, tf.float32))
        excited = features * tf.sigmoid(tf.reduce_mean(features, [1, 2], keepdims=True, name="excite"))
        for index in range(num_pools):
            _classify(tf.reduce_mean(excited, [1, 2], name=f"last{index}"), name=f"end{index}")
    return graph.as_graph_def()


def run(graph_def, pixels_BHWC=PIXELS_BHWC):
    return TensorFlowEngine(graph_def, 4, "cpu").run(pixels_BHWC)


@pytest.mark.parametrize(
    ("graph_input", "graph_bottleneck"),
    [
        (None, None),
        ("ResizeBilinear:0", "pool_3:0"),
        ("Mul:0", "pool_3/_reshape:0"),  # retrain.py's names
        ("Mul", "pool_3/_reshape"),
    ],
)
def test_2015_graph_takes_batches_whichever_of_its_names_are_given(graph_input, graph_bottleneck):
    adapted, size_px, width = adapt_graph(inception_2015_graph(), graph_input, graph_bottleneck, None, where="a.pb")
    assert (size_px, width) == (SIZE_PX, WIDTH)
    np.testing.assert_allclose(run(adapted), expected_2015(PIXELS_BHWC), rtol=1e-4, atol=1e-5)


def test_graph_cut_at_mul_is_fed_what_retrain_fed():
    with tf.Graph().as_default() as graph:
        pooled = tf.reduce_mean(_convolve(v1.placeholder(tf.float32, [1, SIZE_PX, SIZE_PX, 3], "Mul")), [1, 2])
        tf.reshape(pooled, [1, WIDTH], name="pool_3/_reshape")
    adapted, _, _ = adapt_graph(graph.as_graph_def(), None, None, None, where="a.pb")
    expected = tf.reduce_mean(_convolve((PIXELS_BHWC.astype(np.float32) - 128) / 128), [1, 2])
    np.testing.assert_allclose(run(adapted), expected, rtol=1e-4, atol=1e-5)


def test_hub_graph_is_fed_pixels_between_0_and_1():
    adapted, _, _ = adapt_graph(hub_retrain_graph(), None, None, None, where="a.pb")
    expected = tf.reduce_mean(_convolve(PIXELS_BHWC.astype(np.float32) / 127.5 - 1), [1, 2])
    np.testing.assert_allclose(run(adapted), expected, rtol=1e-4, atol=1e-5)


def test_last_global_pool_is_found_by_structure():
    adapted, _, _ = adapt_graph(unnamed_graph(pixels_dtype=tf.uint8), None, None, None, where="a.pb")
    features = _convolve(PIXELS_BHWC.astype(np.float32))
    excited = features * tf.sigmoid(tf.reduce_mean(features, [1, 2], keepdims=True))
    np.testing.assert_allclose(run(adapted), tf.reduce_mean(excited, [1, 2]), rtol=1e-4)


def test_named_feature_map_is_averaged():
    adapted, _, width = adapt_graph(unnamed_graph(pixels_dtype=tf.uint8), "picture", "conv", None, where="a.pb")
    assert width == WIDTH
    expected = tf.reduce_mean(_convolve(PIXELS_BHWC.astype(np.float32)), [1, 2])
    np.testing.assert_allclose(run(adapted), expected, rtol=1e-4)


def test_operation_that_newer_tensorflow_removed_still_runs():
    """BatchNormWithGlobalNormalization, all over the 2015 graph, is refused in graphs of version 9 and later."""
    graph_def = unnamed_graph()
    for name, value in {"mean": 5.0, "variance": 4.0, "beta": 1.0, "gamma": 3.0}.items():
        node = graph_def.node.add(name=name, op="Const")
        node.attr["dtype"].type = tf.float32.as_datatype_enum
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto([value] * WIDTH, tf.float32))
    norm = graph_def.node.add(name="norm", op="BatchNormWithGlobalNormalization")
    norm.input.extend(["conv", "mean", "variance", "beta", "gamma"])
    norm.attr["T"].type = tf.float32.as_datatype_enum
    norm.attr["variance_epsilon"].f = 1e-7
    norm.attr["scale_after_normalization"].b = True
    graph_def.versions.producer = 8
    adapted, _, _ = adapt_graph(graph_def, "picture", "norm", None, where="a.pb")
    convolved = _convolve(PIXELS_BHWC.astype(np.float32) / 127.5 - 1)
    np.testing.assert_allclose(run(adapted), tf.reduce_mean((convolved - 5) / 2 * 3 + 1, [1, 2]), rtol=1e-3, atol=1e-3)


def test_unclear_bottleneck_lists_the_candidates():
    with pytest.raises(ValueError, match=r"graph_bottleneck\), candidates: last0:0, last1:0: a.pb"):
        adapt_graph(unnamed_graph(num_pools=2), None, None, None, where="a.pb")


def test_unclear_input_lists_the_candidates():
    with tf.Graph().as_default() as graph:
        for name in ("left", "right"):
            _convolve(v1.placeholder(tf.float32, [None, SIZE_PX, SIZE_PX, 3], name))
    with pytest.raises(ValueError, match=r"graph_input\), candidates: left:0, right:0: a.pb"):
        adapt_graph(graph.as_graph_def(), None, None, None, where="a.pb")


@pytest.mark.parametrize("names", [("nothing", None), (None, "nothing:0")])
def test_name_that_is_not_there_is_refused(names):
    with pytest.raises(ValueError, match="expected a tensor of the graph, got 'nothing"):
        adapt_graph(inception_2015_graph(), *names, None, where="a.pb")


def test_batch_built_in_before_the_bottleneck_is_refused():
    with tf.Graph().as_default() as graph:
        fixed = tf.reshape(v1.placeholder(tf.float32, [1, SIZE_PX, SIZE_PX, 3], "input"), [1, SIZE_PX, SIZE_PX, 3])
        tf.reduce_mean(_convolve(fixed), [1, 2], name="pool")
    with pytest.raises(ValueError, match=r"3 pictures|cannot feed"):
        adapt_graph(graph.as_graph_def(), None, None, None, where="a.pb")


def test_graph_that_reads_files_is_refused():
    with tf.Graph().as_default() as graph:
        picture = v1.placeholder(tf.float32, [None, SIZE_PX, SIZE_PX, 3], "input")
        stolen = tf.strings.length(tf.io.read_file("/etc/hostname"))
        tf.add(tf.reduce_mean(_convolve(picture), [1, 2]), tf.cast(stolen, tf.float32), name="pool_3")
    with pytest.raises(ValueError, match="expected a graph that only computes, got operation"):
        adapt_graph(graph.as_graph_def(), None, None, None, where="a.pb")


def test_graph_that_is_not_frozen_is_refused():
    with tf.Graph().as_default() as graph:
        picture = v1.placeholder(tf.float32, [None, SIZE_PX, SIZE_PX, 3], "input")
        variable = v1.get_variable("gain", [WIDTH], use_resource=False)
        tf.multiply(tf.reduce_mean(_convolve(picture), [1, 2]), variable, name="pool_3")
    with pytest.raises(ValueError, match="variables"):
        adapt_graph(graph.as_graph_def(), None, None, None, where="a.pb")


def test_image_size_must_be_the_graphs_own():
    with pytest.raises(ValueError, match="expected the graph's image size 19 x 19, got 32 px"):
        adapt_graph(inception_2015_graph(), None, None, 32, where="a.pb")


def test_backbone_from_a_graph_file_keeps_the_users_name_and_a_stable_digest(tmp_path):
    path = tmp_path / "graph.pb"
    path.write_bytes(inception_2015_graph().SerializeToString())
    first, second = (build_backbone("flowers_2015", str(path)) for _ in range(2))
    assert (first.spec.name, first.spec.kind, first.spec.weights) == ("flowers_2015", "graph", str(path))
    assert (first.spec.image_size_px, first.spec.width) == (SIZE_PX, WIDTH)
    assert first.spec == second.spec


@pytest.mark.parametrize("content", [b"", b"\xff\xd8 no graph"])
def test_file_that_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "graph.pb"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a frozen TensorFlow graph"):
        build_backbone("any", str(path))
