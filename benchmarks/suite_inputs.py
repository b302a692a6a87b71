"""Other inputs and networks: large JPEGs, a slow store, a small network."""

import dataclasses
import pathlib

from benchmarks.context import Context, engine_name
from benchmarks.photos import LARGE_PX
from benchmarks.report import SUMMARY_COLUMNS, Bar, Section, summary_cells
from benchmarks.rounds import run_rounds, say, summarise
from benchmarks.suite_tag import agreement_bars, agreement_notes, describe_limit, measure_agreement, median_limit
from benchmarks.systems import System, bulktag_system, parse_engine

DECODE_RATIO, LARGE_RATIO = 2.5, 2.0
SLOW_SHARE, SLOW_MS = 0.85, 50.0
MOBILENET_SHARE, MOBILENET_BATCH = 0.85, 64


def run_large(context: Context) -> Section:
    """12-megapixel JPEGs with decoding at a fraction of the size, and at full size."""
    folders = context.photo_folders(context.large_counts, LARGE_PX)
    bundle = context.bundle(context.network)
    flags = (*parse_engine(context.engines[0]), "--batch-size", str(context.batch_size))
    systems = [
        bulktag_system("scaled decoding", bundle, flags),
        bulktag_system("full decoding", bundle, flags, hooks=("--full-decoding",)),
    ]
    runs, failures = run_rounds(systems, folders, context.repeats, context.work)
    summaries = {name: summarise(name, costs) for name, costs in runs.items()}
    section = Section(
        "large", f"large: {context.large_counts} JPEGs of about 4000x3000, {context.network}, {context.engines[0]}",
        SUMMARY_COLUMNS, [summary_cells(summary) for summary in summaries.values()],
    )  # fmt: skip
    decode = {}
    for name, extra in (("scaled", ()), ("full", ("--full-decoding",))):
        say(f"decoding alone, {name}")
        decode[name] = context.measure_decode(bundle, folders[min(folders)], extra)
    times = {name: 1000 / found["decode_images_per_s_one_core"] for name, found in decode.items()}
    section.notes.append(f"decoding alone on one core: {times['full']:.1f} ms in full, {times['scaled']:.1f} ms scaled")
    section.bars.append(Bar("decoding alone, times as fast as at full size", times["full"] / times["scaled"],
                            DECODE_RATIO))  # fmt: skip
    if len(summaries) == 2:
        scaled, full = summaries.values()
        rates = [summary.steady_images_per_s or summary.images_per_s for summary in (scaled, full)]
        section.bars.append(Bar("tagging, times as fast as with full decoding", rates[0] / rates[1], LARGE_RATIO))
    section.data = {"systems": [*map(dataclasses.asdict, summaries.values())], "runs": runs, "decode": decode,
                    "failures": failures}  # fmt: skip
    return section


def run_slow_store(context: Context) -> Section:
    """A store each of whose reads takes 50 ms longer."""
    folders = context.photo_folders(context.counts)
    bundle = context.bundle(context.network)
    flags = (*parse_engine(context.engines[0]), "--batch-size", str(context.batch_size))
    systems = [
        bulktag_system("local files", bundle, flags),
        _through_store(bulktag_system("slow:// with 0 ms", bundle, flags, hooks=("--slow-ms", "0"))),
        _through_store(
            bulktag_system(f"slow:// with {SLOW_MS:.0f} ms", bundle, flags, hooks=("--slow-ms", str(SLOW_MS)))
        ),
    ]
    runs, failures = run_rounds(systems, folders, context.repeats, context.work)
    summaries = {name: summarise(name, costs) for name, costs in runs.items()}
    section = Section(
        "slow-store", f"slow-store: {context.counts} JPEGs, {SLOW_MS:.0f} ms added to every read, {context.network}, "
        f"{context.engines[0]}", SUMMARY_COLUMNS, [summary_cells(summary) for summary in summaries.values()],
    )  # fmt: skip
    if len(summaries) == 3:
        _, fast, slow = (summary.steady_images_per_s or summary.images_per_s for summary in summaries.values())
        section.bars.append(Bar("rate as a share of the same store's without delay", slow / fast, SLOW_SHARE))
    section.data = {"systems": [*map(dataclasses.asdict, summaries.values())], "runs": runs, "failures": failures}
    return section


def _through_store(system: System) -> System:
    return dataclasses.replace(
        system, command=lambda images, output, command=system.command: command(f"slow://{images}", output)
    )


def run_mobilenet(context: Context) -> Section:
    """A small network, where decoding and overhead weigh most."""
    folders = context.photo_folders(context.counts)
    bundle = context.bundle("mobilenet_v2", context.mobilenet_weights)
    limits: dict[str, list[dict]] = {text: [] for text in context.engines}

    def measure_limits() -> None:
        for text in context.engines:
            limits[text].append(context.measure_limit(text, bundle, folders[min(folders)], MOBILENET_BATCH))

    systems = context.tag_systems(bundle, MOBILENET_BATCH)
    runs, failures = run_rounds(systems, folders, context.repeats, context.work, also=measure_limits)
    summaries = {name: summarise(name, costs) for name, costs in runs.items()}
    weights = pathlib.Path(context.mobilenet_weights).name
    title = f"mobilenet: {context.counts} JPEGs, MobileNetV2 at 224 px, weights {weights}, batch {MOBILENET_BATCH}"
    section = Section("mobilenet", title, (*SUMMARY_COLUMNS, "limit", "steady / limit"))
    best = {text: median_limit(found) for text, found in limits.items()}
    agreement = measure_agreement(context, bundle, folders[min(folders)], min(folders))
    for text in context.engines:
        if (summary := summaries.get(engine_name(text))) is None:
            continue
        limit = best[text]["limit_images_per_s"]
        share = summary.steady_images_per_s / limit if summary.steady_images_per_s else None
        section.rows.append((*summary_cells(summary), limit, share))
        section.notes.append(describe_limit(text, best[text]))
        if share:
            section.bars.append(Bar(f"{text}: steady state as a share of the limit", share, MOBILENET_SHARE))
    section.bars += agreement_bars(agreement)
    section.notes += agreement_notes(agreement)
    section.data = {"systems": [*map(dataclasses.asdict, summaries.values())], "runs": runs, "limits": limits,
                    "agreement": agreement, "failures": failures}  # fmt: skip
    return section
