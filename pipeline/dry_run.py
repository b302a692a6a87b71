"""`bulktag run --dry-run`: a whole run checked, its graphs built and what would be launched said; nobody is asked.

Whatever lies in a store is taken at its name: whether it is there shows in the run itself.
"""

import dataclasses
import glob
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    FlinkRunnerOptions,
    GoogleCloudOptions,
    SetupOptions,
    TestOptions,
    WorkerOptions,
)
from apache_beam.portability import common_urns

from bulktag.model.image import IMAGE_SUFFIXES
from bulktag.pipeline import accelerators, dataflow, outcome
from bulktag.pipeline.config import ExtractConfig, TagConfig
from bulktag.pipeline.extract import build_extract
from bulktag.pipeline.run import RunFile
from bulktag.pipeline.runners import RunnerChoice, check_detach, check_runner
from bulktag.pipeline.tag import build_retag, build_tag
from bulktag.transforms import files
from bulktag.transforms.examples import ShardSettings
from bulktag.transforms.infer import BackboneHandler, TaggerHandler
from bulktag.transforms.loading import LoadSettings
from bulktag.transforms.manifests import MANIFEST_SUFFIXES, label_columns
from bulktag.transforms.sources import Source, check_source, parse_source
from bulktag.transforms.tables import TagSettings

# Nothing in a graph depends on the network's width, labels and square.
_ANY_SIZE_PX, _ANY_WIDTH, _ANY_LABELS = 299, 2048, ("label",)
_STAGING = "/staging"


def describe_dry_run(run: RunFile) -> str:
    """What a run would do, once all of it is checked.

    Raises:
      ValueError: with what is wrong, and the file and line of its stage.
    """
    lines, made = [f"versions: {', '.join(f'{name} {version}' for name, version in outcome.versions().items())}"], {}
    for job, config in run.stages:
        lines.append(f"{job}:")
        for field in dataclasses.fields(config):
            value = getattr(config, field.name)
            if value != field.default and field.name != "beam":
                lines.append(f"  {field.name}: {list(value) if isinstance(value, tuple) else value}")
        try:
            lines += [f"  {line}" for line in _describe_stage(job, config, made)]
        except ValueError as error:
            raise ValueError(f"{job}: {error}: {run.places[job]}") from error
        made[files.normalise(config.model if job == "train" else config.output)] = job
    return "\n".join(lines)


def _describe_stage(job: str, config: Any, made: dict[str, str]) -> list[str]:
    """Lines about where a stage runs; `made` has the outputs of the stages before it."""
    if job in ("train", "evaluate"):
        _expect(config.examples, "examples", made)
    if job in ("tag", "evaluate") and config.model != "imagenet":
        _expect(config.model, "model", made)
    if job == "evaluate" or not (isinstance(config, TagConfig | ExtractConfig) or config.beam):
        return ["-> runs on this machine"]
    choice = check_runner(config.beam, getattr(config, "workers", 1))
    check_detach(choice, getattr(config, "detach", False))
    if choice.is_dataflow:
        dataflow.check_job(config, choice.options)
        dataflow.prepare(choice.options, f"bulktag-{job}-run-id")
    if job == "train":
        return [*_describe_runner(choice), f"steps: {'Trials, Spread' if config.sweep else 'Config'}, Train"]
    sources = tuple(_guess_source(text, made) for text in config.input)
    return [*_describe_runner(choice), _describe_graph(_build(config, sources, choice))]


def _expect(path: str, what: str, made: dict[str, str]) -> None:
    uri = files.normalise(path)
    if files.is_local(uri) and uri not in made and not files.exists(uri):
        raise ValueError(f"expected {what} that exist or that an earlier stage makes, got {path!r}")


def _guess_source(text: str, made: dict[str, str]) -> Source:
    """What a source is: what an earlier stage makes, what lies on this disk, or what its name says."""
    uri = files.normalise(text)
    if uri in made:
        if made[uri] != "extract":
            raise ValueError(f"expected images or what extract makes, got what {made[uri]} makes: {text}")
        return Source("examples", uri)
    if files.is_local(uri):
        return parse_source(text)
    if glob.has_magic(uri):
        return Source("glob", uri)
    name = uri.lower()
    if name.endswith(MANIFEST_SUFFIXES):
        return Source("manifest", uri)
    return Source("file" if name.endswith(tuple(IMAGE_SUFFIXES)) else "folder", uri)


