"""The network of a job: weights resolved once by the launcher, written where the workers read them."""

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator

from bulktag.model.backbone import Backbone, build_backbone
from bulktag.model.bundle import BUNDLE_FILE, Bundle, load_bundle, save_bundle
from bulktag.model.imagenet import build_imagenet_classifier
from bulktag.pipeline.config import IMAGENET
from bulktag.pipeline.console import say, working
from bulktag.transforms import files
from bulktag.transforms.sources import EXAMPLES_FILE

_NAMED_WEIGHTS = ("imagenet", "builtin", "none")


def _weights_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="bulktag-weights-")


def _local_weights(weights: str, folder: str) -> str:
    """Weights as a name, or as a file on this disk."""
    if weights in _NAMED_WEIGHTS or weights.startswith("random:"):
        return weights
    uri = files.normalise(weights)
    if not files.exists(uri) or files.is_folder(uri):
        raise ValueError(f"expected weights imagenet, builtin, random:SEED or a file that exists, got {weights!r}")
    return uri if files.is_local(uri) else files.fetch_file(uri, os.path.join(folder, uri.rsplit("/", 1)[-1]))


@contextlib.contextmanager
def _as_mistakes() -> Iterator[None]:
    """What building a network refuses is the user's mistake; not every reason begins with what was expected."""
    try:
        yield
    except ValueError as error:
        if type(error) is not ValueError or str(error).startswith("expected "):
            raise
        raise ValueError(f"expected a network and weights that can be used, got a refusal: {error}") from error


def resolve_backbone(config) -> Backbone:
    """Build the network that a job's configuration names.

    Raises:
      ValueError: an unknown name, weights that do not exist or do not fit.
    """
    weights = config.resolved_weights
    with working("building the network"), _weights_folder() as folder, _as_mistakes():
        backbone = build_backbone(
            config.backbone,
            _local_weights(weights, folder),
            image_size_px=config.image_size_px or None,
            graph_input=config.graph_input or None,
            graph_bottleneck=config.graph_bottleneck or None,
        )
    _say_network(config.backbone, weights, backbone)
    return _as_given(backbone, weights)


def _as_given(backbone: Backbone, weights: str) -> Backbone:
    """Record the weights as the user named them, not as the copy that was read."""
    return dataclasses.replace(backbone, spec=dataclasses.replace(backbone.spec, weights=weights))


def _say_network(name: str, weights: str, backbone: Backbone) -> None:
    spec = backbone.spec
    random = ": RANDOM WEIGHTS, for tests and benchmarks only" if weights.startswith("random:") else ""
    say(f"network: {name}, weights {weights}{random}, {spec.image_size_px} px, {spec.width} values an image")


def find_bundle(model: str) -> str:
    """The folder of a model bundle.

    Raises:
      ValueError: there is none.
    """
    uri = files.normalise(model)
    if not files.exists(files.join(uri, BUNDLE_FILE)):
        raise ValueError(f"expected a model bundle (a folder with {BUNDLE_FILE}), got {model!r}")
    return uri


def open_bundle(uri: str) -> Bundle:
    """Load and verify the bundle in a folder.

    Raises:
      ValueError: it is damaged.
    """
    try:
        return load_bundle(files.fetch_folder(uri))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected {BUNDLE_FILE} as train wrote it, got no usable {error}: {uri}") from error


def check_examples(folder: str, bundle: Bundle) -> dict[str, int]:
    """Bottlenecks of another network, or of pictures squared another way, would be scored with nonsense.

    Returns:
      number of images per split, as `extract` counted them.
    Raises:
      ValueError: they are, or examples.json is damaged.
    """
    path = files.join(folder, EXAMPLES_FILE)
    try:
        info = json.loads(files.read_bytes(path))
        found = (info["backbone"]["weights_digest"], info["backbone"]["image_size_px"], info["resize"])
        num_images = {split: int(counts["images"]) for split, counts in info["counts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"expected {EXAMPLES_FILE} as extract wrote it, got something else: {path}") from error
    wanted = (bundle.backbone.weights_digest, bundle.backbone.image_size_px, bundle.resize)
    if found != wanted:
        raise ValueError(
            f"expected bottlenecks of the model's network (weights {wanted[0][:12]}, {wanted[1]} px, {wanted[2]}), "
            f"got (weights {found[0][:12]}, {found[1]} px, {found[2]}): {folder}"
        )
    return num_images


def pin_bundle(uri: str, folder: str) -> None:
    """Keep a bundle for one run, under a name of its own.

    A training may replace the model while a long run's workers are yet to read it: they would score with one model
    and label with another.

    Args:
      uri: folder of the bundle.
      folder: new folder that workers can read.
    """
    source = files.fetch_folder(uri)

    def copy(path: str) -> None:
        shutil.copytree(source, path, copy_function=_link_or_copy, ignore=_not_of_the_bundle, dirs_exist_ok=True)

    files.write_folder(copy, folder)


def _not_of_the_bundle(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(".") or name == "failed"]


def _link_or_copy(source: str, target: str) -> None:
    """Published files are replaced and never written to, so a second name for one costs nothing and stays as it is."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def resolve_bundle(config, folder: str, resize: str) -> tuple[Bundle, str]:
    """The model that a job's configuration names.

    Args:
      config: with `model`, and the network for `imagenet`.
      folder: where the run's own copy is written; workers can read it.
      resize: for `imagenet`, how pictures are brought to the square.
    Returns:
      the bundle and its folder.
    Raises:
      ValueError: no bundle there, one that is damaged, or see `resolve_backbone`.
    """
    if config.model != IMAGENET:
        uri = find_bundle(config.model)
        with working("loading the model"):
            pin_bundle(uri, folder)
            return open_bundle(folder), folder
    weights = config.resolved_weights
    with working("building the network"), _weights_folder() as scratch, _as_mistakes():
        backbone, head, labels = build_imagenet_classifier(
            config.backbone, _local_weights(weights, scratch), image_size_px=config.image_size_px or None
        )
    _say_network(config.backbone, weights, backbone)
    with working("writing the model for the workers"):
        model = _as_given(backbone, weights)
        files.write_folder(lambda path: save_bundle(path, model, head, labels, resize=resize), folder)
        return load_bundle(files.fetch_folder(folder)), folder
