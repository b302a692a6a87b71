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
from bulktag.model.graphs import GraphDef, prune

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
_HARMLESS_STATEFUL = ("CheckNumerics",)
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
            raise ValueError(
                f"cannot feed {size_px} px pictures to {image.name} ({first_line(error)}): {where}"
            ) from error
        if graph_bottleneck:
            bottleneck = _pooled(_tensor(graph, graph_bottleneck, where, "graph/"))
        else:
            bottleneck = _pooled(_find_bottleneck(graph, fed, where))
        width = int(np.prod(bottleneck.shape[1:])) if None not in bottleneck.shape[1:] else None
        if not width or not bottleneck.dtype.is_floating:
            raise ValueError(
                f"expected a bottleneck float[?, D], got {bottleneck.dtype.name}{bottleneck.shape}: {where}"
            )
        tf.identity(tf.cast(tf.reshape(bottleneck, [-1, width]), tf.float32), name="bottleneck")
    adapted = prune(graph.as_graph_def(), "bottleneck")
    if not any(node.name == "pixels" for node in adapted.node):
        raise ValueError(f"expected a bottleneck that depends on {image.name}, got {bottleneck.op.name}: {where}")
    _check_only_computes(adapted, where)
    _probe(adapted, size_px, width, where)
    return adapted, size_px, width


def _import(graph_def: GraphDef, where: str) -> tf.Graph:
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"TensorFlow {tf.__version__} cannot load the graph ({first_line(error)}): {where}") from error
    return graph


def _tensor(graph: tf.Graph, name: str, where: str, prefix: str = "") -> tf.Tensor:
    full_name = prefix + (name if ":" in name else f"{name}:0")
    try:
        return graph.get_tensor_by_name(full_name)
    except (KeyError, ValueError) as error:
        raise ValueError(f"expected a tensor of the graph, got {name!r}: {where}") from error


def _find_input(graph: tf.Graph, where: str) -> tf.Tensor:
    """The known name that is there, else the only placeholder of pictures."""
    operations = {operation.name: operation for operation in graph.get_operations()}
    for name in _KNOWN_INPUTS:
        operation = operations.get(name.partition(":")[0])
        if operation is not None and _is_picture(operation.outputs[0]):
            return operation.outputs[0]
    found = [op.outputs[0] for op in operations.values() if op.type == "Placeholder" and _is_picture(op.outputs[0])]
    if len(found) != 1:
        names = ", ".join(tensor.name for tensor in found) or "none"
        raise ValueError(f"expected the name of the image tensor (graph_input), candidates: {names}: {where}")
    return found[0]


def _is_picture(tensor: tf.Tensor) -> bool:
    return tensor.dtype.is_numpy_compatible and tensor.shape.rank in (None, 4) and _last(tensor) in (None, 3)


def _last(tensor: tf.Tensor) -> int | None:
    return tensor.shape[-1] if tensor.shape.rank else None


def _image_size(image: tf.Tensor, image_size_px: int | None, where: str) -> int:
    height, width = image.shape[1:3] if image.shape.rank == 4 else (None, None)
    if height is None or width is None:
        if not image_size_px:
            raise ValueError(f"expected an image size, the graph leaves it open at {image.name}: {where}")
        return image_size_px
    if height != width or image_size_px not in (None, height):
        raise ValueError(f"expected the graph's image size {height} x {width}, got {image_size_px} px: {where}")
    return height


def _constant_operand(operation: tf.Operation) -> tuple[int, np.ndarray] | None:
    """Position and value of the constant in `x + c`, `c - x` and the like."""
    if operation.type not in _AFFINE:
        return None
    for position, tensor in enumerate(operation.inputs):
        while tensor.op.type == "Identity":
            tensor = tensor.op.inputs[0]
        if tensor.op.type == "Const":
            return position, tf.make_ndarray(tensor.op.get_attr("value"))
    return None


def _scaling(image: tf.Tensor) -> tuple[tf.Tensor, float, float]:
    """Where to feed, and the scale and offset that bring pixels of 0..255 to what the graph expects there."""
    if image.dtype == tf.uint8:
        return image, 1.0, 0.0
    while (constant := _constant_operand(image.op)) is not None:
        image = image.op.inputs[1 - constant[0]]  # the graph's own scaling shall do its work
    slope = _slope(image)
    if slope is None:
        # The graph scales nothing. retrain.py gave Inception at Mul (x - 128) / 128 and MobileNet (x - 127.5) / 127.5.
        middle = 128.0 if image.name == "Mul:0" else 127.5
        return image, 1 / middle, -1.0
    # Whatever a graph makes of pixels, it does not spread them wider than they are: then it wants them in [0, 1].
    return image, (1.0 if slope <= 1.0 else 1 / 255), 0.0


def _slope(image: tf.Tensor) -> float | None:
    """Factor by which the arithmetic next to the image tensor spreads the pixels; None if there is none."""
    slope, found = np.float64(1.0), False
    tensor = image
    while len(tensor.consumers()) == 1 and (constant := _constant_operand(tensor.consumers()[0])) is not None:
        operation, found = tensor.consumers()[0], True
        if operation.type == "Mul":
            slope = slope * constant[1]
        elif operation.type == "RealDiv":
            slope = slope / constant[1]
        tensor = operation.outputs[0]
    return float(np.abs(slope).max()) if found else None


