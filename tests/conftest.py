"""Fixtures shared by all tests."""

import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

REPO = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Folder of real photos, weights and odd images that lies beside some checkouts; skips where it is missing."""
    folder = REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data missing: no folder {folder.parent.name}/{folder.name} beside the checkout")
    return folder


@pytest.fixture(scope="session")
def demo_images(tmp_path_factory) -> pathlib.Path:
    """Drawn pictures, 40 of each of four classes: FOLDER/CLASS/NAME."""
    from bulktag.model.drawing import draw_demo_images

    folder = tmp_path_factory.mktemp("demo") / "images"
    draw_demo_images(folder, 40, seed=11)
    return folder


@pytest.fixture(scope="session")
def examples_dir(demo_images, tmp_path_factory) -> pathlib.Path:
    """What extract makes of `demo_images` with the builtin network, half of it for training."""
    from bulktag.pipeline.config import ExtractConfig
    from bulktag.pipeline.extract import run_extract

    folder = tmp_path_factory.mktemp("extracted") / "examples"
    run_extract(ExtractConfig(input=(str(demo_images),), output=str(folder), backbone="builtin", split=(0.5, 0.2, 0.3)))
    return folder


@pytest.fixture(scope="session")
def bundle_dir(examples_dir, tmp_path_factory) -> pathlib.Path:
    """A model bundle trained on `examples_dir`."""
    from bulktag.pipeline.config import TrainConfig
    from bulktag.pipeline.train import run_train

    folder = tmp_path_factory.mktemp("trained") / "model"
    run_train(TrainConfig(examples=str(examples_dir), model=str(folder)))
    return folder
