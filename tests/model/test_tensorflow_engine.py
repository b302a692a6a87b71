import concurrent.futures

import numpy as np
import pytest
import tensorflow as tf

from bulktag.model.backbone import build_backbone
from bulktag.model.graphs import freeze
from bulktag.model.hardware import describe_device
from bulktag.model.tensorflow_engine import TensorFlowEngine

PIXELS_BHWC = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), np.uint8)


@pytest.fixture(scope="module")
def graph_def():
    return build_backbone("pixels", "none", image_size_px=4).graph_def


@pytest.mark.parametrize("num_images", [1, 4, 5])
def test_every_row_comes_back_and_padding_does_not(graph_def, num_images):
    bottleneck_BD = TensorFlowEngine(graph_def, 5, "cpu").run(PIXELS_BHWC[:num_images])
    assert bottleneck_BD.dtype == np.float32
    np.testing.assert_allclose(bottleneck_BD, PIXELS_BHWC[:num_images].reshape(num_images, -1) / 255, rtol=1e-6)


def test_no_rows_give_no_rows(graph_def):
    assert TensorFlowEngine(graph_def, 5, "cpu").run(PIXELS_BHWC[:0]).shape == (0, 48)


def test_input_of_the_caller_is_left_alone(graph_def):
    before = PIXELS_BHWC.copy()
    TensorFlowEngine(graph_def, 8, "cpu").run(PIXELS_BHWC)
    np.testing.assert_array_equal(PIXELS_BHWC, before)


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((6, 4, 4, 3), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float32),
    ],
    ids=["too many", "another size", "no batch", "float"],
)
def test_rows_that_do_not_fit_are_refused(graph_def, rows):
    with pytest.raises(ValueError, match=r"expected uint8\[n <= 5, 4, 4, 3\], got"):
        TensorFlowEngine(graph_def, 5, "cpu").run(rows)


def test_engine_runs_a_head_and_several_outputs():
    @tf.function
    def head(bottleneck_BD):
        return tf.nn.softmax(bottleneck_BD)

    graph_def = freeze(head, tf.TensorSpec([None, 3], tf.float32, "bottleneck"), "scores")
    rows = np.eye(2, 3, dtype=np.float32)
    engine = TensorFlowEngine(graph_def, 4, "cpu", inputs=("bottleneck",), outputs=("bottleneck", "scores"))
    bottleneck_BD, scores_BL = engine.run(rows)
    np.testing.assert_array_equal(bottleneck_BD, rows)
    np.testing.assert_allclose(scores_BL.sum(axis=1), [1, 1], rtol=1e-6)


def test_threads_may_share_an_engine(graph_def):
    engine = TensorFlowEngine(graph_def, 5, "cpu", num_threads=1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: engine.run(PIXELS_BHWC[: n % 5 + 1]), range(40)))
    for index, bottleneck_BD in enumerate(results):
        num_images = index % 5 + 1
        np.testing.assert_allclose(bottleneck_BD, PIXELS_BHWC[:num_images].reshape(num_images, -1) / 255, rtol=1e-6)


def test_graph_without_the_output_is_refused(graph_def):
    with pytest.raises(ValueError, match="expected a graph with pixels, scores, it lacks scores"):
        TensorFlowEngine(graph_def, 1, "cpu", outputs=("scores",))


def test_device_is_described_or_refused():
    assert describe_device("cpu") == "CPU"
    with pytest.raises(ValueError, match="expected device auto, cpu or gpu, got 'tpu'"):
        describe_device("tpu")


def test_gpu_is_refused_where_there_is_none(graph_def, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert describe_device("auto") == "CPU"
    with pytest.raises(ValueError, match="expected a GPU that TensorFlow can use, found none"):
        TensorFlowEngine(graph_def, 1, "gpu")
