"""`bulktag extract`: images -> TFRecord shards with bottlenecks, by split."""

import dataclasses
import json

import apache_beam as beam

from bulktag.model.backbone import BackboneSpec
from bulktag.model.splits import MIN_IMAGES_PER_LABEL
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import ExtractConfig
from bulktag.pipeline.console import OUT, ProgressDisplay, print_table, say
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.network import resolve_backbone
from bulktag.pipeline.precision import describe_engine, describe_engine_device, settle_precision
from bulktag.pipeline.runners import choose_runner, run_pipeline
from bulktag.transforms import files
from bulktag.transforms.bottleneck_texts import ReadBottlenecks, check_width
from bulktag.transforms.examples import NO_LABEL, ShardSettings, WriteExamples, list_shards
from bulktag.transforms.incremental import ReuseExamples
from bulktag.transforms.infer import BackboneHandler, InferBatches
from bulktag.transforms.loading import LoadSettings
from bulktag.transforms.manifests import label_columns
from bulktag.transforms.matching import MatchImages, find_images
from bulktag.transforms.read import ReadImages
from bulktag.transforms.records import ERRORS, SPLITS, ImageRef, errors_schema
from bulktag.transforms.sources import EXAMPLES_FILE, FOLDER_KINDS, Source, check_source, parse_source, split_sources
from bulktag.transforms.staging import CommitFiles, read_manifest
from bulktag.transforms.tables import WriteErrors, write_empty_table

ENTRIES = (*SPLITS, ERRORS, "backbone", EXAMPLES_FILE)


def run_extract(config: ExtractConfig) -> dict:
    """Do the whole job.

    Returns:
      contents of run.json.
    Raises:
      ValueError: the request is wrong.
      JobFailed: it could not be done.
    """
    output = files.normalise(config.output)
    publish.check_output(output, "extract")
    sources = tuple(parse_source(text) for text in config.input)
    for source in sources:
        if source.kind == "examples":
            raise ValueError(f"expected images, got a folder that extract wrote: {source.uri}")
        check_source(source, label_columns(config.labels))
    _check_labels(config, sources)
    if len({source.kind == "bottlenecks" for source in sources}) > 1:
        raise ValueError("expected images or texts of bottlenecks, got both: extract them into folders of their own")
    publish.check_apart(output, (source.uri for source in sources if source.kind in FOLDER_KINDS))
    shards = ShardSettings(config.split, config.split_seed, config.compression)
    record = outcome.RunRecord("extract", publish.new_run_id(), config)
    runner = choose_runner(config.beam, config.workers, record.job_name, config)
    device = describe_engine_device(config.engine_settings, runner.is_local)  # a mistake is heard before work begins
    record.note(runner=runner.name, device=device)
    backbone = resolve_backbone(config)
    _check_bottlenecks(sources, backbone.spec)

    with publish.staging(output, record.run_id, detach=config.detach) as made:
        backbone_dir = files.join(made.final, "backbone")
        files.write_folder(backbone.save, backbone_dir)
        load = LoadSettings(backbone.spec.image_size_px, config.resize, config.limits, config.read_threads,
                            config.store_images)  # fmt: skip
        settings, agreement = settle_precision(
            config.engine_settings, sources, load, (backbone.spec, backbone.graph_def), None,
            files.join(made.work, "int8"),
        )  # fmt: skip
        engine = describe_engine(settings, runner.is_local)
        record.note(engine=engine, chosen_engine=engine, **({"int8": agreement} if agreement else {}))
        say(f"engine: {record.facts['engine']}; runner: {runner.name}")
        handler = BackboneHandler(backbone_dir, settings)
        parts = split_sources(sources)
        # What int8 gives depends on the images that it was made with.
        anew = config.recompute or bool(settings.quantised)
        earlier = () if anew else find_earlier(output, config, backbone.spec, engine)

        def build(pipeline: beam.Pipeline, progress_dir: str) -> None:
            last = build_extract(pipeline, config, parts, shards, load, handler, made.work, progress_dir,
                                 record.run_id, backbone.spec.width, earlier)  # fmt: skip
            if config.detach:
                outcome.publish_behind(last, _finish, record, made, backbone.spec, config)

        with ProgressDisplay("extract") as display:
            record.note(**run_pipeline(runner, build, display, made.work, detach=config.detach))
        if config.detach:
            return outcome.report_detached(record)
        record.note_engine()
        return _finish(record, made, backbone.spec, config)


