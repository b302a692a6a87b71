import json
import os
import zipfile

import keras
import numpy as np
import pytest
from lively import assert_agree, enliven
from PIL import Image

from bulktag.model import applications, weights
from bulktag.model.backbone import backbone_names, build_backbone, load_backbone
from bulktag.model.tensorflow_engine import TensorFlowEngine

SMALL_PX = 32
PIXELS_BHWC = np.random.default_rng(0).integers(0, 256, (3, SMALL_PX, SMALL_PX, 3), np.uint8)


def reference(model, pixels_BHWC, name="mobilenet_v2"):
    """The plain Keras way."""
    return np.asarray(model(applications.pixel_scaling(name)(pixels_BHWC.astype(np.float32)), training=False))


def run(backbone, pixels_BHWC=PIXELS_BHWC):
    return TensorFlowEngine(backbone.graph_def, len(pixels_BHWC), "cpu").run(pixels_BHWC)


def cosines(first_BD, second_BD):
    norms = np.linalg.norm(first_BD, axis=1) * np.linalg.norm(second_BD, axis=1)
    return (first_BD * second_BD).sum(axis=1) / norms


@pytest.fixture(scope="module")
def pooled():
    """MobileNet, the quickest to build, up to its pooled layer."""
    return enliven(applications.build_application("mobilenet", SMALL_PX), "mobilenet")


# Names


def test_every_network_of_keras_applications_has_a_name():
    constructors = [name for name in dir(keras.applications) if name[0].isupper()]
    assert len(applications.application_constructors()) == len(constructors) >= 38
    assert {"inception_v3", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "resnet50"} <= set(
        backbone_names()
    )
    assert backbone_names()[:2] == ["builtin", "pixels"]


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"such as mobilenet_v2, .*got 'mobilnet_v2'"):
        build_backbone("mobilnet_v2", "random:0")
    with pytest.raises(ValueError, match=r"such as inception_v3, .*got 'InceptionV3'"):
        build_backbone("InceptionV3", "random:0")


# Networks with random weights


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("mobilenet", 1024),
        pytest.param("mobilenet_v2", 1280, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 576, marks=pytest.mark.slow),  # scales pixels itself
        pytest.param("efficientnet_b0", 1280, marks=pytest.mark.slow),
        pytest.param("vgg16", 512, marks=pytest.mark.slow),  # pixels in BGR
        pytest.param("convnext_tiny", 768, marks=pytest.mark.slow),
    ],
)
def test_frozen_graph_computes_what_keras_computes(tmp_path, name, width):
    model = enliven(applications.build_application(name, SMALL_PX), name)
    model.save_weights(tmp_path / "a.weights.h5")
    backbone = build_backbone(name, str(tmp_path / "a.weights.h5"), image_size_px=SMALL_PX)
    assert (backbone.spec.image_size_px, backbone.spec.width, backbone.spec.kind) == (SMALL_PX, width, "application")
    assert_agree(run(backbone), reference(model, PIXELS_BHWC, name))


def test_random_weights_follow_the_seed():
    first, again, other = (build_backbone("mobilenet", f"random:{n}", image_size_px=SMALL_PX).spec for n in (0, 0, 1))
    assert first == again
    assert first.weights_digest != other.weights_digest


@pytest.mark.parametrize("seed", ["", "x", "-1", "1.5"])
def test_seed_must_be_a_whole_number(seed):
    with pytest.raises(ValueError, match="expected random:SEED with a whole number"):
        build_backbone("mobilenet_v2", f"random:{seed}")


def test_size_that_the_network_does_not_take_is_refused():
    with pytest.raises(ValueError, match=r"expected an image size that inception_v3 takes, got 32 px: .*75"):
        build_backbone("inception_v3", "random:0", image_size_px=32)


# Weights files


