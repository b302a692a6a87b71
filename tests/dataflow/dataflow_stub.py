"""A stand-in for the Dataflow service: it takes jobs over HTTP as the service does, and does what they say.

A job's pipeline is fetched from where the launcher staged it, and run by Beam's runner for one machine in a process of
its own, whose Python has the libraries that bulktag stands on and no bulktag but the staged package.

Source of the paths: https://cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.locations.jobs
"""

import http.server
import json
import pathlib
import re
import subprocess
import sys
import sysconfig
import threading

WORKER = """
import sys
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms import environments

options = PipelineOptions([])
FileSystems.set_options(options)
pipeline = beam_runner_api_pb2.Pipeline.FromString(FileSystems.open(sys.argv[1]).read())
here = environments.EmbeddedPythonEnvironment.default().to_runner_api(None)
for name in pipeline.components.environments:
    pipeline.components.environments[name].CopyFrom(here)
FnApiRunner().run_via_runner_api(pipeline, options).wait_until_finish()
"""


class DataflowStub:
    """The service, and its one worker.

    Args:
      folder: for the worker's Python.
      gcs_url: of the store's emulator.
    """

    def __init__(self, folder: pathlib.Path, gcs_url: str):
        self.folder, self.gcs_url = folder, gcs_url
        self.jobs: list[dict] = []
        self.requested: list = []
        self.refuse = 0
        self.end_as = ""  # the state that the next job ends in without being run; "RUNNING": it does not end
        self.worker_log = ""
        self._process: subprocess.Popen | None = None
        stub = self

        class Handler(_Handler):
            owner = stub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://localhost:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        if self._process is not None:
            self._process.kill()

    def create(self, job: dict) -> dict:
        self.jobs.append(job)
        if not self.end_as:
            self._process = self._start(job)
        return {**job, "id": "2026-11-20_job", "currentState": "JOB_STATE_PENDING", "steps": []}

    def state(self) -> dict:
        if self.end_as:
            state = self.end_as
        else:
            code = self._process.poll()
            state = "RUNNING" if code is None else "DONE" if code == 0 else "FAILED"
            if state == "FAILED":
                self.worker_log = pathlib.Path(self.folder / "log").read_text()
        if self.requested:
            state = "CANCELLED"
        return {"id": "2026-11-20_job", "currentState": f"JOB_STATE_{state}", "name": self.jobs[-1]["name"]}

    def _start(self, job: dict) -> subprocess.Popen:
        python = self._make_environment(job)
        url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
        environment = {"STORAGE_EMULATOR_HOST": self.gcs_url, "PATH": "/usr/bin:/bin", "TF_CPP_MIN_LOG_LEVEL": "3"}
        with open(self.folder / "log", "w") as log:
            return subprocess.Popen(
                [python, "-c", WORKER, url], env=environment, cwd=self.folder, stdout=log, stderr=log
            )

    def _make_environment(self, job: dict) -> str:
        """A Python with the libraries of this one, of which only the staged package is bulktag."""
        home = self.folder / f"worker{len(self.jobs)}"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
        site = next(home.glob("lib/python*/site-packages"))
        # Libraries that a .pth file adds do not have their own .pth files read: an editable bulktag is not found.
        (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        python = str(home / "bin" / "python")
        assert subprocess.run([python, "-c", "import bulktag"], capture_output=True, cwd=self.folder).returncode
        from google.cloud import storage

        client = storage.Client.create_anonymous_client()
        for package in job["environment"]["workerPools"][0].get("packages", []):
            if package["name"].endswith(".whl"):
                bucket, name = package["location"].removeprefix("storage.googleapis.com/").split("/", 1)
                path = self.folder / package["name"]
                client.bucket(bucket).blob(name).download_to_filename(str(path))
                subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps",
                                "--no-index", "--disable-pip-version-check", str(path)], check=True)  # fmt: skip
        return python


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner: DataflowStub

    def log_message(self, *_):
        pass

    def _send(self, content: dict, status: int = 200) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> dict:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def do_POST(self):
        body = self._body()
        assert re.match(r"/v1b3/projects/[^/]+/locations/[^/]+/jobs(\?|$)", self.path), self.path
        if self.owner.refuse:
            self._send({"error": {"code": self.owner.refuse, "message": "quota exceeded"}}, self.owner.refuse)
            return
        self._send(self.owner.create(body))

    def do_PUT(self):
        self.owner.requested.append(self._body().get("requestedState", ""))
        self._send(self.owner.state())

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.endswith("/messages"):
            error = {"id": "1", "time": "2026-11-20T02:00:00Z", "messageText": "Workflow failed.",
                     "messageImportance": "JOB_MESSAGE_ERROR"}  # fmt: skip
            failed = self.owner.state()["currentState"] == "JOB_STATE_FAILED"
            self._send({"jobMessages": [error] if failed else []})
        elif path.endswith("/metrics"):
            self._send({"metrics": []})
        elif path.endswith("/jobs"):
            self._send({"jobs": []})
        else:
            self._send(self.owner.state())