def find_earlier(output: str, config: ExtractConfig, backbone: BackboneSpec, engine: str) -> tuple[str, ...]:
    """Shards of an earlier run whose bottlenecks are what this run would compute; () where there are none.

    Args:
      output: folder of the earlier run.
      config: of this run.
      backbone: of this run.
      engine: of this run, as `describe_engine` says it: other engines and precisions give slightly other numbers.
    """
    info_uri = files.join(output, EXAMPLES_FILE)
    if not files.is_file(info_uri):
        return ()
    try:
        info = json.loads(files.read_bytes(info_uri))
        before = {"backbone": {**info["backbone"], "weights": ""}} | {name: info.get(name) for name in _REUSE_KEYS}
    except (ValueError, KeyError, TypeError):
        return ()
    now = _reuse_facts(config, engine) | {"backbone": {**dataclasses.asdict(backbone), "weights": ""}}
    differing = sorted(name for name in now if before[name] != now[name])
    if differing:
        say(f"all bottlenecks are computed anew: {', '.join(differing)} differ from the earlier run in {output}")
        return ()
    return tuple(list_shards(output))


_REUSE_KEYS = ("resize", "store_images", "engine")


def _reuse_facts(config: ExtractConfig, engine: str) -> dict:
    """What must be the same for bottlenecks to be the same, besides the network."""
    return dict(zip(_REUSE_KEYS, (config.resize, config.store_images, engine), strict=True))


def _check_bottlenecks(sources: tuple[Source, ...], backbone: BackboneSpec) -> None:
    """The first text of a folder of bottlenecks tells whether they are this network's."""
    for source in sources:
        if source.kind == "bottlenecks":
            first = next((ref for ref in find_images(source, "none") if isinstance(ref, ImageRef)), None)
            if first is not None:
                check_width(first.uri, backbone.width)


def _check_labels(config: ExtractConfig, sources: tuple[Source, ...]) -> None:
    if not config.labels:
        raise ValueError("expected labels auto, folder, none or a manifest's columns, got none of them")
    if label_columns(config.labels) and not any(source.kind == "manifest" for source in sources):
        raise ValueError(
            f"expected a manifest with column {config.labels} among the input, got none: "
            "for folders, labels are auto, folder or none"
        )


def build_extract(
    pipeline: beam.Pipeline, config: ExtractConfig, sources: tuple[Source, ...], shards: ShardSettings,
    load: LoadSettings, handler: BackboneHandler, staging_dir: str, progress_dir: str | None, run_id: str,
    width: int, earlier: tuple[str, ...] = (),
) -> beam.PCollection:  # fmt: skip
    """Wire the graph; returns what comes last."""
    matched = pipeline | "Match" >> MatchImages(
        sources, config.labels, config.label_separator, progress_dir, config.clean_labels
    )
    refs, kept = matched["refs"], ()
    if earlier:
        compared = refs | "Reuse" >> ReuseExamples(earlier, width, config.batch_size, load.keep_encoded, progress_dir)
        refs, kept = compared["refs"], (compared["kept"],)
    if any(source.kind == "bottlenecks" for source in sources):
        read = refs | "Read" >> ReadBottlenecks(width, config.batch_size, load.read_threads, progress_dir)
        bottlenecks = read["bottlenecks"]
    else:
        read = refs | "Read" >> ReadImages(
            load.image_size_px, load.resize, load.limits, config.batch_size, load.read_threads, load.keep_encoded,
            progress_dir,
        )  # fmt: skip
        bottlenecks = read["batches"] | "Infer" >> InferBatches(handler, progress_dir)
    if kept:
        bottlenecks = (bottlenecks, *kept) | "NewAndKept" >> beam.Flatten()
    examples = bottlenecks | "Write" >> WriteExamples(staging_dir, matched["labels"], shards)
    errors = (matched["errors"], read["errors"]) | "AllErrors" >> beam.Flatten() | WriteErrors(staging_dir, run_id)
    staged = (examples, errors) | "AllFiles" >> beam.Flatten()
    return staged | CommitFiles(staging_dir, matched["num_matched"], matched["skipped"], matched["labels"])


