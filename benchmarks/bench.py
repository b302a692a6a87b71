"""Measure bulktag's speed and memory, beside its peers and the limit of this machine, in one run on the same images.

    make bench                                                  tag side by side (about an hour on two cores)
    python -m benchmarks.bench --suite retag,startup            other suites
    python -m benchmarks.bench --images PHOTOS --peers none     on your photos, without the peers

Prints tables, and writes everything that was measured as JSON.
"""

import argparse
import pathlib
import sys

from rich.console import Console

from benchmarks.context import Context, default_engines
from benchmarks.machine import describe_machine, main_line
from benchmarks.networks import REPO
from benchmarks.report import print_section, to_json, write_json
from benchmarks.rounds import say
from benchmarks.suite_inputs import run_large, run_mobilenet, run_slow_store
from benchmarks.suite_retag import run_retag
from benchmarks.suite_scale import run_gpu, run_linear, run_memory, run_startup, run_workers
from benchmarks.suite_store import run_gcs
from benchmarks.suite_tag import run_tag
from benchmarks.systems import PEERS

SUITES = {
    "tag": run_tag,
    "large": run_large,
    "slow-store": run_slow_store,
    "gcs": run_gcs,
    "mobilenet": run_mobilenet,
    "retag": run_retag,
    "memory": run_memory,
    "linear": run_linear,
    "startup": run_startup,
    "workers": run_workers,
    "gpu": run_gpu,
}
# More than this much work by others makes a measurement doubtful.
QUIET_LOAD = 0.5


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--suite", default="tag", help=f"one or more of {','.join(SUITES)}, or all (default: %(default)s)")
    add("--images", type=pathlib.Path, help="folder of your JPEGs, linked to reach the counts; default: drawn ones")
    add(
        "--cache", type=pathlib.Path, default=REPO / ".bench", help="pictures, networks, environments (default: .bench)"
    )
    add("--output", type=pathlib.Path, help="JSON file (default: results/DATE-SUITES.json in the cache)")
    add(
        "--counts",
        type=int,
        nargs=2,
        default=(1000, 3000),
        metavar="N",
        help="two numbers of images (default: 1000 3000)",
    )
    add("--repeats", type=int, default=3, help="rounds; medians are reported (default: %(default)s)")
    add("--engines", nargs="+", default=default_engines(), metavar="ENGINE[/PRECISION]",
        help="rows of bulktag, such as auto, openvino/int8, tensorflow/fp32 (default: those installed)")  # fmt: skip
    add("--peers", default=",".join(PEERS), help="of %(default)s, or none (default: all)")
    add("--peer-call", choices=("documented", "compiled"), default="documented",
        help="how Ray Data and Daft call the model: as documented, or compiled (default: %(default)s)")  # fmt: skip
    add("--batch-size", type=int, default=32, help="of every system in tag (default: %(default)s)")
    add("--network", default="inception_v3", help="with random weights; inception_v3 or mobilenet_v2 with peers "
        "(default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, help="of drawn pictures (default: %(default)s)")
    group = parser.add_argument_group("further suites").add_argument
    group("--mobilenet-weights", default="random:0", help="a .weights.h5 file (default: %(default)s)")
    group("--large-counts", type=int, nargs=2, default=(96, 288), metavar="N", help="of 4000x3000 (default: 96 288)")
    group("--retag-images", type=int, default=200_000, help="stored bottlenecks (default: %(default)s)")
    group("--compression", choices=("none", "gzip"), default="none", help="of their shards (default: %(default)s)")
    group("--memory-network", default="mobilenet_v2", help="small, to afford the images (default: %(default)s)")
    group("--memory-counts", type=int, nargs=2, default=(1000, 20_000), metavar="N", help="(default: 1000 20000)")
    group("--linear-counts", type=int, nargs="+", default=(1000, 3000, 10_000), metavar="N",
          help="(default: 1000 3000 10000)")  # fmt: skip
    group("--workers", type=int, nargs="+", default=(1, 2), metavar="N", help="worker processes (default: 1 2)")
    return parser


def make_context(arguments: argparse.Namespace) -> tuple[Context, list[str]]:
    """Check the options.

    Returns:
      the suites' context, and their names.
    Raises:
      ValueError: an unknown suite or peer, or counts in the wrong order.
    """
    suites = list(SUITES) if arguments.suite == "all" else arguments.suite.split(",")
    peers = [] if arguments.peers == "none" else arguments.peers.split(",")
    for what, names, known in (("suite", suites, SUITES), ("peer", peers, PEERS)):
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"expected a {what} of {', '.join(known)}, got {unknown[0]!r}")
    for counts in (arguments.counts, arguments.large_counts, arguments.memory_counts, arguments.linear_counts):
        if min(counts) < 1 or sorted(set(counts)) != list(counts):
            raise ValueError(f"expected numbers of images, smallest first, got {' '.join(map(str, counts))}")
    if arguments.repeats < 1 or arguments.batch_size < 1:
        raise ValueError("expected repeats and batch size of at least 1")
    if arguments.images is not None and not arguments.images.is_dir():
        raise ValueError(f"expected a folder of photos, found none: {arguments.images}")
    fields = {name: value for name, value in vars(arguments).items() if name not in ("suite", "output", "peers")}
    fields |= {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    fields["cache"] = arguments.cache.resolve()
    fields["images"] = arguments.images and arguments.images.resolve()
    return Context(**fields, peers=tuple(peers)), suites


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write."""
    parsed = build_parser().parse_args(arguments)
    try:
        context, suites = make_context(parsed)
    except ValueError as error:
        print(f"benchmarks.bench: {error}", file=sys.stderr)
        return 2
    machine = describe_machine()
    say(main_line(machine))
    if machine["load_average_before"][0] > QUIET_LOAD:
        say("warning: the machine is busy with something else; expect figures that are too low")
    date = machine["date"].replace(":", "").replace("+0000", "Z")
    path = parsed.output or context.cache / "results" / f"{date}-{parsed.suite.replace(',', '+')}.json"
    sections, failed = [], False
    for name in suites:
        say(f"== {name} ==")
        try:
            sections.append(SUITES[name](context))
        except (RuntimeError, ValueError, OSError) as error:
            say(f"{name} failed: {error}")
            failed = True
        options = {key: value for key, value in vars(context).items() if key not in ("cache", "images")}
        options["mobilenet_weights"] = pathlib.Path(context.mobilenet_weights).name
        write_json(path, to_json(machine, options | {"own_photos": context.images is not None}, sections))
    print(main_line(machine))
    for section in sections:
        print_section(section, Console(highlight=False))
        failed |= bool(section.data.get("failures"))
    print(f"\nall figures: {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
