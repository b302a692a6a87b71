"""A model for other programs: one frozen graph, OpenVINO's files, or TensorFlow Lite's, all of pixels to scores.

Each takes uint8[B, S, S, 3], RGB, already brought to the square as the bundle's `preprocessing` says; the SavedModel in
the bundle takes encoded images instead.

Array suffixes: B images, S side of the network's square, C channels, L labels.
"""

import dataclasses
import pathlib
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from bulktag.model.bundle import Bundle
from bulktag.model.engine import Tagger
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.fixed_batch import FixedBatchEngine
from bulktag.model.graphs import GraphDef, chain
from bulktag.model.openvino_engine import OpenVinoEngine, load_openvino, read_graph
from bulktag.model.tensorflow_engine import TensorFlowEngine

INPUT, OUTPUT = "pixels", "scores"
# Other programs add and multiply in another order, in fp32 as well.
MAX_DIFFERENCE = 1e-3
CHECK_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How an export's scores compare with the bundle's own, in fp32.

    Attributes:
      num_images: compared.
      num_other_labels: images with another best label; ties within `max_difference` are none.
      max_difference: of any score.
    """

    num_images: int
    num_other_labels: int
    max_difference: float

    @property
    def is_enough(self) -> bool:
        """Whether the export may be used in place of the bundle."""
        return not self.num_other_labels and self.max_difference <= MAX_DIFFERENCE

    def __str__(self) -> str:
        return (
            f"{self.num_other_labels} of {self.num_images} images with another best label, scores within "
            f"{self.max_difference:.1e}"
        )


def build_tagger_graph(bundle: Bundle) -> GraphDef:
    """Backbone and head as one graph: placeholder `pixels` -> `scores`; `bottleneck` can be fetched too."""
    return chain(bundle.backbone_graph(), bundle.head_graph(), (INPUT, "bottleneck", OUTPUT))


def _export_frozen(graph_def: GraphDef, folder: pathlib.Path) -> str:
    (folder / "model.pb").write_bytes(graph_def.SerializeToString(deterministic=True))
    return "model.pb"


def _export_openvino(graph_def: GraphDef, folder: pathlib.Path) -> str:
    openvino = load_openvino()
    # Weights as they are: OpenVINO would store them in half precision.
    openvino.save_model(read_graph(openvino.Core(), graph_def), str(folder / "model.xml"), compress_to_fp16=False)
    return "model.xml"


def _export_tflite(graph_def: GraphDef, folder: pathlib.Path) -> str:
    function = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
    pruned = function.prune(function.graph.as_graph_element(f"{INPUT}:0"), {OUTPUT: f"{OUTPUT}:0"})
    converter = tf.lite.TFLiteConverter.from_concrete_functions([pruned], function)
    (folder / "model.tflite").write_bytes(converter.convert())
    return "model.tflite"


class TfLiteEngine(FixedBatchEngine):
    """A TensorFlow Lite model on this CPU.

    Args:
      path: of the file.
      batch_size: B.
    """

    def __init__(self, path: str, batch_size: int):
        with warnings.catch_warnings():
            # It moves to a package of its own, whose converter TensorFlow still is.
            warnings.filterwarnings("ignore", message=r"\s*Warning: tf\.lite\.Interpreter is deprecated")
            self._interpreter = tf.lite.Interpreter(model_path=path)
        (source,), (target,) = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._input_index, self._output_index = source["index"], target["index"]
        row_shape = tuple(int(side) for side in source["shape"][1:])
        self._interpreter.resize_tensor_input(self._input_index, [batch_size, *row_shape], strict=False)
        self._interpreter.allocate_tensors()
        super().__init__(batch_size, INPUT, source["dtype"], row_shape, "tensorflow lite, fp32, CPU")

    def _compute(self, rows_BX: np.ndarray) -> tuple[np.ndarray, ...]:
        self._interpreter.set_tensor(self._input_index, rows_BX)
        self._interpreter.invoke()
        return (self._interpreter.get_tensor(self._output_index),)

    def close(self) -> None:
        """Free the model's memory."""
        self._interpreter = None


@dataclasses.dataclass(frozen=True)
class Format:
    """One way out of a bundle.

    Attributes:
      write: puts the files into a folder and returns the name of the one to load.
      load: that file as an engine: uint8[n, S, S, 3] -> scores float32[n, L].
    """

    write: Callable[[GraphDef, pathlib.Path], str]
    load: Callable[[str], FixedBatchEngine]


def _load_frozen(path: str) -> FixedBatchEngine:
    graph_def = GraphDef.FromString(pathlib.Path(path).read_bytes())
    return TensorFlowEngine(graph_def, CHECK_BATCH, "cpu", outputs=(OUTPUT,))


FORMATS = {
    "frozen": Format(_export_frozen, _load_frozen),
    "openvino": Format(_export_openvino, lambda path: OpenVinoEngine(path, CHECK_BATCH, outputs=(OUTPUT,))),
    "tflite": Format(_export_tflite, lambda path: TfLiteEngine(path, CHECK_BATCH)),
}


def export_and_compare(bundle: Bundle, name: str, folder: str, pixels_NSSC: np.ndarray) -> tuple[str, Agreement]:
    """Write one format, load it again from its file, and compare its scores with the bundle's.

    Args:
      bundle: the model.
      name: a key of `FORMATS`.
      folder: where the files go; made if missing.
      pixels_NSSC: uint8, images at the network's size to compare with.
    Returns:
      the file to load, and the comparison.
    """
    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    file = FORMATS[name].write(build_tagger_graph(bundle), target)
    engine = FORMATS[name].load(str(target / file))
    reference = Tagger(
        bundle.backbone_graph(), bundle.head_graph(), EngineSettings(CHECK_BATCH, "cpu", "tensorflow", "fp32")
    )
    wanted, got = [], []
    for start in range(0, len(pixels_NSSC), CHECK_BATCH):
        part = pixels_NSSC[start : start + CHECK_BATCH]
        wanted.append(reference.run(part)[1])
        got.append(np.array(engine.run(part)))
    engine.close()
    return file, compare_scores(np.concatenate(wanted), np.concatenate(got))


def compare_scores(wanted_NL: np.ndarray, got_NL: np.ndarray) -> Agreement:
    """Compare scores of the same images, float32[N, L] each."""
    difference = float(np.abs(wanted_NL - got_NL).max()) if wanted_NL.size else 0.0
    rows = np.arange(len(wanted_NL))
    # What the export likes best, by the bundle's scores: no worse than the bundle's best, up to rounding.
    lost_N = wanted_NL.max(axis=1) - wanted_NL[rows, got_NL.argmax(axis=1)]
    others = int((lost_N > min(difference, MAX_DIFFERENCE)).sum()) if np.isfinite(got_NL).all() else len(rows)
    return Agreement(len(rows), others, difference)
