"""What is said of a Dataflow job before it costs money; no network."""

import importlib.metadata
import socket
import zipfile

import pytest

from bulktag import __version__
from bulktag.pipeline import dataflow, packaging
from bulktag.pipeline.cli import run_command
from bulktag.pipeline.config import ExtractConfig, TagConfig, TrainConfig
from bulktag.pipeline.runners import check_runner

BASE = ("--runner=DataflowRunner", "--project=my-project", "--region=us-central1", "--temp_location=gs://my-bucket/tmp")
IMAGE = f"--sdk_container_image=us-docker.pkg.dev/p/r/bulktag:{__version__}-gpu"
L4 = "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"
T4 = "--dataflow_service_options=worker_accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver"


def check(*flags):
    return check_runner((*BASE, *flags), 1)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        (IMAGE, L4, "--machine_type=g2-standard-4"),
        (IMAGE, T4, "--machine_type=n1-standard-8", "--num_workers=2", "--max_num_workers=8"),
        (IMAGE, T4),
        (IMAGE, "--resource_hints=accelerator=type:nvidia-l4;count:2;install-nvidia-driver",
         "--machine_type=g2-standard-24"),
        ("--autoscaling_algorithm=NONE", "--num_workers=4", "--labels=team=photos", "--labels=night=yes"),
        ("--subnetwork=regions/us-central1/subnetworks/default", "--no_use_public_ips"),
        ("--subnetwork=https://www.googleapis.com/compute/v1/projects/p/regions/us-central1/subnetworks/s",),
    ],
)  # fmt: skip
def test_jobs_that_could_run_are_let_through(flags):
    assert check(*flags).is_dataflow


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--project=",), "expected --project"),
        (("--project=My Project",), "got 'My Project'"),
        (("--region=europe",), "expected --region such as us-central1, got 'europe'"),
        (("--temp_location=",), "expected --temp_location gs://"),
        (("--temp_location=/tmp/x",), "got '/tmp/x'"),
        (("--temp_location=gs://My_Bucket/x",), "3 to 63 lower-case letters"),
        (("--temp_location=gs://ab/x",), "got 'ab'"),
        (("--staging_location=gs://goog-things/x",), "not named after Google"),
        (("--job_name=Night Run",), "expected --job_name"),
        (("--streaming",), "expected a batch job"),
        (("--labels=Team=photos",), "expected --labels key=value"),
        (("--autoscaling_algorithm=NONE",), "expected --num_workers"),
        (("--autoscaling_algorithm=NONE", "--num_workers=4", "--max_num_workers=8"), "expected no --max_num_workers"),
        (("--num_workers=9", "--max_num_workers=8"), "got 9 and 8"),
        (("--number_of_worker_harness_threads=0",), "at least 1, got 0"),
        (("--subnetwork=default",), "regions/REGION/subnetworks/NAME"),
        (("--subnetwork=regions/us-east1/subnetworks/default",), "in the workers' region us-central1"),
        (("--experiments=use_multiple_sdk_containers", "--experiments=no_use_multiple_sdk_containers"), "got both"),
        (("--experiments=disable_runner_v2",), "expected Runner v2"),
        (("--sdk_container_image=Bulktag",), "REGISTRY/NAME:TAG"),
        (("--sdk_container_image=us-docker.pkg.dev/p/r/bulktag:0.0.9-gpu",), f"this launcher's bulktag {__version__}"),
        ((L4, "--machine_type=g2-standard-4"), "expected --sdk_container_image with a GPU"),
        ((IMAGE, L4.replace(";install-nvidia-driver", "")), "expected install-nvidia-driver"),
        ((IMAGE, L4.replace("count:1", "count:none")), "expected worker_accelerator=type:"),
        ((IMAGE, L4 + ";count"), "expected worker_accelerator=type:"),
        ((IMAGE, L4 + ";color:red"), "got 'color'"),
        ((IMAGE, L4, "--resource_hints=accelerator=type:nvidia-l4;count:1;install-nvidia-driver"), "in one place"),
        ((IMAGE, L4, T4), "in one place"),
        ((IMAGE, L4, "--machine_type=n1-standard-4"), "expected one of g2-standard-12"),
        ((IMAGE, L4, "--machine_type=g2-standard-24"), "expected type:nvidia-l4;count:2"),
        ((IMAGE, T4, "--machine_type=e2-standard-4"), "family n1"),
        ((IMAGE, T4.replace("count:1", "count:3"), "--machine_type=n1-standard-4"), "1, 2, 4 or 8"),
        ((IMAGE, "--machine_type=g2-standard-4"), "expected an accelerator with --machine_type g2-standard-4"),
        ((IMAGE, L4, "--machine_type=g2-standard-5"), "got 'g2-standard-5'"),
        ((IMAGE, T4.replace("nvidia-tesla-t4", "nvidia-gold"),), "a GPU that Dataflow has"),
    ],
)  # fmt: skip
def test_what_would_cost_money_for_nothing_is_one_line(flags, message):
    with pytest.raises(ValueError, match=r"^expected ") as error:
        check(*flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        (TagConfig(input=("photos",), model="m", output="gs://b-b/o"), (), "expected input in a store"),
        (TagConfig(input=("gs://b-b/i",), model="m", output="/o"), (), "expected output in a store"),
        (TagConfig(input=("gs://B/i",), model="m", output="gs://b-b/o"), (), "3 to 63"),
        (ExtractConfig(input=("gs://b-b/i",), output="gs://b-b/o", device="gpu"), (), "expected an accelerator"),
        (TagConfig(input=("gs://b-b/i",), model="m", output="gs://b-b/o", device="cpu"), (IMAGE, L4,
         "--machine_type=g2-standard-4"), "which would be paid for"),
        (TrainConfig(examples="examples", model="gs://b-b/m", remote=True), (), "expected input in a store"),
    ],
)  # fmt: skip
def test_paths_and_devices_must_fit_the_workers(config, flags, message):
    with pytest.raises(ValueError, match=r"^expected ") as error:
        dataflow.check_job(config, check(*flags).options)
    assert message in str(error.value)


