"""The first run: `bulktag demo` in an empty folder, in a process of its own."""

import json
import os
import subprocess
import sys

import duckdb
import pytest

COMMAND = [sys.executable, "-c", "from bulktag.pipeline.cli import main; main()"]
# The command must not need a network: every connection attempt goes to a port where nobody listens.
NO_NETWORK = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}


def run(folder, *arguments):
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env={**os.environ, **NO_NETWORK},
        capture_output=True,
        text=True,
        timeout=180,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty")
    return folder, run(folder, "demo")


@pytest.mark.slow
def test_the_demo_reaches_its_accuracy_on_images_never_seen(demo):
    folder, done = demo
    assert done.returncode == 0, done.stderr
    info = json.loads((folder / "bulktag-demo/examples/examples.json").read_text())
    assert max(info["counts"]["train"]["labels"].values()) <= 100
    metrics = json.loads((folder / "bulktag-demo/report/metrics.json").read_text())
    assert metrics["n"] >= 100 and metrics["accuracy"] >= 0.97
    right, tagged = duckdb.sql(
        f"SELECT count(*) FILTER (contains(uri, '/' || top_label || '/')), count(*) "
        f"FROM '{folder}/bulktag-demo/tags/tags/**/*.parquet'"
    ).fetchall()[0]
    assert tagged == 100 and right >= 95


@pytest.mark.slow
def test_the_demo_prints_tags_a_query_and_where_everything_lies(demo):
    _, done = demo
    for text in ("top_label", "FROM read_parquet(", "broken.jpg", "report.html", "done in"):
        assert text in done.stdout
    assert "Traceback" not in done.stderr and "WARNING" not in done.stderr
    assert "bulktag extract --input" in done.stderr


@pytest.mark.slow
def test_the_demo_replaces_only_a_demo(demo, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    done = run(tmp_path, "demo", "--workdir", ".")
    assert done.returncode == 2 and "expected an empty folder or that of an earlier demo" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "keep me"
