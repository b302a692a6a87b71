import numpy as np
import pytest

from bulktag.model.backbone import build_backbone
from bulktag.model.engine import build_backbone_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.image import ImageLimits, load_image
from bulktag.model.quantise import Agreement, measure_agreement, quantise


@pytest.fixture(scope="module")
def network():
    return build_backbone("builtin", "builtin").graph_def


@pytest.fixture(scope="module")
def pictures(demo_images):
    paths = sorted(path for path in demo_images.rglob("*") if path.is_file())
    return np.stack([load_image(path.read_bytes(), 96, "crop", ImageLimits()).pixels_HWC for path in paths])


@pytest.mark.slow
def test_a_quantised_network_is_near_to_the_network_and_not_the_same(network, pictures, tmp_path):
    path = quantise(network, pictures[:100], str(tmp_path))
    agreement = measure_agreement(network, None, path, pictures[100:], 16)
    assert agreement.num_images == 60 and agreement.same_top_label is None
    assert 0.9 < agreement.min_cosine < 0.99999
    engine = build_backbone_engine(network, EngineSettings(16, "cpu", precision="int8", quantised=str(tmp_path)))
    assert engine.describe() == "openvino, int8, CPU"
    assert engine.run(pictures[:5]).shape == (5, 512)


@pytest.mark.parametrize(
    ("min_cosine", "same", "enough"),
    [(0.995, 0.99, True), (0.9949, 1.0, False), (1.0, 0.98, False), (0.996, None, True)],
)
def test_both_bars_count(min_cosine, same, enough):
    assert Agreement(100, min_cosine, same).is_enough == enough


def test_int8_without_a_quantised_network_is_refused(network):
    with pytest.raises(ValueError, match="expected a quantised network for precision int8, got none"):
        build_backbone_engine(network, EngineSettings(2, "cpu", precision="int8"))
