"""Train the builtin network's weights: from pictures that are drawn, and from what a larger network makes of photos.

    python scripts/train_builtin.py --photos flower_photos/ --teacher mobilenet_v2.weights.h5

draws 60,000 pictures of 113 classes (36 shapes, 67 letters, 9 textures, and background alone; `builtin_pictures.py`
says what is left out and why) and 30,000 scenes, takes 90,000 views of half of the photos (`builtin_teacher.py`), has
MobileNetV2 describe all of them, trains on both, and writes `model/data/builtin.npz`. Without a teacher it learns the
113 classes alone. No network access, no GPU.

Recipe: AdamW, batches of 64, cosine decay from 2e-3 over 8,060 steps at 64 px, then from 8e-4 over 4,940 steps at
96 px; each picture is cropped from 104 px, mirrored (not letters) and re-lit anew. Heads, thrown away afterwards: the
class (cross-entropy), the figure's colour (squared error), the teacher's features (squared error, standardised) and
what its classifier makes of them (cross-entropy). Batch normalisation is folded in, weights stored as float16.

Result of the published file (seed 0; teacher: ImageNet weights; photos: 302 of 600 flower photos of five kinds):
3.6 MB; the teacher's features to within 0.54 of their variance. On pictures never seen here:
  flowers, the other 298 photos, 240 and 60 for training and validation, mean of 3 seeds: 77.5% (without a teacher, and
  with a smaller network, 53.5%; MobileNetV2 itself 85.0%; bar: 70%);
  frozen features, standardised, with scikit-learn's logistic regression:
  demo (circle, plus, square, triangle; 100 training pictures a class): 99.7% held out (bar: 97%);
  scikit-learn's digits, half held out: 99.0%, mean of 3 splits (bar: 95%).
Time: 67 minutes on two cores of an AMD EPYC (Zen 5, bf16) that were shared with other work, 9 of them for the pictures.
Another run gives other bytes: threads add up in another order.
"""

import argparse
import pathlib
import sys
import time

import numpy as np
from builtin_pictures import CLASSES, draw_bank
from builtin_teacher import ask_teacher, draw_taught, list_training_photos, load_teacher

WEIGHTS = pathlib.Path(__file__).resolve().parents[1] / "model" / "data" / "builtin.npz"
BATCH_SIZE = 64
# Pictures are drawn larger than the network's 96 px, so that each epoch crops them anew.
BANK_SIDE_PX = 104


def main(arguments: list[str] | None = None) -> int:
    """Draw, train, fold and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path, help="folder of photos; half of them are learnt from")
    parser.add_argument("--teacher", help="ImageNet weights of MobileNetV2 (.weights.h5)")
    parser.add_argument("--seed", type=int, default=0, help="of pictures, weights and batches (default 0)")
    parser.add_argument("--steps", type=int, default=13_000, help=f"batches of {BATCH_SIZE} pictures (default 13000)")
    parser.add_argument("--pictures", type=int, default=60_000, help="figures to draw (default 60000)")
    parser.add_argument("--views", type=int, default=90_000, help="views of the photos (default 90000)")
    parser.add_argument("--scenes", type=int, default=30_000, help="drawn scenes for the teacher (default 30000)")
    parser.add_argument("--threads", type=int, default=2, help="threads of TensorFlow (default 2)")
    parser.add_argument("--output", type=pathlib.Path, default=WEIGHTS, help="weights file to write")
    args = parser.parse_args(arguments)
    if bool(args.photos) != bool(args.teacher):
        parser.error("expected --photos and --teacher together, or neither of them")
    start = time.monotonic()
    # Not at the top: the drawing processes import this module too, and have no use for TensorFlow.
    import builtin_training

    builtin_training.limit_threads(args.threads)
    bank = make_bank(args)
    print(f"{len(bank.classes_N)} pictures in {time.monotonic() - start:.0f} s", flush=True)
    model = builtin_training.train(bank, args.seed, args.steps, BATCH_SIZE)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_suffix(".partial.npz")
    np.savez(partial, **builtin_training.fold_batch_norm(model))
    cosine = builtin_training.check_folding(model, partial, bank.pixels_NHWC[:16])
    partial.replace(args.output)
    print(f"wrote {args.output}: {args.output.stat().st_size:,} bytes; least cosine to the unfolded one {cosine:.5f}")
    print(f"took {time.monotonic() - start:.0f} s")
    return 0


def make_bank(args: argparse.Namespace):
    """Draw the figures; with a teacher, also scenes and views of photos, and ask it about all of them."""
    from builtin_training import NO_CLASS, Bank

    num_pictures = min(args.pictures, args.steps * BATCH_SIZE)
    pixels, classes, colours = draw_bank(args.seed, num_pictures, BANK_SIDE_PX)
    print(f"drew {num_pictures} pictures of {len(CLASSES)} classes", flush=True)
    if not args.teacher:
        return Bank(pixels, classes, colours)
    photos = list_training_photos(args.photos)
    engine, classifier = load_teacher(args.teacher)
    parts = [(pixels, ask_teacher(engine, pixels))]
    for number, sources in ((args.views, photos), (args.scenes, [])):
        parts.append(draw_taught(engine, args.seed, number, sources, BANK_SIDE_PX))
        print(f"{number} {f'views of {len(photos)} photos' if sources else 'scenes'}", flush=True)
    num_taught = args.views + args.scenes
    return Bank(
        np.concatenate([part for part, _ in parts]),
        np.concatenate([classes, np.full(num_taught, NO_CLASS, classes.dtype)]),
        np.concatenate([colours, np.zeros((num_taught, 3), np.float32)]),
        np.concatenate([features for _, features in parts]),
        classifier,
    )


if __name__ == "__main__":
    sys.exit(main())
