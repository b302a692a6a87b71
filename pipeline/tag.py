"""`bulktag tag`: images or stored bottlenecks + model bundle -> Parquet of tags, Parquet of errors."""

import datetime

import apache_beam as beam

from bulktag.model.bundle import Bundle
from bulktag.model.engine_settings import EngineSettings
from bulktag.model.hardware import describe_device
from bulktag.model.image import DEFAULT_RESIZE
from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import TagConfig
from bulktag.pipeline.console import OUT, ProgressDisplay, print_table, say
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.network import check_examples, resolve_bundle
from bulktag.pipeline.precision import describe_engine, describe_engine_device, settle_precision
from bulktag.pipeline.runners import choose_runner, run_pipeline
from bulktag.pipeline.thresholds import check_novelty, choose_thresholds
from bulktag.transforms import files
from bulktag.transforms.examples import ReadExamples, list_shards
from bulktag.transforms.infer import HeadHandler, InferBatches, TaggerHandler
from bulktag.transforms.loading import LoadSettings
from bulktag.transforms.manifests import label_columns
from bulktag.transforms.matching import MatchImages
from bulktag.transforms.read import ReadImages
from bulktag.transforms.records import ERRORS, ScoredBatch, errors_schema
from bulktag.transforms.sources import EXAMPLES_FILE, FOLDER_KINDS, Source, check_source, parse_source, split_sources
from bulktag.transforms.staging import CommitFiles, read_manifest
from bulktag.transforms.tables import TAGS, TagSettings, WriteErrors, WriteTags, write_empty_table

LABELS_SHOWN = 10
# Rows of stored bottlenecks scored at once: the head is small, so a large batch keeps the overhead per row low.
EXAMPLES_BATCH = 1024


def run_tag(config: TagConfig) -> dict:
    """Do the whole job.

    Returns:
      contents of run.json.
    Raises:
      ValueError: the request is wrong.
      JobFailed: it could not be done.
    """
    output = files.normalise(config.output)
    publish.check_output(output, "tag")
    sources = tuple(parse_source(text) for text in config.input)
    from_examples = _check_sources(sources)
    publish.check_apart(output, (source.uri for source in sources if source.kind in FOLDER_KINDS))
    record = outcome.RunRecord("tag", publish.new_run_id(), config)
    runner = choose_runner(config.beam, config.workers, record.job_name, config)
    device = describe_engine_device(config.engine_settings, runner.is_local)  # a mistake is heard before anything loads
    record.note(run_date=_run_date(config, record), runner=runner.name, device=device)

    with publish.staging(output, record.run_id, detach=config.detach) as made:
        model_dir = files.join(made.work, "model")
        bundle, model_dir = resolve_bundle(config, model_dir, config.resize or DEFAULT_RESIZE)
        _check_resize(config, bundle)
        check_novelty(config, bundle)
        record.note(model_id=bundle.model_id, resize=bundle.resize, backbone=bundle.info["backbone"])
        load = LoadSettings(bundle.backbone.image_size_px, bundle.resize, config.limits, config.read_threads)
        engine_settings = _settle_engine(config, sources, load, bundle, record, made, from_examples, runner.is_local)
        say(f"model: {bundle.model_id}, {len(bundle.labels)} labels; engine: {record.facts['engine']}; "
            f"runner: {runner.name}")  # fmt: skip
        settings = _tag_settings(config, bundle, record)
        parts = split_sources(sources)
        shards = tuple(uri for source in sources for uri in list_shards(source.uri)) if from_examples else ()
        expected = sum(check_examples(sources[0].uri, bundle).values()) if from_examples else None

        def build(pipeline: beam.Pipeline, progress_dir: str) -> None:
            if from_examples:
                width = bundle.backbone.width
                last = build_retag(pipeline, config, shards, width, model_dir, settings, made.work, progress_dir)
            else:
                handler = TaggerHandler(model_dir, engine_settings, config.novelty)
                last = build_tag(pipeline, config, parts, load, handler, settings, made.work, progress_dir)
            if config.detach:
                outcome.publish_behind(last, _finish, record, made, settings, config, expected)

        with ProgressDisplay("tag") as display:
            record.note(**run_pipeline(runner, build, display, made.work, detach=config.detach))
        if config.detach:
            return outcome.report_detached(record)
        record.note_engine()
        return _finish(record, made, settings, config, expected)


