"""Plain TensorFlow: a tf.data input pipeline and `model.predict`.

Sources: https://www.tensorflow.org/guide/data_performance (parallel map, prefetch),
https://www.tensorflow.org/api_docs/python/tf/keras/Model#predict.
"""

import argparse
import os

import keras
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf


def main() -> None:
    """Tag a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    size = (arguments.size_px, arguments.size_px)
    paths = sorted(entry.path for entry in os.scandir(arguments.images) if entry.name.endswith(".jpg"))

    def load(path):
        pixels = tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), size)
        return tf.cast(tf.round(pixels), tf.uint8)

    model = keras.models.load_model(arguments.model, compile=False)
    images = tf.data.Dataset.from_tensor_slices(paths).map(load, num_parallel_calls=tf.data.AUTOTUNE)
    scores = model.predict(images.batch(arguments.batch_size).prefetch(tf.data.AUTOTUNE), verbose=0)
    os.makedirs(arguments.output, exist_ok=True)
    table = pa.table({"uri": paths, "top": scores.argmax(axis=1), "score": scores.max(axis=1)})
    pyarrow.parquet.write_table(table, os.path.join(arguments.output, "part.parquet"))


if __name__ == "__main__":
    main()
