"""`bulktag train --sweep`: many heads, one model."""

import csv
import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from bulktag.model.bundle import load_bundle
from bulktag.pipeline.config import TrainConfig, build_config
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.train import run_train


def sweep(examples, model, **settings):
    common = {"examples": str(examples), "model": str(model), "epochs": 3, "hidden": (16,)}
    return run_train(TrainConfig(**{**common, **settings}))


def test_the_best_of_all_heads_becomes_the_model(examples_dir, tmp_path):
    space = ("learning_rate=0.0000001,0.01", "hidden=16")
    run = sweep(examples_dir, tmp_path / "m", sweep=3, sweep_space=space, log_dir=str(tmp_path / "logs"))
    with (tmp_path / "m" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 and rows[0]["learning_rate"] == "0.01"
    losses = [float(row["validation_cross_entropy"]) for row in rows]
    assert losses == sorted(losses)
    # The model is that head: the same figures, and the same as training it alone would give.
    assert run["figures"]["validation"]["cross_entropy"] == pytest.approx(losses[0], rel=1e-6)
    assert load_bundle(str(tmp_path / "m")).info["training"]["options"]["learning_rate"] == 0.01
    alone = sweep(examples_dir, tmp_path / "alone", learning_rate=0.01)
    assert alone["figures"] == run["figures"] and not (tmp_path / "alone" / "trials.csv").exists()
    assert [trial["number"] for trial in json.loads((tmp_path / "m" / "run.json").read_text())["trials"]]

    events = EventAccumulator(str(tmp_path / "logs" / "trials" / "001")).Reload()
    assert {"epoch/accuracy", "validation_cross_entropy"} <= set(events.Tags()["tensors"])
    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    )
    assert data.session_start_info.hparams["learning_rate"].number_value == 0.0003
    assert data.session_start_info.hparams["hidden"].string_value == "16"


@pytest.mark.slow
def test_heads_are_trained_by_several_processes(examples_dir, tmp_path):
    settings = {"sweep": 4, "sweep_space": ("dropout=0,0.2,0.4,0.6",)}
    apart = sweep(examples_dir, tmp_path / "apart", workers=2, **settings)
    alone = sweep(examples_dir, tmp_path / "alone", **settings)
    assert len(apart["trials"]) == 4
    assert apart["model_id"] == alone["model_id"]


@pytest.mark.slow
def test_heads_that_cannot_be_trained_are_named_and_none_is_a_failure(examples_dir, tmp_path, capsys):
    space = ("learning_rate=1e38,2e38",)
    run = sweep(examples_dir, tmp_path / "m", sweep=3, sweep_space=space)
    assert sum(bool(trial["error"]) for trial in run["trials"]) == 2
    assert "2 heads could not be trained: expected a finite loss" in capsys.readouterr().err
    with pytest.raises(JobFailed, match="none of 2 heads could be trained: expected a finite loss"):
        sweep(examples_dir, tmp_path / "none", sweep=2, sweep_space=space, learning_rate=3e38)
    assert not (tmp_path / "none" / "bundle.json").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 2}, "expected workers only with sweep"),
        ({"sweep_space": ["dropout=0"]}, "expected sweep_space only with sweep"),
        ({"sweep": 2, "sweep_space": ["drop=0.1"]}, "expected NAME=VALUE,VALUE with a name of"),
        ({"sweep": 2, "remote": True, "beam": ["--runner=FlinkRunner"]}, "expected remote or sweep, got both"),
        ({"beam": ["--runner=FlinkRunner"]}, "expected remote or sweep and a runner's options together"),
    ],
)
def test_options_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build_config(TrainConfig, {"examples": "ex", "model": "m", **values})
