"""The Kubernetes files of run_configs/flink: what Kubernetes and the Flink operator take, and what belongs together.

`flinkdeployments.flink.apache.org-v1.yml` beside this file is the operator's resource definition.
"""

import copy
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time

import jsonschema
import kubernetes_validate
import psutil
import pytest
import yaml
from apache_beam.options.pipeline_options import FlinkRunnerOptions, StandardOptions

from bulktag.pipeline import flink
from bulktag.pipeline.cli import build_parser
from bulktag.pipeline.config import JOBS, build_config
from bulktag.pipeline.runners import check_beam_options
from bulktag.pipeline.worker_pool import DEFAULT_PORT

REPO = pathlib.Path(__file__).resolve().parents[2]
FOLDER = REPO / "run_configs" / "flink"
DEFINITION = pathlib.Path(__file__).with_name("flinkdeployments.flink.apache.org-v1.yml")
KUBERNETES_VERSIONS = ("1.27", "1.37")
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
README = (FOLDER / "README.md").read_text(encoding="utf-8")
README_COMMANDS = [
    line.split("  #")[0].strip()
    for text in re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for line in text.replace("\\\n", "").splitlines()
]


def _load(name: str) -> dict:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


CLUSTER, NIGHTLY, VOLUME = _load("deployment.yaml"), _load("nightly.yaml"), _load("volume.yaml")
OVERLAY, WITHOUT_GPU = _load("kustomization.yaml"), _load("cpu/kustomization.yaml")
SPEC = CLUSTER["spec"]
WORKER_POD = SPEC["taskManager"]["podTemplate"]["spec"]
POOL = next(item for item in WORKER_POD["containers"] if item["name"] == "worker-pool")
LAUNCHER_POD = NIGHTLY["spec"]["jobTemplate"]["spec"]["template"]["spec"]
LAUNCHER = LAUNCHER_POD["containers"][0]


def _refuse_unknown(schema):
    """The schema as `kubectl apply` takes it, which refuses fields that the definition does not have."""
    if isinstance(schema, list):
        return [_refuse_unknown(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _refuse_unknown(value) for name, value in schema.items()}
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="module")
def operator():
    """A validator of the operator's resource."""
    definition = yaml.safe_load(DEFINITION.read_text(encoding="utf-8"))
    version = next(item for item in definition["spec"]["versions"] if item["name"] == "v1beta1")
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return jsonschema.Draft202012Validator(_refuse_unknown(spec))


def _changed(path: tuple, value) -> dict:
    """The cluster's spec with one field set."""
    spec = copy.deepcopy(SPEC)
    place = spec
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return spec


def test_the_operator_takes_the_cluster(operator):
    assert (CLUSTER["apiVersion"], CLUSTER["kind"]) == ("flink.apache.org/v1beta1", "FlinkDeployment")
    operator.validate(SPEC)


CONTAINER = ("taskManager", "podTemplate", "spec", "containers", 1)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("flinkVersion",), "v1_99", "'v1_99' is not one of"),
        (("flinkConfiguration", "taskmanager.numberOfTaskSlots"), 2, "2 is not of type 'string'"),
        (("taskManager", "replica"), 2, "'replica' was unexpected"),
        ((*CONTAINER, "readynessProbe"), {}, "'readynessProbe' was unexpected"),
        ((*CONTAINER, "resources", "limits", "cpu"), [4], "[4] is not valid under any of the given schemas"),
    ],
)
def test_a_mistake_in_the_cluster_is_seen(operator, path, value, message):
    with pytest.raises(jsonschema.ValidationError) as caught:
        operator.validate(_changed(path, value))
    assert message in caught.value.message


def _worker_pod() -> dict:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "taskmanager"}, "spec": WORKER_POD}


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("thing", [VOLUME, NIGHTLY, _worker_pod()], ids=lambda thing: thing["kind"])
def test_kubernetes_takes_the_rest(thing, version):
    assert kubernetes_validate.validate(thing, version, strict=True) == version


