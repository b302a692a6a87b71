"""`train --remote`, on a runner of Beam's own in this process."""

import pytest

from bulktag.pipeline.config import TrainConfig, build_config
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.train import run_train

BEAM = ("--runner=FnApiRunner",)


@pytest.mark.slow
def test_a_worker_trains_what_this_machine_would(examples_dir, bundle_dir, tmp_path, capsys):
    run = run_train(TrainConfig(examples=str(examples_dir), model=str(tmp_path / "model"), remote=True, beam=BEAM))
    here = run_train(TrainConfig(examples=str(examples_dir), model=str(tmp_path / "here")))
    assert run["model_id"] == here["model_id"] and run["figures"] == here["figures"]
    assert (tmp_path / "model" / "_SUCCESS").exists() and not list((tmp_path / "model").glob(".*"))
    assert f"model {run['model_id']}, 4 labels" in capsys.readouterr().out


def test_what_is_wrong_there_is_told_as_if_it_were_wrong_here(examples_dir, tmp_path):
    config = TrainConfig(examples=str(examples_dir), model=str(tmp_path / "model"), remote=True, beam=BEAM, epochs=1,
                         hidden=(1,), min_accuracy=1.0)  # fmt: skip
    with pytest.raises(JobFailed, match="is below --min-accuracy 1; nothing was published"):
        run_train(config)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("values", [{"remote": True}, {"beam": ["--runner=FnApiRunner"]}])
def test_a_runner_and_remote_belong_together(values):
    with pytest.raises(ValueError, match=r"expected remote (or sweep )?and a runner's options together"):
        build_config(TrainConfig, {"examples": "x", "model": "y", **values})