def test_digest_of_a_weights_file_is_that_of_its_arrays(tmp_path, pooled):
    pooled.save_weights(tmp_path / "a.weights.h5")
    backbone = build_backbone("mobilenet", str(tmp_path / "a.weights.h5"), image_size_px=SMALL_PX)
    assert_agree(run(backbone), reference(pooled, PIXELS_BHWC))
    assert backbone.spec.weights_digest == weights.weights_digest(pooled.get_weights())


@pytest.mark.parametrize("name", ["a.weights.h5", "a.h5", "a.keras", "a.pb"])
def test_file_of_another_kind_is_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"something else altogether")
    with pytest.raises(ValueError, match="got something else: weights=") as caught:
        build_backbone("mobilenet_v2", str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", ["missing.h5", "missing.keras", "missing.pb", "imagenett"])
def test_missing_file_is_refused(given):
    with pytest.raises(ValueError, match=f"a file, got '{given}': no such file"):
        build_backbone("mobilenet_v2", given)


def test_file_with_an_unknown_suffix_is_refused(tmp_path):
    path = tmp_path / "weights.txt"
    path.write_text("")
    with pytest.raises(ValueError, match=r"expected a weights file .weights.h5, .h5, .keras or .pb"):
        build_backbone("mobilenet_v2", str(path))


# Whole models


@pytest.mark.parametrize(
    "form", [pytest.param("with classifier", marks=pytest.mark.slow), "nested", "scales itself", "without classifier"]
)
def test_keras_model_gives_its_pooled_layer(tmp_path, pooled, form):
    inputs = keras.Input((SMALL_PX, SMALL_PX, 3))
    if form == "with classifier":
        model = keras.Model(pooled.input, keras.layers.Dense(3)(pooled.output))
    elif form == "nested":
        model = keras.Sequential([inputs, pooled, keras.layers.Dropout(0.2), keras.layers.Dense(3)])
    elif form == "scales itself":
        x = keras.layers.RandomFlip()(inputs)
        x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x)
        model = keras.Model(inputs, keras.layers.Dense(3)(pooled(x)))
    else:
        model = pooled
    model.save(tmp_path / "a.keras")
    backbone = build_backbone("mobilenet", str(tmp_path / "a.keras"))
    assert (backbone.spec.width, backbone.spec.image_size_px) == (1024, SMALL_PX)
    assert_agree(run(backbone), reference(pooled, PIXELS_BHWC))
    assert backbone.spec.weights_digest == weights.weights_digest(pooled.get_weights())


def test_keras_model_of_another_network_is_refused(tmp_path, pooled):
    pooled.save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match="expected the weights of vgg16"):
        build_backbone("vgg16", str(tmp_path / "a.keras"))


def test_keras_model_with_code_in_it_is_refused(tmp_path):
    inputs = keras.Input((SMALL_PX, SMALL_PX, 3))
    keras.Model(inputs, keras.layers.Lambda(lambda x: x + 1)(inputs)).save(tmp_path / "a.keras")
    with pytest.raises(ValueError, match=r"cannot load the .keras model"):
        build_backbone("mobilenet_v2", str(tmp_path / "a.keras"))


def test_keras_archive_with_nothing_in_it_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w"):
        pass
    with pytest.raises(ValueError, match=r"cannot load the .keras model"):
        build_backbone("mobilenet_v2", str(tmp_path / "a.keras"))


# The two that are no Keras application


def test_pixels_are_themselves():
    backbone = build_backbone("pixels", "none")
    assert (backbone.spec.image_size_px, backbone.spec.width, backbone.spec.kind) == (32, 3072, "pixels")
    np.testing.assert_allclose(run(backbone), PIXELS_BHWC.reshape(3, -1) / 255, rtol=1e-6)
    assert build_backbone("pixels", "none", image_size_px=8).spec.width == 192


@pytest.mark.parametrize(("name", "given"), [("pixels", "imagenet"), ("builtin", "imagenet"), ("vgg16", "builtin")])
def test_weights_of_another_backbone_are_refused(name, given):
    with pytest.raises(ValueError, match=r"expected (weights none for )?backbone"):
        build_backbone(name, given)


