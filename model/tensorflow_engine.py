"""Runs a frozen graph with TensorFlow.

A session of the TensorFlow 1 kind, because it starts in half the time of a wrapped function (Inception-v3 on two
cores: 6 against 13 s to the first batch, as fast afterwards) and because each one has its own device and options.

Array suffixes: B the fixed batch, X the rest as the graph has it.
"""

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import rewriter_config_pb2

from bulktag.model.fixed_batch import FixedBatchEngine
from bulktag.model.graphs import GraphDef
from bulktag.model.hardware import describe_device, num_cores

_ON, _OFF = rewriter_config_pb2.RewriterConfig.ON, rewriter_config_pb2.RewriterConfig.OFF


class TensorFlowEngine(FixedBatchEngine):
    """A frozen graph in a session of its own.

    Args:
      graph_def: without variables, folded (`bulktag.model.folding`); its input is a placeholder with an open first
        axis.
      batch_size: B.
      device: "auto", "cpu" or "gpu".
      inputs: name of the input tensor, as a tuple of one.
      outputs: names of the tensors to compute.
      num_threads: CPU threads for one operation; 0: one for each core this process may use. TensorFlow shares its
        threads: the first engine of a process decides.
      precision: of the multiplications: "fp32", "bf16" (CPU) or "fp16" (GPU). Results are float32 in any case.
    Raises:
      ValueError: no such device, or the graph lacks one of the names.
    """

    def __init__(
        self,
        graph_def: GraphDef,
        batch_size: int,
        device: str = "auto",
        *,
        inputs: tuple[str, ...] = ("pixels",),
        outputs: tuple[str, ...] = ("bottleneck",),
        num_threads: int = 0,
        precision: str = "fp32",
    ):
        names = {node.name for node in graph_def.node}
        if unknown := [name for name in (*inputs, *outputs) if name not in names]:
            raise ValueError(f"expected a graph with {', '.join((*inputs, *outputs))}, it lacks {', '.join(unknown)}")
        (source,) = inputs
        self.device = describe_device(device)
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
        placeholder = graph.get_tensor_by_name(f"{source}:0")
        super().__init__(
            batch_size, source, placeholder.dtype.as_numpy_dtype, tuple(placeholder.shape[1:]),
            f"tensorflow, {precision}, {self.device}",
        )  # fmt: skip
        config = _session_config(self.device, precision, num_threads or num_cores())
        self._session = tf.compat.v1.Session(graph=graph, config=config)
        self._call = self._session.make_callable([f"{name}:0" for name in outputs], [f"{source}:0"])

    def _compute(self, rows_BX: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(self._call(rows_BX))

    def close(self) -> None:
        """Free the graph's memory."""
        self._session.close()


def _session_config(device: str, precision: str, num_threads: int) -> tf.compat.v1.ConfigProto:
    config = tf.compat.v1.ConfigProto()
    config.intra_op_parallelism_threads = num_threads
    rewrites = config.graph_options.rewrite_options
    if device == "CPU":
        config.device_count["GPU"] = 0
        if precision == "bf16":
            rewrites.auto_mixed_precision_onednn_bfloat16 = _ON
        # The graph is folded. These two would take out the biases of zero, and move activations away from their
        # convolutions, so that neither would be fused; without them the first batch also comes a second earlier.
        rewrites.constant_folding = rewrites.arithmetic_optimization = _OFF
    else:
        config.gpu_options.allow_growth = True  # several worker processes may share the GPU
        config.graph_options.optimizer_options.global_jit_level = tf.compat.v1.OptimizerOptions.ON_1
        if precision == "fp16":
            rewrites.auto_mixed_precision = _ON
    return config