def test_a_mistake_is_heard_before_any_store_is_asked(monkeypatch, capsys):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("asked somebody"))
    tag = ["tag", "--input", "gs://my-bucket/i", "--model", "gs://my-bucket/m", "--output", "gs://my-bucket/o"]
    assert run_command([*tag, "--runner", "DataflowRunner"]) == 2
    assert "expected --project" in capsys.readouterr().err


def test_the_staged_wheel_has_every_file_of_the_package(tmp_path):
    path = packaging.build_wheel(str(tmp_path))
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        record = wheel.read(f"bulktag-{__version__}.dist-info/RECORD").decode()
        metadata = wheel.read(f"bulktag-{__version__}.dist-info/METADATA").decode()
    for name in ("bulktag/VERSION", "bulktag/model/data/builtin.npz", "bulktag/model/report.html",
                 "bulktag/pipeline/cli.py", "bulktag/transforms/gcs.py"):  # fmt: skip
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("bulktag/tests")]
    assert len(record.splitlines()) == len(names)
    assert "Requires-Dist: apache-beam" in metadata and "extra ==" not in metadata
    again = tmp_path / "again"
    again.mkdir()
    with open(path, "rb") as first, open(packaging.build_wheel(str(again)), "rb") as second:
        assert first.read() == second.read()


def test_workers_get_the_launchers_versions(tmp_path):
    with open(packaging.pin_requirements(str(tmp_path))) as file:
        pins = dict(line.strip().split("==") for line in file)
    assert pins["apache-beam"] == importlib.metadata.version("apache-beam")
    assert pins["google-cloud-storage"] == importlib.metadata.version("google-cloud-storage")
    assert {"tensorflow", "tensorflow-cpu"} & set(pins) and "bulktag" not in pins
    assert not {"pytest", "ruff", "duckdb"} & set(pins)
