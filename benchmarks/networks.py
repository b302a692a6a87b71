"""The networks that are measured, built once a cache: as a model bundle for bulktag, as a Keras file for the peers.

    python -m benchmarks.networks --backbone inception_v3 --weights random:0 --folder FOLDER

A process of its own: the harness itself never loads TensorFlow.
"""

import argparse
import hashlib
import pathlib
import shutil
import subprocess
import sys

REPO = pathlib.Path(__file__).resolve().parents[1]
BUNDLE, PEER_MODEL = "bundle", "peer.keras"
_DONE = "done"


def ensure_network(cache: pathlib.Path, backbone: str, weights: str = "random:0", *, peers: bool = False,
                   hidden: tuple[int, int] | None = None) -> pathlib.Path:  # fmt: skip
    """A folder with `bundle`, and where asked for `peer.keras`.

    It is built anew when bulktag's code of models has changed.

    Args:
      cache: folder for such folders.
      backbone: name of a network of keras.applications, or builtin.
      weights: as `bulktag tag --weights` takes them.
      peers: write the same weights for the peers.
      hidden: units and labels of a head with one hidden layer, instead of the network's own 1,000 classes.
    """
    if is_file := pathlib.Path(weights).is_file():
        weights = str(pathlib.Path(weights).resolve())
    form = "+".join(map(str, (backbone, pathlib.Path(weights).name.replace(":", "-"), *(hidden or ()))))
    folder = cache / "networks" / f"{form}-{_digest(weights if is_file else None)}"
    command = [sys.executable, "-m", "benchmarks.networks", "--backbone", backbone, "--weights", weights]
    command += ["--folder", str(folder), *(["--hidden", *map(str, hidden)] if hidden else [])]
    if not (folder / _DONE).exists() or (peers and not (folder / PEER_MODEL).exists()):
        print(f"building {backbone}, weights {weights}: {folder}", file=sys.stderr, flush=True)
        for older in folder.parent.glob(f"{form}-??????????"):
            if older != folder:
                shutil.rmtree(older)
        subprocess.run([*command, *(["--peers"] if peers else [])], check=True, cwd=REPO)
    return folder


def _digest(weights_file: str | None) -> str:
    """Changes with the code that builds networks, and with a file of weights."""
    digest = hashlib.sha256()
    for path in [*sorted((REPO / "model").glob("*.py")), pathlib.Path(__file__)]:
        digest.update(path.read_bytes())
    if weights_file:
        with open(weights_file, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:10]


def save_bulktag_bundle(folder: pathlib.Path, backbone: str, weights: str, hidden: tuple[int, int] | None) -> None:
    """Write the model bundle."""
    from bulktag.model.backbone import build_backbone
    from bulktag.model.bundle import save_bundle
    from bulktag.model.image import DEFAULT_RESIZE
    from bulktag.model.imagenet import build_imagenet_classifier

    if hidden is None and backbone != "builtin":
        network, head, labels = build_imagenet_classifier(backbone, weights)
    else:
        network = build_backbone(backbone, "builtin" if backbone == "builtin" else weights)
        units, num_labels = hidden or (16, 4)
        head, labels = _random_head(network.spec.width, units, num_labels), [f"label {i}" for i in range(num_labels)]
    save_bundle(str(folder), network, head, labels, resize=DEFAULT_RESIZE)


def _random_head(width: int, units: int, num_labels: int):
    import keras

    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((width,), name="bottleneck"),
        keras.layers.Dense(units, activation="relu"),
        keras.layers.Dense(num_labels, activation="softmax", name="scores"),
    ]
    return keras.Sequential(layers, name="head")


def save_peer_model(path: pathlib.Path, backbone: str, weights: str) -> None:
    """Write the whole network as one Keras model from uint8[B, S, S, 3] to probabilities float32[B, 1000].

    The scaling of pixels is inside, so that the peers move and store bytes instead of floats.
    """
    import keras

    from bulktag.model import applications
    from bulktag.model.backbone import parse_seed

    size_px, seed = applications.default_image_size_px(backbone), parse_seed(weights)
    assert seed is not None
    network = applications.build_random_application(backbone, size_px, seed, include_top=True)
    pixels = keras.Input((size_px, size_px, 3), dtype="uint8")
    # The `preprocess_input` of the Inception and MobileNet families.
    scaled = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(pixels)
    keras.Model(pixels, network(scaled)).save(path)


def main() -> None:
    """Build one folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--hidden", nargs=2, type=int)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    from bulktag.pipeline.quiet import import_tensorflow, quiet_environment

    quiet_environment()
    import_tensorflow()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not (arguments.folder / _DONE).exists():
        hidden = tuple(arguments.hidden) if arguments.hidden else None
        save_bulktag_bundle(arguments.folder / BUNDLE, arguments.backbone, arguments.weights, hidden)
    if arguments.peers:
        save_peer_model(arguments.folder / PEER_MODEL, arguments.backbone, arguments.weights)
    (arguments.folder / _DONE).touch()


if __name__ == "__main__":
    main()
