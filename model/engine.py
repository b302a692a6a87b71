"""Which engine runs a network on this machine, in which precision, and how a whole tagger is put together.

Measured on two cores of an AMD Zen 5 with AVX512-BF16, images/s of the engine alone, batch 32: Inception-v3 in
TensorFlow 35 in fp32 and 70 in bf16, in OpenVINO 37 and 73; MobileNetV2 324 and 547, 362 and 663. `make bench` prints
them for any other machine.

Array suffixes: n images, S side of the network's square, C channels, D bottleneck width, L labels.
"""

import dataclasses
import pathlib

import numpy as np

from bulktag.model import openvino_engine
from bulktag.model.engine_settings import ENGINES, PRECISIONS, EngineSettings
from bulktag.model.fixed_batch import FixedBatchEngine
from bulktag.model.graphs import GraphDef
from bulktag.model.hardware import bf16_instructions, describe_device
from bulktag.model.openvino_engine import OpenVinoEngine, UnsupportedGraph
from bulktag.model.tensorflow_engine import TensorFlowEngine

# What reduced precision speeds up.
_MULTIPLYING = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "BatchMatMulV2", "Einsum")


@dataclasses.dataclass(frozen=True)
class EngineChoice:
    """What settings mean on this machine: an engine and a precision, neither of them "auto"."""

    engine: str
    precision: str
    device: str  # as `describe_device` says it

    def __str__(self) -> str:
        return f"{self.engine}, {self.precision}, {self.device}"


def choose_engine(settings: EngineSettings) -> EngineChoice:
    """The engine and precision that settings mean on this machine.

    Raises:
      ValueError: an unknown word, an engine that is not installed, or a precision that engine or machine lack.
    """
    for name, words in (("engine", ENGINES), ("precision", PRECISIONS)):
        if getattr(settings, name) not in words:
            raise ValueError(f"expected {name} {', '.join(words)}, got {getattr(settings, name)!r}")
    asks_openvino = settings.engine == "openvino" or (settings.engine == "auto" and settings.precision == "int8")
    device = "CPU" if asks_openvino and settings.device == "auto" else describe_device(settings.device)
    if asks_openvino and device != "CPU":
        raise ValueError(f"expected device cpu for engine openvino, got device {settings.device!r}")
    if asks_openvino and not openvino_engine.is_installed():
        raise ValueError("expected OpenVINO for this engine or precision, found none: pip install 'bulktag[openvino]'")
    engine = settings.engine
    if engine == "auto":
        engine = "openvino" if device == "CPU" and openvino_engine.is_installed() else "tensorflow"
    choice = EngineChoice(engine, _choose_precision(settings.precision, device), device)
    _check_precision(choice)
    return choice


def _choose_precision(precision: str, device: str) -> str:
    if precision != "auto":
        return precision
    if device != "CPU":
        return "fp16"
    return "bf16" if bf16_instructions() else "fp32"


def _check_precision(choice: EngineChoice) -> None:
    on_gpu = choice.device != "CPU"
    possible = {"fp32", "fp16"} if on_gpu else {"fp32", "bf16"}
    if choice.engine == "openvino":
        possible.add("int8")
    if choice.precision not in possible:
        raise ValueError(
            f"expected precision {' or '.join(sorted(possible))} for {choice.engine} on {choice.device}, "
            f"got {choice.precision!r}"
        )
    if choice.precision == "bf16" and not bf16_instructions():
        raise ValueError("expected a processor with AVX512-BF16 or AMX for precision bf16, this one has neither")


def build_backbone_engine(graph_def: GraphDef, settings: EngineSettings) -> FixedBatchEngine:
    """A network ready to run: uint8[n, S, S, 3] -> bottlenecks float32[n, D].

    Args:
      graph_def: `Backbone.graph_def`.
      settings: how; where "auto" chose OpenVINO and it cannot run this graph, TensorFlow does.
    Raises:
      ValueError: see `choose_engine`; or the engine asked for cannot run this graph.
    """
    choice = choose_engine(settings)
    if not any(node.op in _MULTIPLYING for node in graph_def.node):  # nothing to gain, digits to lose
        return _tensorflow(graph_def, settings)
    if choice.engine == "openvino":
        model = graph_def
        if choice.precision == "int8":
            if not settings.quantised:
                raise ValueError("expected a quantised network for precision int8, got none")
            model = str(pathlib.Path(settings.quantised, "int8.xml"))
        try:
            return OpenVinoEngine(
                model, settings.batch_size, precision=choice.precision, num_threads=settings.num_threads
            )
        except UnsupportedGraph:
            if settings.engine != "auto" or choice.precision == "int8":
                raise
    return _tensorflow(graph_def, settings, precision=choice.precision)


def build_head_engine(graph_def: GraphDef, settings: EngineSettings) -> FixedBatchEngine:
    """A head ready to run, always in fp32: bottlenecks float32[n, D] -> scores float32[n, L].

    A head is a hundredth of a network's work, and so an image has the same scores whether its bottleneck was computed
    a moment ago or was stored.
    """
    return _tensorflow(graph_def, settings, inputs=("bottleneck",), outputs=("scores",))


def _tensorflow(graph_def: GraphDef, settings: EngineSettings, **options) -> TensorFlowEngine:
    return TensorFlowEngine(
        graph_def, settings.batch_size, settings.device, num_threads=settings.num_threads, **options
    )


class Tagger:
    """A network and a head: pixels -> bottlenecks and scores."""

    def __init__(self, backbone_graph: GraphDef, head_graph: GraphDef, settings: EngineSettings):
        self._backbone = build_backbone_engine(backbone_graph, settings)
        self._head = build_head_engine(head_graph, settings)

    def describe(self) -> str:
        """Engine, precision and device of the network, as a user reads them."""
        return self._backbone.describe()

    def run(self, pixels_nSSC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute bottlenecks float32[n, D] and scores float32[n, L] for up to a batch of uint8[n, S, S, 3].

        Raises:
          ValueError: another dtype or shape, or more than a batch of rows.
        """
        bottleneck_nD = self._backbone.run(pixels_nSSC)
        return bottleneck_nD, self._head.run(bottleneck_nD)