def _pooled(tensor: tf.Tensor) -> tf.Tensor:
    """The bottleneck before reshapes, which may hold a fixed batch; a map of features is averaged."""
    if tensor.shape.rank == 4 and tuple(tensor.shape[1:3]) != (1, 1):
        return tf.reduce_mean(tensor, [1, 2])
    before = tensor
    while before.op.type in _RESHAPES:
        before = before.op.inputs[0]
        if before.shape.rank == 4 and tuple(before.shape[1:3]) == (1, 1):
            return before
    return before if before.shape.rank == 2 else tensor


def _descendants(operation: tf.Operation) -> set[tf.Operation]:
    seen, waiting = set(), [operation]
    while waiting:
        for output in waiting.pop().outputs:
            fresh = set(output.consumers()) - seen
            seen |= fresh
            waiting.extend(fresh)
    return seen


def _is_global_pool(operation: tf.Operation) -> bool:
    if operation.type not in _POOLS or operation.inputs[0].shape.rank != 4:
        return False
    if operation.type == "Mean":
        axes = operation.inputs[1].op
        return axes.type == "Const" and sorted(tf.make_ndarray(axes.get_attr("value")).ravel() % 4) == [1, 2]
    before, after = operation.inputs[0].shape[1:3], operation.outputs[0].shape[1:3]
    return tuple(after) == (1, 1) and tuple(before) != (1, 1)


def _find_bottleneck(graph: tf.Graph, fed: tf.Tensor, where: str) -> tf.Tensor:
    """The known name that is there, else the last global pool."""
    below = _descendants(fed.op)
    known = {f"graph/{name}" for name in _KNOWN_BOTTLENECKS}
    for operation in below:
        if operation.outputs and operation.outputs[0].name in known:
            return operation.outputs[0]
    pools = [operation for operation in below if _is_global_pool(operation)]
    last = [pool for pool in pools if not _descendants(pool) & set(pools)]
    if len(last) != 1:
        # Without one clear pool, what the matrix products work on are the candidates.
        products = [operation.inputs[0] for operation in below if operation.type == "MatMul"]
        candidates = [pool.outputs[0] for pool in last] + [tensor for tensor in products if tensor.op in below]
        names = ", ".join(sorted({tensor.name.removeprefix("graph/") for tensor in candidates})) or "none"
        raise ValueError(f"expected the name of the bottleneck tensor (graph_bottleneck), candidates: {names}: {where}")
    return _output_without_classifier(last[0])


def _output_without_classifier(pool: tf.Operation) -> tf.Tensor:
    """The pool, or the graph's own output where nothing after the pool classifies (ConvNeXt normalises there)."""
    below = _descendants(pool)
    ends = [operation for operation in below if not any(output.consumers() for output in operation.outputs)]
    classifies = any(operation.type in (*_CLASSIFYING, "Softmax", "Sigmoid") for operation in below)
    return pool.outputs[0] if classifies or len(ends) != 1 else ends[0].outputs[0]


def _check_only_computes(graph_def: GraphDef, where: str) -> None:
    """Refuse operations that keep state, read or write files or run code: a graph is a program."""
    functions = {function.signature.name for function in graph_def.library.function}
    nodes = [*graph_def.node, *(node for function in graph_def.library.function for node in function.node_def)]
    forbidden = (tf.string.as_datatype_enum, tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    for node in nodes:
        if node.op in functions:
            continue
        definition = op_def_registry.get(node.op)
        if "Variable" in node.op or node.op == "VarHandleOp":
            raise ValueError(f"expected a frozen graph, got one with variables ({node.name}): {where}")
        types = [argument.type for argument in (*definition.input_arg, *definition.output_arg)] if definition else []
        types += [value.type for value in node.attr.values()]
        stateful = definition is None or (definition.is_stateful and node.op not in _HARMLESS_STATEFUL)
        if stateful or set(types) & set(forbidden):
            raise ValueError(f"expected a graph that only computes, got operation {node.op} ({node.name}): {where}")


def _probe(graph_def: GraphDef, size_px: int, width: int, where: str) -> None:
    """Run three pictures through, to see that the batch is free."""
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (3, size_px, size_px, 3), np.uint8)
    with tf.compat.v1.Session(graph=_import(graph_def, where)) as session:
        try:
            bottleneck_BD = session.run("bottleneck:0", {"pixels:0": pixels_BHWC})
        except tf.errors.OpError as error:
            raise ValueError(f"the graph does not run on 3 pictures at once ({first_line(error)}): {where}") from error
    if bottleneck_BD.shape != (3, width) or not np.isfinite(bottleneck_BD).all():
        raise ValueError(
            f"expected finite float32[3, {width}] for 3 pictures, got {list(bottleneck_BD.shape)} "
            f"(is a batch built into the graph?): {where}"
        )
