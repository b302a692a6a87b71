"""`bulktag run --dry-run`: a whole run checked without asking anybody."""

import pathlib
import socket

import google.auth
import pytest

from bulktag.pipeline.cli import run_command

CONFIGS = sorted((pathlib.Path(__file__).resolve().parents[2] / "run_configs").glob("*.yaml"))
GPU = CONFIGS[0].with_name("dataflow_gpu.yaml")


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A folder with photos to work in, and no network."""

    def refuse(*_, **__):
        raise AssertionError("asked somebody")

    for folder in ("photos", "new_photos"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(google.auth, "default", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def dry_run(capsys, path, *overrides, code=0) -> str:
    sets = [word for override in overrides for word in ("--set", override)]
    assert run_command(["run", str(path), "--dry-run", *sets]) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err.strip()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_run_file_passes(path, capsys, tmp_path):
    out = dry_run(capsys, path)
    assert "steps: Match, Read, Infer" in out and "apache-beam" in out
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["new_photos", "photos"]


def test_it_says_what_would_be_launched(capsys):
    out = dry_run(capsys, GPU)
    for text in ("1 x nvidia-l4", "g2-standard-8", "2 to 20", "bulktag:0.1.0-gpu", "addresses: private",
                 "team=photos", "job name: bulktag-tag-"):  # fmt: skip
        assert text in out
    without_image = GPU.read_text().replace("    - --sdk_container_image", "    # ").replace("g2-standard-8", "n2-node")
    cpu = without_image.replace("    - --dataflow_service_options", "    # ").replace("device: gpu", "device: auto")
    path = pathlib.Path("cpu.yaml")
    path.write_text(cpu)
    assert "staged: bulktag-0.1.0-py3-none-any.whl" in dry_run(capsys, path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gs://my-bucket/photos", "photos", "expected input in a store"),
        ("gs://my-bucket/tags", "gs://My-Bucket/tags", "3 to 63 lower-case letters"),
        ("bulktag:0.1.0-gpu", "bulktag:0.0.1-gpu", "expected an image with this launcher's bulktag"),
        ("g2-standard-8 ", "n1-standard-8 ", "expected one of g2-standard-12"),
        ("    - --disk_size_gb=100", "    - --resource_hints=accelerator=type:nvidia-l4;count:1", "in one place"),
        ("    - --disk_size_gb=100", "    - --disk_size=100", "expected a known option, got --disk_size"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path, capsys, old, new, message):
    path = tmp_path / "run.yaml"
    path.write_text(GPU.read_text().replace(old, new))
    line = dry_run(capsys, path, code=2)
    assert message in line and f"{path}:" in line and "\n" not in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train: {examples: none, model: m}",
            "expected examples that exist or that an earlier stage makes",
        ),
        ("tag: {input: [photos], model: none, output: o}", "expected model that exist"),
        ("tag: {input: [nothing], model: imagenet, output: o}", "found nothing there: nothing"),
        ("evaluate: {examples: photos, model: m, output: o}", "expected model that exist"),
    ],
)
def test_what_no_stage_makes_must_be_there(tmp_path, capsys, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    line = dry_run(capsys, path, code=2)
    assert message in line and line.endswith(f"{path}:1")


def test_stored_bottlenecks_of_an_earlier_stage_can_be_tagged(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(
        "extract: {input: [photos], output: e}\ntrain: {examples: e, model: m}\n"
        "tag: {input: [e], model: m, output: o}\n"
    )
    assert "CountRead" in dry_run(capsys, path)
