"""How a network is to be executed, as words that need no library to be loaded."""

import dataclasses

DEVICES = ("auto", "cpu", "gpu")
ENGINES = ("auto", "tensorflow", "openvino")
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """How a network is executed in a worker.

    Attributes:
      batch_size: the engine's fixed batch; shorter batches are padded to it.
      device: "auto", "cpu" or "gpu"; "gpu" fails where there is none.
      engine: one of ENGINES; "auto" takes OpenVINO on a CPU where it is installed, because it was faster there on
        every network and precision measured, else TensorFlow.
      precision: one of PRECISIONS; "auto" takes fp16 on a GPU, bf16 on a CPU with instructions for it, else fp32.
      quantised: for int8, the folder with what `bulktag.model.quantise` wrote.
      model_copies: most copies of the model on one machine, shared by its worker processes through sockets; 0: one for
        all processes on a GPU, one a process on a CPU.
      num_threads: CPU threads of each copy; 0: one for each core.
    """

    batch_size: int = 32
    device: str = "auto"
    engine: str = "auto"
    precision: str = "auto"
    quantised: str = ""
    model_copies: int = 0
    num_threads: int = 0
