"""The network of a job."""

import errno
import json
import os
import shutil

import pytest

from bulktag.model.bundle import load_bundle
from bulktag.pipeline import network
from bulktag.pipeline.config import ExtractConfig, TagConfig, build_config
from bulktag.pipeline.network import check_examples, find_bundle, open_bundle, pin_bundle, resolve_backbone


def config(**settings):
    return ExtractConfig(input=("photos",), output="out", **settings)


def test_the_backbone_carries_the_weights_as_the_user_named_them(capsys):
    backbone = resolve_backbone(config(backbone="builtin"))
    assert backbone.spec.weights == "builtin" and backbone.spec.width == 512
    assert "network: builtin, weights builtin, 96 px, 512 values an image" in capsys.readouterr().err


@pytest.mark.slow
def test_random_weights_are_said_to_be_random(capsys):
    resolve_backbone(config(backbone="mobilenet_v2", weights="random:1", image_size_px=32))
    assert "RANDOM WEIGHTS" in capsys.readouterr().err


@pytest.mark.parametrize("weights", ["imagnet", "no/such.h5", "."])
def test_weights_that_do_not_exist_are_named(weights):
    with pytest.raises(ValueError, match="expected weights imagenet, builtin, random:SEED or a file that exists"):
        resolve_backbone(config(backbone="mobilenet_v2", weights=weights))


def test_every_refusal_of_a_network_is_the_users_mistake(monkeypatch):
    def refuse(*_, **__):
        raise ValueError("the graph does not run")

    monkeypatch.setattr(network, "build_backbone", refuse)
    with pytest.raises(ValueError, match=r"^expected a network and weights that can be used, .*the graph does not run"):
        resolve_backbone(config(backbone="mobilenet_v2", weights="random:0"))


def test_options_of_a_network_are_refused_beside_a_bundle():
    values = {"input": "a", "model": "m", "output": "o", "backbone": "builtin"}
    with pytest.raises(ValueError, match="expected backbone only with model imagenet"):
        build_config(TagConfig, values)
    assert build_config(TagConfig, {**values, "model": "imagenet"}).backbone == "builtin"


def test_a_folder_without_a_bundle_is_named(tmp_path):
    with pytest.raises(ValueError, match="expected a model bundle"):
        find_bundle(str(tmp_path))
    (tmp_path / "bundle.json").write_text('{"schema_version": 1}')
    with pytest.raises(ValueError, match=r"expected bundle.json as train wrote it, got no usable 'files'"):
        open_bundle(str(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"backbone": 3}', b"\xff"])
def test_an_examples_json_that_is_damaged_is_named(bundle_dir, tmp_path, content):
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "examples.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"expected examples.json as extract wrote it, got something else"):
        check_examples(str(tmp_path), load_bundle(str(bundle_dir)))


@pytest.mark.parametrize(
    "change", [{"resize": "squash"}, {"backbone": {"weights_digest": "0" * 64, "image_size_px": 96}}]
)
def test_bottlenecks_of_another_network_are_refused(examples_dir, bundle_dir, tmp_path, change):
    bundle = load_bundle(str(bundle_dir))
    shutil.copy(examples_dir / "examples.json", tmp_path)
    assert check_examples(str(tmp_path), bundle) == {"train": 78, "validation": 29, "test": 53}
    info = json.loads((tmp_path / "examples.json").read_text())
    (tmp_path / "examples.json").write_text(json.dumps({**info, **change}))
    with pytest.raises(ValueError, match="expected bottlenecks of the model's network"):
        check_examples(str(tmp_path), bundle)


def test_a_run_keeps_its_model_though_another_replaces_it(bundle_dir, tmp_path):
    shutil.copytree(bundle_dir, tmp_path / "model")
    (tmp_path / "model" / ".checkpoints").mkdir()
    pin_bundle(str(tmp_path / "model"), str(tmp_path / "pinned"))
    shutil.rmtree(tmp_path / "model")
    assert open_bundle(str(tmp_path / "pinned")).model_id == load_bundle(str(bundle_dir)).model_id
    assert not (tmp_path / "pinned" / ".checkpoints").exists()


def test_a_model_on_another_disk_is_copied(bundle_dir, tmp_path, monkeypatch):
    def other_disk(*_):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", other_disk)
    pin_bundle(str(bundle_dir), str(tmp_path / "pinned"))
    assert open_bundle(str(tmp_path / "pinned")).labels == load_bundle(str(bundle_dir)).labels
