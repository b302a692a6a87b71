"""Jobs on a real Flink cluster: the same answers as here, and what clusters do to jobs."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import psutil
import pyarrow.dataset
import pytest
import requests

from bulktag.pipeline.cli import run_command
from bulktag.pipeline.config import TagConfig
from bulktag.pipeline.tag import run_tag

pytestmark = [pytest.mark.flink, pytest.mark.timeout(400)]

REPO = pathlib.Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-c", "from bulktag.pipeline.cli import main; main()"]
CLUSTER_GONE_S, JOB_S = 60, 300


def flags(cluster) -> list[str]:
    return ["--runner=FlinkRunner", f"--flink_master={cluster.url}", f"--flink_job_server_jar={cluster.jar}"]


def start_tag(cluster, images, model, output, *more) -> subprocess.Popen:
    arguments = ["tag", "--input", images, "--model", model, "--output", output, *more, *flags(cluster)]
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def finish(process) -> tuple[int, str]:
    _, err = process.communicate(timeout=JOB_S)
    return process.returncode, err


def count_done(output) -> int:
    """Images scored so far, as a running job tells it."""
    done = 0
    for path in pathlib.Path(output).glob(".bulktag-*/work/progress/*.json"):
        with contextlib.suppress(OSError, ValueError):
            done += json.loads(path.read_text()).get("done", 0)
    return done


def wait_until_scoring(process, output) -> None:
    deadline = time.monotonic() + 120
    while not count_done(output):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.05)


def kill_scoring_workers(cluster) -> int:
    """SIGKILL for the worker processes that score images."""
    pool = psutil.Process(cluster.processes()["pool"][0])
    killed = 0
    for worker in pool.children():
        with contextlib.suppress(psutil.Error):
            if worker.memory_info().rss > 400 << 20:  # with TensorFlow: others list files and count
                worker.kill()
                killed += 1
    return killed


def read_tags(output) -> dict:
    table = pyarrow.dataset.dataset(f"{output}/tags", partitioning="hive").to_table(["uri", "tags"])
    uris = table["uri"].to_pylist()
    assert len(set(uris)) == len(uris), "an image has several rows"
    return dict(zip(uris, table["tags"].to_pylist(), strict=True))


def read_errors(output) -> dict:
    table = pyarrow.dataset.dataset(f"{output}/errors", partitioning="hive").to_table(["uri", "error_type"])
    return dict(zip(table["uri"].to_pylist(), table["error_type"].to_pylist(), strict=True))


def check_whole(images, output) -> dict:
    """Every image has exactly one row, and nothing else is left behind."""
    expected = {str(path) for path in pathlib.Path(images).rglob("*") if path.is_file()}
    assert set(read_tags(output)) == expected
    assert sorted(path.name for path in pathlib.Path(output).iterdir()) == ["_SUCCESS", "errors", "run.json", "tags"]
    return json.loads((pathlib.Path(output) / "run.json").read_text())


def jobs(cluster) -> dict[str, str]:
    """State of each job that the cluster knows, by name."""
    return {
        job["name"]: job["state"] for job in requests.get(f"{cluster.url}/v1/jobs/overview", timeout=10).json()["jobs"]
    }


@pytest.fixture(scope="module")
def mixed_images(demo_images, tmp_path_factory) -> pathlib.Path:
    """Pictures, and files that are none."""
    folder = tmp_path_factory.mktemp("mixed") / "photos"
    for label in demo_images.iterdir():
        (folder / label.name).mkdir(parents=True)
        for path in label.iterdir():
            os.link(path, folder / label.name / path.name)
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no picture")
    whole = next(path for path in sorted(folder.rglob("*.jpg")) if path.stat().st_size).read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 8])
    return folder


def test_the_answers_are_the_same_everywhere(whole_cluster, mixed_images, bundle_dir, tmp_path):
    config = {"input": (str(mixed_images),), "model": str(bundle_dir), "scores": True}
    runs = {
        "here": run_tag(TagConfig(**config, output=str(tmp_path / "here"))),
        "two": run_tag(TagConfig(**config, output=str(tmp_path / "two"), workers=2)),
        "flink": run_tag(TagConfig(**config, output=str(tmp_path / "flink"), beam=tuple(flags(whole_cluster)))),
    }
    expected, errors = read_tags(tmp_path / "here"), read_errors(tmp_path / "here")
    assert len(expected) + len(errors) == len([path for path in mixed_images.rglob("*") if path.is_file()])
    assert len(errors) == 3
    for name in ("two", "flink"):
        assert runs[name]["counts"] == runs["here"]["counts"]
        assert read_errors(tmp_path / name) == errors
        tags = read_tags(tmp_path / name)
        assert tags.keys() == expected.keys()
        for uri, want in expected.items():
            assert [tag["label"] for tag in tags[uri]] == [tag["label"] for tag in want], uri
            assert [tag["score"] for tag in tags[uri]] == pytest.approx([tag["score"] for tag in want], abs=1e-3), uri
    # Spread, and each worker process loaded the model once: one a TaskManager.
    managers = runs["flink"]["task_managers"]
    assert len(managers) == 2 and min(managers.values()) > 0
    assert sum(managers.values()) == runs["flink"]["counts"]["matched"]
    assert runs["flink"]["counters"]["infer/models_loaded"] == 2


def test_a_task_manager_is_lost(whole_cluster, many_images, bundle_dir, tmp_path):
    process = start_tag(whole_cluster, many_images, bundle_dir, tmp_path / "tags")
    wait_until_scoring(process, tmp_path / "tags")
    os.kill(whole_cluster.processes()["taskmanager"][0], signal.SIGKILL)
    code, err = finish(process)
    assert code == 0, err
    check_whole(many_images, tmp_path / "tags")


def test_a_worker_dies_and_its_work_is_done_again(whole_cluster, many_images, bundle_dir, tmp_path):
    process = start_tag(whole_cluster, many_images, bundle_dir, tmp_path / "tags")
    wait_until_scoring(process, tmp_path / "tags")
    assert kill_scoring_workers(whole_cluster)
    code, err = finish(process)
    assert code == 0, err
    check_whole(many_images, tmp_path / "tags")
    assert "killed by SIGKILL" in (whole_cluster.log_dir / "pool-0.log").read_text()


def test_a_worker_that_dies_every_time_fails_the_job(whole_cluster, many_images, bundle_dir, tmp_path):
    process = start_tag(whole_cluster, many_images, bundle_dir, tmp_path / "tags")
    wait_until_scoring(process, tmp_path / "tags")
    killed, seen = 0, count_done(tmp_path / "tags")
    while process.poll() is None:
        if count_done(tmp_path / "tags") > seen or not killed:
            killed += kill_scoring_workers(whole_cluster)
            time.sleep(0.5)  # what they wrote last
            seen = count_done(tmp_path / "tags")
        time.sleep(0.05)
    code, err = finish(process)
    assert (code, err.count("Traceback")) == (1, 0), err
    assert "worker processes ended before their work was done" in err
    assert not (tmp_path / "tags").exists()


def test_the_disk_is_full(whole_cluster, many_images, bundle_dir, tmp_path):
    if os.geteuid():
        pytest.skip("needs root to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    size = sum(path.stat().st_size for path in bundle_dir.rglob("*") if path.is_file())
    mount = ["mount", "-t", "tmpfs", "-o", f"size={(size >> 10) + 1200}k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        process = start_tag(whole_cluster, many_images, bundle_dir, disk / "tags", "--scores", "--embedding")
        code, err = finish(process)
        assert (code, err.count("Traceback")) == (1, 0), err
        assert "No space left on device" in err
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_inputs_vanish_and_come_back(whole_cluster, many_images, bundle_dir, tmp_path):
    away = many_images.with_name("away")
    process = start_tag(whole_cluster, many_images, bundle_dir, tmp_path / "tags")
    wait_until_scoring(process, tmp_path / "tags")
    many_images.rename(away)
    time.sleep(20)
    away.rename(many_images)
    code, err = finish(process)
    assert code == 0, err
    assert check_whole(many_images, tmp_path / "tags")["counts"]["errors"] == 0


def test_it_is_seen_followed_and_cancelled(whole_cluster, many_images, bundle_dir, tmp_path):
    output = tmp_path / "tags"
    process = start_tag(whole_cluster, many_images, bundle_dir, output)
    wait_until_scoring(process, output)
    (name,) = [name for name, state in jobs(whole_cluster).items() if state == "RUNNING"]
    run_id = next(output.glob(".bulktag-*")).name.removeprefix(".bulktag-")
    assert name == f"bulktag-tag-{run_id.lower()}"
    follower = subprocess.Popen([*COMMAND, "follow", str(output)], stderr=subprocess.PIPE, text=True)
    first_line = follower.stderr.readline()
    assert run_id in first_line and whole_cluster.url in first_line
    process.send_signal(signal.SIGINT)
    code, err = finish(process)
    assert code == 130 and "interrupted: nothing was published" in err
    assert follower.wait(30) == 1 and "ended without publishing" in follower.stderr.read()
    deadline = time.monotonic() + 30
    while jobs(whole_cluster)[name] != "CANCELED":
        assert time.monotonic() < deadline, jobs(whole_cluster)[name]
        time.sleep(0.2)
    assert not output.exists()


def test_the_job_of_a_launcher_that_was_killed_is_cancelled_by_the_next_run(
    whole_cluster, many_images, mixed_images, bundle_dir, tmp_path
):
    process = start_tag(whole_cluster, many_images, bundle_dir, tmp_path / "tags")
    wait_until_scoring(process, tmp_path / "tags")
    process.kill()
    process.wait()
    (name,) = [name for name, state in jobs(whole_cluster).items() if state == "RUNNING"]
    code, err = finish(start_tag(whole_cluster, mixed_images, bundle_dir, tmp_path / "tags"))
    assert code == 0 and "cancelled the job of a launcher that is gone" in err, err
    assert jobs(whole_cluster)[name] == "CANCELED"
    assert sorted(path.name for path in (tmp_path / "tags").iterdir()) == ["_SUCCESS", "errors", "run.json", "tags"]


def test_the_run_file_goes_all_the_way(whole_cluster, demo_images, tmp_path, monkeypatch, capfd):
    """run_configs/flink.yaml as it stands but for the network: extract and tag on the cluster, train on a worker."""
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "new_photos"):
        (tmp_path / name).symlink_to(demo_images)
    (tmp_path / ".flink").symlink_to(whole_cluster.folder)
    watched: list[str] = []
    stop = threading.Event()

    def watch():
        while not stop.wait(0.2):
            watched.extend(name for name, state in jobs(whole_cluster).items() if state == "RUNNING")

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        settings = ["extract.backbone=builtin", "extract.weights=builtin", "extract.split=[0.5, 0.2, 0.3]"]
        code = run_command(["run", str(REPO / "run_configs/flink.yaml"), *(f"--set={text}" for text in settings)])
    finally:
        stop.set()
        thread.join()
    assert code == 0, capfd.readouterr().err
    assert {name.split("-")[1] for name in watched} == {"extract", "train", "tag"}
    run = json.loads((tmp_path / "out/model/run.json").read_text())
    assert run["figures"]["test"]["accuracy"] >= 0.9
    assert "training on a worker" in capfd.readouterr().err
    assert len(read_tags(tmp_path / "out/tags")) == 160
    assert not list((tmp_path / "out").glob("*/.bulktag-*"))


def test_a_training_that_is_not_good_enough_fails_in_one_line(whole_cluster, examples_dir, tmp_path, capfd):
    arguments = ["train", "--remote", "--examples", str(examples_dir), "--model", str(tmp_path / "model"),
                 "--epochs", "1", "--hidden", "1", "--min-accuracy", "1", *flags(whole_cluster)]  # fmt: skip
    assert run_command(arguments) == 1
    err = capfd.readouterr().err
    assert "is below --min-accuracy 1; nothing was published" in err and "Traceback" not in err
    assert not (tmp_path / "model").exists()


def test_a_sweep_trains_its_heads_on_workers(whole_cluster, examples_dir, tmp_path, capfd):
    before = set(jobs(whole_cluster))
    arguments = ["train", "--sweep", "4", "--sweep-space", "dropout=0,0.2,0.4,0.6", "hidden=16", "--epochs", "3",
                 "--examples", str(examples_dir), "--model", str(tmp_path / "model")]  # fmt: skip
    assert run_command([*arguments, *flags(whole_cluster)]) == 0, capfd.readouterr().err
    assert len(set(jobs(whole_cluster)) - before) == 1
    run = json.loads((tmp_path / "model/run.json").read_text())
    assert sorted(trial["number"] for trial in run["trials"]) == [1, 2, 3, 4]
    assert not any(trial["error"] for trial in run["trials"])
    losses = [trial["validation_cross_entropy"] for trial in run["trials"]]
    assert run["figures"]["validation"]["cross_entropy"] == pytest.approx(min(losses), rel=1e-3)
