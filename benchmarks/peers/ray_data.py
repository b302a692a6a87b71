"""Batch inference with Ray Data, as its documentation has it: read_images, map_batches with an actor class, Parquet.

Sources: https://docs.ray.io/en/latest/data/working-with-images.html ("Performing inference on images"),
https://docs.ray.io/en/latest/data/batch_inference.html,
https://docs.ray.io/en/latest/data/performance-tips.html (a size for read_images, so that blocks hold small pictures).
"""

import argparse
import os

import ray


class Tagger:
    """Loads the model once an actor."""

    def __init__(self, path: str, call: str):
        import keras

        model = keras.models.load_model(path, compile=False)
        self._score = model.predict_on_batch if call == "compiled" else lambda pixels: model(pixels).numpy()

    def __call__(self, batch: dict) -> dict:
        """Score one batch."""
        scores = self._score(batch["image"])
        return {"uri": batch["path"], "top": scores.argmax(axis=1), "score": scores.max(axis=1)}


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
    cores = len(os.sched_getaffinity(0))
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Actors that reserve every core leave none to the tasks that read, and the job waits for ever.
    cpus_each = min(1.0, cores / (2 * arguments.concurrency))
    images = ray.data.read_images(
        arguments.images, size=(arguments.size_px, arguments.size_px), mode="RGB", include_paths=True
    )
    images.map_batches(
        Tagger,
        fn_constructor_args=(arguments.model, arguments.call),
        compute=ray.data.ActorPoolStrategy(size=arguments.concurrency),
        batch_size=arguments.batch_size,
        num_cpus=cpus_each,
    ).write_parquet(arguments.output)
    ray.shutdown()


if __name__ == "__main__":
    main()
