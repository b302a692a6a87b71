"""Jobs on Dataflow: what is checked before they cost money, and what is filled in."""

import re
import tempfile

import apache_beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
    WorkerOptions,
)

import bulktag
from bulktag.pipeline import accelerators
from bulktag.pipeline.console import warn
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.packaging import build_wheel, pin_requirements
from bulktag.transforms import files

RUNNER = "DataflowRunner"
# Each thread of a worker process reads ahead and keeps batches of its own; a second one works while the first one's
# bundle ends. Beam's default of 12 would hold six times the pixels.
HARNESS_THREADS = 2
# A container with TensorFlow and CUDA takes 15 GB unpacked, beside the system's own image.
GPU_DISK_GB = 50

_PROJECT = re.compile(r"([a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
_REGION = re.compile(r"[a-z]+-[a-z]+\d+")
_SUBNETWORK = re.compile(r"(https://.*/)?(projects/[^/]+/)?regions/(?P<region>[^/]+)/subnetworks/[a-z][a-z0-9-]*")
# Source: https://cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.jobs#Job
_JOB_NAME = re.compile(r"[a-z]([-a-z0-9]{0,1022}[a-z0-9])?")
# Source: https://cloud.google.com/resource-manager/docs/labels-overview#requirements
_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,62}=[a-z0-9_-]{0,63}")
MAX_LABELS = 64
_IMAGE = re.compile(r"[a-z0-9][a-z0-9.-]*(:\d+)?(/[a-z0-9._-]+)+(:(?P<tag>[\w.-]+))?(@sha256:[0-9a-f]{64})?")


def check_bucket(uri: str, name: str) -> None:
    """Whether a URL can be one on Google Cloud Storage.

    Source: https://cloud.google.com/storage/docs/buckets#naming

    Raises:
      ValueError: it cannot.
    """
    if not uri.startswith("gs://"):
        raise ValueError(f"expected {name} as gs://BUCKET/..., got {uri!r}")
    bucket = uri[5:].split("/", 1)[0]
    legal = re.fullmatch(r"[a-z0-9][a-z0-9._-]*[a-z0-9]", bucket) and len(bucket) <= (222 if "." in bucket else 63)
    if not legal or len(bucket) < 3 or ".." in bucket or max(map(len, bucket.split("."))) > 63:
        raise ValueError(
            f"expected {name} in a bucket whose name has 3 to 63 lower-case letters, digits, '-', '_' and '.', got "
            f"{bucket!r}: {uri}"
        )
    if bucket.startswith("goog") or "google" in bucket:
        raise ValueError(f"expected {name} in a bucket that is not named after Google, got {bucket!r}: {uri}")


def check(options: PipelineOptions) -> None:
    """What can be wrong with a job's options, without asking anybody.

    Raises:
      ValueError: with the first mistake.
    """
    google = options.view_as(GoogleCloudOptions)
    if not google.project or not _PROJECT.fullmatch(google.project):
        raise ValueError(f"expected --project ID of a Google Cloud project, got {google.project!r}")
    if not google.region or not _REGION.fullmatch(google.region):
        raise ValueError(f"expected --region such as us-central1, got {google.region!r}")
    if not google.temp_location:
        raise ValueError("expected --temp_location gs://BUCKET/FOLDER, got none")
    for name in ("temp_location", "staging_location"):
        if uri := getattr(google, name):
            check_bucket(uri, f"--{name}")
    if google.job_name and not _JOB_NAME.fullmatch(google.job_name):
        raise ValueError(f"expected --job_name of lower-case letters, digits and '-', got {google.job_name!r}")
    if options.view_as(StandardOptions).streaming:
        raise ValueError("expected a batch job, got --streaming: bulktag's jobs end")
    _check_labels(google)
    _check_workers(options)
    _check_network(options)
    _check_experiments(options)
    _check_image(options.view_as(WorkerOptions).sdk_container_image)
    accelerators.check(options)
    if accelerators.find(options) and not options.view_as(WorkerOptions).sdk_container_image:
        raise ValueError("expected --sdk_container_image with a GPU, got none: installing TensorFlow with CUDA would "
                         "take each worker many minutes (run_configs/dataflow/Dockerfile makes one)")  # fmt: skip


def _check_labels(google: GoogleCloudOptions) -> None:
    labels = google.labels or []
    for label in labels:
        if "{" not in label and not _LABEL.fullmatch(label):
            raise ValueError(f"expected --labels key=value of lower-case letters, digits, '_' and '-', got {label!r}")
    if len(labels) > MAX_LABELS - len(_own_labels("job")):
        raise ValueError(f"expected at most {MAX_LABELS - len(_own_labels('job'))} labels, got {len(labels)}")


def _own_labels(job_name: str) -> dict[str, str]:
    version = re.sub(r"[^a-z0-9_-]", "-", bulktag.__version__.lower())
    return {"bulktag-version": version, "bulktag-job": [*job_name.split("-"), "job"][1][:63] or "job"}


def _check_workers(options: PipelineOptions) -> None:
    workers = options.view_as(WorkerOptions)
    at_first, most = workers.num_workers, workers.max_num_workers
    if workers.autoscaling_algorithm == "NONE":
        if not at_first:
            raise ValueError("expected --num_workers with --autoscaling_algorithm NONE, got none")
        if most and most != at_first:
            raise ValueError(f"expected no --max_num_workers with --autoscaling_algorithm NONE, got {most}")
    if at_first and most and at_first > most:
        raise ValueError(f"expected --num_workers up to --max_num_workers, got {at_first} and {most}")
    threads = options.view_as(DebugOptions).number_of_worker_harness_threads
    if threads is not None and threads < 1:
        raise ValueError(f"expected --number_of_worker_harness_threads of at least 1, got {threads}")
    if workers.worker_zone and workers.worker_region:
        raise ValueError("expected --worker_zone or --worker_region, got both")


