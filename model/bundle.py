"""The model bundle: a folder that tags images, with this project or without it.

    bundle.json        labels, thresholds, calibration, network, figures, versions, digest of every other file
    head.keras         the head as a plain Keras model: float32[B, D] -> float32[B, L]
    saved_model/       tf.saved_model: encoded images -> scores, and bottlenecks -> scores
    backbone/          the network as a frozen graph, uint8[B, S, S, 3] -> bottlenecks, as `extract` wrote it
    graphs/head.pb     the head as a frozen graph, float32[B, D] -> scores; workers load this and the network
    thresholds.npz     what each threshold gave on validation images; missing where there were none
    novelty.npz        what training images look like; likewise

Array suffixes: B images, S side of the network's square, D bottleneck width, L labels.
"""

import dataclasses
import datetime
import hashlib
import json
import math
import pathlib
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

import bulktag
from bulktag.model.backbone import Backbone, BackboneSpec, load_backbone
from bulktag.model.calibration import Calibration, no_calibration
from bulktag.model.graphs import GraphDef, chain, freeze
from bulktag.model.image import RESIZE_MODES
from bulktag.model.novelty import NoveltyModel, load_novelty
from bulktag.model.serving import load_images_in_graph
from bulktag.model.thresholds import ThresholdRecord

if TYPE_CHECKING:
    from bulktag.model.validation import Tuning

BUNDLE_FILE = "bundle.json"
SCHEMA_VERSION = 1
_HEAD = "graphs/head.pb"
_THRESHOLDS, _NOVELTY = "thresholds.npz", "novelty.npz"


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A loaded bundle.

    Attributes:
      folder: where it lies on this disk.
      model_id: the same for equal contents, another for any other model.
      labels: names, in the order of the scores.
      thresholds: score from which each label counts as a tag, in the same order; infinity for one switched off.
      multi_label: scores are independent probabilities instead of one distribution.
      resize: how pictures are brought to the network's square.
      backbone: the network.
      info: all of bundle.json.
    """

    folder: str
    model_id: str
    labels: tuple[str, ...]
    thresholds: tuple[float, ...]
    multi_label: bool
    resize: str
    backbone: BackboneSpec
    info: dict[str, Any]

    @property
    def calibration(self) -> Calibration:
        """What was done to the logits."""
        content = self.info.get("calibration")
        return Calibration.from_json(content) if content else no_calibration(len(self.labels))

    def threshold_record(self) -> ThresholdRecord | None:
        """What each threshold gave on validation images; None where there were none."""
        path = pathlib.Path(self.folder, _THRESHOLDS)
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as arrays:
            return ThresholdRecord(**arrays)

    def novelty_model(self) -> NoveltyModel | None:
        """What training images look like; None where there were too few."""
        path = pathlib.Path(self.folder, _NOVELTY)
        return load_novelty(path) if path.exists() else None

    def head_graph(self) -> GraphDef:
        """Frozen graph from "bottleneck" float32[B, D] to "scores" float32[B, L]."""
        return GraphDef.FromString(pathlib.Path(self.folder, _HEAD).read_bytes())

    def backbone_graph(self) -> GraphDef:
        """Frozen graph from "pixels" uint8[B, S, S, 3] to "bottleneck" float32[B, D]."""
        return load_bundle_backbone(self).graph_def


def save_bundle(
    folder: str,
    backbone: Backbone,
    head: keras.Model,
    labels: list[str],
    *,
    resize: str,
    tuning: "Tuning | None" = None,
    multi_label: bool = False,
    figures: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> str:
    """Write a bundle.

    Args:
      folder: local, empty or new; the caller publishes it.
      backbone: the network.
      head: float32[B, D] -> calibrated scores float32[B, L].
      labels: L names.
      resize: how pictures were brought to the network's square in training.
      tuning: calibration, thresholds and novelty, as fitted on validation images; None: every score counts as a tag.
      multi_label: the head's scores are independent of each other.
      figures: held-out figures, for the record.
      training: options and counts, for the record.
    Returns:
      the model_id.
    Raises:
      ValueError: head and network or labels do not fit together.
    """
    if head.input_shape[-1] != backbone.spec.width or head.output_shape[-1] != len(labels):
        raise ValueError(
            f"expected a head from {backbone.spec.width} values to {len(labels)} labels, "
            f"got one from {head.input_shape[-1]} to {head.output_shape[-1]}"
        )
    assert resize in RESIZE_MODES
    root = pathlib.Path(folder)
    (root / "graphs").mkdir(parents=True, exist_ok=True)
    backbone.save(str(root / "backbone"))
    head.save(root / "head.keras")
    head_graph = freeze(head, tf.TensorSpec([None, backbone.spec.width], tf.float32, "bottleneck"), "scores")
    tagger = chain(backbone.graph_def, head_graph, ("pixels", "bottleneck", "scores"))
    (root / _HEAD).write_bytes(head_graph.SerializeToString(deterministic=True))
    _save_serving(str(root / "saved_model"), tagger, head_graph, backbone.spec, resize, labels)
    thresholds = [row.threshold for row in tuning.thresholds] if tuning else [0.0] * len(labels)
    calibration = tuning.calibration if tuning else no_calibration(len(labels))
    if tuning:
        np.savez(root / _THRESHOLDS, **tuning.record.arrays())
    if tuning and tuning.novelty is not None:
        tuning.novelty.save(root / _NOVELTY)
    identity = {
        "labels": labels,
        "thresholds": thresholds,
        "resize": resize,
        "weights_digest": backbone.spec.weights_digest,
        "head": _digest_of_weights(head),
    }
    model_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    info = {
        "schema_version": SCHEMA_VERSION,
        "model_id": model_id,
        "labels": labels,
        "thresholds": identity["thresholds"],
        "threshold_basis": [row._asdict() for row in tuning.thresholds] if tuning else [],
        "temperature": calibration.temperature,
        "calibration": calibration.to_json(),
        "novelty": dataclasses.asdict(tuning.novelty_quality) if tuning and tuning.novelty is not None else None,
        "multi_label": multi_label,
        "backbone": dataclasses.asdict(backbone.spec),
        "preprocessing": {"resize": resize, "image_size_px": backbone.spec.image_size_px, "filter": "bilinear"},
        "figures": figures or {},
        "training": training or {},
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"bulktag": bulktag.__version__, "tensorflow": tf.__version__, "keras": keras.__version__},
        "files": _digests(root),
    }
    (root / BUNDLE_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return model_id


def _digest_of_weights(head: keras.Model) -> str:
    """The head's function: its layers and numbers, without the names that Keras counts up within a process."""
    digest = hashlib.sha256(",".join(type(layer).__name__ for layer in head.layers).encode())
    for weight in head.get_weights():
        digest.update(str(weight.shape).encode() + np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _digests(root: pathlib.Path) -> dict[str, str]:
    paths = sorted(path for path in root.rglob("*") if path.is_file() and path.name != BUNDLE_FILE)
    return {path.relative_to(root).as_posix(): _sha256(path) for path in paths}


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _save_serving(
    folder: str, tagger: GraphDef, head: GraphDef, spec: BackboneSpec, resize: str, labels: list[str]
) -> None:
    """Write the SavedModel: signatures serving_default (encoded images) and bottlenecks, labels as an asset."""
    module = tf.Module()

    def run(graph_def: GraphDef, source: str, value):
        (scores,) = tf.import_graph_def(graph_def, {f"{source}:0": value}, ["scores:0"], name="")
        return scores

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "image_bytes")], autograph=False)
    def serving_default(image_bytes):
        pixels_BHWC = load_images_in_graph(image_bytes, spec.image_size_px, resize)
        return {"scores": run(tagger, "pixels", pixels_BHWC)}

    @tf.function(input_signature=[tf.TensorSpec([None, spec.width], tf.float32, "bottleneck")], autograph=False)
    def bottlenecks(bottleneck):
        return {"scores": run(head, "bottleneck", bottleneck)}

    labels_path = pathlib.Path(folder).parent / "labels.txt"
    labels_path.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    module.labels = tf.saved_model.Asset(str(labels_path))
    signatures = {
        "serving_default": serving_default.get_concrete_function(),
        "bottlenecks": bottlenecks.get_concrete_function(),
    }
    tf.saved_model.save(module, folder, signatures)


