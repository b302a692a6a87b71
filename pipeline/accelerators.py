"""GPUs of Dataflow's workers: how they are asked for, and which machines take which.

Sources: https://cloud.google.com/dataflow/docs/gpu/use-gpus and https://cloud.google.com/compute/docs/gpus
"""

import dataclasses
import re

from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions, WorkerOptions

EXAMPLE = "worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"

# Machines to which GPUs are attached, and machines that come with a fixed number of them.
ATTACHABLE = ("nvidia-tesla-t4", "nvidia-tesla-p4", "nvidia-tesla-p100", "nvidia-tesla-v100")
BUILT_IN = {
    **{f"g2-standard-{cpus}": ("nvidia-l4", 1) for cpus in (4, 8, 12, 16, 32)},
    "g2-standard-24": ("nvidia-l4", 2),
    "g2-standard-48": ("nvidia-l4", 4),
    "g2-standard-96": ("nvidia-l4", 8),
    **{f"a2-highgpu-{count}g": ("nvidia-tesla-a100", count) for count in (1, 2, 4, 8)},
    "a2-megagpu-16g": ("nvidia-tesla-a100", 16),
    **{f"a2-ultragpu-{count}g": ("nvidia-a100-80gb", count) for count in (1, 2, 4, 8)},
    **{f"a3-highgpu-{count}g": ("nvidia-h100-80gb", count) for count in (1, 2, 4, 8)},
    "a3-megagpu-8g": ("nvidia-h100-mega-80gb", 8),
}
_GPU_FAMILIES = ("g2-", "a2-", "a3-")


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """GPUs of one worker.

    Attributes:
      type: Google's name, such as nvidia-l4.
      count: of one machine.
      driver: Dataflow installs Nvidia's driver.
      option: the option that asked for it.
    """

    type: str
    count: int
    driver: bool
    option: str


def _asked(options: PipelineOptions) -> list[tuple[str, str]]:
    """(option, text) of each place that asks for GPUs."""
    services = options.view_as(GoogleCloudOptions).dataflow_service_options or []
    hints = options.view_as(StandardOptions).resource_hints or []
    prefix = "worker_accelerator="
    found = [("--dataflow_service_options", text[len(prefix) :]) for text in services if text.startswith(prefix)]
    return found + [("--resource_hints", text.split("=", 1)[1]) for text in hints if text.startswith("accelerator=")]


def find(options: PipelineOptions) -> Accelerator | None:
    """The GPUs that a job's options ask for.

    Raises:
      ValueError: they ask in two places, or not in Dataflow's form.
    """
    asked = _asked(options)
    if len(asked) > 1:
        raise ValueError(
            "expected accelerators in one place, got them in "
            f"{' and in '.join(option for option, _ in asked)}: Dataflow takes worker_accelerator for all steps, or "
            "resource hints for some"
        )
    if not asked:
        return None
    option, text = asked[0]
    fields = dict(part.partition(":")[::2] for part in text.strip("\"'").split(";"))
    count = fields.get("count", "")
    if not re.fullmatch(r"[a-z0-9-]+", fields.get("type", "")) or not count.isdigit() or int(count) < 1:
        raise ValueError(f"expected {EXAMPLE} in {option}, got {text!r}")
    if unknown := set(fields) - {"type", "count", "install-nvidia-driver"}:
        raise ValueError(f"expected type, count and install-nvidia-driver in {option}, got {sorted(unknown)[0]!r}")
    return Accelerator(fields["type"], int(count), "install-nvidia-driver" in fields, option)


def check(options: PipelineOptions) -> None:
    """Whether GPUs and machines go together.

    Raises:
      ValueError: they do not.
    """
    gpu, machine = find(options), options.view_as(WorkerOptions).machine_type or ""
    if gpu is None:
        if machine.startswith(_GPU_FAMILIES):
            raise ValueError(f"expected an accelerator with --machine_type {machine}, whose GPUs are paid for, got "
                             f"none: --dataflow_service_options={EXAMPLE}")  # fmt: skip
        return
    if not gpu.driver:
        raise ValueError(f"expected install-nvidia-driver in {gpu.option}, got none: the GPUs could not be used")
    if machine in BUILT_IN:
        kind, count = BUILT_IN[machine]
        if (gpu.type, gpu.count) != (kind, count):
            raise ValueError(f"expected type:{kind};count:{count} with --machine_type {machine}, got "
                             f"type:{gpu.type};count:{gpu.count}")  # fmt: skip
    elif machine.startswith(_GPU_FAMILIES):
        raise ValueError(f"expected a machine type of {', '.join(sorted(BUILT_IN))}, got {machine!r}")
    elif gpu.type in ATTACHABLE:
        if machine and not machine.startswith(("n1-", "custom-")):
            raise ValueError(f"expected a machine of family n1 with {gpu.type}, got --machine_type {machine}")
        if gpu.count not in (1, 2, 4, 8):
            raise ValueError(f"expected 1, 2, 4 or 8 of {gpu.type}, got {gpu.count}")
    else:
        fitting = sorted(name for name, found in BUILT_IN.items() if found == (gpu.type, gpu.count))
        wanted = f"one of {', '.join(fitting)}" if fitting else "a GPU that Dataflow has"
        raise ValueError(f"expected {wanted} for type:{gpu.type};count:{gpu.count}, got --machine_type {machine!r}")