def test_builtin_brings_its_own_weights():
    backbone = build_backbone("builtin", "builtin")
    assert (backbone.spec.kind, backbone.spec.weights) == ("builtin", "builtin")
    size_px = backbone.spec.image_size_px
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (2, size_px, size_px, 3), np.uint8)
    bottleneck_BD = run(backbone, pixels_BHWC)
    assert bottleneck_BD.shape == (2, backbone.spec.width)
    assert bottleneck_BD.std() > 0.01
    with pytest.raises(ValueError, match=f"expected the builtin network's {size_px} px, got 50"):
        build_backbone("builtin", "builtin", image_size_px=50)


# Saving


@pytest.fixture
def saved(tmp_path):
    backbone = build_backbone("pixels", "none", image_size_px=8)
    backbone.save(str(tmp_path / "backbone"))
    return backbone, tmp_path / "backbone"


def test_saved_backbone_loads_as_it_was(saved):
    backbone, folder = saved
    loaded = load_backbone(str(folder))
    assert loaded.spec == backbone.spec
    assert loaded.graph_def == backbone.graph_def
    assert sorted(os.listdir(folder)) == ["backbone.json", "backbone.pb"]


def test_changed_graph_is_refused(saved):
    _, folder = saved
    content = bytearray((folder / "backbone.pb").read_bytes())
    content[-1] ^= 1
    (folder / "backbone.pb").write_bytes(content)
    with pytest.raises(ValueError, match="changed or damaged"):
        load_backbone(str(folder))


@pytest.mark.parametrize("spec", ["{", "[]", "{}", '{"graph_sha256": "", "nmae": 1}'])
def test_damaged_description_is_refused(saved, spec):
    _, folder = saved
    (folder / "backbone.json").write_text(spec)
    with pytest.raises(ValueError, match="expected a backbone's description"):
        load_backbone(str(folder))


@pytest.mark.parametrize("missing", ["backbone.json", "backbone.pb"])
def test_missing_file_of_a_saved_backbone_is_named(saved, missing):
    _, folder = saved
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=r"expected backbone.pb and backbone.json"):
        load_backbone(str(folder))


def test_description_is_plain_json(saved):
    backbone, folder = saved
    stated = json.loads((folder / "backbone.json").read_text())
    assert (stated["name"], stated["width"], stated["image_size_px"]) == ("pixels", backbone.spec.width, 8)


# Real photos


def photos(shared_data, size_px, count=20):
    files = sorted(shared_data.glob("flowers/*/*.jpg"))[:: 600 // count][:count]
    assert len(files) == count
    return np.stack([np.asarray(Image.open(file).convert("RGB").resize((size_px, size_px))) for file in files])


@pytest.mark.slow
def test_real_mobilenet_agrees_with_plain_keras_on_photos(shared_data):
    path = str(shared_data / "weights" / "mobilenet_v2_imagenet.weights.h5")
    pixels_BHWC = photos(shared_data, 224)
    whole = keras.applications.MobileNetV2(weights=None, classes=1000)
    whole.load_weights(path)
    model = keras.Model(whole.input, whole.layers[-2].output)
    backbone = build_backbone("mobilenet_v2", path)
    expected_BD = reference(model, pixels_BHWC)
    assert cosines(run(backbone, pixels_BHWC), expected_BD).min() > 0.99999
    assert cosines(expected_BD[:-1], expected_BD[1:]).max() < 0.99  # photos differ, so agreement says something


@pytest.mark.slow
def test_inception_agrees_with_plain_keras_on_photos(shared_data):
    pixels_BHWC = photos(shared_data, 299)
    backbone = build_backbone("inception_v3", "random:0")
    assert (backbone.spec.image_size_px, backbone.spec.width) == (299, 2048)
    model = applications.build_random_application("inception_v3", 299, 0)
    assert cosines(run(backbone, pixels_BHWC), reference(model, pixels_BHWC, "inception_v3")).min() > 0.999