def load_bundle(folder: str) -> Bundle:
    """Load and verify a bundle.

    Args:
      folder: on this disk.
    Raises:
      ValueError: no bundle, one of a newer form, or one whose files are not those that were saved.
    """
    root = pathlib.Path(folder)
    try:
        info = json.loads((root / BUNDLE_FILE).read_text(encoding="utf-8"))
        version = info["schema_version"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"expected a model bundle with a {BUNDLE_FILE}, got {error}: {folder}") from error
    if version != SCHEMA_VERSION:
        raise ValueError(f"expected a bundle of form {SCHEMA_VERSION}, got form {version}: {folder}")
    for name, digest in info["files"].items():
        path = root / name
        if not path.is_file():
            raise ValueError(f"expected file {name} in the bundle, found none: {folder}")
        if _sha256(path) != digest:
            raise ValueError(
                f"expected {name} as it was saved (sha256 {digest[:12]}...), got another content: {folder}"
            )
    return Bundle(
        folder=str(root),
        model_id=info["model_id"],
        labels=tuple(info["labels"]),
        thresholds=tuple(math.inf if value is None else value for value in info["thresholds"]),
        multi_label=info["multi_label"],
        resize=info["preprocessing"]["resize"],
        backbone=load_backbone(str(root / "backbone")).spec,
        info=info,
    )


def load_bundle_backbone(bundle: Bundle) -> Backbone:
    """The bundle's network alone."""
    return load_backbone(str(pathlib.Path(bundle.folder, "backbone")))