def _check_sources(sources: tuple[Source, ...]) -> bool:
    """Whether they are examples instead of images."""
    from_examples = {source.kind == "examples" for source in sources}
    if len(from_examples) > 1:
        raise ValueError("expected images or folders that extract wrote, got both: run them one after the other")
    if from_examples == {True} and len(sources) > 1:
        raise ValueError(f"expected one folder that extract wrote, got {len(sources)}: an image may stand in several")
    for source in sources:
        if source.kind == "bottlenecks":
            raise ValueError(f"expected images, got texts of bottlenecks: extract them first, and tag the examples: "
                             f"{source.uri}")  # fmt: skip
        check_source(source, label_columns("none"))
    return from_examples == {True}


def _run_date(config: TagConfig, record: outcome.RunRecord) -> str:
    try:
        date = datetime.date.fromisoformat(config.run_date) if config.run_date else record.started.date()
    except ValueError as error:
        raise ValueError(f"expected run_date as YYYY-MM-DD, got {config.run_date!r}") from error
    return date.isoformat()


def _settle_engine(
    config: TagConfig, sources: tuple[Source, ...], load: LoadSettings, bundle: Bundle, record: outcome.RunRecord,
    made: publish.Staging, from_examples: bool, here: bool,
) -> EngineSettings:  # fmt: skip
    """Choose what runs the network; stored bottlenecks need only the head, which is always the same."""
    if from_examples:
        device = describe_device(config.device) if here else config.device
        record.note(engine=f"tensorflow, fp32, {device}")
        return config.engine_settings
    backbone = (bundle.backbone, bundle.backbone_graph()) if config.precision == "int8" else (bundle.backbone, None)
    settings, agreement = settle_precision(
        config.engine_settings, sources, load, backbone, bundle.head_graph(), files.join(made.work, "int8")
    )
    record.note(engine=describe_engine(settings, here), **({"int8": agreement} if agreement else {}))
    return settings


def _check_resize(config: TagConfig, bundle: Bundle) -> None:
    if config.resize and config.resize != bundle.resize:
        raise ValueError(
            f"expected resize {bundle.resize}, which the model was trained with, got {config.resize}: {config.model}"
        )


def _tag_settings(config: TagConfig, bundle: Bundle, record: outcome.RunRecord) -> TagSettings:
    return TagSettings(
        labels=bundle.labels, thresholds=choose_thresholds(config, bundle, record), top_k=config.top_k,
        layout=config.layout, scores=config.scores, embedding=config.embedding, novelty=config.novelty,
        model_id=bundle.model_id, run_id=record.run_id,
    )  # fmt: skip


def build_tag(
    pipeline: beam.Pipeline, config: TagConfig, sources: tuple[Source, ...], load: LoadSettings,
    handler: TaggerHandler, settings: TagSettings, staging_dir: str, progress_dir: str | None,
) -> beam.PCollection:  # fmt: skip
    """Wire the graph from images; returns what comes last."""
    matched = pipeline | "Match" >> MatchImages(sources, "none", progress_dir=progress_dir)
    read = matched["refs"] | "Read" >> ReadImages(
        load.image_size_px, load.resize, load.limits, config.batch_size, load.read_threads, progress_dir=progress_dir,
    )  # fmt: skip
    scored = read["batches"] | "Infer" >> InferBatches(handler, progress_dir)
    tags = scored | "Tags" >> WriteTags(staging_dir, settings)
    errors = (matched["errors"], read["errors"]) | "AllErrors" >> beam.Flatten()
    error_files = errors | "Errors" >> WriteErrors(staging_dir, settings.run_id)
    staged = (tags, error_files) | "AllFiles" >> beam.Flatten()
    return staged | CommitFiles(staging_dir, matched["num_matched"], matched["skipped"])


