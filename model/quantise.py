"""Rounds a network to 8-bit integers for OpenVINO, and says how well the result agrees with the network.

Array suffixes: N sampled images, S side of the network's square, C channels, D bottleneck width, L labels.
"""

import contextlib
import dataclasses
import os
import pathlib

import numpy as np

from bulktag.model.engine import build_head_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.graphs import GraphDef
from bulktag.model.openvino_engine import OpenVinoEngine, load_openvino, read_graph
from bulktag.model.tensorflow_engine import TensorFlowEngine

# What any engine must reach beside fp32 on every sampled image, and over all of them.
MIN_COSINE, MIN_SAME_TOP_LABEL = 0.995, 0.99
# Images from which NNCF reads the ranges of activations. Source: its default `subset_size`.
CALIBRATION_IMAGES = 300
CHECK_IMAGES = 100
MIN_IMAGES = 64
MODEL_FILE = "int8.xml"


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How an engine's results compare with those of fp32 on images that it was not calibrated with.

    Attributes:
      num_images: compared.
      min_cosine: of any image's two bottlenecks.
      same_top_label: share of images with the same best label; None where there is no head.
    """

    num_images: int
    min_cosine: float
    same_top_label: float | None

    @property
    def is_enough(self) -> bool:
        """Whether it reaches the bars."""
        same = 1.0 if self.same_top_label is None else self.same_top_label
        return self.min_cosine >= MIN_COSINE and same >= MIN_SAME_TOP_LABEL

    def __str__(self) -> str:
        labels = "" if self.same_top_label is None else f", the same top label on {self.same_top_label:.1%}"
        return f"bottleneck cosine at least {self.min_cosine:.4f}{labels} of {self.num_images} images"


def quantise(backbone_graph: GraphDef, pixels_NSSC: np.ndarray, folder: str) -> str:
    """Write an OpenVINO model whose convolutions multiply 8-bit integers.

    Args:
      backbone_graph: `Backbone.graph_def`.
      pixels_NSSC: uint8, images of the kind that it will see; ranges of activations are read off them.
      folder: local, exists.
    Returns:
      path of the `.xml` file; a `.bin` file of the same name lies beside it.
    Raises:
      ValueError: NNCF is not installed.
      UnsupportedGraph: OpenVINO cannot convert the network.
    """
    openvino = load_openvino()
    nncf = _load_nncf()
    network = read_graph(openvino.Core(), backbone_graph)
    network.reshape({network.input("pixels:0"): [-1, *pixels_NSSC.shape[1:]]})
    images = nncf.Dataset([pixels_NSSC[i : i + 1] for i in range(len(pixels_NSSC))])
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # its progress bars
        quantised = nncf.quantize(network, images, subset_size=len(pixels_NSSC))
    path = pathlib.Path(folder, MODEL_FILE)
    openvino.save_model(quantised, path, compress_to_fp16=False)
    return str(path)


def _load_nncf():
    os.environ.setdefault("NNCF_CI", "1")  # or it sends an event to its makers at every call
    try:
        import nncf
    except ImportError as error:
        raise ValueError("expected NNCF for precision int8, found none: pip install 'bulktag[openvino]'") from error
    import logging

    nncf.set_log_level(logging.ERROR)
    return nncf


def measure_agreement(
    backbone_graph: GraphDef, head_graph: GraphDef | None, path: str, pixels_NSSC: np.ndarray, batch_size: int
) -> Agreement:
    """Compare a quantised network with the network in fp32.

    Args:
      backbone_graph: `Backbone.graph_def`.
      head_graph: to compare labels as well.
      path: what `quantise` returned.
      pixels_NSSC: uint8, at least one image that `quantise` was not given.
      batch_size: of the engines.
    """
    engines = (
        TensorFlowEngine(backbone_graph, batch_size, "cpu"),
        OpenVinoEngine(path, batch_size, precision="int8"),
    )
    exact_ND, rounded_ND = (_run(engine, pixels_NSSC).astype(np.float64) for engine in engines)
    lengths_N = np.linalg.norm(exact_ND, axis=1) * np.linalg.norm(rounded_ND, axis=1)
    cosine_N = (exact_ND * rounded_ND).sum(axis=1) / np.maximum(lengths_N, np.finfo(np.float64).tiny)
    same = None
    if head_graph is not None:
        head = build_head_engine(head_graph, EngineSettings(batch_size, "cpu"))
        exact_N, rounded_N = (_run(head, a.astype(np.float32)).argmax(axis=1) for a in (exact_ND, rounded_ND))
        same = float((exact_N == rounded_N).mean())
    return Agreement(len(pixels_NSSC), float(cosine_N.min()), same)


def _run(engine, rows_NX: np.ndarray) -> np.ndarray:
    step = engine.batch_size
    return np.concatenate([engine.run(rows_NX[i : i + step]) for i in range(0, len(rows_NX), step)])
