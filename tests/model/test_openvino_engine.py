import subprocess
import sys

import pytest

WATCHED = """
import socket
asked = []
def refuse(*args, **kwargs):
    asked.append(args)
    raise OSError("no network here")
socket.getaddrinfo = socket.socket.connect = refuse
from bulktag.model.backbone import build_backbone
from bulktag.model.engine import build_backbone_engine
from bulktag.model.engine_settings import EngineSettings
import numpy as np
import tempfile, time
from bulktag.model.quantise import quantise
network = build_backbone("builtin", "builtin").graph_def
build_backbone_engine(network, EngineSettings(2, "cpu", "openvino")).run(np.zeros((2, 96, 96, 3), np.uint8))
with tempfile.TemporaryDirectory() as folder:
    quantise(network, np.random.default_rng(0).integers(0, 256, (4, 96, 96, 3), np.uint8), folder)
time.sleep(1)  # telemetry has a thread of its own
print("asked", asked)
"""


@pytest.mark.slow
def test_openvino_and_nncf_do_not_call_their_makers(tmp_path):
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, env=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "asked []"
    assert not (tmp_path / "intel").exists()  # where it keeps the identity that it would send
