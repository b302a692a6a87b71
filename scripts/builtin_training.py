"""How the builtin network is trained: batches from a bank of drawn pictures, two heads, folding for publication.

Legend: N pictures of the bank, B batch, H W C image axes.
"""

import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from builtin_pictures import CLASSES

from bulktag.model.builtin import BUILTIN_IMAGE_SIZE_PX, build_builtin, build_network

# First small and fast, then at the published size: (side, share of the steps, peak learning rate).
STAGES = ((64, 0.77, 2e-3), (BUILTIN_IMAGE_SIZE_PX, 0.23, 7e-4))
COLOUR_LOSS_WEIGHT = 2.0


def limit_threads(num_threads: int) -> None:
    """Use so many threads per operation; before anything was computed.

    Args:
      num_threads: 1 or more.
    """
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)


class Batches(keras.utils.PyDataset):
    """Cropped and re-lit pictures of the bank; batch i depends on the seed and i only."""

    def __init__(self, bank, seed: int, num_steps: int, batch_size: int, image_size_px: int):
        super().__init__(workers=1, use_multiprocessing=False)
        self.pixels_NHWC, self.classes_N, self.colours_NC = bank
        self.seed, self.num_steps = seed, num_steps
        self.batch_size, self.image_size_px = batch_size, image_size_px

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int):
        num_pictures = len(self.classes_N)
        epoch, start = divmod(step * self.batch_size, num_pictures)
        order = np.random.default_rng([self.seed, self.image_size_px, epoch]).permutation(num_pictures)
        rng = np.random.default_rng([self.seed, self.image_size_px, epoch, start])
        chosen = np.sort(np.take(order, np.arange(start, start + self.batch_size), mode="wrap"))
        side = BUILTIN_IMAGE_SIZE_PX
        corners = rng.integers(0, self.pixels_NHWC.shape[1] - side + 1, (self.batch_size, 2))
        pixels_BHWC = np.stack(
            [
                self.pixels_NHWC[i, top : top + side, left : left + side]
                for i, (top, left) in zip(chosen, corners, strict=True)
            ]
        ).astype(np.float32)
        gain_BC = rng.uniform(0.8, 1.2, (self.batch_size, 1)) * rng.uniform(0.9, 1.1, (self.batch_size, 3))
        pixels_BHWC = np.clip(pixels_BHWC * gain_BC[:, None, None].astype(np.float32), 0, 255)
        if self.image_size_px != side:
            size = (self.image_size_px, self.image_size_px)
            pixels_BHWC = tf.image.resize(pixels_BHWC, size, antialias=True).numpy()
        colours_BC = np.clip(self.colours_NC[chosen] * gain_BC, 0, 255) / 255
        return pixels_BHWC, {"kind": self.classes_N[chosen], "colour": colours_BC.astype(np.float32)}


def build_trainee(image_size_px: int) -> keras.Model:
    """The network with batch normalisation and two heads: which figure, and its colour.

    Args:
      image_size_px: S.
    Returns:
      A model from float32[B, S, S, 3] to {"kind": logits [B, classes], "colour": [B, 3]}.
    """
    network = build_network(image_size_px, batch_norm=True)
    kind = keras.layers.Dense(len(CLASSES), name="kind")(keras.layers.Dropout(0.1, seed=0)(network.output))
    colour = keras.layers.Dense(3, name="colour")(network.output)
    return keras.Model(network.input, {"kind": kind, "colour": colour})


def train(bank, seed: int, num_steps: int, batch_size: int) -> keras.Model:
    """Train through the stages.

    Args:
      bank: what `draw_bank` returned.
      seed: of the weights and of the batches.
      num_steps: over all stages.
      batch_size: pictures per step.
    Returns:
      The trained model, at the published image size.
    """
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    trained = None
    for image_size_px, share, peak in STAGES:
        steps = max(1, round(num_steps * share))
        model = build_trainee(image_size_px)
        if trained:
            model.set_weights(trained.get_weights())
        warmup = min(200, steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            peak / 20, max(1, steps - warmup), alpha=0.01, warmup_target=peak, warmup_steps=warmup
        )
        model.compile(
            keras.optimizers.AdamW(rate, weight_decay=1e-4),
            loss={"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "colour": "mse"},
            loss_weights={"kind": 1.0, "colour": COLOUR_LOSS_WEIGHT},
            metrics={"kind": "accuracy"},
        )
        rounds = max(1, steps // 500)
        batches = Batches(bank, seed, steps, batch_size, image_size_px)
        start = time.monotonic()
        for step in range(0, steps, -(-steps // rounds)):
            part = _Part(batches, step, min(step + -(-steps // rounds), steps))
            history = model.fit(part, epochs=1, verbose=0, shuffle=False).history
            figures = ", ".join(f"{name} {values[-1]:.3f}" for name, values in sorted(history.items()))
            print(
                f"{image_size_px} px, step {part.stop}/{steps}, {time.monotonic() - start:.0f} s: {figures}", flush=True
            )
        trained = model
    return trained


class _Part(keras.utils.PyDataset):
    """Some consecutive batches of a stage, so that progress can be told in between."""

    def __init__(self, batches: Batches, start: int, stop: int):
        super().__init__(workers=1, use_multiprocessing=False)
        self.batches, self.start, self.stop = batches, start, stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int):
        return self.batches[self.start + index]


def fold_batch_norm(model: keras.Model) -> dict[str, np.ndarray]:
    """Fold each batch normalisation into the convolution before it.

    Args:
      model: with layers NAME (convolution without bias) and NAME_norm.
    Returns:
      float16 arrays `NAME/kernel` and `NAME/bias`.
    """
    arrays = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            norm = model.get_layer(f"{layer.name}_norm")
            gamma, beta, mean, variance = (np.asarray(value) for value in norm.get_weights())
            scale = gamma / np.sqrt(variance + norm.epsilon)
            arrays[f"{layer.name}/kernel"] = (np.asarray(layer.kernel) * scale).astype(np.float16)
            arrays[f"{layer.name}/bias"] = (beta - mean * scale).astype(np.float16)
    return arrays


def check_folding(model: keras.Model, weights: pathlib.Path, pixels_BHWC: np.ndarray) -> float:
    """Compare the published network with the trained one.

    Args:
      model: as trained.
      weights: as written.
      pixels_BHWC: uint8, a few pictures of at least the published size.
    Returns:
      The least cosine between their bottlenecks.
    """
    pixels_BHWC = pixels_BHWC[:, :BUILTIN_IMAGE_SIZE_PX, :BUILTIN_IMAGE_SIZE_PX].astype(np.float32)
    reference = keras.Model(model.input, model.get_layer("bottleneck").output).predict(pixels_BHWC, verbose=0)
    published = build_builtin(weights).predict(pixels_BHWC, verbose=0)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(published, axis=1)
    return float((np.sum(reference * published, axis=1) / np.maximum(norms, 1e-12)).min())
