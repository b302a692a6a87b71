"""How the builtin network is trained: batches from a bank of pictures, three heads, folding for publication.

Legend: N pictures of the bank, B batch, H W C image axes, D width of the teacher's features, L ImageNet's classes.
"""

import dataclasses
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from builtin_pictures import CLASSES

from bulktag.model.builtin import BUILTIN_IMAGE_SIZE_PX, build_builtin, build_network
from bulktag.model.hardware import bf16_instructions

# First small and fast, then at the published size: (side, share of the steps, peak learning rate).
STAGES = ((64, 0.62, 2e-3), (BUILTIN_IMAGE_SIZE_PX, 0.38, 8e-4))
LOSS_WEIGHTS = {"kind": 0.5, "colour": 2.0, "features": 1.0, "meaning": 0.2}
NO_CLASS = -1


@dataclasses.dataclass(frozen=True)
class Bank:
    """Pictures to learn from.

    Attributes:
      pixels_NHWC: uint8, a little larger than the network's square.
      classes_N: int64, indices into `CLASSES`; NO_CLASS where a picture shows none of them.
      colours_NC: float32, the figure's colour in 0..255; of no meaning without a class.
      features_ND: float16, what the teacher makes of them; None: there is no teacher.
      classifier: the teacher's last layer, kernel float32[D, L] and bias float32[L].
    """

    pixels_NHWC: np.ndarray
    classes_N: np.ndarray
    colours_NC: np.ndarray
    features_ND: np.ndarray | None = None
    classifier: tuple[np.ndarray, np.ndarray] | None = None


def limit_threads(num_threads: int) -> None:
    """Use so many threads per operation; before anything was computed.

    Args:
      num_threads: 1 or more.
    """
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)


class Batches(keras.utils.PyDataset):
    """Cropped, mirrored and re-lit pictures of the bank; batch i depends on the seed and i only."""

    def __init__(self, bank: Bank, seed: int, num_steps: int, batch_size: int, image_size_px: int):
        super().__init__(workers=1, use_multiprocessing=False)
        self.bank, self.seed, self.num_steps = bank, seed, num_steps
        self.batch_size, self.image_size_px = batch_size, image_size_px

    def __len__(self) -> int:
        return self.num_steps

    def __getitem__(self, step: int):
        bank, num_pictures = self.bank, len(self.bank.classes_N)
        epoch, start = divmod(step * self.batch_size, num_pictures)
        order = np.random.default_rng([self.seed, self.image_size_px, epoch]).permutation(num_pictures)
        rng = np.random.default_rng([self.seed, self.image_size_px, epoch, start])
        chosen = np.sort(np.take(order, np.arange(start, start + self.batch_size), mode="wrap"))
        side = BUILTIN_IMAGE_SIZE_PX
        corners = rng.integers(0, bank.pixels_NHWC.shape[1] - side + 1, (self.batch_size, 2))
        # Letters are not what they are in a mirror.
        mirrored = (rng.random(self.batch_size) < 0.5) & (bank.classes_N[chosen] == NO_CLASS)
        pixels_BHWC = np.stack(
            [
                bank.pixels_NHWC[i, top : top + side, left : left + side][:, :: -1 if mirror else 1]
                for i, (top, left), mirror in zip(chosen, corners, mirrored, strict=True)
            ]
        ).astype(np.float32)
        gain_BC = rng.uniform(0.8, 1.2, (self.batch_size, 1)) * rng.uniform(0.9, 1.1, (self.batch_size, 3))
        pixels_BHWC = np.clip(pixels_BHWC * gain_BC[:, None, None].astype(np.float32), 0, 255)
        if self.image_size_px != side:
            size = (self.image_size_px, self.image_size_px)
            pixels_BHWC = tf.image.resize(pixels_BHWC, size, antialias=True).numpy()
        colours_BC = np.clip(bank.colours_NC[chosen] * gain_BC, 0, 255) / 255
        known_B = (bank.classes_N[chosen] != NO_CLASS).astype(np.float32)
        targets = {"kind": np.maximum(bank.classes_N[chosen], 0), "colour": colours_BC.astype(np.float32)}
        weights = {"kind": known_B, "colour": known_B}
        if bank.features_ND is not None:
            features_BD = bank.features_ND[chosen].astype(np.float32)
            targets |= {"features": features_BD, "meaning": features_BD}
            weights |= {"features": np.ones_like(known_B), "meaning": np.ones_like(known_B)}
        return pixels_BHWC, targets, weights


