"""`bulktag export`: files for other programs, never one that says something else than the model."""

import json

import numpy as np
import pytest

from bulktag.model import export
from bulktag.pipeline.cli import run_command


def command(bundle_dir, output, *options):
    return run_command(["export", "--model", str(bundle_dir), "--output", str(output), *options])


def test_every_format_is_written_and_compared_on_images_given(bundle_dir, demo_images, tmp_path, capsys):
    output = tmp_path / "exported"
    formats = ["--formats", "frozen", "openvino", "tflite"]
    assert command(bundle_dir, output, *formats, "--check-images", str(demo_images)) == 0
    description = json.loads((output / "model.json").read_text())
    assert [row["format"] for row in description["formats"]] == ["frozen", "openvino", "tflite"]
    for row in description["formats"]:
        assert (row["images"], row["other_labels"]) == (160, 0)
        assert row["max_difference"] <= 1e-3
        assert (output / row["file"]).stat().st_size > 100_000
    assert description["labels"] == (output / "labels.txt").read_text().split("\n")[:-1]
    assert (output / "_SUCCESS").exists() and "160" in capsys.readouterr().out


def test_an_export_that_differs_is_not_published(bundle_dir, tmp_path, monkeypatch, capsys):
    def halved(graph_def, folder):
        for node in graph_def.node:
            if node.op == "Const" and node.attr["value"].tensor.tensor_content and "head" in node.name:
                values = np.frombuffer(node.attr["value"].tensor.tensor_content, np.float32)
                node.attr["value"].tensor.tensor_content = (values * 0.5).tobytes()
        return frozen.write(graph_def, folder)

    frozen = export.FORMATS["frozen"]
    monkeypatch.setitem(export.FORMATS, "frozen", export.Format(halved, frozen.load))
    assert command(bundle_dir, tmp_path / "exported", "--formats", "frozen") == 1
    assert "gives other scores than the model" in capsys.readouterr().err
    assert not (tmp_path / "exported" / "model.pb").exists()


@pytest.mark.parametrize(
    "wanted, got, others",
    [
        ([[0.6, 0.4]], [[0.6, 0.4]], 0),
        ([[0.6, 0.4]], [[0.4, 0.6]], 1),
        ([[0.5, 0.5]], [[0.4999, 0.5001]], 0),  # a tie
        ([[0.502, 0.498]], [[0.499, 0.501]], 1),
        ([[0.6, 0.4]], [[float("nan"), 0.4]], 1),
    ],
)
def test_compare_scores(wanted, got, others):
    agreement = export.compare_scores(np.array(wanted, np.float32), np.array(got, np.float32))
    assert agreement.num_other_labels == others
    assert agreement.is_enough == (others == 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--formats", "onnx"], "expected formats among frozen, openvino, tflite, got 'onnx'"),
        (["--check-images", "nowhere"], "found nothing there"),
        (["--backbone", "builtin"], "expected backbone only with model imagenet"),
    ],
)
def test_a_mistake_is_one_line(options, message, bundle_dir, tmp_path, capsys):
    assert command(bundle_dir, tmp_path / "exported", *options) == 2
    assert message in capsys.readouterr().err
