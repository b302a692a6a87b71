"""Runs a frozen graph on this machine's hardware: one fixed batch size, one session, float32.

A session of the TensorFlow 1 kind, because it starts in half the time of a wrapped function (Inception-v3 on two
cores: 6 against 13 s to the first batch, as fast afterwards) and because each one has its own device and options.

Array suffixes: B the fixed batch, n images given (n <= B), the rest as the graph has it.
"""

import joblib
import numpy as np
import tensorflow as tf

DEVICES = ("auto", "cpu", "gpu")


def _gpu_name() -> str | None:
    gpus = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "unnamed") if gpus else None


def describe_device(device: str = "auto") -> str:
    """What a choice of device means on this machine: "CPU", or "GPU: " with its name.

    Args:
      device: "auto" takes a GPU where there is one.
    Raises:
      ValueError: another word, or "gpu" where TensorFlow finds none.
    """
    if device not in DEVICES:
        raise ValueError(f"expected device auto, cpu or gpu, got {device!r}")
    gpu_name = None if device == "cpu" else _gpu_name()
    if device == "gpu" and gpu_name is None:
        raise ValueError("expected a GPU that TensorFlow can use, found none: device='gpu'")
    return f"GPU: {gpu_name}" if gpu_name else "CPU"


def choose_training_device(device: str = "auto") -> str:
    """Have Keras in this process use a device; returns what `describe_device` says of it.

    Raises:
      ValueError: see `describe_device`.
    """
    described = describe_device(device)
    if device == "cpu" and tf.config.list_physical_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    return described


class Engine:
    """A frozen graph, ready to run.

    Args:
      graph_def: without variables; its input is a placeholder with an open first axis.
      batch_size: B; every call computes exactly B rows, so nothing is traced or planned a second time.
      device: "auto", "cpu" or "gpu".
      inputs: name of the input tensor, as a tuple of one.
      outputs: names of the tensors to compute.
      num_threads: CPU threads for one operation; None: one for each core this process may use, container limits
        included. TensorFlow shares its threads: the first engine of a process decides.
    Raises:
      ValueError: no such device, or the graph lacks one of the names.
    """

    def __init__(
        self,
        graph_def: tf.compat.v1.GraphDef,
        batch_size: int,
        device: str = "auto",
        *,
        inputs: tuple[str, ...] = ("pixels",),
        outputs: tuple[str, ...] = ("bottleneck",),
        num_threads: int | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        names = {node.name for node in graph_def.node}
        if unknown := [name for name in (*inputs, *outputs) if name not in names]:
            raise ValueError(f"expected a graph with {', '.join((*inputs, *outputs))}, it lacks {', '.join(unknown)}")
        (self._input,) = inputs
        self.batch_size = batch_size
        self.device = describe_device(device)
        graph = tf.Graph()
        with graph.as_default():
            tf.import_graph_def(graph_def, name="")
        placeholder = graph.get_tensor_by_name(f"{self._input}:0")
        self._dtype, self._row_shape = placeholder.dtype.as_numpy_dtype, tuple(placeholder.shape[1:])
        self._session = tf.compat.v1.Session(graph=graph, config=_session_config(self.device, num_threads))
        self._call = self._session.make_callable([f"{name}:0" for name in outputs], [f"{self._input}:0"])

    def run(self, rows_nX: np.ndarray) -> np.ndarray | tuple[np.ndarray, ...]:
        """Compute the outputs for up to B rows. Threads may call it at the same time.

        Args:
          rows_nX: such as uint8[n, S, S, 3] pixels or float32[n, D] bottlenecks.
        Returns:
          float32[n, ...]; with several outputs a tuple in their order.
        Raises:
          ValueError: another dtype or shape, or more than B rows.
        """
        num_rows = self._check(rows_nX)
        if num_rows < self.batch_size:
            padded = np.zeros((self.batch_size, *rows_nX.shape[1:]), self._dtype)
            padded[:num_rows] = rows_nX
            rows_nX = padded
        results = tuple(result[:num_rows] for result in self._call(rows_nX))
        return results[0] if len(results) == 1 else results

    def close(self) -> None:
        """Free the graph's memory."""
        self._session.close()

    def _check(self, rows_nX: np.ndarray) -> int:
        fits = rows_nX.dtype == self._dtype and rows_nX.ndim == 1 + len(self._row_shape)
        fits = fits and all(want in (None, got) for want, got in zip(self._row_shape, rows_nX.shape[1:], strict=True))
        if not fits or len(rows_nX) > self.batch_size:
            want = ", ".join("?" if side is None else str(side) for side in self._row_shape)
            raise ValueError(
                f"expected {np.dtype(self._dtype).name}[n <= {self.batch_size}, {want}], "
                f"got {rows_nX.dtype.name}{list(rows_nX.shape)}: {self._input}"
            )
        return len(rows_nX)


def _session_config(device: str, num_threads: int | None) -> tf.compat.v1.ConfigProto:
    config = tf.compat.v1.ConfigProto()
    # joblib knows the processor quota of a container, TensorFlow does not and would start a thread for each core.
    config.intra_op_parallelism_threads = num_threads or joblib.cpu_count()
    if device == "CPU":
        config.device_count["GPU"] = 0
    else:
        config.gpu_options.allow_growth = True  # several worker processes may share the GPU
    return config