def build_retag(
    pipeline: beam.Pipeline, config: TagConfig, shards: tuple[str, ...], width: int, model_dir: str,
    settings: TagSettings, staging_dir: str, progress_dir: str | None,
) -> beam.PCollection:  # fmt: skip
    """Wire the graph from stored bottlenecks: no image is touched. Returns what comes last."""
    read = pipeline | "Read" >> ReadExamples(shards, width, EXAMPLES_BATCH, progress_dir)
    handler = HeadHandler(model_dir, EngineSettings(EXAMPLES_BATCH, config.device), config.novelty)
    scored = read | "Infer" >> InferBatches(handler, progress_dir)
    staged = scored | "Tags" >> WriteTags(staging_dir, settings)
    num_read = read | "CountRead" >> beam.Map(_num_images) | beam.CombineGlobally(sum)
    return staged | CommitFiles(staging_dir, num_read)


def _num_images(batch: ScoredBatch) -> int:
    return batch.images.num_rows


def _finish(
    record: outcome.RunRecord, made: publish.Staging, settings: TagSettings, config: TagConfig, expected: int | None
) -> dict:
    """Count and publish what the workers made; `expected` images, where it is known before."""
    manifest = read_manifest(made.work)
    counts = outcome.count_images(manifest, (TAGS,))
    if expected is not None and counts["matched"] != expected:
        raise JobFailed(f"expected {expected} images, as {EXAMPLES_FILE} says, got {counts['matched']}: a shard is "
                        f"missing; extract again: {config.input[0]}; nothing was published")  # fmt: skip
    labels = outcome.sum_labels(manifest["files"], (TAGS,))
    errors = outcome.sum_labels(manifest["files"], (ERRORS,))
    record.note(counts=counts, labels=labels, errors=errors, skipped=manifest["skipped"])
    if config.novelty:
        record.note(novel=sum(file.num_novel for file in manifest["files"]))
    folders = {table: f"{table}/run_date={record.facts['run_date']}" for table in (TAGS, ERRORS)}
    publish.arrange_parts(made, manifest["files"], folders)
    for table, schema in ((TAGS, settings.schema), (ERRORS, errors_schema())):
        if not any(file.table == table for file in manifest["files"]):
            write_empty_table(files.join(made.final, folders[table], "part-00000-of-00001.parquet"), schema)
    outcome.report_skipped(manifest["skipped"])
    try:
        outcome.check_counts(counts, config.max_error_share, "tagged")
    except JobFailed as failure:
        raise outcome.keep_failed(record, made, failure) from None
    run = record.to_json("succeeded")
    publish.publish(made, tuple(folders.values()), run)
    _print_summary(labels, errors, run, made.output)
    return run


def _print_summary(labels: dict[str, int], errors: dict[str, int], run: dict, output: str) -> None:
    most = sorted(labels.items(), key=lambda item: -item[1])
    print_table(("top label", "images"), most[:LABELS_SHOWN])
    if len(most) > LABELS_SHOWN:
        OUT.print(f"... and {len(most) - LABELS_SHOWN} more labels")
    OUT.print()
    outcome.print_errors(errors)
    counts = run["counts"]
    if run.get("novel"):
        OUT.print(f"{run['novel']} of {counts['used']} images are unlike anything seen in training (novelty above 1)")
    untagged = counts["used"] - sum(labels.values())
    note = f" ({untagged} of them without a label above its threshold)" if untagged else ""
    OUT.print(
        f"{counts['used']} of {counts['matched']} images tagged{note} in {run['seconds']:.1f} s "
        f"({run['images_per_second']:.0f} images/s): {output}", markup=False
    )  # fmt: skip