def build_trainee(image_size_px: int, bank: Bank) -> tuple[keras.Model, dict]:
    """The network with batch normalisation and its heads: which figure, its colour, and the teacher's features.

    Args:
      image_size_px: S.
      bank: whose teacher it learns from.
    Returns:
      A model from float32[B, S, S, 3] to {"kind": logits [B, classes], "colour": [B, 3]}, with a teacher also
      {"features": [B, D], "meaning": [B, D], twice the same}; and the losses.
    """
    network = build_network(image_size_px, batch_norm=True)
    dense = {"dtype": "float32"}
    kind = keras.layers.Dense(len(CLASSES), name="kind", **dense)(keras.layers.Dropout(0.1, seed=0)(network.output))
    colour = keras.layers.Dense(3, name="colour", **dense)(network.output)
    outputs = {"kind": kind, "colour": colour}
    losses = {"kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True), "colour": "mse"}
    if bank.features_ND is not None:
        features, teacher_losses = _teacher_head(network.output, bank)
        outputs |= {"features": features, "meaning": keras.layers.Identity(name="meaning", **dense)(features)}
        losses |= teacher_losses
    return keras.Model(network.input, outputs), losses


def _teacher_head(bottleneck, bank: Bank) -> tuple[keras.KerasTensor, dict]:
    """The teacher's features, standardised, and two losses on them: their distance, and that of what they mean."""
    sample_ND = bank.features_ND[:: max(1, len(bank.features_ND) // 20_000)].astype(np.float32)
    mean_D, spread_D = sample_ND.mean(axis=0), sample_ND.std(axis=0) + 1e-2
    features = keras.layers.Dense(len(mean_D), name="features", dtype="float32")(bottleneck)
    kernel_DL, bias_L = map(tf.constant, bank.classifier)

    def distance(target_BD, standardised_BD):
        return tf.reduce_mean(tf.square((target_BD - mean_D) / spread_D - standardised_BD), axis=-1)

    def divergence(target_BD, standardised_BD):
        target_BL = tf.nn.softmax(target_BD @ kernel_DL + bias_L)
        logits_BL = (standardised_BD * spread_D + mean_D) @ kernel_DL + bias_L
        return tf.nn.softmax_cross_entropy_with_logits(target_BL, logits_BL)

    return features, {"features": distance, "meaning": divergence}


def train(bank: Bank, seed: int, num_steps: int, batch_size: int) -> keras.Model:
    """Train through the stages.

    Args:
      bank: what to learn.
      seed: of the weights and of the batches.
      num_steps: over all stages.
      batch_size: pictures per step.
    Returns:
      The trained model, at the published image size.
    """
    keras.utils.set_random_seed(seed)
    if bf16_instructions():
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    trained = None
    for image_size_px, share, peak in STAGES:
        steps = max(1, round(num_steps * share))
        model, losses = build_trainee(image_size_px, bank)
        if trained:
            model.set_weights(trained.get_weights())
        warmup = min(200, steps // 10)
        rate = keras.optimizers.schedules.CosineDecay(
            peak / 20, max(1, steps - warmup), alpha=0.01, warmup_target=peak, warmup_steps=warmup
        )
        model.compile(
            keras.optimizers.AdamW(rate, weight_decay=1e-4),
            loss=losses,
            loss_weights={name: LOSS_WEIGHTS[name] for name in losses},
            weighted_metrics={"kind": "accuracy"},
            jit_compile=False,
        )
        _fit(model, Batches(bank, seed, steps, batch_size, image_size_px))
        trained = model
    keras.mixed_precision.set_global_policy("float32")
    return trained


def _fit(model: keras.Model, batches: Batches) -> None:
    rounds = max(1, batches.num_steps // 500)
    length, start = -(-batches.num_steps // rounds), time.monotonic()
    for step in range(0, batches.num_steps, length):
        part = _Part(batches, step, min(step + length, batches.num_steps))
        history = model.fit(part, epochs=1, verbose=0, shuffle=False).history
        figures = ", ".join(f"{name} {values[-1]:.3f}" for name, values in sorted(history.items()))
        passed = f"{time.monotonic() - start:.0f} s"
        print(f"{batches.image_size_px} px, step {part.stop}/{batches.num_steps}, {passed}: {figures}", flush=True)


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
    bottleneck = keras.Model(model.input, model.get_layer("bottleneck").output)
    reference = np.asarray(bottleneck.predict(pixels_BHWC, verbose=0), np.float32)
    published = build_builtin(weights).predict(pixels_BHWC, verbose=0)
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(published, axis=1)
    return float((np.sum(reference * published, axis=1) / np.maximum(norms, 1e-12)).min())
