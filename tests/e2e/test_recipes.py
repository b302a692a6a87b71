"""docs/recipes.md: every command of it, on data in the exact form that each recipe takes."""

import csv
import json
import pathlib
import re
import shlex

import duckdb
import keras
import numpy as np
import pytest
import tensorflow as tf
from cifar_files import NAMES, write_cifar10

from bulktag.model.backbone import build_backbone
from bulktag.model.drawing import draw_demo_images
from bulktag.model.engine import build_backbone_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.image import ImageLimits, load_image
from bulktag.model.imagenet import imagenet_labels
from bulktag.pipeline.cli import run_command
from bulktag.transforms.examples import list_shards

TEXT = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
pytestmark = pytest.mark.slow


def commands(section):
    """The commands of a recipe, in order."""
    blocks = re.findall(r"^```\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    found = [line for block in blocks for line in block.splitlines() if line.startswith("bulktag ")]
    assert found, section
    return found


def run(section, *extra, only=None):
    """Run a recipe where it stands, with `extra` behind each command that builds a network from ImageNet's weights."""
    for command in commands(section):
        arguments = shlex.split(command)[1:]
        if only and arguments[0] not in only:
            continue
        if arguments[0] == "extract" and "--backbone" not in arguments:
            arguments += extra
        assert run_command(arguments) == 0, command


def test_every_recipe_is_run_here():
    source = pathlib.Path(__file__).read_text(encoding="utf-8")
    assert set(re.findall(r'[^.](?:run|commands)\("([^"]+)"', source)) == set(SECTIONS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with one picture that no recipe was trained on."""
    monkeypatch.chdir(tmp_path)
    draw_demo_images("new", 1, seed=99)[0].rename("photo.jpg")
    return tmp_path


def test_cifar_convolutions_are_right_and_far_above_softmax_on_pixels(here, capsys):
    write_cifar10("cifar-10-batches-py", 600)
    run("A small convolutional network from scratch")
    shown = capsys.readouterr().out
    assert all(name in shown.split("probability")[-1] for name in NAMES)  # ten scores for one picture
    run("Softmax on raw pixels")
    accuracy = {
        name: json.loads((here / "cifar" / folder / "metrics.json").read_text())["accuracy"]
        for name, folder in (("cnn", "report"), ("softmax", "softmax_report"))
    }
    print(f"3,000 training pictures, 600 held out: {accuracy}")
    assert accuracy["cnn"] >= 0.9
    assert accuracy["softmax"] <= accuracy["cnn"] - 0.3


def test_retraining_computes_only_what_is_new(here):
    draw_demo_images("photos", 30, seed=5)
    extra = ("--backbone", "builtin")
    run("Retraining on a folder a class", *extra)
    again = json.loads((here / "examples" / "run.json").read_text())
    assert again["counters"]["incremental/kept"] == again["counts"]["used"] == 120
    assert (here / "exported" / "labels.txt").read_text().split() == ["circle", "plus", "square", "triangle"]
    logged = _logged(here / "logs")
    assert {("train", "cost"), ("train", "error"), ("validation", "cost"), ("validation", "error")} <= logged
    assert {("test", "error"), ("train", "keras")} <= logged  # the latter is the graph
    scores = _run_graph(here / "exported" / "model.pb", here / "photo.jpg", 96)
    assert scores.shape == (1, 4) and scores.sum() == pytest.approx(1, abs=1e-3)
    run("Two fully connected layers", *extra)
    run("Take a model elsewhere")
    assert {path.name for path in (here / "elsewhere").iterdir()} >= {"model.pb", "model.xml", "model.tflite"}


def _logged(folder):
    """(run, tag) of every scalar that TensorBoard would show."""
    found = set()
    for path in folder.rglob("events.out.*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            found |= {(path.parent.name, value.tag) for value in event.summary.value}
    return found


def _run_graph(path, image, size_px):
    """As any TensorFlow program would run it."""
    graph_def = tf.compat.v1.GraphDef.FromString(path.read_bytes())
    pixels = load_image(image.read_bytes(), size_px, "crop", ImageLimits()).pixels_HWC[np.newaxis]
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.import_graph_def(graph_def, name="")
        return session.run("scores:0", {"pixels:0": pixels})


def test_bottlenecks_of_retrain_py_become_examples_and_a_model(here):
    photos = draw_demo_images("photos", 30, seed=5)
    backbone = build_backbone("builtin", "builtin")
    (here / "classify_image_graph_def.pb").write_bytes(backbone.graph_def.SerializeToString())
    engine = build_backbone_engine(backbone.graph_def, EngineSettings(1, "cpu", "tensorflow", "fp32"))
    for photo in photos:
        pixels = load_image(photo.read_bytes(), backbone.spec.image_size_px, "crop", ImageLimits()).pixels_HWC
        text = pathlib.Path("bottlenecks", photo.parent.name, f"{photo.stem}.jpg_inception_v3.txt")
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(",".join(str(value) for value in engine.run(pixels[np.newaxis])[0]))
    run("Bottlenecks of retrain.py")
    figures = json.loads((here / "retrained" / "run.json").read_text())["figures"]
    assert figures["train"]["n"] + figures["validation"]["n"] + figures["test"]["n"] == 120
    assert figures["train"]["accuracy"] > 0.9


def test_dog_breeds(here):
    breeds = _stanford_names()
    photos = iter(draw_demo_images("drawn", 180, seed=3))
    for number, breed in enumerate(breeds):
        folder = here / "Images" / f"n{2085620 + number:08d}-{breed}"
        folder.mkdir(parents=True)
        for index in range(6):
            next(photos).rename(folder / f"n{2085620 + number:08d}_{index}.jpg")
    run("Dog breeds", "--backbone", "builtin", "--split", "0.5", "0.25", "0.25")
    info = json.loads((here / "dogs" / "examples" / "examples.json").read_text())
    assert len(info["labels"]) == 120 and {"Chihuahua", "Japanese spaniel"} <= set(info["labels"])
    shard = list_shards(str(here / "dogs" / "examples"), ("train",))[0]
    record = next(iter(tf.data.TFRecordDataset(shard).as_numpy_iterator()))
    features = tf.train.Example.FromString(record).features.feature
    uri = features["image/uri"].bytes_list.value[0].decode()
    assert features["image/encoded"].bytes_list.value[0] == pathlib.Path(uri).read_bytes()
    assert features["image/class/text"].bytes_list.value[0].decode() in info["labels"]
    with (here / "dogs" / "report" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == info["counts"]["test"]["images"] and {"actual", "predicted"} <= rows[0].keys()
    assert (here / "dogs" / "report" / "confused_pairs.csv").exists()
    assert _run_graph(here / "dogs" / "exported" / "model.pb", here / "photo.jpg", 96).shape == (1, 120)


def _stanford_names():
    """The 120 breeds as Stanford's folders call them: ImageNet's dogs without the dalmatian, and three wild ones."""
    labels = imagenet_labels()
    dogs = [*labels[151:269], *labels[273:276]]
    return [name.replace(" ", "_") for name in dogs if name != "dalmatian"]


def _name_photo(weights):
    """Labels that ImageNet's recipe gives photo.jpg, one from each of its commands, with weights from a file."""
    pathlib.Path("photos").mkdir()
    pathlib.Path("photos", "one.jpg").write_bytes(pathlib.Path("photo.jpg").read_bytes())
    options = {"classify": ["--weights", weights], "tag": ["--weights", weights, "--min-score", "0"]}
    for command in commands("ImageNet's 1,000 classes"):
        arguments = shlex.split(command)[1:]
        assert run_command([*arguments, *options[arguments[0]]]) == 0, command
    return duckdb.sql("SELECT top_label FROM 'imagenet_tags/tags/**/*.parquet'").fetchall()


def test_imagenet_names_without_training(here, shared_data, capsys):
    (here / "photo.jpg").write_bytes((shared_data / "known" / "cropped_panda.jpg").read_bytes())
    assert _name_photo(str(shared_data / "weights" / "mobilenet_v2_imagenet.weights.h5")) == [("giant panda",)]
    assert "giant panda" in capsys.readouterr().out


def test_imagenet_names_with_a_file_of_that_form(here, capsys):
    """Where the real weights are missing: drawn ones name something, and readably."""
    keras.applications.MobileNetV2(weights=None).save_weights("drawn.weights.h5")
    ((label,),) = _name_photo("drawn.weights.h5")
    assert label in imagenet_labels() and label in capsys.readouterr().out
