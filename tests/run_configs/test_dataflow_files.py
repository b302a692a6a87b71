"""The files of run_configs/dataflow: what belongs together does."""

import dataclasses
import json
import pathlib
import re
import shlex
import sys

import pytest

from bulktag import __version__
from bulktag.pipeline.config import JOBS, TagConfig

REPO = pathlib.Path(__file__).resolve().parents[2]
FOLDER = REPO / "run_configs" / "dataflow"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
README = (FOLDER / "README.md").read_text()
TEMPLATE = json.loads((FOLDER / "flex_template.json").read_text())


def test_the_image_has_the_versions_of_the_lock_and_of_this_bulktag():
    locked = re.search(r"^apache-beam==(.*)$", (REPO / "requirements.lock").read_text(), re.MULTILINE)[1]
    assert set(re.findall(r"^ARG BEAM_VERSION=(.*)$", DOCKERFILE, re.MULTILINE)) == {locked}
    runs = [path.read_text() for path in REPO.glob("run_configs/dataflow_*.yaml")]
    texts = [DOCKERFILE, README, json.dumps(TEMPLATE), *runs]
    versions = {version for text in texts for version in re.findall(r"bulktag:(\d+\.\d+\.\d+)-[cg]pu", text)}
    assert versions == {__version__}


def test_what_the_image_copies_is_there():
    lines = [line for line in DOCKERFILE.splitlines() if line.startswith("COPY ") and "--from" not in line]
    copied = [line.split()[1:-1] for line in lines]
    assert copied and all((REPO / name).exists() for names in copied for name in names)
    assert "USER 10001" in DOCKERFILE and DOCKERFILE.rstrip().endswith('ENTRYPOINT ["/opt/apache/beam/boot"]')
    assert "/opt/bulktag/launch.py" in re.search(r"FLEX_TEMPLATE_PYTHON_PY_FILE=(\S+)", DOCKERFILE)[1]


def test_the_template_has_the_form_that_the_service_takes():
    # Source: https://cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.jobs#ContainerSpec
    assert set(TEMPLATE) == {"image", "sdkInfo", "metadata"} and TEMPLATE["sdkInfo"] == {"language": "PYTHON"}
    assert TEMPLATE["metadata"] == json.loads((FOLDER / "metadata.json").read_text())
    allowed = {"name", "label", "helpText", "isOptional", "regexes", "paramType"}
    fields = {field.name: field for field in dataclasses.fields(TagConfig)}
    for parameter in TEMPLATE["metadata"]["parameters"]:
        assert set(parameter) <= allowed and {"name", "label", "helpText"} <= set(parameter)
        field = fields[parameter["name"]]
        assert parameter.get("isOptional", False) is not field.metadata["required"]
        (pattern,) = parameter["regexes"]
        default = field.default
        if default not in ("", (), None):
            assert re.fullmatch(pattern, str(default)), parameter["name"]
            assert f"default: {default}" in parameter["helpText"] or parameter["name"] == "device"


@pytest.mark.parametrize(
    ("given", "flag"),
    [
        ("--run_date=2026-11-20", "--run-date=2026-11-20"),
        ("--top_k=3", "--top-k=3"),
        ("--temp_location=gs://b/t", "--temp_location=gs://b/t"),
        ("--input=gs://b/a=b", "--input=gs://b/a=b"),
    ],
)
def test_the_templates_parameters_become_flags(given, flag, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    sys.modules.pop("launch", None)
    import launch

    assert launch.to_flags("tag", [given]) == [flag]


def test_the_pages_commands_name_files_and_verbs_that_exist():
    commands = [
        line.strip()
        for text in re.findall(r"^```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
        for line in text.replace("\\\n", "").splitlines()
    ]
    for command in commands:
        words = shlex.split(command)
        if words[0] == "bulktag":
            assert words[1] in (*JOBS, "run")
        for word in words:
            if word.startswith("run_configs/"):
                assert (REPO / word).exists()