def _check_network(options: PipelineOptions) -> None:
    workers, region = options.view_as(WorkerOptions), options.view_as(GoogleCloudOptions).region
    if workers.subnetwork:
        found = _SUBNETWORK.fullmatch(workers.subnetwork)
        if not found:
            raise ValueError(f"expected --subnetwork regions/REGION/subnetworks/NAME, got {workers.subnetwork!r}")
        where = workers.worker_region or (workers.worker_zone or "").rpartition("-")[0] or region
        if found["region"] != where:
            raise ValueError(f"expected --subnetwork in the workers' region {where}, got {workers.subnetwork!r}")
    if workers.network and "/" in workers.network and not workers.network.startswith(("projects/", "https://")):
        raise ValueError(f"expected --network NAME, got {workers.network!r}")


def _check_experiments(options: PipelineOptions) -> None:
    experiments = options.view_as(DebugOptions).experiments or []
    both = {"use_multiple_sdk_containers", "no_use_multiple_sdk_containers"}
    if both <= {*experiments}:
        raise ValueError(f"expected one of the experiments {' and '.join(sorted(both))}, got both")
    for name in ("disable_runner_v2", "disable_prime_runner_v2", "disable_portable_runner"):
        if name in experiments:
            raise ValueError(f"expected Runner v2, which Beam {apache_beam.__version__} needs, got experiment {name}")


def _check_image(image: str | None) -> None:
    if not image:
        return
    found = _IMAGE.fullmatch(image)
    if not found:
        raise ValueError(f"expected --sdk_container_image REGISTRY/NAME:TAG, got {image!r}")
    version = re.match(r"\d+\.\d+\.\d+", found["tag"] or "")
    if re.search(r"/bulktag[^/]*:", image) and version and version[0] != bulktag.__version__:
        raise ValueError(
            f"expected an image with this launcher's bulktag {bulktag.__version__}, got {image}: build it again, or "
            "install the launcher of that version"
        )


def check_job(config, options: PipelineOptions) -> None:
    """What does not go together in a job's configuration and its options.

    Args:
      config: of `extract` or `tag`, or of a training.
      options: that `check` has passed.
    Raises:
      ValueError: with the first mistake.
    """
    inputs = getattr(config, "input", None) or (config.examples,)
    output = getattr(config, "output", None) or config.model
    for name, uri in (*(("input", uri) for uri in inputs), ("output", output)):
        if files.is_local(uri) or uri.startswith("file:"):
            raise ValueError(f"expected {name} in a store that Dataflow's workers reach, such as gs://, got {uri}")
        if uri.startswith("gs://"):
            check_bucket(uri, name)
        elif getattr(config, "detach", False):
            raise ValueError(f"expected gs:// with detach, got {uri}")
    gpu = accelerators.find(options)
    if config.device == "gpu" and not gpu:
        raise ValueError("expected an accelerator with device gpu, got none: "
                         f"--dataflow_service_options={accelerators.EXAMPLE}")  # fmt: skip
    if config.device == "cpu" and gpu:
        raise ValueError(f"expected no accelerator with device cpu, got {gpu.type}, which would be paid for")


def prepare(options: PipelineOptions, job_name: str) -> None:
    """Fill in what a job needs and the user did not say."""
    google, setup = options.view_as(GoogleCloudOptions), options.view_as(SetupOptions)
    workers, debug = options.view_as(WorkerOptions), options.view_as(DebugOptions)
    google.job_name = google.job_name or job_name
    google.labels = [*(google.labels or []), *(f"{key}={value}" for key, value in _own_labels(job_name).items())]
    setup.save_main_session = False
    if debug.number_of_worker_harness_threads is None:
        debug.number_of_worker_harness_threads = HARNESS_THREADS
    if accelerators.find(options):
        # One process a machine, so one model a GPU; the processes of one machine would share it through sockets.
        experiments = debug.experiments or []
        if "use_multiple_sdk_containers" not in experiments and not debug.lookup_experiment(
            "no_use_multiple_sdk_containers"
        ):
            debug.add_experiment("no_use_multiple_sdk_containers")
        if workers.disk_size_gb and workers.disk_size_gb < GPU_DISK_GB:
            warn(f"--disk_size_gb {workers.disk_size_gb} may be too small for a container with CUDA: {GPU_DISK_GB} is "
                 "known to do")  # fmt: skip
        workers.disk_size_gb = workers.disk_size_gb or GPU_DISK_GB
    if not workers.sdk_container_image:
        _stage_package(setup)


def _stage_package(setup: SetupOptions) -> None:
    """Have workers install this very bulktag, and what it stands on in this launcher's versions."""
    folder = tempfile.mkdtemp(prefix="bulktag-package-")
    setup.extra_packages = [*(setup.extra_packages or []), build_wheel(folder)]
    if not setup.requirements_file:
        setup.requirements_file = pin_requirements(folder)
        setup.requirements_cache = "skip"  # workers fetch them; else this machine would fetch them all first


def job_url(options: PipelineOptions, job_id: str) -> str:
    """Where Google's console shows a job."""
    google = options.view_as(GoogleCloudOptions)
    return f"https://console.cloud.google.com/dataflow/jobs/{google.region}/{job_id}?project={google.project}"


def explain(error: BaseException) -> BaseException:
    """What to tell the user about a job that did not end well."""
    kind = type(error)
    if kind.__name__ == "DataflowRuntimeException":
        return JobFailed(f"{' '.join(str(error).split())}; nothing was published")
    if kind.__module__.startswith(("google.api_core.", "google.auth.")):
        return JobFailed(f"Dataflow did not take the job: {' '.join(str(error).split())}")
    return error