@pytest.mark.parametrize("field", ["schedul", "timezone"])
def test_a_mistake_in_the_nightly_job_is_seen(field):
    wrong = {**NIGHTLY, "spec": {**NIGHTLY["spec"], field: "0 2 * * *"}}
    with pytest.raises(kubernetes_validate.ValidationError, match=field):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSIONS[-1], strict=True)


def _parse(command: list[str]):
    """A bulktag command's configuration and Beam's options."""
    assert command[0] == "bulktag"
    parsed, rest = build_parser().parse_known_args(command[1:])
    values = vars(parsed)
    config = build_config(JOBS[values.pop("verb")], {**values, **({"beam": rest} if rest else {})})
    return config, check_beam_options(tuple(rest))


def test_the_launcher_finds_the_cluster():
    config, options = _parse(LAUNCHER["command"])
    beam_options = options.view_as(FlinkRunnerOptions)
    assert options.view_as(StandardOptions).runner == "FlinkRunner"
    # The operator makes a service of this name for the REST API, on Flink's default port.
    assert beam_options.flink_master == f"{CLUSTER['metadata']['name']}-rest:8081"
    assert f"COPY --chmod=644 .flink/flink-job-server.jar {beam_options.flink_job_server_jar}\n" in DOCKERFILE
    slots = int(SPEC["flinkConfiguration"]["taskmanager.numberOfTaskSlots"])
    assert beam_options.parallelism == slots * SPEC["taskManager"]["replicas"]
    assert config.workers == 1
    mount = LAUNCHER["volumeMounts"][0]["mountPath"]
    for path in (*config.input, config.model, config.output):
        assert pathlib.PurePosixPath(path).is_relative_to(mount)


def test_launcher_and_workers_share_image_user_and_files():
    assert LAUNCHER["image"] == POOL["image"] == OVERLAY["images"][0]["name"]
    assert LAUNCHER["volumeMounts"] == POOL["volumeMounts"]
    assert LAUNCHER_POD["volumes"] == WORKER_POD["volumes"]
    volume = WORKER_POD["volumes"][0]
    assert volume["name"] == POOL["volumeMounts"][0]["name"]
    assert volume["persistentVolumeClaim"]["claimName"] == VOLUME["metadata"]["name"]
    assert VOLUME["spec"]["accessModes"] == ["ReadWriteMany"]
    user, group = map(int, re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE).groups())
    assert f"useradd --uid {user} " in DOCKERFILE
    for owner in (LAUNCHER_POD["securityContext"], POOL["securityContext"]):
        assert (owner["runAsUser"], owner["runAsGroup"], owner["runAsNonRoot"]) == (user, group, True)
    assert LAUNCHER_POD["securityContext"]["fsGroup"] == WORKER_POD["securityContext"]["fsGroup"] == group


def test_the_image_runs_the_pool_where_jobs_look_for_it():
    command = re.search(r"^CMD \[(.*)\]$", DOCKERFILE, re.MULTILINE)[1].replace(",", "")
    pool = ["python", "-m", "bulktag.pipeline.worker_pool", "--host", "localhost", "--port", str(DEFAULT_PORT)]
    assert shlex.split(command) == pool
    assert not {"command", "args"} & POOL.keys()
    assert f"localhost:{DEFAULT_PORT}" == flink.WORKER_POOL
    assert f'("localhost", {DEFAULT_PORT})' in POOL["readinessProbe"]["exec"]["command"][-1]


