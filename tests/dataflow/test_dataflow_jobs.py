"""Jobs on a stand-in for Dataflow that takes what the service takes, and runs it with the staged package alone."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pyarrow.dataset
import pytest
from google.cloud import dataflow_v1beta3

from bulktag import __version__
from bulktag.pipeline.cli import run_command
from bulktag.transforms import files

pytestmark = [pytest.mark.slow, pytest.mark.dataflow]
REPO = pathlib.Path(__file__).resolve().parents[2]
GPU = [
    "--sdk_container_image=europe-docker.pkg.dev/my-project/images/bulktag:0.1.0-gpu", "--machine_type=g2-standard-8",
    "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver",
    "--num_workers=2", "--max_num_workers=20", "--disk_size_gb=100", "--no_use_public_ips",
    "--subnetwork=regions/europe-west4/subnetworks/workers", "--labels=team=photos",
    "--service_account_email=tagger@my-project.iam.gserviceaccount.com",
]  # fmt: skip


def options(stub) -> list[str]:
    return ["--runner=DataflowRunner", "--project=my-project", "--region=europe-west4",
            "--temp_location=gs://dataflow-bucket/temp", f"--dataflow_endpoint={stub.url}", "--no_auth"]  # fmt: skip


@pytest.fixture
def photos(dataflow_bucket, demo_images) -> int:
    """Number of pictures in gs://dataflow-bucket/photos, of which one is none."""
    paths = sorted(demo_images.glob("*/*"))[::8]
    for path in paths:
        dataflow_bucket.blob(f"photos/{path.relative_to(demo_images)}").upload_from_filename(str(path))
    dataflow_bucket.blob("photos/circle/broken.jpg").upload_from_string(b"no image")
    return len(paths) + 1


def read_rows(folder, table):
    return pyarrow.dataset.dataset(files.fetch_folder(f"{folder}/{table}"), partitioning="hive").to_table().to_pylist()


def test_the_staged_package_does_the_whole_job(dataflow, dataflow_bucket, photos, bundle_dir, capsys):
    output = "gs://dataflow-bucket/tags"
    code = run_command(["tag", "--input", "gs://dataflow-bucket/photos", "--model", str(bundle_dir),
                        "--output", output, *options(dataflow)])  # fmt: skip
    assert code == 0, dataflow.worker_log
    assert len(read_rows(output, "tags")) == photos - 1
    assert [row["uri"] for row in read_rows(output, "errors")] == ["gs://dataflow-bucket/photos/circle/broken.jpg"]
    run = json.loads(files.read_bytes(f"{output}/run.json"))
    assert run["runner"] == "DataflowRunner" and run["dataflow"]["job_id"] == "2026-11-20_job"
    assert run["dataflow"]["url"] in capsys.readouterr().err

    (job,) = dataflow.jobs
    (pool,) = job["environment"]["workerPools"]
    assert f"bulktag-{__version__}-py3-none-any.whl" in [package["name"] for package in pool["packages"]]
    assert "requirements.txt" in [package["name"] for package in pool["packages"]]
    assert "beam_python3" in pool["sdkHarnessContainerImages"][0]["containerImage"]
    assert job["name"] == f"bulktag-tag-{run['run_id'].lower()}"
    assert pool["numThreadsPerWorker"] == 2


def test_examples_are_extracted(dataflow, dataflow_bucket, photos):
    output = "gs://dataflow-bucket/examples"
    code = run_command(["extract", "--input", "gs://dataflow-bucket/photos", "--output", output,
                        "--backbone", "builtin", "--max-error-share", "0.5", *options(dataflow)])  # fmt: skip
    assert code == 0, dataflow.worker_log
    info = json.loads(files.read_bytes(f"{output}/examples.json"))
    assert sum(counts["images"] for counts in info["counts"].values()) == photos - 1


def test_a_detached_job_publishes_without_its_launcher(dataflow, dataflow_bucket, photos, bundle_dir, capsys):
    output = "gs://dataflow-bucket/alone"
    tag = ["tag", "--input", "gs://dataflow-bucket/photos", "--model", str(bundle_dir), "--output", output, "--detach"]
    assert run_command([*tag, *options(dataflow)]) == 0
    assert "goes on without this machine" in capsys.readouterr().out
    assert not files.exists(f"{output}/_SUCCESS")
    while dataflow.state()["currentState"] == "JOB_STATE_RUNNING":
        time.sleep(0.2)
    assert dataflow.state()["currentState"] == "JOB_STATE_DONE", dataflow.worker_log
    run = json.loads(files.read_bytes(f"{output}/run.json"))
    assert run["status"] == "succeeded" and run["counts"]["matched"] == photos
    assert len(read_rows(output, "tags")) == photos - 1
    assert not [found.uri for found in files.list_below(output) if "/.bulktag" in found.uri]