def _finish(record: outcome.RunRecord, made: publish.Staging, backbone: BackboneSpec, config: ExtractConfig) -> dict:
    """Count, describe and publish what the workers made."""
    manifest = read_manifest(made.work)
    counts = outcome.count_images(manifest, SPLITS)
    errors = outcome.sum_labels(manifest["files"], (ERRORS,))
    record.note(counts=counts, errors=errors, skipped=manifest["skipped"])
    run_date = f"{record.started:%Y-%m-%d}"
    tables = {split: split for split in SPLITS} | {ERRORS: f"{ERRORS}/run_date={run_date}"}
    publish.arrange_parts(made, manifest["files"], tables)
    if not counts["errors"]:
        write_empty_table(files.join(made.final, tables[ERRORS], "part-00000-of-00001.parquet"), errors_schema())
    info = describe_examples(manifest, backbone, config, record)
    files.write_bytes(files.join(made.final, EXAMPLES_FILE), json.dumps(info, indent=2, ensure_ascii=False).encode())
    _warn_of_labels(record, info)
    outcome.report_skipped(manifest["skipped"])
    try:
        outcome.check_counts(counts, config.max_error_share, "extracted")
    except JobFailed as failure:
        raise outcome.keep_failed(record, made, failure) from None
    run = record.to_json("succeeded")
    publish.publish(made, ENTRIES, run)
    _print_summary(info, errors, run, made.output)
    return run


def describe_examples(manifest: dict, backbone: BackboneSpec, config: ExtractConfig, record: outcome.RunRecord) -> dict:
    """Contents of examples.json."""
    counts = {}
    for split in SPLITS:
        images = sum(file.num_images for file in manifest["files"] if file.table == split)
        labels = outcome.sum_labels(manifest["files"], (split,))
        unlabelled = labels.pop(NO_LABEL, 0)
        counts[split] = {"images": images, "labels": labels, "unlabelled": unlabelled}
    return {
        "backbone": dataclasses.asdict(backbone),
        "width": backbone.width,
        "labels": manifest["labels"],
        "counts": counts,
        "split": {"proportions": config.split, "seed": config.split_seed, "by": "sha256 of the file"},
        "compression": config.compression,
        # What was found, and what was meant: a list column may hold one label an image, or several in a few of them.
        "multi_label": bool(config.label_separator) or _has_several(counts),
        "source": list(config.input),
        # Other images may have the same counts: a training that was interrupted must not go on with them.
        "run_id": record.run_id,
        **_reuse_facts(config, record.facts["chosen_engine"]),
    }


def _has_several(counts: dict) -> bool:
    """Whether some images have more than one label."""
    return any(sum(split["labels"].values()) + split["unlabelled"] > split["images"] for split in counts.values())


def _warn_of_labels(record: outcome.RunRecord, info: dict) -> None:
    """Say what will get in the way of training."""
    unlabelled = sum(info["counts"][split]["unlabelled"] for split in SPLITS)
    if info["labels"] and unlabelled:
        what = "takes them as having none" if info["multi_label"] else "skips them"
        record.warn(f"{unlabelled} {'image has' if unlabelled == 1 else 'images have'} no label: training {what}")
    if not info["labels"]:
        record.warn("no image has a label: these examples can be tagged, but not trained on")
    totals = {label: sum(info["counts"][split]["labels"].get(label, 0) for split in SPLITS) for label in info["labels"]}
    small = [label for label, count in totals.items() if count < MIN_IMAGES_PER_LABEL]
    if small:
        names = ", ".join(f"{label} ({totals[label]})" for label in small[:5]) + (", ..." if len(small) > 5 else "")
        what = "1 label has" if len(small) == 1 else f"{len(small)} labels have"
        record.warn(f"{what} fewer than {MIN_IMAGES_PER_LABEL} images that can be used: {names}")


def _print_summary(info: dict, errors: dict[str, int], run: dict, output: str) -> None:
    rows = [(split, info["counts"][split]["images"]) for split in SPLITS]
    print_table(("split", "images"), rows)
    outcome.print_errors(errors)
    counts = run["counts"]
    if kept := run.get("counters", {}).get("incremental/kept", 0):
        say(f"{kept} of {counts['used']} bottlenecks were there from an earlier run")
    OUT.print(
        f"{counts['used']} of {counts['matched']} images extracted in {run['seconds']:.1f} s, "
        f"{len(info['labels'])} {'label' if len(info['labels']) == 1 else 'labels'}: {output}", markup=False
    )  # fmt: skip
