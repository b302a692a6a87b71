"""`bulktag classify`: a few images or URLs -> a table of labels and probabilities."""

import tempfile
import time

import numpy as np
import requests
import urllib3

from bulktag.model.engine import Tagger, choose_engine
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.image import DEFAULT_RESIZE, BadImage, ImageLimits, load_image
from bulktag.model.novelty import NOVEL_FROM
from bulktag.model.tags import rank_tags
from bulktag.pipeline.config import IMAGENET, ClassifyConfig
from bulktag.pipeline.console import print_table, warn
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.network import find_bundle, open_bundle, resolve_bundle
from bulktag.transforms import files
from bulktag.transforms.loading import ReadError, read_image
from bulktag.transforms.records import ImageRef

MAX_REDIRECTS = 5
CHUNK_BYTES = 64 << 10


def run_classify(config: ClassifyConfig) -> dict[str, list[tuple[str, float]]]:
    """Classify each image and print a table for each.

    Returns:
      (label, score) pairs, best first, by image; images that cannot be used are left out.
    Raises:
      ValueError: the request is wrong: no such model.
      JobFailed: some of the images could not be used; the others' tables were printed.
    """
    settings = EngineSettings(1, config.device, "tensorflow", "fp32")
    choose_engine(settings)
    with tempfile.TemporaryDirectory(prefix="bulktag-model-") as folder:
        if config.model == IMAGENET:
            bundle, _ = resolve_bundle(config, folder, DEFAULT_RESIZE)
        else:
            bundle = open_bundle(find_bundle(config.model))  # read at once: no copy is needed
        tagger = Tagger(bundle.backbone_graph(), bundle.head_graph(), settings)
        novelty = bundle.novelty_model()
    limits = ImageLimits(config.max_bytes, config.max_pixels)
    results, num_bad = {}, 0
    for name in config.images:
        try:
            data = _read(name, config)
            image = load_image(data, bundle.backbone.image_size_px, bundle.resize, limits)
        except (ReadError, BadImage) as error:
            num_bad += 1
            warn(f"{name}: {error.error_type}: {error}")
            continue
        bottleneck_BD, scores_BL = tagger.run(image.pixels_HWC[np.newaxis])
        results[name] = _best(scores_BL, bundle.labels, config.top_k)
        print_table(("label", "probability"), results[name], title=name)
        if novelty is not None and (found := float(novelty.score(bottleneck_BD)[0])) > NOVEL_FROM:
            warn(f"{name}: unlike anything the model was trained on (novelty {found:.1f}; usual is 0, novel above 1)")
    if num_bad:
        raise JobFailed(f"{num_bad} of {len(config.images)} images could not be used")
    return results


def _best(scores_BL: np.ndarray, labels: tuple[str, ...], top_k: int) -> list[tuple[str, float]]:
    indices_BK, ranked_BK, _ = rank_tags(scores_BL, np.zeros(len(labels), np.float32), top_k)
    return [(labels[i], float(score)) for i, score in zip(indices_BK[0], ranked_BK[0], strict=True)]


def _read(name: str, config: ClassifyConfig) -> bytes:
    if name.startswith(("http://", "https://")):
        return download(name, config.max_bytes, config.timeout_s)
    return read_image(ImageRef(files.normalise(name), (), -1, -1), config.max_bytes)[0]


def download(url: str, max_bytes: int, timeout_s: float) -> bytes:
    """Fetch a URL's body.

    Args:
      url: http or https.
      max_bytes: give up once more than this has come.
      timeout_s: give up after so long, however far it is.
    Raises:
      ReadError: it cannot be had.
      BadImage: it is too large.
    """
    deadline = time.monotonic() + timeout_s
    data = bytearray()
    try:
        with _session() as session, session.get(url, stream=True, timeout=timeout_s) as response:
            response.raise_for_status()
            # Whatever has come by now: a read of a fixed size could wait for a slow server's last byte for hours.
            while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
                data += chunk
                if len(data) > max_bytes:
                    raise BadImage("too_many_bytes", f"expected at most {max_bytes} bytes, got more")
                if time.monotonic() > deadline:
                    raise requests.Timeout
    except (requests.Timeout, urllib3.exceptions.ReadTimeoutError) as error:
        raise ReadError("timeout", f"expected the whole file within {timeout_s:g} s, got {len(data)} bytes") from error
    except requests.RequestException as error:
        raise ReadError("download_failed", _why(error)) from error
    except urllib3.exceptions.HTTPError as error:
        raise ReadError("download_failed", f"the connection broke after {len(data)} bytes") from error
    return bytes(data)


def _session() -> requests.Session:
    session = requests.Session()
    session.max_redirects = MAX_REDIRECTS
    return session


def _why(error: requests.RequestException) -> str:
    """The reason in a few words: the whole chain of libraries stands in most messages."""
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.TooManyRedirects):
        return f"more than {MAX_REDIRECTS} redirects"
    if isinstance(error, requests.ConnectionError):
        reason = getattr(error.args[0] if error.args else None, "reason", error)
        return str(reason).rsplit(": ", 1)[-1]
    return str(error)
