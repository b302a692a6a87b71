"""A real Flink cluster, and pictures enough that its jobs can be disturbed."""

import os
import pathlib
import shutil
import sys

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
COPIES = 40


@pytest.fixture(scope="session")
def cluster(request):
    """One JobManager, two TaskManagers with two slots each, and a worker pool; started unless it runs already."""
    if "flink" not in request.config.getoption("-m").replace("not flink", ""):
        missing = [program for program in ("java", "mvn") if not shutil.which(program)]
        pytest.skip("needs a Flink cluster: make test-flink" + f" (missing: {', '.join(missing)})" * bool(missing))
    sys.path.insert(0, str(REPO / "scripts"))
    import flink_cluster

    made = flink_cluster.Cluster(REPO / ".flink", sys.executable)
    ran_before = bool(made.processes())
    made.up()
    yield made
    if not ran_before:
        made.down()


@pytest.fixture
def whole_cluster(cluster):
    """The cluster with both of its TaskManagers."""
    import flink_cluster

    for _ in range(flink_cluster.TASK_MANAGERS - len(cluster.processes().get("taskmanager", []))):
        cluster.start_task_manager()
    cluster.wait_until_ready()
    return cluster


@pytest.fixture(scope="session")
def many_images(demo_images, tmp_path_factory) -> pathlib.Path:
    """Some thousand pictures in folders, so that a job takes a while."""
    folder = tmp_path_factory.mktemp("many") / "photos"
    for number in range(COPIES):
        shutil.copytree(demo_images, folder / f"copy{number}", copy_function=os.link)
    return folder
