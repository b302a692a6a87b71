import random
import subprocess
import sys

import numpy as np
import pytest

from bulktag.model import applications, weights

SMALL_PX = 32


@pytest.mark.parametrize(
    ("constructor", "name"),
    [
        ("EfficientNetV2B0", "efficientnet_v2_b0"),
        ("ResNet50V2", "resnet50_v2"),
        ("InceptionResNetV2", "inception_resnet_v2"),
        ("NASNetMobile", "nasnet_mobile"),
        ("ConvNeXtXLarge", "convnext_xlarge"),
        ("VGG16", "vgg16"),
        ("DenseNet121", "densenet121"),
        ("Xception", "xception"),
    ],
)
def test_names_are_snake_case(constructor, name):
    assert applications.snake_case(constructor) == name


class _Found(Exception):
    pass


@pytest.mark.parametrize("name", applications.application_constructors())
def test_default_size_and_scaling_are_those_of_keras(name, monkeypatch):
    """Each constructor asks for its input shape first, which tells its default size without building anything."""

    def find(shape, default_size, **kwargs):
        raise _Found(default_size)

    monkeypatch.setattr("keras.src.applications.imagenet_utils.obtain_input_shape", find)
    constructor = applications.application_constructors()[name]
    if not name.startswith("mobilenet_v3"):  # takes any size; its ImageNet weights are of 224 px
        with pytest.raises(_Found) as found:
            constructor(weights=None)
        assert found.value.args == (applications.default_image_size_px(name),)
    assert applications.pixel_scaling(name).__module__ == constructor.__module__


def _digest(seed):
    return weights.weights_digest(applications.build_random_application("mobilenet", SMALL_PX, seed).get_weights())


def test_random_weights_repeat_with_their_seed():
    assert _digest(0) == _digest(0) != _digest(1)


def test_random_weights_leave_the_callers_generators_alone():
    random.seed(7)
    np.random.seed(7)
    _digest(0)
    drawn = random.random(), np.random.random()
    random.seed(7)
    np.random.seed(7)
    assert drawn == (random.random(), np.random.random())


@pytest.mark.slow
def test_random_weights_are_the_same_in_another_process():
    code = (
        "from bulktag.model import applications, weights;"
        "network = applications.build_random_application('mobilenet', 32, 3);"
        "print(weights.weights_digest(network.get_weights()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()[-1]
    assert told == _digest(3)