def test_the_image_holds_every_package():
    setup = (REPO / "setup.py").read_text(encoding="utf-8")
    copied = {line.split()[-1] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")}
    rooms = set(re.findall(r'^ +"bulktag[.a-z]*": "(\w+)",$', setup, re.MULTILINE))
    assert len(rooms) > 3 and rooms <= copied
    for line in re.findall(r"^COPY (?:--\S+ )?(.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((REPO / name).exists() for name in line.split() if not name.startswith(".flink/")), line


def test_flinks_versions_agree():
    major, minor = re.match(r"flink:(\d+)\.(\d+)\.", SPEC["image"]).groups()
    assert SPEC["flinkVersion"] == f"v{major}_{minor}"
    assert f"Flink {major}.{minor}" in DOCKERFILE


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_the_readiness_probe_hears_a_pool_that_nobody_outside_can_reach():
    port = _free_port()
    probe = [part.replace(str(DEFAULT_PORT), str(port)) for part in POOL["readinessProbe"]["exec"]["command"]]
    probe[0] = sys.executable

    def is_ready() -> bool:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0

    assert not is_ready()
    pool = subprocess.Popen(
        [sys.executable, "-m", "bulktag.pipeline.worker_pool", "--host", "localhost", "--port", str(port)],
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not is_ready() and pool.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        assert is_ready()
        listening = [item for item in psutil.Process(pool.pid).net_connections() if item.laddr.port == port]
        assert listening and {item.laddr.ip.removeprefix("::ffff:") for item in listening} <= {"127.0.0.1", "::1"}
    finally:
        pool.terminate()
        pool.communicate(timeout=60)


def _remove(thing: dict, pointer: str) -> None:
    """What a JSON patch's `remove` does."""
    *steps, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    for step in steps:
        thing = thing[int(step) if isinstance(thing, list) else step]
    del thing[last]


def test_cpu_takes_the_gpus_out(operator):
    cluster = copy.deepcopy(CLUSTER)
    (patch,) = WITHOUT_GPU["patches"]
    assert patch["target"] == {"kind": CLUSTER["kind"], "name": CLUSTER["metadata"]["name"]}
    for change in yaml.safe_load(patch["patch"]):
        assert change["op"] == "remove"
        _remove(cluster, change["path"])
    operator.validate(cluster["spec"])
    assert "nvidia" in yaml.dump(SPEC) and "nvidia" not in yaml.dump(cluster)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
@pytest.mark.parametrize("with_gpu", [True, False])
def test_kustomize_puts_everything_together(with_gpu, tmp_path):
    folder = tmp_path / "flink"
    shutil.copytree(FOLDER, folder)
    if not with_gpu:
        text = (folder / "kustomization.yaml").read_text(encoding="utf-8")
        text = text.replace("# components:\n#   - cpu\n", "components:\n  - cpu\n")
        (folder / "kustomization.yaml").write_text(text, encoding="utf-8")
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True).stdout
    image = OVERLAY["images"][0]
    assert made.count(f"image: {image['newName']}:{image['newTag']}\n") == 2
    assert {thing["kind"] for thing in yaml.safe_load_all(made)} == {
        "PersistentVolumeClaim",
        "FlinkDeployment",
        "CronJob",
    }
    assert ("nvidia.com/gpu" in made) == with_gpu


def test_readme_commands_parse():
    commands = [command for command in README_COMMANDS if command.startswith("bulktag ")]
    assert {command.split()[1] for command in commands} >= {"train", "tag"}
    for command in commands:
        _parse(shlex.split(command))


def test_readme_names_what_there_is():
    named = set(re.findall(r"\brun_configs/[\w./]+\w", README))
    assert named and all((REPO / name).exists() for name in named)
    kubectl = "\n".join(command for command in README_COMMANDS if command.startswith("kubectl "))
    name = CLUSTER["metadata"]["name"]
    assert set(re.findall(r"--from=cronjob/(\S+)", kubectl)) == {NIGHTLY["metadata"]["name"]}
    assert set(re.findall(r"flinkdeployment/(\S+)", kubectl)) == {name}
    assert set(re.findall(r"service/(\S+)", kubectl)) == {f"{name}-rest"}
    targets = re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"\bmake ([a-z-]+)", "\n".join(README_COMMANDS))) <= set(targets)
