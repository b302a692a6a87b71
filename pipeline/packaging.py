"""bulktag as a wheel of its own, for workers that have none: made from what is installed, without a network."""

import base64
import hashlib
import importlib.metadata
import os
import pathlib
import zipfile

from packaging.requirements import Requirement

import bulktag
from bulktag import model, pipeline, transforms

NAME = "bulktag"
# What workers get by their container anyhow, or by TensorFlow's own form.
_TENSORFLOW = ("tensorflow", "tensorflow-cpu")
_PACKAGES = {"bulktag": bulktag, "bulktag/model": model, "bulktag/transforms": transforms, "bulktag/pipeline": pipeline}
_WHEEL = "Wheel-Version: 1.0\nGenerator: bulktag\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(folder: str) -> str:
    """Write the wheel of the bulktag that is running.

    Source: https://packaging.python.org/specifications/binary-distribution-format/

    Args:
      folder: where.
    Returns:
      its path.
    """
    info = f"{NAME}-{bulktag.__version__}.dist-info"
    contents = {}
    for target, package in _PACKAGES.items():
        root = pathlib.Path(next(iter(package.__path__)))
        for path in sorted(root.rglob("*")):
            inside = path.relative_to(root)
            if path.is_file() and "__pycache__" not in inside.parts and not _is_other_package(target, inside):
                contents[f"{target}/{inside.as_posix()}"] = path.read_bytes()
    contents[f"{info}/METADATA"] = _metadata().encode()
    contents[f"{info}/WHEEL"] = _WHEEL.encode()
    contents[f"{info}/entry_points.txt"] = b"[console_scripts]\nbulktag = bulktag.pipeline.cli:main\n"
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in contents.items()]
    contents[f"{info}/RECORD"] = ("\n".join([*record, f"{info}/RECORD,,"]) + "\n").encode()
    path = os.path.join(folder, f"{NAME}-{bulktag.__version__}-py3-none-any.whl")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents.items():
            # One time for all: the same bulktag is the same wheel, which stores that compare digests do not take twice.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED)
    return path


def _is_other_package(target: str, inside: pathlib.Path) -> bool:
    """Where bulktag is installed, its three folders lie below its own."""
    return target == "bulktag" and inside.parts[0] in ("model", "transforms", "pipeline")


def _metadata() -> str:
    requires = "".join(f"Requires-Dist: {line}\n" for line in _requirements())
    return f"Metadata-Version: 2.1\nName: {NAME}\nVersion: {bulktag.__version__}\n{requires}"


def _requirements() -> list[str]:
    return [line for line in importlib.metadata.requires(NAME) or [] if "extra ==" not in line]


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def pin_requirements(folder: str) -> str:
    """Write a requirements file: all that bulktag stands on, in the versions of this environment.

    Returns:
      its path.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(line) for line in [*_requirements(), "apache-beam[gcp]", *_TENSORFLOW]]
    while waiting:
        requirement = waiting.pop()
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            continue  # the other form of TensorFlow, or an extra that nobody installed
        name = requirement.name.lower().replace("_", "-")
        if name in found and not requirement.extras:
            continue
        found[name] = distribution.version
        for line in distribution.requires or []:
            needed = Requirement(line)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    path = os.path.join(folder, "requirements.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(f"{name}=={version}\n" for name, version in sorted(found.items()))
    return path
