"""Named backbones: from a square of pixels to a bottleneck, as one frozen graph with the pixel scaling inside.

Array suffixes: B images, H height, W width (both S), C channels (RGB), D bottleneck width.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np
import tensorflow as tf

from bulktag.model import applications
from bulktag.model import weights as weight_files
from bulktag.model.folding import fold_graph
from bulktag.model.frozen import adapt_graph, load_graph_def
from bulktag.model.graphs import GraphDef, freeze

BUILTIN = "builtin"
PIXELS = "pixels"
IMAGENET = "imagenet"
NO_WEIGHTS = "none"
_PIXELS_SIZE_PX = 32
_GRAPH_SUFFIX = ".pb"
_GRAPH_FILE, _SPEC_FILE = "backbone.pb", "backbone.json"


@dataclasses.dataclass(frozen=True)
class BackboneSpec:
    """What a backbone is.

    Attributes:
      name: as the user calls it: a name of `backbone_names()`, or any for a graph of the user's own.
      weights: as given by the user.
      weights_digest: sha256 in hex of the weights themselves; the same in every process and run.
      image_size_px: S, side of the square that it takes.
      width: D, length of a bottleneck.
      kind: "application" (keras.applications), "graph" (frozen TensorFlow 1 graph), "builtin" or "pixels".
    """

    name: str
    weights: str
    weights_digest: str
    image_size_px: int
    width: int
    kind: str = "application"


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network without its classifier.

    Attributes:
      spec: what it is.
      graph_def: frozen; placeholder `pixels` uint8[?, S, S, 3] (RGB, 0..255) -> `bottleneck` float32[?, D].
    """

    spec: BackboneSpec
    graph_def: GraphDef

    def save(self, folder: str) -> None:
        """Write `backbone.pb` and `backbone.json` into a folder, which is made if missing."""
        root = pathlib.Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        serialized = self.graph_def.SerializeToString(deterministic=True)
        stated = dataclasses.asdict(self.spec) | {"graph_sha256": hashlib.sha256(serialized).hexdigest()}
        (root / _GRAPH_FILE).write_bytes(serialized)
        (root / _SPEC_FILE).write_text(json.dumps(stated, indent=2) + "\n", encoding="utf-8")


def load_backbone(folder: str) -> Backbone:
    """Read what `Backbone.save` wrote.

    Raises:
      ValueError: a file is missing, or the graph is not the one that backbone.json states.
    """
    root = pathlib.Path(folder)
    try:
        stated = json.loads((root / _SPEC_FILE).read_text(encoding="utf-8"))
        serialized = (root / _GRAPH_FILE).read_bytes()
        digest = stated.pop("graph_sha256")
        spec = BackboneSpec(**stated)
    except FileNotFoundError as error:
        raise ValueError(f"expected {_GRAPH_FILE} and {_SPEC_FILE}: {folder}") from error
    except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected a backbone's description, got {error!r}: {root / _SPEC_FILE}") from error
    if hashlib.sha256(serialized).hexdigest() != digest:
        raise ValueError(f"expected a graph of sha256 {digest}, it was changed or damaged: {root / _GRAPH_FILE}")
    return Backbone(spec, GraphDef.FromString(serialized))


def backbone_names() -> list[str]:
    """Every name that `build_backbone` takes: builtin, pixels, and the models of keras.applications."""
    return [BUILTIN, PIXELS, *applications.application_constructors()]


def build_backbone(
    name: str,
    weights: str,
    *,
    image_size_px: int | None = None,
    graph_input: str | None = None,
    graph_bottleneck: str | None = None,
) -> Backbone:
    """Build a backbone.

    Args:
      name: one of `backbone_names()`; for a frozen graph any name.
      weights: "imagenet", "random:SEED", or a local file: `.weights.h5`, `.h5`, `.keras`, or a frozen graph `.pb`;
        "builtin" for the builtin network and "none" for pixels.
      image_size_px: S; None for the network's own.
      graph_input: image tensor of a frozen graph; None to find it.
      graph_bottleneck: bottleneck tensor of a frozen graph; None to find it.
    Raises:
      ValueError: an unknown name, weights that do not exist or do not fit, a size that the network does not take.
    """
    if image_size_px is not None and image_size_px < 1:
        raise ValueError(f"expected an image size of at least 1 px, got {image_size_px}")
    if is_graph_file(weights):
        return fold_backbone(_build_from_graph(name, weights, image_size_px, graph_input, graph_bottleneck))
    if graph_input or graph_bottleneck:
        raise ValueError(f"expected a frozen graph (.pb) for tensor names, got weights={weights!r}")
    if name == PIXELS:
        return _build_pixels(weights, image_size_px or _PIXELS_SIZE_PX)
    if name == BUILTIN or weights == BUILTIN:
        return fold_backbone(_build_builtin(name, weights, image_size_px))
    applications.check_application(name, (BUILTIN, PIXELS))
    return fold_backbone(_build_application(name, weights, image_size_px))


def fold_backbone(backbone: Backbone) -> Backbone:
    """The same network in fewer operations, see `fold_graph`."""
    return dataclasses.replace(backbone, graph_def=fold_graph(backbone.graph_def, "bottleneck"))


def is_graph_file(weights: str) -> bool:
    """Whether weights name a frozen TensorFlow graph."""
    return weights.lower().endswith(_GRAPH_SUFFIX)


def parse_seed(weights: str) -> int | None:
    """The seed of `random:SEED`, None for weights of another kind.

    Raises:
      ValueError: the seed is no whole number.
    """
    kind, _, seed = weights.partition(":")
    if kind != "random":
        return None
    if not seed.isdecimal():
        raise ValueError(f"expected random:SEED with a whole number, got weights={weights!r}")
    return int(seed)


