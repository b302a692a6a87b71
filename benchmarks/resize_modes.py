"""Measure how the way a picture is brought to the network's square changes accuracy: `--resize crop|pad|squash`.

    python benchmarks/resize_modes.py --images PHOTOS --backbone mobilenet_v2 --weights WEIGHTS [--zero-shot daisy]

PHOTOS is a folder with one folder a class. Printed for each mode: accuracy of a trained head (standardised logistic
regression on the bottlenecks, mean and standard deviation over repeated stratified 5-fold cross-validation), and for
a class that ImageNet has (`--zero-shot`), how often the network's own classifier names it first or among its five
best.

Array suffixes: N images, D bottleneck width, L labels.
"""

import argparse
import pathlib

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bulktag.model.image import RESIZE_MODES, ImageLimits, load_image
from bulktag.model.imagenet import build_imagenet_classifier
from bulktag.model.tensorflow_engine import TensorFlowEngine
from bulktag.pipeline.console import print_table

BATCH = 32
SEEDS = 3


def bottlenecks(engine: TensorFlowEngine, paths: list[pathlib.Path], size_px: int, resize: str) -> np.ndarray:
    """float32[N, D] of the images, in order."""
    parts = []
    for start in range(0, len(paths), BATCH):
        images = [
            load_image(path.read_bytes(), size_px, resize, ImageLimits()) for path in paths[start : start + BATCH]
        ]
        parts.append(engine.run(np.stack([image.pixels_HWC for image in images])))
    return np.concatenate(parts)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, type=pathlib.Path)
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--weights", default="imagenet")
    parser.add_argument("--zero-shot", default="", help="a folder of PHOTOS that is the name of an ImageNet class")
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.images.glob("*/*") if path.suffix.lower() == ".jpg")
    truth_N = np.array([path.parent.name for path in paths])
    backbone, head, labels = build_imagenet_classifier(arguments.backbone, arguments.weights)
    engine = TensorFlowEngine(backbone.graph_def, BATCH)
    rows = []
    for resize in RESIZE_MODES:
        features_ND = bottlenecks(engine, paths, backbone.spec.image_size_px, resize)
        folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=SEEDS, random_state=0)
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        scores = cross_val_score(classifier, features_ND, truth_N, cv=folds)
        row = (resize, float(scores.mean()), float(scores.std()))
        if arguments.zero_shot:
            wanted = labels.index(arguments.zero_shot)
            scores_NL = head.predict(features_ND[truth_N == arguments.zero_shot], verbose=0)
            rank_N = (scores_NL > scores_NL[:, [wanted]]).sum(axis=1)
            row += (float((rank_N == 0).mean()), float((rank_N < 5).mean()))
        rows.append(row)
    columns = ("resize", "trained head", "std over folds")
    print_table(columns + (("zero-shot top-1", "zero-shot top-5") if arguments.zero_shot else ()), rows)


if __name__ == "__main__":
    main()
