"""Frozen graphs: Keras models and functions without variables, joined end to end.

Array suffixes: B images, S side of the network's square, C channels, D bottleneck width, L labels.
"""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

GraphDef = tf.compat.v1.GraphDef


def freeze(function: Callable, input_spec: tf.TensorSpec, output: str) -> GraphDef:
    """A function of one tensor as a graph of constants.

    Args:
      function: traced once; may use variables.
      input_spec: its argument; the spec's name becomes the placeholder's name.
      output: name of the tensor that it returns.
    """

    @tf.function(autograph=False)
    def named(tensor):
        return tf.identity(function(tensor), name=output)

    concrete = named.get_concrete_function(input_spec)
    frozen = convert_variables_to_constants_v2(concrete)
    graph_def = frozen.graph.as_graph_def()
    graph = tf.Graph()
    with graph.as_default():
        placeholder = tf.compat.v1.placeholder(input_spec.dtype, input_spec.shape, input_spec.name)
        (result,) = tf.import_graph_def(
            graph_def, {frozen.inputs[0].name: placeholder}, [frozen.outputs[0].name], name="net"
        )
        tf.identity(result, name=output)
    return graph.as_graph_def()


def chain(first: GraphDef, second: GraphDef, names: tuple[str, str, str]) -> GraphDef:
    """Two graphs as one.

    Args:
      first: from the tensor names[0] to names[1].
      second: from a placeholder names[1] to names[2].
      names: input, link and output; all three can be fetched from the result by these names.
    """
    source, link, output = names
    graph = tf.Graph()
    with graph.as_default():
        (linked,) = tf.import_graph_def(first, return_elements=[f"{link}:0"], name="")
        (result,) = tf.import_graph_def(second, {f"{link}:0": linked}, [f"{output}:0"], name="head")
        tf.identity(result, name=output)
    assert any(node.name == source for node in first.node)
    return graph.as_graph_def()


def prune(graph_def: GraphDef, output: str) -> GraphDef:
    """The part of a graph that a node needs; nodes keep their order and the graph its version.

    The version stays: TensorFlow refuses BatchNormWithGlobalNormalization (2015) in graphs from version 9 on.
    """
    inputs = {node.name: node.input for node in graph_def.node}
    needed, waiting = set(), [output]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [used.lstrip("^").split(":")[0] for used in inputs[name]]
    pruned = GraphDef(versions=graph_def.versions, library=graph_def.library)
    pruned.node.extend(node for node in graph_def.node if node.name in needed)
    return pruned
