"""Tagging side by side: bulktag with each engine, the peers, and the limit of the machine."""

import dataclasses
import pathlib
import statistics
import subprocess

import numpy as np
import pyarrow.dataset

from benchmarks.context import SIZES_PX, Context, engine_name
from benchmarks.measure import run_measured
from benchmarks.report import SUMMARY_COLUMNS, Bar, Section, summary_cells
from benchmarks.rounds import MAX_MESSAGE, Summary, run_once, run_rounds, say, summarise
from benchmarks.systems import ENVIRONMENT, PEERS, TITLES, System, peer_system

STEADY_SHARE, COSINE, TOP_1 = 0.90, 0.995, 0.99
# Least ratio in total to the best of Ray Data and Daft, and to the textbook pipeline.
BEST_PEER_RATIOS = {"tensorflow": 4.5, "openvino": 6.0}
TEXTBOOK_RATIO, OPENVINO_RATIO = 6.0, 1.3
# Random weights give nearly all images the same few first labels, whose scores then differ by rounding only.
MIN_LABELS = 10
TRIAL_IMAGES = 256
AGREEMENT_IMAGES = 1000
REFERENCE = "tensorflow/fp32"


def run_tag(context: Context) -> Section:
    """The main comparison."""
    folders = context.photo_folders(context.counts)
    bundle = context.bundle(context.network)
    peers, notes, trials = choose_peers(context)
    systems = [*context.tag_systems(bundle, context.batch_size), *peers]
    limits: dict[str, list[dict]] = {text: [] for text in context.engines}

    def measure_limits() -> None:
        for text in context.engines:
            limits[text].append(context.measure_limit(text, bundle, folders[min(folders)], context.batch_size))
            say(f"  limit with {text}: {limits[text][-1]['limit_images_per_s']:.1f} images/s")

    runs, failures = run_rounds(systems, folders, context.repeats, context.work, also=measure_limits)
    summaries = {name: summarise(name, costs) for name, costs in runs.items()}
    best_limits = {text: median_limit(found) for text, found in limits.items()}
    agreement = measure_agreement(context, bundle, folders[min(folders)], min(folders))
    section = Section("tag", title_of(context), (*SUMMARY_COLUMNS, "ratio in total", "steady / limit"))
    fill_rows(section, context, summaries, best_limits)
    fill_bars(section, context, summaries, best_limits, agreement)
    section.notes += notes + [f"{name} failed: {message[:MAX_MESSAGE]}" for name, message in failures.items()]
    section.notes += [describe_limit(text, limit) for text, limit in best_limits.items()]
    section.notes += agreement_notes(agreement)
    section.data = {
        "systems": [dataclasses.asdict(summary) for summary in summaries.values()],
        "runs": runs, "limits": limits, "agreement": agreement, "copies_tried_s": trials, "failures": failures,
    }  # fmt: skip
    return section


def title_of(context: Context) -> str:
    """What was measured, in a line."""
    kind = "photos" if context.images else "drawn JPEGs"
    counts = " and ".join(f"{count:,}" for count in context.counts)
    return (
        f"tag: {counts} {kind}, {context.network}, batch {context.batch_size}, medians of {context.repeats} "
        "(ratio: images/s in total of the first row to this one)"
    )


def choose_peers(context: Context) -> tuple[list[System], list[str], dict[str, dict[int, float]]]:
    """The peers, each with the number of model copies that was fastest on a few images.

    Returns:
      systems, notes about them, and the seconds of each trial.
    """
    systems: list[System] = []
    notes, trials = [], {}
    for peer in context.peers:
        try:
            model = context.peer_model(context.network)
            copies = choose_copies(context, peer, model, trials) if PEERS[peer][2] else 1
            systems.append(_peer(context, peer, model, copies))
        except (RuntimeError, subprocess.CalledProcessError) as error:
            notes.append(f"{TITLES[peer]} is missing: {error}")
            continue
        if PEERS[peer][2]:
            notes.append(f"{TITLES[peer]} with {copies} of its model copies tried: {sorted(trials[peer])}")
    return systems, notes, trials


def _peer(context: Context, peer: str, model: pathlib.Path, copies: int) -> System:
    return peer_system(
        peer, context.cache, model, SIZES_PX[context.network], context.batch_size, copies, context.peer_call
    )


