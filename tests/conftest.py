"""Fixtures shared by all tests."""

import json
import os
import pathlib
import shutil
import sys

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

REPO = pathlib.Path(__file__).resolve().parents[1]
# Helpers of tests in several folders.
sys.path.insert(0, str(REPO / "tests"))


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


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> pathlib.Path:
    """Pictures with several labels (`images`), extracted (`examples`), and a model of them (`model`).

    One image is broken, and one stands twice under other labels.
    """
    from scenes import draw_scenes

    from bulktag.pipeline.config import ExtractConfig, TrainConfig
    from bulktag.pipeline.extract import run_extract
    from bulktag.pipeline.train import run_train

    folder = tmp_path_factory.mktemp("scenes")
    manifest = draw_scenes(folder / "images", 500, empty_share=0.1)
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    shutil.copy(folder / "images" / "0_00000.jpg", folder / "images" / "copy.jpg")
    with manifest.open("a") as lines:
        lines.write(json.dumps({"uri": "broken.jpg", "labels": ["circle"]}) + "\n")
        lines.write(json.dumps({"uri": "copy.jpg", "labels": ["odd one"]}) + "\n")
    extract = {"input": (str(manifest),), "backbone": "builtin", "resize": "squash", "split": (0.5, 0.25, 0.25)}
    run_extract(ExtractConfig(output=str(folder / "examples"), **extract))
    train = {"examples": str(folder / "examples"), "multi_label": True, "epochs": 8, "target_precision": 0.8}
    run_train(TrainConfig(model=str(folder / "model"), **train))
    return folder
