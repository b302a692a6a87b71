"""The pipeline of Beam's own documentation: match, read, decode in a Map, the stock TensorFlow handler, Parquet.

Sources: https://beam.apache.org/documentation/ml/inference-overview/ (RunInference with a keyed TensorFlow handler),
https://beam.apache.org/releases/pydoc/2.77.0/apache_beam.ml.inference.tensorflow_inference.html,
https://beam.apache.org/releases/pydoc/2.77.0/apache_beam.io.fileio.html (MatchFiles, ReadMatches).
"""

import argparse
import io
import os

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
from apache_beam.io import fileio
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference
from apache_beam.ml.inference.tensorflow_inference import TFModelHandlerTensor
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from PIL import Image

SCHEMA = pa.schema([("uri", pa.string()), ("top", pa.int64()), ("score", pa.float32())])


def decode(file: fileio.ReadableFile, size_px: int):
    """One file as a keyed tensor of pixels."""
    image = Image.open(io.BytesIO(file.read())).convert("RGB").resize((size_px, size_px), Image.Resampling.BILINEAR)
    return file.metadata.path, tf.convert_to_tensor(np.asarray(image))


def to_row(keyed_result) -> dict:
    """A row for Parquet."""
    uri, result = keyed_result
    scores = np.asarray(result.inference)
    return {"uri": uri, "top": int(scores.argmax()), "score": float(scores.max())}


def main() -> None:
    """Tag a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args()
    handler = TFModelHandlerTensor(
        model_uri=arguments.model, min_batch_size=arguments.batch_size, max_batch_size=arguments.batch_size
    )
    os.makedirs(arguments.output, exist_ok=True)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = (
            pipeline
            | fileio.MatchFiles(os.path.join(arguments.images, "*.jpg"))
            | fileio.ReadMatches()
            | beam.Map(decode, arguments.size_px)
            | RunInference(KeyedModelHandler(handler))
            | beam.Map(to_row)
            | beam.io.WriteToParquet(os.path.join(arguments.output, "part"), SCHEMA, file_name_suffix=".parquet")
        )


if __name__ == "__main__":
    main()
