"""The engine of a job, chosen by the launcher; for int8 from a sample of the job's own images."""

import dataclasses
import itertools
import pathlib
import tempfile

import numpy as np

from bulktag.model.backbone import BackboneSpec
from bulktag.model.engine import choose_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.graphs import GraphDef
from bulktag.model.openvino_engine import UnsupportedGraph
from bulktag.model.quantise import (
    CALIBRATION_IMAGES,
    CHECK_IMAGES,
    MIN_IMAGES,
    measure_agreement,
    quantise,
)
from bulktag.pipeline.console import say, warn, working
from bulktag.transforms import files
from bulktag.transforms.loading import BatchLoader, LoadSettings
from bulktag.transforms.matching import find_images
from bulktag.transforms.records import ImageInfo, ImageRef
from bulktag.transforms.sources import Source


def describe_engine_device(settings: EngineSettings, here: bool) -> str:
    """The device alone; see `describe_engine`."""
    return choose_engine(settings).device if here else settings.device


def describe_engine(settings: EngineSettings, here: bool) -> str:
    """What runs the network, as a user reads it; on other machines each worker chooses for itself.

    Args:
      settings: as asked for.
      here: the workers are on this machine.
    Raises:
      ValueError: this machine has no such device, or a library is not installed.
    """
    return str(choose_engine(settings)) if here else f"{settings.engine}, {settings.precision}, {settings.device}"


def settle_precision(
    settings: EngineSettings, sources: tuple[Source, ...], load: LoadSettings, backbone: tuple[BackboneSpec, GraphDef],
    head_graph: GraphDef | None, folder: str,
) -> tuple[EngineSettings, str]:  # fmt: skip
    """Settings that workers can follow; only int8 needs anything done.

    The network is rounded with images of the job, and compared with fp32 on others. Where it does not agree well
    enough, or there are too few images, the job goes on with the best other precision, and says so.

    Args:
      settings: as asked for.
      sources: the job's input.
      load: how its images are loaded.
      backbone: what it is, and its graph.
      head_graph: to compare labels as well.
      folder: new folder, which workers can read, for the rounded network.
    Returns:
      the settings, and what came of the comparison ("" where none was made).
    """
    if settings.precision != "int8":
        return settings, ""
    spec, graph_def = backbone
    with working("rounding the network to int8"):
        pixels_NSSC = sample_pixels(sources, load, CALIBRATION_IMAGES + CHECK_IMAGES)
        if len(pixels_NSSC) < MIN_IMAGES:
            return _without_int8(settings, f"only {len(pixels_NSSC)} of the first images can be used")
        num_check = min(CHECK_IMAGES, len(pixels_NSSC) // 4)
        with tempfile.TemporaryDirectory(prefix="bulktag-int8-") as local:
            try:
                path = quantise(graph_def, pixels_NSSC[num_check:], local)
            except UnsupportedGraph as error:
                return _without_int8(settings, str(error))
            agreement = measure_agreement(
                graph_def, head_graph, path, pixels_NSSC[:num_check], min(settings.batch_size, num_check)
            )
            if not agreement.is_enough:
                return _without_int8(settings, f"{agreement}, beside fp32")
            files.write_folder(lambda target: _copy(local, target), folder)
    say(f"int8 beside fp32: {agreement}; network {spec.name}")
    return dataclasses.replace(settings, engine="openvino", quantised=folder), str(agreement)


def _without_int8(settings: EngineSettings, why: str) -> tuple[EngineSettings, str]:
    settings = dataclasses.replace(settings, precision="auto")
    text = f"int8 is not used ({why})"
    warn(f"{text}; engine: {choose_engine(settings)}")
    return settings, text


def _copy(source: str, target: str) -> None:
    for path in pathlib.Path(source).iterdir():
        (pathlib.Path(target) / path.name).write_bytes(path.read_bytes())


def sample_pixels(sources: tuple[Source, ...], load: LoadSettings, num_images: int) -> np.ndarray:
    """Usable images among the first ones, as many from each source; every fourth or so is kept for the comparison."""
    each = -(-num_images // len(sources))
    refs = [
        ref
        for source in sources
        for ref in itertools.islice((item for item in find_images(source, "none") if isinstance(item, ImageRef)), each)
    ]
    # Folders list one class after the other: mixed, so that calibration and comparison see the same kinds.
    order = np.random.default_rng(0).permutation(len(refs))[:num_images]
    loader = BatchLoader(load)
    loader.start([refs[i] for i in order])
    pixels_NSSC, results = loader.finish()
    loader.close()
    return pixels_NSSC[[isinstance(result, ImageInfo) for result in results]]
