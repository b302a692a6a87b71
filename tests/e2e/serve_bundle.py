"""A plain TensorFlow program that uses a model bundle without this project.

    python serve_bundle.py BUNDLE IMAGE...

Prints one JSON object: scores by image file, and whether anything of this project was imported.
"""

import json
import pathlib
import sys

import tensorflow as tf

bundle, *images = sys.argv[1:]
model = tf.saved_model.load(f"{bundle}/saved_model")
labels = pathlib.Path(bundle, "saved_model/assets/labels.txt").read_text(encoding="utf-8").splitlines()
encoded = tf.constant([pathlib.Path(image).read_bytes() for image in images])
scores = model.signatures["serving_default"](image_bytes=encoded)["scores"].numpy()
print(
    json.dumps(
        {
            "labels": labels,
            "scores": {image: [float(score) for score in row] for image, row in zip(images, scores, strict=True)},
            "imported": [name for name in sys.modules if name.split(".")[0] == "bulktag"],
        }
    )
)
