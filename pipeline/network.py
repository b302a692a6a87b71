"""The network of a job: weights resolved once by the launcher, written where the workers read them."""

import os
import tempfile

from bulktag.model.backbone import Backbone, build_backbone
from bulktag.model.bundle import Bundle, load_bundle, save_bundle
from bulktag.model.imagenet import build_imagenet_classifier
from bulktag.pipeline.config import IMAGENET
from bulktag.pipeline.console import say
from bulktag.transforms import files

_NAMED_WEIGHTS = ("imagenet", "builtin", "none")
BUNDLE_FILE = "bundle.json"


def _local_weights(weights: str, folder: str) -> str:
    """Weights as a name, or as a file on this disk."""
    if weights in _NAMED_WEIGHTS or weights.startswith("random:"):
        return weights
    uri = files.normalise(weights)
    if not files.exists(uri) or files.is_folder(uri):
        raise ValueError(
            f"expected weights imagenet, builtin, random:SEED or a file that exists, got {weights!r}"
        )
    return uri if files.is_local(uri) else files.fetch_file(uri, os.path.join(folder, uri.rsplit("/", 1)[-1]))


def resolve_backbone(config) -> Backbone:
    """Build the network that a job's configuration names.

    Raises:
      ValueError: an unknown name, weights that do not exist or do not fit.
    """
    weights = config.resolved_weights
    with tempfile.TemporaryDirectory(prefix="bulktag-weights-") as folder:
        backbone = build_backbone(
            config.backbone,
            _local_weights(weights, folder),
            image_size_px=config.image_size_px or None,
            graph_input=config.graph_input or None,
            graph_bottleneck=config.graph_bottleneck or None,
        )
    _say_network(config.backbone, weights, backbone)
    return backbone


def _say_network(name: str, weights: str, backbone: Backbone) -> None:
    spec = backbone.spec
    random = ": RANDOM WEIGHTS, for tests and benchmarks only" if weights.startswith("random:") else ""
    say(f"network: {name}, weights {weights}{random}, {spec.image_size_px} px, {spec.width} values an image")


def resolve_bundle(config, folder: str, resize: str) -> tuple[Bundle, str]:
    """The model that a job's configuration names.

    Args:
      config: with `model`, and the network for `imagenet`.
      folder: where a bundle is written if the model is not one yet; workers can read it.
      resize: for `imagenet`, how pictures are brought to the square.
    Returns:
      the bundle and its folder.
    Raises:
      ValueError: no bundle there, one that is damaged, or see `resolve_backbone`.
    """
    if config.model != IMAGENET:
        uri = files.normalise(config.model)
        if not files.exists(files.join(uri, BUNDLE_FILE)):
            raise ValueError(f"expected a model bundle (a folder with {BUNDLE_FILE}) or imagenet, got {config.model!r}")
        return load_bundle(files.fetch_folder(uri)), uri
    weights = config.resolved_weights
    with tempfile.TemporaryDirectory(prefix="bulktag-weights-") as scratch:
        backbone, head, labels = build_imagenet_classifier(config.backbone, _local_weights(weights, scratch))
    _say_network(config.backbone, weights, backbone)
    save_bundle(folder, backbone, head, labels, resize=resize)
    return load_bundle(folder), folder
