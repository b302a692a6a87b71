"""What this machine can do: its device, its cores, its processor's instructions."""

import functools
import pathlib

import joblib

from bulktag.model.engine_settings import DEVICES

# Instructions that multiply bfloat16 numbers, as Linux names them. Without one of them bfloat16 is emulated and slower
# than float32. Source: oneDNN, https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html
_BF16_FLAGS = ("avx512_bf16", "amx_bf16")
_CPU_INFO = pathlib.Path("/proc/cpuinfo")


def _gpu_name() -> str | None:
    import tensorflow as tf  # seconds, which `--help` need not wait for

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
    import tensorflow as tf

    described = describe_device(device)
    if device == "cpu" and tf.config.list_physical_devices("GPU"):
        tf.config.set_visible_devices([], "GPU")
    return described


def training_strategy():
    """How a training is shared out: each batch in equal parts over the GPUs that Keras may use, if there are several.

    Returns:
      a tf.distribute.Strategy.
    """
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else tf.distribute.get_strategy()


def num_cores() -> int:
    """Cores that this process may use, container limits included; TensorFlow alone would count the machine's."""
    return joblib.cpu_count()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """The processor's instruction sets as Linux names them; empty where it does not say."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.split(":", 1)[1] for line in lines if line.startswith("flags")), "").split())


def bf16_instructions() -> str | None:
    """The instruction set with which this processor computes in bfloat16, None where it has none."""
    return next((flag for flag in reversed(_BF16_FLAGS) if flag in cpu_flags()), None)
