"""Measure what it costs to add images to an extracted folder, beside extracting it the first time.

    python benchmarks/extract_again.py --images PHOTOS --num 20000 [--backbone inception_v3 --weights random:1]

PHOTOS' files are linked under new names until there are as many as asked for; a twentieth more is added for each
further round. Printed are the seconds of each run, as run.json says them, and their ratio to the first.
"""

import argparse
import itertools
import os
import pathlib
import statistics
import tempfile

from bulktag.pipeline.config import ExtractConfig
from bulktag.pipeline.console import print_table
from bulktag.pipeline.extract import run_extract

ADDED_SHARE = 0.05


def link_images(found: list[pathlib.Path], folder: pathlib.Path, num: int) -> None:
    """Make a folder of `num` links to files, each under a name of its own."""
    folder.mkdir(parents=True)
    for number, path in zip(range(num), itertools.cycle(found), strict=False):
        os.symlink(path.resolve(), folder / f"{number:07d}{path.suffix}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=pathlib.Path, required=True, help="folder of photos")
    parser.add_argument("--num", type=int, default=20_000, help="images of the first run (default 20000)")
    parser.add_argument("--rounds", type=int, default=3, help="times that images are added (default 3)")
    parser.add_argument("--backbone", default="inception_v3")
    parser.add_argument("--weights", default="random:1")
    args = parser.parse_args()
    found = sorted(path for path in args.images.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not found:
        parser.error(f"expected photos, found none: {args.images}")
    with tempfile.TemporaryDirectory(prefix="bulktag-again-") as scratch:
        photos = pathlib.Path(scratch, "photos")
        config = ExtractConfig(
            input=(str(photos),), output=f"{scratch}/examples", backbone=args.backbone, weights=args.weights
        )
        link_images(found, photos / "first", args.num)
        first_s = run_extract(config)["seconds"]
        rows, again = [("first", args.num, 0, first_s, 1.0)], []
        for number in range(1, args.rounds + 1):
            link_images(found, photos / f"added{number}", max(1, round(ADDED_SHARE * args.num)))
            run = run_extract(config)
            kept = run["counters"]["incremental/kept"]
            again.append(run["seconds"] / first_s)
            rows.append((f"added {number}", run["counts"]["used"] - kept, kept, run["seconds"], again[-1]))
    print_table(("run", "computed", "taken over", "seconds", "of the first"), rows)
    print(f"median of adding {ADDED_SHARE:.0%}: {statistics.median(again):.1%} of the first run")


if __name__ == "__main__":
    main()
