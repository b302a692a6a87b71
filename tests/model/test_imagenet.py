import keras
import numpy as np
import pytest
from lively import assert_agree, enliven

from bulktag.model import applications
from bulktag.model.backbone import build_backbone
from bulktag.model.image import ImageLimits, load_image
from bulktag.model.imagenet import build_imagenet_classifier, imagenet_labels
from bulktag.model.tensorflow_engine import TensorFlowEngine

SMALL_PX = 32
PIXELS_BHWC = np.random.default_rng(0).integers(0, 256, (2, SMALL_PX, SMALL_PX, 3), np.uint8)


def score(backbone, head, pixels_BHWC):
    return np.asarray(head(TensorFlowEngine(backbone.graph_def, len(pixels_BHWC), "cpu").run(pixels_BHWC)))


def test_labels_are_a_thousand_different_names():
    labels = imagenet_labels()
    assert len(labels) == len({label.lower() for label in labels}) == 1000
    assert (labels[0], labels[388], labels[999]) == ("tench", "giant panda", "toilet tissue")
    assert (labels[134], labels[517]) == ("crane (bird)", "crane (machine)")


def test_labels_stand_in_the_order_of_the_converted_network(shared_data):
    theirs = (shared_data / "weights" / "imagenet_labels.txt").read_text().splitlines()
    for ours, synonyms in zip(imagenet_labels(), theirs, strict=True):
        words = {name.strip().lower() for name in synonyms.split(",")}
        assert words & {ours.lower(), ours.lower().split(" (")[0]}


# Classifiers of every kind: a Dense layer (most), a convolution of 1x1 (MobileNet, MobileNetV3), hidden layers (VGG).
@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenet", 1024),
        pytest.param("mobilenet_v2", 1280, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 1024, marks=pytest.mark.slow),
        pytest.param("vgg16", 4096, marks=pytest.mark.slow),
    ],
)
def test_backbone_and_head_together_are_the_whole_network(tmp_path, name, width):
    whole = enliven(applications.build_application(name, SMALL_PX, include_top=True), name)
    whole.save_weights(tmp_path / "a.weights.h5")
    if name == "vgg16":  # its hidden layers fit one size of picture
        path, size_px = str(tmp_path / "a.keras"), None
        whole.save(path)
    else:
        path, size_px = str(tmp_path / "a.weights.h5"), SMALL_PX
    backbone, head, labels = build_imagenet_classifier(name, path, image_size_px=size_px)
    expected_BL = np.asarray(whole(applications.pixel_scaling(name)(PIXELS_BHWC.astype(np.float32))))
    assert expected_BL.max() > 0.003  # a classifier that has an opinion
    assert_agree(score(backbone, head, PIXELS_BHWC), expected_BL)
    assert (head.name, head.input_shape, head.output_shape) == ("head", (None, width), (None, len(labels)))
    assert backbone.spec.width == width


def test_keras_model_with_the_classifier_works(tmp_path):
    whole = enliven(applications.build_application("mobilenet_v2", SMALL_PX, include_top=True), "mobilenet_v2")
    whole.save(tmp_path / "a.keras")
    backbone, head, _ = build_imagenet_classifier("mobilenet_v2", str(tmp_path / "a.keras"))
    expected_BL = np.asarray(whole(PIXELS_BHWC.astype(np.float32) / 127.5 - 1))
    assert_agree(score(backbone, head, PIXELS_BHWC), expected_BL)


def test_weights_without_the_classifier_are_refused(tmp_path):
    path = str(tmp_path / "a.weights.h5")
    applications.build_random_application("mobilenet_v2", SMALL_PX, 0).save_weights(path)
    with pytest.raises(ValueError, match="expected the weights of mobilenet_v2 with its 1,000 classes"):
        build_imagenet_classifier("mobilenet_v2", path, image_size_px=SMALL_PX)


def test_model_of_other_classes_is_refused(tmp_path):
    whole = keras.applications.MobileNetV2(weights=None, classes=5, input_shape=(SMALL_PX, SMALL_PX, 3))
    whole.save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match="expected a mobilenet_v2 that ends in 1000 classes"):
        build_imagenet_classifier("mobilenet_v2", str(tmp_path / "a.keras"))


@pytest.mark.parametrize(("name", "weights"), [("builtin", "builtin"), ("pixels", "none"), ("any", "graph.pb")])
def test_backbone_without_imagenet_classes_is_refused(name, weights):
    with pytest.raises(ValueError, match=r"expected a network of keras.applications for the imagenet model"):
        build_imagenet_classifier(name, weights)


def test_panda_is_a_giant_panda(shared_data):
    weights = str(shared_data / "weights" / "mobilenet_v2_imagenet.weights.h5")
    backbone, head, labels = build_imagenet_classifier("mobilenet_v2", weights)
    data = (shared_data / "known" / "cropped_panda.jpg").read_bytes()
    pixels_HWC = load_image(data, backbone.spec.image_size_px, "crop", ImageLimits()).pixels_HWC
    (scores_L,) = score(backbone, head, pixels_HWC[np.newaxis])
    assert labels[scores_L.argmax()] == "giant panda"
    assert scores_L.max() > 0.9
    # Without its classifier the same file is the same network: stored bottlenecks fit either.
    assert build_backbone("mobilenet_v2", weights).spec == backbone.spec