def choose_copies(context: Context, peer: str, model: pathlib.Path, trials: dict) -> int:
    """The number of model copies with which a peer is fastest."""
    import joblib

    count = min(TRIAL_IMAGES, context.counts[0])
    folder = str(context.photo_folder(count))
    trials[peer] = {}
    for copies in sorted({1, 2, max(1, joblib.cpu_count() // 2)}):
        say(f"trying {TITLES[peer]} with {copies} copies of the model")
        try:
            trials[peer][copies] = run_once(_peer(context, peer, model, copies), folder, count, context.work).seconds
        except RuntimeError as error:
            say(f"  failed: {error}")
    if not trials[peer]:
        raise RuntimeError("it ran with no number of model copies")
    return min(trials[peer], key=trials[peer].get)


def median_limit(found: list[dict]) -> dict:
    """Medians of the numbers of several measurements."""
    return {
        key: statistics.median(one[key] for one in found) if isinstance(value, float) else value
        for key, value in found[0].items()
    }


def describe_limit(text: str, limit: dict) -> str:
    """One line."""
    return (
        f"limit with {text} ({limit['engine']}, batch {limit['batch_size']}): "
        f"{limit['limit_images_per_s']:.1f} images/s = 1 / (1 / {limit['engine_images_per_s']:.1f} of the engine + "
        f"{1000 / limit['decode_images_per_s_one_core']:.2f} ms of decoding / {limit['cores']} cores); decoding in "
        f"{limit['cores']} threads {limit['decode_images_per_s_all_cores']:.0f} images/s"
    )


def fill_rows(section: Section, context: Context, summaries: dict[str, Summary], limits: dict[str, dict]) -> None:
    """The table: systems in their order, then the limits."""
    first = next(iter(summaries.values()), None)
    by_name = {engine_name(text): limits[text]["limit_images_per_s"] for text in context.engines}
    for name, summary in summaries.items():
        share = summary.steady_images_per_s / by_name[name] if name in by_name and summary.steady_images_per_s else None
        section.rows.append((*summary_cells(summary), first.images_per_s / summary.images_per_s, share))
    for text, limit in limits.items():
        section.rows.append((f"limit, {text}", None, limit["limit_images_per_s"], None, None, None, None))


def fill_bars(
    section: Section, context: Context, summaries: dict[str, Summary], limits: dict[str, dict], agreement: dict
) -> None:
    """The promises of each engine."""
    rivals = [summaries[TITLES[peer]].images_per_s for peer in ("ray", "daft") if TITLES[peer] in summaries]
    textbook = summaries.get(TITLES["beam"])
    for text in context.engines:
        summary, engine = summaries.get(engine_name(text)), text.split("/")[0]
        if summary is None:
            continue
        if summary.steady_images_per_s:
            share = summary.steady_images_per_s / limits[text]["limit_images_per_s"]
            section.bars.append(Bar(f"{text}: steady state as a share of the limit", share, STEADY_SHARE))
        if rivals and engine in BEST_PEER_RATIOS:
            ratio = summary.images_per_s / max(rivals)
            section.bars.append(Bar(f"{text}: times the best of Ray Data and Daft", ratio, BEST_PEER_RATIOS[engine]))
        if textbook:
            ratio = summary.images_per_s / textbook.images_per_s
            section.bars.append(Bar(f"{text}: times the textbook Beam pipeline", ratio, TEXTBOOK_RATIO))
    pair = [summaries.get(engine_name(text)) for text in ("openvino", "tensorflow")]
    if all(pair) and all(summary.steady_images_per_s for summary in pair):
        ratio = pair[0].steady_images_per_s / pair[1].steady_images_per_s
        section.bars.append(Bar("openvino: times tensorflow in steady state", ratio, OPENVINO_RATIO))
    section.bars += agreement_bars(agreement)


def agreement_bars(agreement: dict[str, dict]) -> list[Bar]:
    """The promises of accuracy."""
    bars = []
    for text, found in agreement.items():
        bars.append(Bar(f"{text}: least cosine of a bottleneck to fp32's", found["cosine_min"], COSINE))
        if found["reference_labels"] >= MIN_LABELS:
            bars.append(Bar(f"{text}: share of images with fp32's first label", found["top_1_agreement"], TOP_1))
    return bars


def agreement_notes(agreement: dict[str, dict]) -> list[str]:
    """What was compared, in lines."""
    return [
        f"{text} beside {REFERENCE} on {found['images']} images: cosine at least {found['cosine_min']:.5f}, same first "
        f"label for {found['top_1_agreement']:.1%} ({found['reference_labels']} labels come first at all)"
        for text, found in agreement.items()
    ]


def measure_agreement(context: Context, bundle: pathlib.Path, images: str, count: int) -> dict[str, dict]:
    """How far each engine's bottlenecks and first labels are from TensorFlow's in fp32, on the same photos."""
    if count > AGREEMENT_IMAGES:
        count, images = AGREEMENT_IMAGES, str(context.photo_folder(AGREEMENT_IMAGES))
    say(f"comparing the engines with {REFERENCE} on {count} images")
    found = {}
    reference = _scored(context, bundle, images, REFERENCE)
    for text in context.engines:
        if text == REFERENCE:
            continue
        try:
            found[text] = compare_scored(_scored(context, bundle, images, text), reference)
        except RuntimeError as error:
            say(f"  {text} failed: {error}")
    return found


def _scored(context: Context, bundle: pathlib.Path, images: str, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Bottlenecks float32[N, D] and best labels int[N], in order of the URIs."""
    flags = ("--embedding", "--scores", "--batch-size", str(context.batch_size))
    (system,) = dataclasses.replace(context, engines=(text,)).tag_systems(bundle, context.batch_size, flags)
    output = context.work / "agreement"
    run_measured(system.command(images, output), context.work / "logs" / "agreement.log", environment=ENVIRONMENT)
    table = pyarrow.dataset.dataset(output / "tags").to_table(columns=["uri", "scores", "embedding"]).sort_by("uri")
    scores_NL = np.stack(table["scores"].to_numpy())
    return np.stack(table["embedding"].to_numpy()), scores_NL.argmax(axis=1)


def compare_scored(found: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]) -> dict:
    """Cosines of bottlenecks and agreement of best labels."""
    found_ND, wanted_ND = (pair[0].astype(np.float64) for pair in (found, reference))
    lengths_N = np.linalg.norm(found_ND, axis=1) * np.linalg.norm(wanted_ND, axis=1)
    cosine_N = (found_ND * wanted_ND).sum(axis=1) / lengths_N
    return {
        "images": len(cosine_N),
        "cosine_min": float(cosine_N.min()),
        "cosine_mean": float(cosine_N.mean()),
        "top_1_agreement": float((found[1] == reference[1]).mean()),
        "reference_labels": len(np.unique(reference[1])),
    }
