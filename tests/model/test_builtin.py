"""The builtin network: its form, its weights file, and the bars its features must clear."""

import hashlib
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bulktag.model.builtin import BUILTIN_IMAGE_SIZE_PX, BUILTIN_WEIGHTS, build_builtin
from bulktag.model.drawing import DEMO_CLASSES, draw_demo_images
from bulktag.transforms.examples import ShardSettings

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
MAX_WEIGHTS_BYTES = 8_000_000


@pytest.fixture(scope="module")
def network():
    return build_builtin()


def _central_square(image: Image.Image) -> np.ndarray:
    """What `resize=crop` does: the central square of 0.875 of the shorter side, brought to the network's size."""
    width, height = image.size
    side = 0.875 * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    size = (BUILTIN_IMAGE_SIZE_PX, BUILTIN_IMAGE_SIZE_PX)
    return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR, box=box))


def _features(network, images: list[Image.Image]) -> np.ndarray:
    pixels_BHWC = np.stack([_central_square(image) for image in images]).astype(np.float32)
    return network.predict(pixels_BHWC, batch_size=64, verbose=0)


def _accuracy(features_BD, classes_B, in_training_B) -> float:
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    head.fit(features_BD[in_training_B], classes_B[in_training_B])
    return head.score(features_BD[~in_training_B], classes_B[~in_training_B])


def test_build_builtin_maps_a_square_to_a_bottleneck(network):
    side = BUILTIN_IMAGE_SIZE_PX
    assert network.input_shape == (None, side, side, 3)
    assert network.output_shape == (None, 512)
    bottleneck_BD = network(np.full((2, side, side, 3), 255.0, np.float32)).numpy()
    assert bottleneck_BD.dtype == np.float32 and np.isfinite(bottleneck_BD).all()
    assert not network.trainable_variables


def test_builtin_weights_are_small_and_hold_plain_float16_arrays():
    assert BUILTIN_WEIGHTS.stat().st_size <= MAX_WEIGHTS_BYTES
    with np.load(BUILTIN_WEIGHTS, allow_pickle=False) as arrays:
        for name in arrays.files:
            assert arrays[name].dtype == np.float16, name
            assert np.isfinite(arrays[name]).all(), name


def test_build_builtin_loads_the_file_and_not_fresh_weights(network):
    with np.load(BUILTIN_WEIGHTS, allow_pickle=False) as arrays:
        stem = arrays["stem1/kernel"].astype(np.float32)
    np.testing.assert_array_equal(np.asarray(network.get_layer("stem1").kernel), stem)


def test_build_builtin_refuses_a_file_that_is_no_weights_archive(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(ValueError, match=r"expected the builtin network's weights .*weights\.npz"):
        build_builtin(path)


def test_build_builtin_refuses_weights_of_another_network(tmp_path):
    path = tmp_path / "weights.npz"
    with np.load(BUILTIN_WEIGHTS, allow_pickle=False) as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays.files if name != "stem2/bias"})
    with pytest.raises(ValueError, match=r"expected stem2/bias of shape \(32,\), got None"):
        build_builtin(path)


def test_build_builtin_refuses_pickled_weights(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"stem1/kernel": np.array([{"not": "numbers"}], dtype=object)})
    with pytest.raises(ValueError, match="expected the builtin network's weights"):
        build_builtin(path)


def test_demo_classes_and_digits_are_not_among_the_training_classes(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from builtin_pictures import CLASSES, LETTERS

    assert len(CLASSES) == len(set(CLASSES)) >= 60
    assert not {name for name in CLASSES for demo in DEMO_CLASSES if demo in name}
    assert not {"ring", "rectangle", "ellipse", "disc", "cross", "octagon", "rhombus"} & set(CLASSES)
    letters = "".join(LETTERS.values())
    assert letters.isalpha(), "digits and signs such as + are no letters"
    assert not set(letters) & set("OotXxΔΟοО")


@pytest.mark.slow
def test_builtin_features_tell_the_demo_classes_apart_after_60_pictures_each(network, tmp_path):
    paths = draw_demo_images(tmp_path, per_class=160, seed=20_260)
    classes_B = np.array([path.parent.name for path in paths])
    in_training_B = np.arange(len(paths)) % 160 < 60
    features_BD = _features(network, [Image.open(path) for path in paths])
    assert _accuracy(features_BD, classes_B, in_training_B) >= 0.97


@pytest.mark.parametrize("dark_on_light", [False, True], ids=["light on dark", "dark on light"])
def test_builtin_features_read_scanned_digits_they_never_saw(network, dark_on_light):
    digits = load_digits()
    scans = np.round(digits.images * (255 / 16)).astype(np.uint8)
    scans = 255 - scans if dark_on_light else scans
    images = [Image.fromarray(scan).resize((64, 64), Image.Resampling.BILINEAR) for scan in scans]
    features_BD = _features(network, images)
    in_training_B = np.random.default_rng(0).permutation(len(scans)) < len(scans) // 2
    assert _accuracy(features_BD, digits.target, in_training_B) >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train_builtin_learns_from_a_teacher_and_half_of_the_photos(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from builtin_teacher import list_training_photos

    photos = draw_demo_images(tmp_path / "photos", per_class=10, seed=1)
    chosen = list_training_photos(tmp_path / "photos")
    held_out = ShardSettings((0.5, 0.0, 0.5))
    digests = {str(path): hashlib.sha256(path.read_bytes()).digest() for path in photos}
    assert chosen == sorted(path for path, digest in digests.items() if held_out.choose(path, digest) == "train")
    assert 10 <= len(chosen) <= 30

    teacher, weights = tmp_path / "teacher.weights.h5", tmp_path / "weights.npz"
    keras.applications.MobileNetV2(weights=None).save_weights(teacher)
    few = ["--steps", "4", "--pictures", "120", "--views", "64", "--scenes", "64"]
    options = ["--photos", tmp_path / "photos", "--teacher", teacher, "--output", weights]
    done = subprocess.run(
        [sys.executable, SCRIPTS / "train_builtin.py", *few, *options], check=True, capture_output=True, text=True
    )
    assert f"64 views of {len(chosen)} photos" in done.stdout
    pixels = np.random.default_rng(0).uniform(0, 255, (2, *[BUILTIN_IMAGE_SIZE_PX] * 2, 3)).astype(np.float32)
    trained, published = build_builtin(weights), build_builtin()
    assert np.abs(trained(pixels).numpy() - published(pixels).numpy()).max() > 0.01
