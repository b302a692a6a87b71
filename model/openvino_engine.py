"""Runs a frozen graph with OpenVINO, an extra (`pip install 'bulktag[openvino]'`) for CPUs.

Array suffixes: B the fixed batch, X the rest as the graph has it.
"""

import importlib.util
import pathlib
import sys
import tempfile
import threading

import numpy as np

from bulktag.model.fixed_batch import FixedBatchEngine
from bulktag.model.graphs import GraphDef
from bulktag.model.hardware import num_cores

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


class UnsupportedGraph(ValueError):
    """OpenVINO cannot run this graph."""


def is_installed() -> bool:
    """Whether the extra is there; does not load it."""
    return importlib.util.find_spec("openvino") is not None


def load_openvino():
    """The module `openvino`, without its telemetry.

    OpenVINO sends an event to Google Analytics when it is imported, unless the package openvino_telemetry, which its
    wheel requires, cannot be.
    """
    sys.modules.setdefault("openvino_telemetry", None)
    import openvino

    return openvino


class OpenVinoEngine(FixedBatchEngine):
    """A frozen graph, compiled for this CPU.

    Args:
      model: a frozen TensorFlow graph, or the path of an OpenVINO model (`.xml`).
      batch_size: B.
      inputs: name of the input tensor, as a tuple of one.
      outputs: names of the tensors to compute.
      num_threads: CPU threads; 0: one for each core this process may use.
      precision: "fp32", "bf16", or "int8" for a model whose layers are quantised already.
    Raises:
      UnsupportedGraph: OpenVINO cannot convert or compile it.
    """

    def __init__(
        self,
        model: GraphDef | str,
        batch_size: int,
        *,
        inputs: tuple[str, ...] = ("pixels",),
        outputs: tuple[str, ...] = ("bottleneck",),
        num_threads: int = 0,
        precision: str = "fp32",
    ):
        core = load_openvino().Core()
        (source,) = inputs
        try:
            network = read_graph(core, model) if isinstance(model, GraphDef) else core.read_model(model)
            port = network.input(f"{source}:0")
            row_shape = tuple(side.get_length() for side in list(port.partial_shape)[1:])
            network.reshape({port: [batch_size, *row_shape]})
            settings = {
                "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
                "INFERENCE_NUM_THREADS": num_threads or num_cores(),
                "NUM_STREAMS": 1,  # the cores share one batch
                "ENABLE_CPU_PINNING": False,  # several processes would all be pinned to the same first cores
            }
            self._compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as error:
            raise UnsupportedGraph(f"OpenVINO cannot run the network: {str(error).strip().splitlines()[-1]}") from error
        self.device = "CPU"
        super().__init__(batch_size, source, port.element_type.to_dtype(), row_shape, f"openvino, {precision}, CPU")
        self._ports = [self._compiled.output(f"{name}:0") for name in outputs]
        self._local = threading.local()

    def _compute(self, rows_BX: np.ndarray) -> tuple[np.ndarray, ...]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        results = request.infer([np.ascontiguousarray(rows_BX)], share_inputs=True)
        return tuple(results[port] for port in self._ports)

    def close(self) -> None:
        """Free the graph's memory."""
        self._local, self._ports, self._compiled = threading.local(), [], None


def read_graph(core, graph_def: GraphDef):
    """A frozen graph as an `openvino.Model`. OpenVINO reads it from a file only."""
    with tempfile.TemporaryDirectory(prefix="bulktag-openvino-") as folder:
        path = pathlib.Path(folder, "graph.pb")
        path.write_bytes(graph_def.SerializeToString())
        return core.read_model(str(path))
