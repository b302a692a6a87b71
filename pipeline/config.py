"""One frozen dataclass per job. Flags and YAML fill the same fields; an unknown key is refused.

A field's metadata holds its help text, and what argparse needs to know. `""` stands for "not given".
"""

import dataclasses
from typing import Any

from bulktag.model.engine_settings import DEVICES, ENGINES, PRECISIONS, EngineSettings
from bulktag.model.hardware import num_cores
from bulktag.model.image import DEFAULT_RESIZE, RESIZE_MODES, ImageLimits
from bulktag.model.sweep_space import parse_space
from bulktag.pipeline.options import NOT_NEGATIVE, POSITIVE, SHARE, convert_value, option

IMAGENET = "imagenet"
# Reads in flight at once, where the store is slow enough to need so many.
DEFAULT_READ_THREADS = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Network:
    """Which network, and how pictures reach it."""

    backbone: str = option(
        "inception_v3", "network: inception_v3, builtin, pixels or any model of keras.applications", metavar="NAME"
    )
    weights: str = option(
        "", "imagenet, builtin, random:SEED, or a .weights.h5, .keras or frozen .pb file; default: builtin for the "
        "builtin network, else imagenet", metavar="WEIGHTS"
    )  # fmt: skip
    image_size_px: int = option(
        0, "side of the network's square in pixels; 0: the network's own", metavar="PX", within=NOT_NEGATIVE
    )
    graph_input: str = option("", "for a .pb graph: name of its image tensor, if it is not found", metavar="TENSOR")
    graph_bottleneck: str = option("", "for a .pb graph: name of its bottleneck tensor, if not found", metavar="TENSOR")

    @property
    def resolved_weights(self) -> str:
        """Weights as asked for, or the network's default."""
        defaults = {"builtin": "builtin", "pixels": "none"}
        return self.weights or defaults.get(self.backbone, IMAGENET)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Images:
    """How images are read."""

    max_bytes: int = option(ImageLimits().max_bytes, "refuse a larger file, in bytes", metavar="BYTES", within=POSITIVE)
    max_pixels: int = option(
        ImageLimits().max_pixels, "refuse a larger picture, in pixels", metavar="PIXELS", within=POSITIVE
    )
    read_threads: int = option(
        DEFAULT_READ_THREADS, "most images being read at once in one process; fewer on a fast disk", metavar="N",
        within=POSITIVE
    )  # fmt: skip
    max_error_share: float = option(
        0.05, "fail if more than this share of the images cannot be used (0 to 1)", metavar="SHARE", within=SHARE
    )

    @property
    def limits(self) -> ImageLimits:
        """What is refused before it is decoded."""
        return ImageLimits(self.max_bytes, self.max_pixels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Execution:
    """Where and how a Beam job runs."""

    batch_size: int = option(32, "images on the engine at once", metavar="N", within=POSITIVE)
    device: str = option("auto", "what the network runs on; gpu fails where there is none", choices=DEVICES)
    engine: str = option(
        "auto", "what runs the network; auto: openvino on a CPU where it is installed, else tensorflow", choices=ENGINES
    )
    precision: str = option(
        "auto", "of the network's multiplications; auto: fp16 on a GPU, bf16 on a CPU that has it, else fp32; int8 is "
        "measured on a sample first", choices=PRECISIONS
    )  # fmt: skip
    detach: bool = option(False, "on Dataflow: send the job and leave; its last step publishes")
    workers: int = option(1, "worker processes on this machine", metavar="N", within=POSITIVE)
    model_copies: int = option(
        0, "models on one machine, shared by its worker processes; 0: one on a GPU, one a process on a CPU",
        metavar="N", within=NOT_NEGATIVE
    )  # fmt: skip
    beam: tuple[str, ...] = option((), "Beam's own options, as on its command line", metavar="FLAG")

    @property
    def engine_settings(self) -> EngineSettings:
        """How workers execute the network."""
        return EngineSettings(
            self.batch_size, self.device, self.engine, self.precision, model_copies=self.model_copies,
            num_threads=self._threads_a_copy(),
        )  # fmt: skip

    def _threads_a_copy(self) -> int:
        """The copies on this machine share its cores; 0 where there is but one, or it is another machine's matter."""
        copies = self.model_copies or self.workers
        return 0 if copies == 1 else max(1, num_cores() // copies)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig(_Execution, _Images, _Network):
    """Images -> TFRecord shards with bottlenecks, split into train, validation and test."""

    input: tuple[str, ...] = option(
        (), "folder, glob, manifest (.csv, .jsonl, .parquet with a uri column) or file; several at once",
        metavar="SRC", required=True
    )  # fmt: skip
    output: str = option("", "folder for the examples, replaced whole", metavar="DIR", required=True)
    labels: str = option(
        "auto", "auto: the folder's name, or column label of a manifest; folder; none; or COLUMN[,COLUMN...]",
        metavar="LABELS"
    )  # fmt: skip
    label_separator: str = option("", "split a label column's text at this, for several labels an image", metavar="SEP")
    resize: str = option(DEFAULT_RESIZE, "how a picture is brought to the network's square", choices=RESIZE_MODES)
    split: tuple[float, ...] = option((0.8, 0.1, 0.1), "shares of train, validation and test", metavar="SHARE")
    split_seed: int = option(0, "another seed gives another, independent split", metavar="N")
    compression: str = option(
        "none", "of the shards; gzip takes a tenth to a third less space and several times the CPU, at both ends",
        choices=("none", "gzip")
    )  # fmt: skip
    store_images: bool = option(False, "keep the images' bytes in the examples, as image/encoded")
    clean_labels: bool = option(
        False, "make names of labels like n02085620-Japanese_spaniel: without the number, with spaces"
    )
    recompute: bool = option(
        False, "compute all bottlenecks anew; without it, those that the output has of images that have not changed "
        "are taken over"
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """TFRecord shards -> a head on the backbone, calibrated -> a model bundle."""

    examples: str = option("", "folder that extract wrote", metavar="DIR", required=True)
    model: str = option("", "folder for the model bundle, replaced whole", metavar="DIR", required=True)
    architecture: str = option("mlp", "kind of head", choices=("mlp", "linear", "cnn"))
    hidden: tuple[int, ...] = option((1024,), "units of each hidden layer (mlp)", metavar="UNITS", within=POSITIVE)
    augment: str = option(
        "auto", "mirror, turn by up to 15 degrees and shift the pictures while training; auto: with architecture cnn",
        choices=("auto", "none")
    )  # fmt: skip
    optimizer: str = option("adamw", "adamw, or sgd with a momentum of 0.9", choices=("adamw", "sgd"))
    dropout: float = option(0.5, "share of units dropped while training (0 to 1)", metavar="SHARE", within=SHARE)
    learning_rate: float = option(
        0.0, "step size of the optimiser; 0: chosen by the architecture", metavar="RATE", within=NOT_NEGATIVE
    )
    weight_decay: float = option(
        0.0, "strength of the pull of weights towards zero", metavar="DECAY", within=NOT_NEGATIVE
    )
    batch_size: int = option(
        0, "examples a step; 0: chosen by the number of examples", metavar="N", within=NOT_NEGATIVE
    )
    epochs: int = option(60, "most passes over the training examples", metavar="N", within=POSITIVE)
    patience: int = option(
        0, "stop after this many epochs without a lower loss on validation; 0: chosen by the number of examples",
        metavar="N", within=NOT_NEGATIVE
    )  # fmt: skip
    label_smoothing: float = option(
        0.1, "share of each target that is spread over all labels (0 to 1)", metavar="SHARE", within=SHARE
    )
    class_weights: str = option(
        "auto", "balanced: rare labels count more; auto: balanced with --multi-label, else none",
        choices=("auto", "none", "balanced")
    )  # fmt: skip
    multi_label: bool = option(
        False, "several labels an image, or none: sigmoid instead of softmax; images without a label are negatives"
    )
    target_precision: float = option(
        0.0, "share of right tags (0 to 1) that each label's threshold is chosen for, on validation images; a label "
        "that cannot reach it is switched off; 0: thresholds of the best F1", metavar="SHARE", within=SHARE
    )  # fmt: skip
    seed: int = option(0, "the same seed and examples give the same head", metavar="N", within=NOT_NEGATIVE)
    cache: str = option("auto", "keep examples in memory: auto, if they fit", choices=("auto", "always", "never"))
    min_accuracy: float = option(
        0.0, "fail, and publish nothing, below this accuracy on the test split (0 to 1)", metavar="SHARE", within=SHARE
    )
    device: str = option("auto", "what the head is trained on; gpu fails where there is none", choices=DEVICES)
    log_dir: str = option("", "folder for TensorBoard logs", metavar="DIR")
    sweep: int = option(
        0, "train so many heads, with other hidden layers, learning rates, dropout and regularisation, and keep the "
        "best by validation; the first has the settings given here", metavar="TRIALS", within=NOT_NEGATIVE
    )  # fmt: skip
    sweep_space: tuple[str, ...] = option(
        (), "what --sweep tries instead of its own ranges: learning_rate=0.001,0.0003 hidden=512,1024x256",
        metavar="NAME=VALUE,VALUE"
    )  # fmt: skip
    workers: int = option(1, "heads trained at once on this machine, for --sweep", metavar="N", within=POSITIVE)
    remote: bool = option(False, "train on a worker of the runner that Beam's options name, and not on this machine")
    beam: tuple[str, ...] = option(
        (), "Beam's own options, as on its command line, for --remote and --sweep", metavar="FLAG"
    )
    checkpoint_dir: str = option(
        "", "folder for checkpoints; default: beside the model; an interrupted training goes on from there",
        metavar="DIR"
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """TFRecord shards + model bundle -> figures, tables, plots and one HTML report."""

    examples: str = option("", "folder that extract wrote", metavar="DIR", required=True)
    model: str = option("", "model bundle", metavar="DIR", required=True)
    output: str = option("", "folder for the report, replaced whole", metavar="DIR", required=True)
    split: str = option("test", "which examples", choices=("train", "validation", "test", "all"))
    batch_size: int = option(256, "examples on the engine at once", metavar="N", within=POSITIVE)
    device: str = option("auto", "what the network runs on; gpu fails where there is none", choices=DEVICES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TagConfig(_Execution, _Images, _Network):
    """Images or stored bottlenecks + model bundle -> Parquet of tags, Parquet of errors."""

    input: tuple[str, ...] = option(
        (), "folder, glob, manifest (.csv, .jsonl, .parquet with a uri column), file, or folder that extract wrote; "
        "several at once", metavar="SRC", required=True
    )  # fmt: skip
    model: str = option(
        "", "model bundle, or imagenet for the 1,000 ImageNet classes of --backbone", metavar="DIR", required=True
    )
    output: str = option("", "folder for the tables; the run's date is replaced whole", metavar="DIR", required=True)
    resize: str = option("", "refused unless it is what the model was trained with", choices=("", *RESIZE_MODES))
    top_k: int = option(5, "most tags an image", metavar="K", within=POSITIVE)
    min_score: float | None = option(
        None, "score from which every label counts as a tag (0 to 1); default: the model's own threshold of each "
        "label; with --target-precision, the least", metavar="SCORE", within=SHARE
    )  # fmt: skip
    target_precision: float = option(
        0.0, "tags of each label are right this often (0 to 1), as far as the model's validation images tell; labels "
        "that cannot reach it are switched off; 0: the model's own thresholds", metavar="SHARE", within=SHARE
    )  # fmt: skip
    layout: str = option("wide", "wide: one row per image; long: one row per tag", choices=("wide", "long"))
    scores: bool = option(False, "add a column with the scores of all labels")
    embedding: bool = option(False, "add a column with the bottleneck")
    novelty: bool = option(
        False, "add a column that says how unlike the model's training images each one is: 0 is usual, above 1 is novel"
    )
    run_date: str = option("", "partition to write; default: today, UTC", metavar="YYYY-MM-DD")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(_Execution, _Images, _Network):
    """Images + model -> how long tagging them would take on 1, 8, 64, 512 workers, and what would hold it up."""

    input: tuple[str, ...] = option(
        (), "folder, glob, manifest (.csv, .jsonl, .parquet with a uri column) or file; several at once",
        metavar="SRC", required=True
    )  # fmt: skip
    model: str = option(
        "", "model bundle, or imagenet for the 1,000 ImageNet classes of --backbone", metavar="DIR", required=True
    )
    sample: int = option(200, "images measured, drawn from all", metavar="N", within=POSITIVE)
    worker_counts: tuple[int, ...] = option(
        (), "numbers of workers; default: those of --workers, and 8, 64, 512", metavar="N", within=POSITIVE
    )
    worker_cores: int = option(
        0, "cores of one worker; 0: this machine's, shared by --workers", metavar="N", within=NOT_NEGATIVE
    )
    engine_rate: float = option(
        0.0, "images/s of one worker's engine beside its cores, measured elsewhere, on a GPU for example; 0: this "
        "machine's is measured", metavar="RATE", within=NOT_NEGATIVE
    )  # fmt: skip
    start_s: float = option(
        0.0, "seconds until a worker's first batch, and after its last; 0: measured here with a job of one batch",
        metavar="SECONDS", within=NOT_NEGATIVE
    )  # fmt: skip
    price_per_worker_hour: float = option(
        0.0, "of one worker, in any currency; 0: no costs are said", metavar="PRICE", within=NOT_NEGATIVE
    )
    json: str = option("", "file for the numbers", metavar="FILE")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifyConfig(_Network):
    """A few images or URLs -> a table of labels and probabilities."""

    images: tuple[str, ...] = option((), "image files or http(s) URLs", metavar="IMAGE_OR_URL", required=True)
    model: str = option(
        "", "model bundle, or imagenet for the 1,000 ImageNet classes of --backbone", metavar="DIR", required=True
    )
    top_k: int = option(5, "labels shown an image", metavar="K", within=POSITIVE)
    max_bytes: int = option(ImageLimits().max_bytes, "refuse a larger file, in bytes", metavar="BYTES", within=POSITIVE)
    max_pixels: int = option(
        ImageLimits().max_pixels, "refuse a larger picture, in pixels", metavar="PIXELS", within=POSITIVE
    )
    device: str = option("auto", "what the network runs on; gpu fails where there is none", choices=DEVICES)
    timeout_s: float = option(20.0, "give up on a URL after this many seconds", metavar="SECONDS", within=POSITIVE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig(_Network):
    """Model bundle -> one frozen graph, OpenVINO or TensorFlow Lite, each compared with the bundle's own scores."""

    model: str = option(
        "", "model bundle, or imagenet for the 1,000 ImageNet classes of --backbone", metavar="DIR", required=True
    )
    output: str = option("", "folder for the files, replaced whole", metavar="DIR", required=True)
    formats: tuple[str, ...] = option(
        ("frozen", "tflite"), "frozen (model.pb), openvino (model.xml), tflite (model.tflite)", metavar="FORMAT"
    )
    check_images: tuple[str, ...] = option(
        (), "images to compare the scores on: folder, glob or manifest; default: drawn pictures", metavar="SRC"
    )
    num_images: int = option(500, "most images compared", metavar="N", within=POSITIVE)


JOBS: dict[str, type] = {
    "extract": ExtractConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "tag": TagConfig,
}
# What can be a stage of a run file, and what is a command only.
VERBS: dict[str, type] = {**JOBS, "plan": PlanConfig, "classify": ClassifyConfig, "export": ExportConfig}
EXPORT_FORMATS = ("frozen", "openvino", "tflite")


def build_config(kind: type, values: dict[str, Any]) -> Any:
    """A job's configuration from plain values.

    Raises:
      ValueError: an unknown or missing key, a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            raise ValueError(f"expected one of {', '.join(sorted(fields))}, got unknown key {name!r}")
    config = kind(**{name: convert_value(fields[name], value) for name, value in values.items()})
    check_config(config)
    return config


def _check_train(config: TrainConfig) -> None:
    if config.remote and config.sweep:
        raise ValueError("expected remote or sweep, got both: a sweep's heads are trained on workers, the best here")
    if config.remote and not config.beam:
        raise ValueError("expected remote and a runner's options together, got remote alone")
    if config.beam and not (config.remote or config.sweep):
        raise ValueError(f"expected remote or sweep and a runner's options together, got {config.beam[0]}")
    parse_space(config.sweep_space)
    if not config.sweep and (config.sweep_space or config.workers > 1):
        given = "sweep_space" if config.sweep_space else "workers"
        raise ValueError(f"expected {given} only with sweep, got {given} alone")


def check_config(config: Any) -> None:
    """What one field alone does not show.

    Raises:
      ValueError: a required value is missing, or values do not go together.
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata["required"] and (not value or (isinstance(value, tuple) and "" in value)):
            raise ValueError(f"expected {field.name}, got none")
    if isinstance(config, TrainConfig):
        _check_train(config)
    if isinstance(config, ExportConfig) and (unknown := set(config.formats) - set(EXPORT_FORMATS)):
        raise ValueError(f"expected formats among {', '.join(EXPORT_FORMATS)}, got {sorted(unknown)[0]!r}")
    if isinstance(config, TagConfig | ClassifyConfig | PlanConfig | ExportConfig) and config.model != IMAGENET:
        for field in dataclasses.fields(_Network):
            if getattr(config, field.name) != field.default:
                raise ValueError(
                    f"expected {field.name} only with model {IMAGENET}, because a model bundle has its own network, "
                    f"got model {config.model!r}"
                )
