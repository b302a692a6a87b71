"""Batch inference with Daft, as documented: download, decode and resize expressions, a class UDF, Parquet.

Sources: https://docs.daft.ai/en/stable/modalities/images/ (download, decode, resize),
https://docs.daft.ai/en/stable/custom-code/cls/ (@daft.cls, @daft.method.batch, max_concurrency),
https://github.com/Eventual-Inc/Daft/tree/main/benchmarking/ai/image_classification (batches through `to_pylist`).
"""

import argparse
import os

import daft
import numpy as np
from daft.functions import decode_image, download, resize

RESULT = daft.DataType.struct({"top": daft.DataType.int64(), "score": daft.DataType.float32()})


def make_tagger(concurrency: int, batch_size: int, call: str):
    """The class UDF; Daft takes its limits when the class is declared."""

    @daft.cls(max_concurrency=concurrency)
    class Tagger:
        def __init__(self, path: str):
            import keras

            self._model = keras.models.load_model(path, compile=False)

        @daft.method.batch(return_dtype=RESULT, batch_size=batch_size)
        def score(self, images: daft.Series):
            pixels = np.array(images.to_pylist())
            if call == "compiled":
                scores = self._model.predict_on_batch(pixels)
            else:
                scores = self._model.predict(pixels, verbose=0)
            return [{"top": int(row.argmax()), "score": float(row.max())} for row in scores]

    return Tagger


def main() -> None:
    """Tag a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--size-px", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--concurrency", type=int, default=1)
    parser.add_argument("--call", choices=("documented", "compiled"), default="documented")
    arguments = parser.parse_args()
    tagger = make_tagger(arguments.concurrency, arguments.batch_size, arguments.call)(arguments.model)
    pixels = decode_image(download(daft.col("path")), mode="RGB")
    table = daft.from_glob_path(f"{arguments.images}/*.jpg")
    table = table.with_column("image", resize(pixels, arguments.size_px, arguments.size_px))
    table = table.with_column("result", tagger.score(daft.col("image")))
    table = table.select(
        daft.col("path").alias("uri"),
        daft.col("result")["top"].alias("top"),
        daft.col("result")["score"].alias("score"),
    )
    table.write_parquet(arguments.output)
    # At the end of the interpreter, Daft's threads and TensorFlow's sometimes abort it (PyGILState_Release): all is
    # written by now, and what is left out here is left out of Daft's time.
    os._exit(0)


if __name__ == "__main__":
    main()
