"""`bulktag train`: a bundle, or nothing."""

import json
import os

import pytest

from bulktag.model.bundle import load_bundle
from bulktag.pipeline.config import ExtractConfig, TrainConfig
from bulktag.pipeline.console import TrainingDisplay
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.train import run_train
from bulktag.pipeline.workspace import try_lock


def train(examples, model, **settings):
    return run_train(TrainConfig(**{"examples": str(examples), "model": str(model), "epochs": 5, **settings}))


def test_a_bundle_carries_held_out_figures(bundle_dir):
    info = json.loads((bundle_dir / "bundle.json").read_text())
    assert info["labels"] == ["circle", "plus", "square", "triangle"]
    assert info["figures"]["test"]["n"] > 30 and info["figures"]["test"]["accuracy"] >= 0.9
    assert info["training"]["options"]["seed"] == 0
    assert json.loads((bundle_dir / "run.json").read_text())["model_id"] == info["model_id"]
    assert (bundle_dir / "_SUCCESS").exists()
    assert not (bundle_dir / ".checkpoints").exists()


def test_the_same_seed_gives_the_same_model(examples_dir, tmp_path):
    first = train(examples_dir, tmp_path / "a", seed=3)
    second = train(examples_dir, tmp_path / "b", seed=3)
    other = train(examples_dir, tmp_path / "c", seed=4)
    assert first["model_id"] == second["model_id"] != other["model_id"]
    assert first["figures"] == second["figures"]


def test_a_bad_model_is_never_published(examples_dir, tmp_path):
    good = train(examples_dir, tmp_path / "model", epochs=20)
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    with pytest.raises(JobFailed, match=r"test accuracy 0\.\d+ on \d+ images is below --min-accuracy 0.99"):
        train(examples_dir, tmp_path / "model", epochs=1, learning_rate=1e-9, min_accuracy=0.99)
    assert {path: path.read_bytes() for path in before} == before
    assert load_bundle(str(tmp_path / "model")).model_id == good["model_id"]


def test_a_new_model_replaces_the_old_one_whole(examples_dir, tmp_path):
    train(examples_dir, tmp_path / "model", architecture="linear")
    (tmp_path / "model" / "saved_model" / "stray").write_text("of the old model")
    run = train(examples_dir, tmp_path / "model", hidden=(16, 8))
    assert load_bundle(str(tmp_path / "model")).model_id == run["model_id"]
    assert not (tmp_path / "model" / "saved_model" / "stray").exists()


def test_tensorboard_logs_are_written_where_asked(examples_dir, tmp_path):
    train(examples_dir, tmp_path / "model", log_dir=str(tmp_path / "logs"))
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))


def test_what_cannot_be_trained_on_is_refused(demo_images, tmp_path):
    run_extract(
        ExtractConfig(
            input=(str(demo_images),),
            output=str(tmp_path / "ex"),
            backbone="builtin",
            labels="none",
            split=(0.6, 0.2, 0.2),
        )
    )
    with pytest.raises(ValueError, match=r"^expected "):
        train(tmp_path / "ex", tmp_path / "model")
    assert not (tmp_path / "model" / "bundle.json").exists()


@pytest.mark.parametrize("option", ["log_dir", "checkpoint_dir"])
def test_a_folder_that_is_a_file_is_refused_before_training(examples_dir, tmp_path, option):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="expected a folder or a new name, got a file"):
        train(examples_dir, tmp_path / "model", **{option: str(tmp_path / "file")})


@pytest.mark.slow
def test_an_interrupted_training_goes_on_where_it_was(examples_dir, tmp_path, monkeypatch, capsys):
    model = tmp_path / "model"
    whole = train(examples_dir, tmp_path / "whole")

    def interrupt(self, progress):
        if progress.epoch == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainingDisplay, "update", interrupt)
        train(examples_dir, model)
    assert [path.name for path in model.iterdir()] == [".checkpoints"]
    run = train(examples_dir, model)
    assert run["resumed_epochs"] >= 3 and f"went on after epoch {run['resumed_epochs']}" in capsys.readouterr().err
    assert run["model_id"] == whole["model_id"]
    assert not (model / ".checkpoints").exists()


@pytest.mark.slow
def test_two_trainings_at_once_do_not_share_checkpoints(examples_dir, tmp_path, capsys):
    (tmp_path / "model" / ".checkpoints").mkdir(parents=True)
    lock = try_lock(str(tmp_path / "model" / ".checkpoints"))
    train(examples_dir, tmp_path / "model", epochs=1)
    os.close(lock)
    assert "another training writes its checkpoints there" in capsys.readouterr().err
    assert (tmp_path / "model" / "_SUCCESS").exists()
