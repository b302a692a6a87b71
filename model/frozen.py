"""Frozen TensorFlow graphs from elsewhere, such as the 2015 Inception graph or what `retrain.py` wrote.

They name their tensors each in its own way, scale pixels inside or leave it to the caller, and often have a batch of
one built in at both ends. `adapt_graph` cuts such a graph to the form that every backbone here has.

Array suffixes: B images, H height, W width (both S), C channels (RGB), D bottleneck width.
"""

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.framework import op_def_registry

from bulktag.model.applications import first_line
from bulktag.model.graphs import GraphDef

# classify_image_graph_def.pb (2015) reads a JPEG up to ResizeBilinear and scales with Sub and Mul; retrain.py fed
# that graph at Mul, graphs of MobileNet at input, and hub modules at Placeholder.
# Source: tensorflow/models tutorials/image/imagenet/classify_image.py; tensorflow/hub examples/image_retraining.
_KNOWN_INPUTS = ("ResizeBilinear:0", "Mul:0", "input:0", "Placeholder:0")
_KNOWN_BOTTLENECKS = (
    "pool_3:0",
    "pool_3/_reshape:0",
    "input/BottleneckInputPlaceholder:0",
    "module_apply_default/hub_output/feature_vector/SpatialSqueeze:0",
)
_RESHAPES = ("Reshape", "Squeeze", "Identity", "PlaceholderWithDefault", "StopGradient", "CheckNumerics")
_AFFINE = ("Sub", "Mul", "Add", "AddV2", "RealDiv")
_POOLS = ("Mean", "AvgPool", "MaxPool")
_CLASSIFYING = ("MatMul", "Conv2D")


def load_graph_def(path: str) -> GraphDef:
    """Read a serialized GraphDef.

    Raises:
      ValueError: the file holds something else.
    """
    with open(path, "rb") as file:
        content = file.read()
    try:
        graph_def = GraphDef.FromString(content)
    except DecodeError as error:
        raise ValueError(f"expected a frozen TensorFlow graph, got something else: weights={path!r}") from error
    if not graph_def.node:
        raise ValueError(f"expected a frozen TensorFlow graph, got one without nodes: weights={path!r}")
    return graph_def


def adapt_graph(
    graph_def: GraphDef,
    graph_input: str | None,
    graph_bottleneck: str | None,
    image_size_px: int | None,
    *,
    where: str,
) -> tuple[GraphDef, int, int]:
    """Cut a frozen graph to `pixels` uint8[?, S, S, 3] -> `bottleneck` float32[?, D].

    Args:
      graph_def: as it was found.
      graph_input: name of the image tensor [?, S, S, 3], or None to find it.
      graph_bottleneck: name of the bottleneck tensor, or None to find it.
      image_size_px: S where the graph leaves it open.
      where: the file, for messages.
    Returns:
      the graph, S and D.
    Raises:
      ValueError: a tensor is not there or not found, the batch is fixed, or the graph does more than compute.
    """
    source = _import(graph_def, where)
    image = _tensor(source, graph_input, where) if graph_input else _find_input(source, where)
    size_px = _image_size(image, image_size_px, where)
    image, scale, offset = _scaling(image)
    graph = tf.Graph()
    with graph.as_default():
        pixels = tf.compat.v1.placeholder(tf.uint8, [None, size_px, size_px, 3], "pixels")
        fed = tf.cast(pixels, image.dtype)
        if (scale, offset) != (1.0, 0.0):
            fed = fed * scale + offset
        try:
            tf.import_graph_def(graph_def, {image.name: fed}, name="graph")
        except ValueError as error:
            raise ValueError(f"cannot feed {size_px} px pictures to {image.name} ({first_line(error)}): {where}") from error
        bottleneck = _pooled(_named(graph, graph_bottleneck, where) or _find_bottleneck(graph, fed, where))
        width = bottleneck.shape[-1]
        tf.identity(tf.reshape(bottleneck, [-1, width or -1]), name="bottleneck")
    adapted = tf.compat.v1.graph_util.extract_sub_graph(graph.as_graph_def(), ["bottleneck"])
    if not any(node.name == "pixels" for node in adapted.node):
        raise ValueError(f"expected a bottleneck that depends on {image.name}, got {bottleneck.op.name}: {where}")
    _check_only_computes(adapted, where)
    return adapted, size_px, _probe(adapted, size_px, where)