def _build(config: ExtractConfig | TagConfig, sources: tuple[Source, ...], choice: RunnerChoice) -> beam.Pipeline:
    """The graph of a job, as it would be launched."""
    if choice.is_dataflow:
        choice.options.view_as(TestOptions).dry_run = True
    pipeline = beam.Pipeline(runner=choice.name if choice.is_dataflow else None, options=choice.options)
    load = LoadSettings(config.image_size_px or _ANY_SIZE_PX, config.resize or "crop", config.limits,
                        config.read_threads, getattr(config, "store_images", False))  # fmt: skip
    for source in sources:
        if files.is_local(source.uri):
            check_source(source, label_columns(getattr(config, "labels", "none")))
    if isinstance(config, ExtractConfig):
        shards = ShardSettings(config.split, config.split_seed, config.compression)
        handler = BackboneHandler(_STAGING, config.engine_settings)
        build_extract(pipeline, config, sources, shards, load, handler, _STAGING, None, "run", _ANY_WIDTH)
    else:
        settings = TagSettings(_ANY_LABELS, (0.0,), config.top_k, config.layout, config.scores,
                               config.embedding, config.novelty)  # fmt: skip
        if any(source.kind == "examples" for source in sources):
            build_retag(pipeline, config, ("shard",), _ANY_WIDTH, _STAGING, settings, _STAGING, None)
        else:
            handler = TaggerHandler(_STAGING, config.engine_settings)
            build_tag(pipeline, config, sources, load, handler, settings, _STAGING, None)
    if choice.is_dataflow:
        pipeline.run()  # builds and checks the job, and sends it nowhere
    return pipeline


def _describe_graph(pipeline: beam.Pipeline) -> str:
    graph = pipeline.to_runner_api()
    components, roots = graph.components, graph.root_transform_ids
    if len(roots) == 1:
        roots = components.transforms[roots[0]].subtransforms
    names = [components.transforms[key].unique_name for key in roots]
    shuffles = sum(step.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn for step in components.transforms.values())
    return f"steps: {', '.join(names)} ({len(components.transforms)} transforms, {shuffles} shuffles)"


def _describe_runner(choice: RunnerChoice) -> list[str]:
    options = choice.options
    if choice.is_dataflow:
        return ["-> runs on Dataflow", *_describe_dataflow(choice)]
    if choice.name.endswith("FlinkRunner"):
        flink = options.view_as(FlinkRunnerOptions)
        parallelism = flink.parallelism if flink.parallelism > 0 else "all slots"
        return [f"-> runs on Flink at {flink.flink_master}", f"parallelism: {parallelism}"]
    workers = f", in {choice.workers} processes" if choice.workers > 1 else ""
    return [f"-> runs on this machine{workers}" if choice.is_local else f"-> runs on {choice.name}"]


def _describe_dataflow(choice: RunnerChoice) -> list[str]:
    google, setup = choice.options.view_as(GoogleCloudOptions), choice.options.view_as(SetupOptions)
    workers, debug = choice.options.view_as(WorkerOptions), choice.options.view_as(DebugOptions)
    gpu = accelerators.find(choice.options)
    most = workers.max_num_workers or workers.num_workers or "as many as Dataflow likes"
    facts = {
        "project and region": f"{google.project}, {google.region}",
        "job name": google.job_name,
        "image": workers.sdk_container_image or "Beam's own",
        "machine": workers.machine_type or "Dataflow's default",
        "accelerator": f"{gpu.count} x {gpu.type}" if gpu else "none",
        "workers": f"{workers.num_workers or 1} to {most}",
        "disk": f"{workers.disk_size_gb} GB" if workers.disk_size_gb else "Dataflow's default",
        "network": workers.subnetwork or workers.network or "default",
        "addresses": "private" if workers.use_public_ips is False else "public",
        "harness threads": debug.number_of_worker_harness_threads,
        "experiments": ", ".join(debug.experiments or []) or "none",
        "service account": google.service_account_email or "the project's default",
        "labels": ", ".join(google.labels or []),
        "staged": ", ".join(path.rsplit("/", 1)[-1] for path in setup.extra_packages or []) or "nothing",
        "temporary files": google.temp_location,
    }
    return [f"{name}: {value}" for name, value in facts.items()]
