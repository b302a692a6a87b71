"""Whole jobs with every path in a bucket: the same answers as on a disk, through what the store does to them."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import google.auth
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from fault_proxy import Fault

from bulktag.pipeline import store_locks
from bulktag.pipeline.cli import run_command
from bulktag.pipeline.publish import publish
from bulktag.transforms import files, gcs, gcs_client

pytestmark = [pytest.mark.slow, pytest.mark.gcs]
NUM_TAGGED = 24


@pytest.fixture(autouse=True)
def quick_to_give_up(monkeypatch):
    monkeypatch.setattr(gcs_client, "RETRY_FOR_S", 3.0)
    monkeypatch.setattr(gcs_client, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(gcs_client, "MAX_PAUSE_S", 0.3)
    monkeypatch.setattr(google.auth, "default", lambda *_, **__: pytest.fail("looked for credentials"))


@pytest.fixture
def photos(bucket, demo_images):
    """gs:// folder of a few pictures of each class."""
    for folder in sorted(path for path in demo_images.iterdir() if path.is_dir()):
        for path in sorted(folder.iterdir())[: NUM_TAGGED // 4]:
            bucket.blob(f"photos/{folder.name}/{path.name}").upload_from_filename(str(path))
    return f"gs://{bucket.name}/photos"


def bulktag(*arguments) -> None:
    assert run_command([str(argument) for argument in arguments]) == 0


def read_rows(folder: str, tmp_path, table="tags") -> list[dict]:
    """Rows of a table in a bucket or on a disk."""
    local = files.fetch_folder(f"{folder}/{table}")
    return pyarrow.dataset.dataset(local, partitioning="hive").to_table().to_pylist()


def tags_by_name(rows: list[dict]) -> dict[str, list]:
    return {
        row["uri"].rsplit("/", 1)[1]: [(tag["label"], round(tag["score"], 3)) for tag in row["tags"]] for row in rows
    }


def names_in(bucket, prefix: str) -> list[str]:
    return [blob.name for blob in bucket.list_blobs(prefix=prefix)]


def test_the_whole_journey_in_a_bucket(bucket, demo_images, bundle_dir, tmp_path, capsys):
    for path in sorted(demo_images.rglob("*.*")):
        bucket.blob(f"photos/{path.relative_to(demo_images)}").upload_from_filename(str(path))
    root = f"gs://{bucket.name}"
    bulktag("extract", "--input", f"{root}/photos", "--output", f"{root}/examples", "--backbone", "builtin")
    bulktag("train", "--examples", f"{root}/examples", "--model", f"{root}/model", "--architecture", "linear")
    bulktag("evaluate", "--examples", f"{root}/examples", "--model", f"{root}/model", "--output", f"{root}/report")
    names = [name.removeprefix("photos/") for name in names_in(bucket, "photos/")]
    bucket.blob("photos/list.csv").upload_from_string("uri\n" + "\n".join([*names, "gone.jpg"]) + "\n")
    bulktag("tag", "--input", f"{root}/photos/list.csv", "--model", f"{root}/model", "--output", f"{root}/tags",
            "--embedding", "--workers", 2)  # fmt: skip
    bulktag("tag", "--input", f"{root}/examples", "--model", f"{root}/model", "--output", f"{root}/again")

    rows = read_rows(f"{root}/tags", tmp_path)
    assert sorted(row["uri"] for row in rows) == sorted(f"{root}/photos/{name}" for name in names)
    stored = {found.uri: found for found in files.list_below(f"{root}/photos")}
    assert all((row["generation"], row["md5"], row["bytes"]) == (stored[row["uri"]].generation,
               stored[row["uri"]].md5, stored[row["uri"]].num_bytes) for row in rows)  # fmt: skip
    (error,) = read_rows(f"{root}/tags", tmp_path, "errors")
    assert (error["uri"], error["error_type"]) == (f"{root}/photos/gone.jpg", "not_found")
    retagged = read_rows(f"{root}/again", tmp_path)
    assert tags_by_name(retagged) == tags_by_name(rows)
    assert {row["uri"]: (row["generation"], row["md5"]) for row in retagged} == {
        row["uri"]: (row["generation"], row["md5"]) for row in rows
    }
    # The same job on a disk, with the same model.
    bulktag("tag", "--input", demo_images, "--model", f"{root}/model", "--output", tmp_path / "tags")
    assert tags_by_name(read_rows(str(tmp_path / "tags"), tmp_path)) == tags_by_name(rows)
    capsys.readouterr()
    bulktag("classify", "--model", f"{root}/model", f"{root}/photos/{names[0]}")
    assert names[0].split("/")[0] in capsys.readouterr().out
    weights = next(name for name in names_in(bucket, "examples/backbone/") if name.endswith(".pb"))
    bucket.blob("runs/night.yaml").upload_from_string(
        f"extract:\n  input: [{root}/photos]\n  output: {root}/other\n  weights: {root}/{weights}\n  backbone: mine\n"
    )
    assert run_command(["run", f"{root}/runs/night.yaml"]) == 0
    assert "report.html" in " ".join(names_in(bucket, "report/"))
    assert not [name for name in names_in(bucket, "") if "/.bulktag" in name]


def test_the_marker_is_written_last_and_a_second_run_replaces_the_first(bucket, photos, bundle_dir, tmp_path):
    output = f"gs://{bucket.name}/tags"
    tag = ["tag", "--input", photos, "--model", bundle_dir, "--output", output]
    for _ in range(2):
        bulktag(*tag, "--run-date", "2026-11-20")
        written = sorted(files.list_below(output), key=lambda stored: stored.generation)
        assert [stored.uri.rsplit("/", 1)[1] for stored in written][-2:] == ["run.json", "_SUCCESS"]
        assert len(read_rows(output, tmp_path)) == NUM_TAGGED
    bulktag(*tag, "--run-date", "2026-11-21")
    assert len(read_rows(output, tmp_path)) == 2 * NUM_TAGGED
    assert len(names_in(bucket, "tags/")) == 6  # tags and errors of two days, run.json, _SUCCESS


def test_every_image_has_one_row_through_all_that_a_store_does(proxy, bucket, photos, bundle_dir, tmp_path):
    names = names_in(bucket, "photos/")
    gone, forbidden, failing, cut = names[0], names[5], names[10], names[15]
    output = f"gs://{bucket.name}/tags"
    proxy.faults = [
        Fault(path=f"/o/{gone}", status=404),
        Fault(path=f"/o/{forbidden}", status=403),
        Fault(path=f"/o/{failing}", status=503),
        Fault(path=f"/o/{cut}", cut=0.7),
        Fault(path="/o/photos/", status=429, times=6),
        Fault(path="/o/photos/", cut=0.3, times=6),
        Fault(method="POST|PUT|DELETE", status=503, times=10),
        Fault(path=r"/o\?", status=500, times=2),
    ]
    bulktag("tag", "--input", photos, "--model", bundle_dir, "--output", output, "--max-error-share", 0.5)
    tagged = [row["uri"] for row in read_rows(output, tmp_path)]
    errors = {row["uri"]: row["error_type"] for row in read_rows(output, tmp_path, "errors")}
    uri = {name: f"gs://{bucket.name}/{name}" for name in names}
    assert errors == {
        uri[gone]: "not_found", uri[forbidden]: "permission_denied", uri[failing]: "store_failed",
        uri[cut]: "store_failed",
    }  # fmt: skip
    assert sorted(tagged) == sorted(set(uri.values()) - set(errors))
    assert all(fault.times <= 0 for fault in proxy.faults[4:])


def test_a_store_that_takes_no_output_fails_in_one_line_and_publishes_nothing(
    proxy, bucket, photos, bundle_dir, tmp_path, capsys
):
    proxy.faults = [Fault(method="POST|PUT", status=503)]
    assert run_command(["tag", "--input", photos, "--model", str(bundle_dir), "--output", f"gs://{bucket.name}/t"]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("bulktag tag: failed: ") and "503" in message
    proxy.faults = []
    assert names_in(bucket, "t/") == []


@pytest.mark.parametrize("seen_before", [0, 1], ids=["by the launcher", "by a worker"])
def test_a_listing_that_fails_publishes_nothing(proxy, bucket, photos, bundle_dir, capsys, seen_before):
    proxy.faults = [Fault(path="maxResults=1000.*prefix=photos/", status=503, skip=seen_before)]
    assert run_command(["tag", "--input", photos, "--model", str(bundle_dir), "--output", f"gs://{bucket.name}/t"]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("bulktag tag: failed: ") and "503" in message
    assert names_in(bucket, "t/") == []


def test_an_input_that_is_closed_is_one_line(proxy, bucket, photos, bundle_dir, capsys):
    proxy.faults = [Fault(status=403)]
    assert run_command(["tag", "--input", photos, "--model", str(bundle_dir), "--output", f"gs://{bucket.name}/t"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "expected " in line and "403" in line


def test_two_runs_do_not_publish_at_once(proxy, bucket, photos, bundle_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(store_locks, "LOOK_EVERY_S", 0.05)
    output = f"gs://{bucket.name}/tags"
    inside, most = [], []

    def watched(*arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.3)
        plain(*arguments)
        inside.pop()

    from bulktag.pipeline import publish as module

    plain = module._swap_all
    monkeypatch.setattr(module, "_swap_all", watched)
    made = []
    for run_id in ("one", "two", "three"):
        made.append(module.Staging(run_id, output, f"{output}/.bulktag-{run_id}/w", f"{output}/.bulktag-{run_id}/f"))
        files.write_bytes(f"{made[-1].final}/tags/part-{run_id}", run_id.encode())
    threads = [
        threading.Thread(target=publish, args=(staging, ("tags",), {"run_id": staging.run_id, "job": "tag"}))
        for staging in made
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == [1, 1, 1]
    run_id = json.loads(files.read_bytes(f"{output}/run.json"))["run_id"]
    assert names_in(bucket, "tags/tags/") == [f"tags/tags/part-{run_id}"]
    assert not files.exists(f"{output}/{store_locks.LOCK_NAME}")


def test_the_lock_of_a_process_that_died_is_broken(bucket, monkeypatch):
    monkeypatch.setattr(store_locks, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(store_locks, "LOCK_EXPIRES_S", 0.5)
    folder = f"gs://{bucket.name}/tags"
    files.write_generation(f"{folder}/{store_locks.LOCK_NAME}", b"a dead one", 0)
    with store_locks.locked(folder):
        assert files.read_bytes(f"{folder}/{store_locks.LOCK_NAME}") != b"a dead one"
    assert not files.exists(folder)


def test_a_lock_that_is_renewed_is_not_broken(bucket, monkeypatch):
    monkeypatch.setattr(store_locks, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(store_locks, "RENEW_EVERY_S", 0.1)
    monkeypatch.setattr(store_locks, "LOCK_EXPIRES_S", 2.0)
    folder, order = f"gs://{bucket.name}/tags", []

    def second():
        with store_locks.locked(folder):
            order.append("second")

    thread = threading.Thread(target=second)
    with store_locks.locked(folder):
        thread.start()
        time.sleep(4)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_run_that_was_killed_while_it_published_leaves_nothing_that_the_next_one_does_not_mend(
    proxy, bucket, photos, bundle_dir, tmp_path, monkeypatch
):
    output = f"gs://{bucket.name}/tags"
    tag = ["tag", "--input", photos, "--model", str(bundle_dir), "--output", output, "--run-date", "2026-11-20"]
    bulktag(*tag)
    # The next one stops for ever as it moves its first file into its place.
    proxy.faults = [Fault(path=r"/rewriteTo/.*/o/tags/tags/", method="POST", stall_s=20, times=1)]
    killed = subprocess.Popen([os.path.join(os.path.dirname(sys.executable), "bulktag"), *tag])
    while proxy.faults[0].times > 0:
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not files.exists(f"{output}/_SUCCESS")
    assert [name for name in names_in(bucket, "tags/") if "/.bulktag" in name]
    proxy.faults = []
    monkeypatch.setattr(store_locks, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(store_locks, "LOCK_EXPIRES_S", 0.5)
    monkeypatch.setattr(store_locks, "GONE_AFTER_S", -1e9)
    bulktag(*tag)
    assert len(read_rows(output, tmp_path)) == NUM_TAGGED
    assert len(names_in(bucket, "tags/")) == 4  # tags, errors, run.json, _SUCCESS; nothing of the dead run


def test_tables_are_read_by_other_tools_where_they_lie(bucket, photos, bundle_dir, proxy):
    output = f"gs://{bucket.name}/tags"
    bulktag("tag", "--input", photos, "--model", bundle_dir, "--output", output)
    (part,) = [name for name in names_in(bucket, "tags/tags/")]
    with gcs.open_file(f"gs://{bucket.name}/{part}") as file:
        assert pq.ParquetFile(file).metadata.num_rows == NUM_TAGGED


def kept_and_used(folder: str) -> tuple[int, int]:
    run = json.loads(files.read_bytes(f"{folder}/run.json"))
    return run["counters"].get("incremental/kept", 0), run["counts"]["used"]


def test_extracting_again_computes_new_generations_only(bucket, photos, demo_images):
    root = f"gs://{bucket.name}"
    command = ("extract", "--output", f"{root}/examples", "--backbone", "builtin", "--input")
    bulktag(*command, photos)
    assert kept_and_used(f"{root}/examples") == (0, NUM_TAGGED)
    first, *_, last = sorted((demo_images / "circle").iterdir())
    bucket.blob(f"photos/circle/{first.name}").upload_from_filename(str(first))  # the same bytes, another generation
    bucket.blob("photos/circle/new.jpg").upload_from_filename(str(last))
    bulktag(*command, photos)
    assert kept_and_used(f"{root}/examples") == (NUM_TAGGED - 1, NUM_TAGGED + 1)
    # A manifest says neither size nor generation: the store is asked.
    names = [name.removeprefix("photos/") for name in names_in(bucket, "photos/")]
    lines = "".join(f"{name},{name.split('/')[0]}\n" for name in names)
    bucket.blob("photos/list.csv").upload_from_string("uri,label\n" + lines)
    bulktag(*command, f"{photos}/list.csv")
    assert kept_and_used(f"{root}/examples") == (NUM_TAGGED + 1, NUM_TAGGED + 1)