def test_a_detached_job_that_is_not_good_enough_keeps_what_was_there(dataflow, dataflow_bucket, photos, bundle_dir):
    output = "gs://dataflow-bucket/alone"
    code = run_command(["tag", "--input", "gs://dataflow-bucket/photos", "--model", str(bundle_dir), "--output", output,
                        "--detach", "--max-error-share", "0", *options(dataflow)])  # fmt: skip
    assert code == 0
    while dataflow.state()["currentState"] == "JOB_STATE_RUNNING":
        time.sleep(0.2)
    assert dataflow.state()["currentState"] == "JOB_STATE_FAILED"
    assert "JobFailed" in dataflow.worker_log
    assert not files.exists(f"{output}/_SUCCESS") and files.exists(f"{output}/failed/run.json")


def test_a_flex_templates_launcher_writes_the_job_and_leaves(dataflow, dataflow_bucket, photos, bundle_dir):
    files.write_folder(lambda folder: shutil.copytree(bundle_dir, folder, dirs_exist_ok=True), "gs://dataflow-bucket/m")
    launcher = REPO / "run_configs" / "dataflow" / "launch.py"
    done = subprocess.run(
        [sys.executable, str(launcher), "--input=gs://dataflow-bucket/photos", "--model=gs://dataflow-bucket/m",
         "--output=gs://dataflow-bucket/flex", "--run_date=2026-11-20", "--min_score=0.1", *options(dataflow),
         "--template_location=gs://dataflow-bucket/temp/job_object", *GPU], capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    job = json.loads(files.read_bytes("gs://dataflow-bucket/temp/job_object"))
    assert job["environment"]["workerPools"][0]["machineType"] == "g2-standard-8"
    assert not dataflow.jobs  # the service reads it where it lies


def test_a_gpu_job_asks_for_what_was_said(dataflow, dataflow_bucket, photos, bundle_dir, capsys):
    dataflow.end_as = "FAILED"
    code = run_command(["tag", "--input", "gs://dataflow-bucket/photos", "--model", str(bundle_dir), "--device", "gpu",
                        "--output", "gs://dataflow-bucket/gpu", *options(dataflow), *GPU])  # fmt: skip
    assert code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("bulktag tag: failed: ") and "FAILED" in message and "nothing was published" in message
    assert not [found.uri for found in files.list_below("gs://dataflow-bucket/gpu")]

    (job,) = dataflow.jobs
    environment = job["environment"]
    (pool,) = environment["workerPools"]
    (image,) = pool["sdkHarnessContainerImages"]
    assert environment["serviceOptions"] == ["worker_accelerator=type:nvidia-l4;count:1;install-nvidia-driver"]
    assert image["containerImage"] == "europe-docker.pkg.dev/my-project/images/bulktag:0.1.0-gpu"
    assert pool["workerHarnessContainerImage"] == image["containerImage"]
    assert "no_use_multiple_sdk_containers" in environment["experiments"]
    assert "use_multiple_sdk_containers" not in environment["experiments"]
    assert (pool["machineType"], pool["numWorkers"], pool["diskSizeGb"]) == ("g2-standard-8", 2, 100)
    assert pool["autoscalingSettings"]["maxNumWorkers"] == 20
    assert pool["subnetwork"] == "regions/europe-west4/subnetworks/workers"
    assert pool["ipConfiguration"] == dataflow_v1beta3.WorkerIPAddressConfiguration.WORKER_IP_PRIVATE
    assert environment["serviceAccountEmail"] == "tagger@my-project.iam.gserviceaccount.com"
    assert job["labels"] == {"team": "photos", "bulktag-version": __version__.replace(".", "-"), "bulktag-job": "tag"}
    assert job["type"] == dataflow_v1beta3.JobType.JOB_TYPE_BATCH
    assert not [package["name"] for package in pool.get("packages", []) if package["name"].endswith(".whl")]


def test_a_job_that_the_service_refuses_is_one_line(dataflow, dataflow_bucket, photos, bundle_dir, capsys):
    dataflow.refuse = 403
    code = run_command(["tag", "--input", "gs://dataflow-bucket/photos", "--model", str(bundle_dir),
                        "--output", "gs://dataflow-bucket/refused", *options(dataflow), *GPU])  # fmt: skip
    assert code == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("bulktag tag: failed: Dataflow did not take the job:") and "quota exceeded" in message


def test_ctrl_c_cancels_the_job(dataflow, dataflow_bucket, dataflow_store, photos, bundle_dir):
    dataflow.end_as = "RUNNING"
    program = os.path.join(os.path.dirname(sys.executable), "bulktag")
    launcher = subprocess.Popen(
        [program, "tag", "--input", "gs://dataflow-bucket/photos", "--model", str(bundle_dir), "--output",
         "gs://dataflow-bucket/cancelled", *options(dataflow), *GPU], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not dataflow.jobs:
        assert launcher.poll() is None
        time.sleep(0.1)
    for line in launcher.stderr:
        if "Dataflow job" in line:
            break
    launcher.send_signal(signal.SIGINT)
    _, text = launcher.communicate(timeout=60)
    assert launcher.returncode == 130 and "interrupted: nothing was published" in text
    assert dataflow.requested == [dataflow_v1beta3.JobState.JOB_STATE_CANCELLED]
    assert not [found.uri for found in files.list_below("gs://dataflow-bucket/cancelled")]
