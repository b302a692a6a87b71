"""`bulktag export`: a model bundle -> files that other programs load, each compared with the bundle first."""

import dataclasses
import itertools
import json
import pathlib
import tempfile

import numpy as np

from bulktag.model import openvino_engine
from bulktag.model.bundle import Bundle
from bulktag.model.drawing import DEMO_CLASSES, draw_demo_picture
from bulktag.model.export import INPUT, OUTPUT, Agreement, export_and_compare
from bulktag.model.image import DEFAULT_RESIZE, ImageLimits, load_image
from bulktag.model.openvino_engine import UnsupportedGraph
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import ExportConfig
from bulktag.pipeline.console import OUT, print_table, working
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.network import resolve_bundle
from bulktag.pipeline.precision import sample_pixels
from bulktag.transforms import files
from bulktag.transforms.loading import LoadSettings
from bulktag.transforms.sources import parse_source

DESCRIPTION_FILE = "model.json"
ENTRIES = ("model.pb", "model.xml", "model.bin", "model.tflite", "labels.txt", DESCRIPTION_FILE)
NUM_DRAWN = 64


def run_export(config: ExportConfig) -> dict:
    """Do the whole job.

    Returns:
      contents of run.json.
    Raises:
      ValueError: the request is wrong.
      JobFailed: a format cannot hold this model, or gives other scores; nothing was published.
    """
    output = files.normalise(config.output)
    publish.check_output(output, "export")
    if "openvino" in config.formats and not openvino_engine.is_installed():
        raise ValueError("expected OpenVINO for format openvino, found none: pip install 'bulktag[openvino]'")
    sources = tuple(parse_source(text) for text in config.check_images)
    if any(source.kind in ("examples", "bottlenecks") for source in sources):
        raise ValueError("expected images to compare with, got a folder of bottlenecks")
    record = outcome.RunRecord("export", publish.new_run_id(), config)
    with tempfile.TemporaryDirectory(prefix="bulktag-model-") as folder, publish.staging(output, record.run_id) as made:
        bundle, _ = resolve_bundle(config, folder, DEFAULT_RESIZE)
        with working("loading images to compare with"):
            pixels_NSSC = _sample(config, sources, bundle)
        record.note(model_id=bundle.model_id, compared_with="images given" if sources else "drawn pictures")
        files.write_folder(lambda path: _write(path, config, bundle, pixels_NSSC, record), made.final)
        run = record.to_json("succeeded")
        publish.publish(made, ENTRIES, run)
    rows = [
        (row["format"], row["file"], row["images"], row["other_labels"], f"{row['max_difference']:.1e}")
        for row in record.facts["formats"]
    ]
    print_table(("format", "file", "images compared", "other best label", "largest difference"), rows)
    OUT.print(f"model {bundle.model_id}, {len(bundle.labels)} labels: {output}", markup=False)
    return run


def _sample(config: ExportConfig, sources, bundle: Bundle) -> np.ndarray:
    """uint8[N, S, S, 3]: the user's images, or drawn pictures where there are none."""
    size_px = bundle.backbone.image_size_px
    if not sources:
        return np.stack(list(itertools.islice(_draw(size_px, bundle.resize), NUM_DRAWN)))
    pixels_NSSC = sample_pixels(sources, LoadSettings(size_px, bundle.resize), config.num_images)
    if not len(pixels_NSSC):
        raise JobFailed(f"none of the images to compare with can be used: {', '.join(config.check_images)}")
    return pixels_NSSC


def _draw(size_px: int, resize: str):
    with tempfile.TemporaryDirectory(prefix="bulktag-drawn-") as folder:
        path = pathlib.Path(folder, "drawn.png")
        for number in itertools.count():
            rng = np.random.default_rng([7, number])
            draw_demo_picture(rng, DEMO_CLASSES[number % len(DEMO_CLASSES)]).save(path, compress_level=1)
            yield load_image(path.read_bytes(), size_px, resize, ImageLimits()).pixels_HWC


def _write(folder: str, config: ExportConfig, bundle: Bundle, pixels_NSSC: np.ndarray, record: outcome.RunRecord):
    compared = []
    for name in dict.fromkeys(config.formats):
        with working(f"writing and comparing {name}"):
            try:
                file, agreement = export_and_compare(bundle, name, folder, pixels_NSSC)
            except UnsupportedGraph as error:
                raise JobFailed(f"format {name} cannot hold this model: {error}; nothing was published") from error
        if not agreement.is_enough:
            raise JobFailed(f"format {name} gives other scores than the model: {agreement}; nothing was published")
        compared.append(_describe(name, file, agreement))
    record.note(formats=compared)
    root = pathlib.Path(folder)
    (root / "labels.txt").write_text("".join(f"{label}\n" for label in bundle.labels), encoding="utf-8")
    description = {
        "model_id": bundle.model_id,
        "input": {"name": INPUT, "dtype": "uint8", "shape": [None, *[bundle.backbone.image_size_px] * 2, 3],
                  "channels": "RGB, 0 to 255", "preprocessing": bundle.info["preprocessing"]},
        "output": {"name": OUTPUT, "dtype": "float32", "shape": [None, len(bundle.labels)],
                   "meaning": "calibrated score of each label, each by itself" if bundle.multi_label
                   else "calibrated probability of each label"},
        "labels": list(bundle.labels),
        "thresholds": bundle.info["thresholds"],
        "formats": compared,
    }  # fmt: skip
    text = json.dumps(description, indent=2, ensure_ascii=False)
    (root / DESCRIPTION_FILE).write_text(text + "\n", encoding="utf-8")


def _describe(name: str, file: str, agreement: Agreement) -> dict:
    facts = dataclasses.asdict(agreement)
    return {"format": name, "file": file, "images": facts["num_images"], "other_labels": facts["num_other_labels"],
            "max_difference": facts["max_difference"]}  # fmt: skip