def check_file(weights: str) -> str:
    """Weights that must be a local file.

    Raises:
      ValueError: there is none.
    """
    if not pathlib.Path(weights).is_file():
        what = "a folder" if pathlib.Path(weights).is_dir() else "no such file"
        raise ValueError(f"expected weights imagenet, builtin, random:SEED or a file, got {weights!r}: {what}")
    return weights


def freeze_backbone(name: str, weights: str, network, scaling, image_size_px: int, digest: str, kind: str) -> Backbone:
    """Freeze a network together with its pixel scaling.

    Args:
      name: see `BackboneSpec`, as `weights`, `digest` and `kind`.
      network: keras.Model from scaled pixels to anything with B rows; its output is flattened to [B, D].
      scaling: float32[B, S, S, 3] in 0..255 -> what the network expects.
      image_size_px: S.
    """

    def bottleneck(pixels_BHWC):
        features = network(scaling(tf.cast(pixels_BHWC, tf.float32)), training=False)
        return tf.reshape(features, [-1, int(np.prod(features.shape[1:]))])

    spec = tf.TensorSpec([None, image_size_px, image_size_px, 3], tf.uint8, name="pixels")
    graph_def = freeze(bottleneck, spec, "bottleneck")
    width = int(np.prod(network.output_shape[1:]))
    return Backbone(BackboneSpec(name, weights, digest, image_size_px, width, kind), graph_def)


def _build_application(name: str, weights: str, image_size_px: int | None) -> Backbone:
    size_px = image_size_px or applications.default_image_size_px(name)
    if weights == IMAGENET:
        network = weight_files.build_imagenet_application(name, size_px)
    elif (seed := parse_seed(weights)) is not None:
        network = applications.build_random_application(name, size_px, seed)
    elif check_file(weights).lower().endswith(weight_files.KERAS_SUFFIX):
        return _build_from_keras_model(name, weights, image_size_px)
    elif weights.lower().endswith(weight_files.HDF5_SUFFIXES):
        network = weight_files.load_application(name, size_px, weights)
    else:
        raise ValueError(f"expected a weights file .weights.h5, .h5, .keras or .pb, got {weights!r}")
    digest = weight_files.weights_digest(network.get_weights())
    return freeze_backbone(name, weights, network, applications.pixel_scaling(name), size_px, digest, BackboneSpec.kind)


def _build_from_keras_model(name: str, weights: str, image_size_px: int | None) -> Backbone:
    """A `.keras` model keeps its own layers and size; its graph is cut where it pools."""
    model = weight_files.load_keras_model(weights)
    digest = weight_files.weights_digest(weight_files.check_fits(model, name, weights))
    own_size_px = model.input_shape[1] or image_size_px or applications.default_image_size_px(name)
    if image_size_px not in (None, own_size_px):
        raise ValueError(f"expected the model's own image size of {own_size_px} px, got {image_size_px}: {weights!r}")
    scaling = (lambda pixels: pixels) if weight_files.scales_pixels(model) else applications.pixel_scaling(name)
    whole = freeze_backbone(name, weights, model, scaling, own_size_px, digest, BackboneSpec.kind)
    graph_def, _, width = adapt_graph(whole.graph_def, "pixels:0", None, own_size_px, where=weights)
    spec = dataclasses.replace(whole.spec, width=width)
    return Backbone(spec, graph_def)


def _build_from_graph(
    name: str, weights: str, image_size_px: int | None, graph_input: str | None, graph_bottleneck: str | None
) -> Backbone:
    original = load_graph_def(check_file(weights))
    graph_def, size_px, width = adapt_graph(original, graph_input, graph_bottleneck, image_size_px, where=weights)
    # The nodes keep the file's names and order, so their serialised form is as stable as the file.
    digest = hashlib.sha256(graph_def.SerializeToString(deterministic=True)).hexdigest()
    return Backbone(BackboneSpec(name, weights, digest, size_px, width, "graph"), graph_def)


def _build_builtin(name: str, weights: str, image_size_px: int | None) -> Backbone:
    if (name, weights) != (BUILTIN, BUILTIN):
        raise ValueError(f"expected backbone builtin with weights builtin, got {name!r} with weights={weights!r}")
    from bulktag.model.builtin import BUILTIN_IMAGE_SIZE_PX, build_builtin

    network = build_builtin()
    size_px = image_size_px or BUILTIN_IMAGE_SIZE_PX
    if size_px != BUILTIN_IMAGE_SIZE_PX:
        raise ValueError(f"expected the builtin network's {BUILTIN_IMAGE_SIZE_PX} px, got {size_px}")
    digest = weight_files.weights_digest(network.get_weights())
    return freeze_backbone(name, weights, network, lambda pixels: pixels, size_px, digest, BUILTIN)


def _build_pixels(weights: str, size_px: int) -> Backbone:
    """No network at all: the pixels in [0, 1], row by row. A baseline, and enough for digits."""
    if weights != NO_WEIGHTS:
        raise ValueError(f"expected weights none for backbone pixels, got {weights!r}")
    width = size_px * size_px * 3

    def bottleneck(pixels_BHWC):
        return tf.reshape(tf.cast(pixels_BHWC, tf.float32) / 255.0, [-1, width])

    graph_def = freeze(bottleneck, tf.TensorSpec([None, size_px, size_px, 3], tf.uint8, name="pixels"), "bottleneck")
    digest = weight_files.weights_digest([])
    return Backbone(BackboneSpec(PIXELS, weights, digest, size_px, width, PIXELS), graph_def)
