import numpy as np
import pytest

from bulktag.model import hardware, openvino_engine
from bulktag.model.backbone import build_backbone
from bulktag.model.engine import EngineSettings, Tagger, build_backbone_engine, choose_engine
from bulktag.model.graphs import freeze
from bulktag.model.image import ImageLimits, load_image
from bulktag.model.openvino_engine import UnsupportedGraph
from bulktag.model.tensorflow_engine import TensorFlowEngine

BF16 = pytest.mark.skipif(hardware.bf16_instructions() is None, reason="this processor has no bfloat16")
ENGINES = [
    ("tensorflow", "fp32"),
    ("openvino", "fp32"),
    pytest.param("tensorflow", "bf16", marks=BF16),
    pytest.param("openvino", "bf16", marks=BF16),
]


@pytest.fixture(scope="module")
def network():
    """One with trained weights: drawn ones amplify rounding beyond anything that a user will see."""
    return build_backbone("builtin", "builtin")


@pytest.fixture(scope="module")
def pictures(demo_images):
    paths = sorted(demo_images.rglob("*.jpg"))[:64]
    limits = ImageLimits()
    return np.stack([load_image(path.read_bytes(), 96, "crop", limits).pixels_HWC for path in paths])


def cosines(a_BD, b_BD):
    return (a_BD * b_BD).sum(axis=1) / np.linalg.norm(a_BD, axis=1) / np.linalg.norm(b_BD, axis=1)


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_every_engine_computes_what_fp32_computes(network, pictures, engine, precision):
    pixels_BHWC = pictures[:30]
    expected_BD = TensorFlowEngine(network.graph_def, 30, "cpu").run(pixels_BHWC)
    built = build_backbone_engine(network.graph_def, EngineSettings(16, "cpu", engine, precision))
    assert built.describe() == f"{engine}, {precision}, CPU"
    actual_BD = np.concatenate([built.run(pixels_BHWC[:16]), built.run(pixels_BHWC[16:])])  # a whole and a short batch
    assert actual_BD.dtype == np.float32
    assert cosines(actual_BD, expected_BD).min() > (0.99999 if precision == "fp32" else 0.995)
    # bfloat16 has 8 bits: were the results the same to the last digit, it would not have been used.
    same = np.allclose(actual_BD, expected_BD, rtol=1e-3, atol=1e-3 * np.abs(expected_BD).max())
    assert same == (precision == "fp32")
    built.close()


@pytest.mark.parametrize("engine", ["tensorflow", "openvino"])
def test_rows_that_do_not_fit_are_refused(network, engine):
    built = build_backbone_engine(network.graph_def, EngineSettings(2, "cpu", engine))
    with pytest.raises(ValueError, match=r"expected uint8\[n <= 2, 96, 96, 3\], got uint8\[3, 96, 96, 3\]"):
        built.run(np.zeros((3, 96, 96, 3), np.uint8))
    assert built.run(np.zeros((0, 96, 96, 3), np.uint8)).shape == (0, 512)


def test_results_of_openvino_are_not_overwritten_by_later_calls(network, pictures):
    built = build_backbone_engine(network.graph_def, EngineSettings(3, "cpu", "openvino"))
    pixels_BHWC = pictures[:6]
    first_BD = built.run(pixels_BHWC[:3])
    kept_BD = first_BD.copy()
    built.run(pixels_BHWC[3:])
    np.testing.assert_array_equal(first_BD, kept_BD)


def test_auto_takes_openvino_on_a_cpu_where_it_is_installed(monkeypatch):
    assert choose_engine(EngineSettings(device="cpu")).engine == "openvino"
    monkeypatch.setattr(openvino_engine, "is_installed", lambda: False)
    assert choose_engine(EngineSettings(device="cpu")).engine == "tensorflow"
    with pytest.raises(ValueError, match=r"found none: pip install 'bulktag\[openvino\]'"):
        choose_engine(EngineSettings(engine="openvino"))
    with pytest.raises(ValueError, match=r"found none: pip install 'bulktag\[openvino\]'"):
        choose_engine(EngineSettings(precision="int8"))


def test_auto_takes_bf16_only_where_the_processor_has_it(monkeypatch):
    for flags, precision in (({"avx2", "avx512f"}, "fp32"), ({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16")):
        monkeypatch.setattr(hardware, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert choose_engine(EngineSettings(device="cpu")).precision == precision
    monkeypatch.setattr(hardware, "cpu_flags", frozenset)
    with pytest.raises(ValueError, match="expected a processor with AVX512-BF16 or AMX"):
        choose_engine(EngineSettings(device="cpu", precision="bf16"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"engine": "onnx"}, "expected engine auto, tensorflow, openvino, got 'onnx'"),
        ({"precision": "fp8"}, "expected precision auto, fp32, bf16, fp16, int8, got 'fp8'"),
        ({"precision": "fp16", "device": "cpu"}, "expected precision .* on CPU, got 'fp16'"),
        ({"precision": "int8", "engine": "tensorflow"}, "for tensorflow on CPU, got 'int8'"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        choose_engine(EngineSettings(**words))


def test_a_graph_that_openvino_cannot_run_falls_to_tensorflow_under_auto_only():
    import tensorflow as tf

    def bottleneck(pixels):
        rows = tf.reshape(tf.cast(pixels, tf.float32), [-1, 48])
        return tf.math.igamma(tf.ones_like(rows), tf.matmul(rows, tf.eye(48) / 255.0))

    graph_def = freeze(bottleneck, tf.TensorSpec([None, 4, 4, 3], tf.uint8, "pixels"), "bottleneck")
    assert build_backbone_engine(graph_def, EngineSettings(2, "cpu")).describe().startswith("tensorflow")
    with pytest.raises(UnsupportedGraph, match="OpenVINO cannot run the network"):
        build_backbone_engine(graph_def, EngineSettings(2, "cpu", "openvino"))


def test_a_network_without_multiplications_keeps_all_its_digits():
    graph_def = build_backbone("pixels", "none", image_size_px=4).graph_def
    pixels_BHWC = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    built = build_backbone_engine(graph_def, EngineSettings(2, "cpu"))
    assert built.describe() == "tensorflow, fp32, CPU"
    np.testing.assert_allclose(built.run(pixels_BHWC), pixels_BHWC.reshape(2, -1) / 255, rtol=1e-6)


def test_tagger_scores_a_stored_bottleneck_as_it_scores_the_image(network, pictures):
    import tensorflow as tf

    weights_DL = np.random.default_rng(0).normal(0, 1, (512, 7)).astype(np.float32)
    head = freeze(
        lambda x: tf.nn.softmax(x @ weights_DL), tf.TensorSpec([None, 512], tf.float32, "bottleneck"), "scores"
    )
    tagger = Tagger(network.graph_def, head, EngineSettings(4, "cpu"))
    bottleneck_BD, scores_BL = tagger.run(pictures[:3])
    assert (bottleneck_BD.shape, scores_BL.shape) == ((3, 512), (3, 7))
    logits_BL = bottleneck_BD.astype(np.float64) @ weights_DL
    expected_BL = np.exp(logits_BL - logits_BL.max(axis=1, keepdims=True))
    np.testing.assert_allclose(scores_BL, expected_BL / expected_BL.sum(axis=1, keepdims=True), atol=1e-4)
