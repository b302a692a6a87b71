"""A Flink cluster on this machine: one JobManager, two TaskManagers with two slots each, and a worker pool.

    python scripts/flink_cluster.py up      fetch what is needed, start, wait until it is ready
    python scripts/flink_cluster.py down    stop it
    python scripts/flink_cluster.py jar     fetch Beam's job-server jar only

For trying and testing; a cluster for work has machines of its own (run_configs/flink/README.md). Everything lies in
`.flink/` (`--dir`) and is fetched once: Flink from PyPI, whose packages hold its Java libraries and scripts, and
Beam's job server from Maven Central. Needs Java 17 and Maven. The versions stand here and nowhere else.
"""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile

import psutil
import requests

FLINK_VERSION = "1.20.3"  # the long-term support line that Beam 2.77 supports
BEAM_VERSION = "2.77.0"
JOB_SERVER = f"org.apache.beam:beam-runners-flink-1.20-job-server:{BEAM_VERSION}"
# Where a mirror of Maven Central has no job server, it is put together from the newest parts that mirrors were seen to
# have. Flink 1.20 runs what was built for 1.19.
JOB_SERVER_PARTS = {
    "org.apache.beam:beam-runners-flink-1.19": "2.70.0",
    "org.apache.beam:beam-runners-java-job-service": "2.65.0",
}
# Provided by the cluster itself; its own logging would be shadowed by another's.
NOT_IN_JAR = re.compile(r"(flink-|log4j|slf4j|logback|scala-)")
MAVEN_DEPENDENCY_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"

TASK_MANAGERS, SLOTS = 2, 2
REST_PORT, POOL_PORT = 8081, 50000
READY_WITHIN_S, STOP_WITHIN_S = 90.0, 20.0
# A job has some twenty exchanges between its steps: with Flink's default of a tenth of its memory it said "Insufficient
# number of network buffers".
CONFIG = {
    "jobmanager.rpc.address": "localhost",
    "jobmanager.bind-host": "localhost",
    "jobmanager.memory.process.size": "1100m",
    "taskmanager.host": "localhost",
    "taskmanager.bind-host": "localhost",
    "taskmanager.numberOfTaskSlots": str(SLOTS),
    "taskmanager.memory.process.size": "1500m",
    "taskmanager.memory.network.min": "256m",
    "taskmanager.memory.network.max": "256m",
    "taskmanager.memory.managed.size": "200m",
    "rest.address": "localhost",
    "rest.bind-address": "localhost",
    "rest.port": str(REST_PORT),
    # What was lost is done again so often; without this setting a worker that dies ends the job.
    # Losing one TaskManager fails several steps at once: unlike the other strategies, this one counts that as once.
    "restart-strategy.type": "exponential-delay",
    "restart-strategy.exponential-delay.initial-backoff": "1 s",
    "restart-strategy.exponential-delay.max-backoff": "30 s",
    "restart-strategy.exponential-delay.attempts-before-reset-backoff": "4",
    # A lost TaskManager is noticed within seconds.
    "heartbeat.interval": "2000",
    "heartbeat.timeout": "12000",
}


class Failed(Exception):
    """The cluster cannot be had; the message says why in one line."""


def fetch_flink(folder: pathlib.Path) -> pathlib.Path:
    """Flink's home, made from its two packages: one has the Java libraries, the other the scripts."""
    home = folder / f"flink-{FLINK_VERSION}"
    if home.is_dir():
        return home
    print(f"fetching Flink {FLINK_VERSION} (230 MB)", file=sys.stderr)
    with _scratch(folder, "fetch") as scratch:
        names = [f"apache-flink=={FLINK_VERSION}", f"apache-flink-libraries=={FLINK_VERSION}"]
        _run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
              "--no-build-isolation", "--dest", str(scratch), *names])  # fmt: skip
        made = scratch / "home"
        with tarfile.open(next(scratch.glob("apache*flink*libraries*.tar.gz"))) as archive:
            archive.extractall(scratch, filter="data")
        shutil.move(next(scratch.glob("*/deps")), made)
        with zipfile.ZipFile(next(scratch.glob("apache_flink-*.whl"))) as archive:
            for name in archive.namelist():
                if name.startswith(("pyflink/bin/", "pyflink/conf/")) and not name.endswith("/"):
                    path = made / name.removeprefix("pyflink/")
                    path.parent.mkdir(exist_ok=True)
                    path.write_bytes(archive.read(name))
                    path.chmod(0o755)
        made.rename(home)
    return home


def fetch_jar(folder: pathlib.Path) -> pathlib.Path:
    """Beam's job server for Flink, as one jar."""
    jar = folder / "flink-job-server.jar"
    if jar.is_file():
        return jar
    with _scratch(folder, "jar") as scratch:
        print(f"fetching {JOB_SERVER}", file=sys.stderr)
        copy = ["mvn", "-B", "-q", f"{MAVEN_DEPENDENCY_PLUGIN}:copy", f"-Dartifact={JOB_SERVER}",
                f"-DoutputDirectory={scratch}"]  # fmt: skip
        if subprocess.run(copy, cwd=scratch, stdout=subprocess.DEVNULL).returncode == 0:
            next(scratch.glob("*.jar")).rename(jar)
            return jar
        parts = ", ".join(f"{name}:{version}" for name, version in JOB_SERVER_PARTS.items())
        print(f"it is not there; putting one together from {parts}", file=sys.stderr)
        (scratch / "pom.xml").write_text(_pom())
        _run(["mvn", "-B", "-q", f"{MAVEN_DEPENDENCY_PLUGIN}:copy-dependencies", "-DincludeScope=runtime",
              f"-DoutputDirectory={scratch / 'lib'}"], cwd=scratch)  # fmt: skip
        _merge_jars(sorted((scratch / "lib").glob("*.jar")), scratch / "merged.jar")
        (scratch / "merged.jar").rename(jar)
    return jar


def _pom() -> str:
    def dependency(name: str) -> str:
        group, artifact = name.split(":")
        return (f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
                f"<version>{JOB_SERVER_PARTS[name]}</version></dependency>")  # fmt: skip

    every = "".join(map(dependency, JOB_SERVER_PARTS))
    return (
        '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
        "<groupId>bulktag</groupId><artifactId>flink-job-server</artifactId><version>1</version>"
        f"<dependencyManagement><dependencies>{every}</dependencies></dependencyManagement>"
        f"<dependencies>{every}</dependencies></project>"
    )


def _merge_jars(jars: list[pathlib.Path], target: pathlib.Path) -> None:
    """All classes in one jar; lists of services are joined, signatures of the single jars are left out."""
    services: dict[str, list[bytes]] = {}
    seen = {"META-INF/MANIFEST.MF"}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as merged:
        for jar in jars:
            if NOT_IN_JAR.match(jar.name):
                continue
            with zipfile.ZipFile(jar) as archive:
                for name in archive.namelist():
                    if name.startswith("META-INF/services/") and not name.endswith("/"):
                        services.setdefault(name, []).append(archive.read(name))
                    elif name not in seen and not re.search(r"/$|^META-INF/.*\.(SF|DSA|RSA)$", name):
                        seen.add(name)
                        merged.writestr(name, archive.read(name))
        for name, parts in services.items():
            merged.writestr(name, b"\n".join(parts))
        merged.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\n\n")


@contextlib.contextmanager
def _scratch(folder: pathlib.Path, name: str):
    path = folder / f".{name}-{os.getpid()}"
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _run(command: list[str], **options) -> None:
    if subprocess.run(command, stdout=sys.stderr, **options).returncode:
        raise Failed(f"expected this to work, it did not: {' '.join(command)}")


class Cluster:
    """The processes of a cluster, remembered in a file of its folder.

    Args:
      folder: for software, settings and logs.
      python: interpreter of the worker pool, with bulktag installed.
    """

    def __init__(self, folder: pathlib.Path, python: str = sys.executable):
        self.folder, self._python = folder.resolve(), python
        self.url = f"http://localhost:{REST_PORT}"
        self.log_dir = self.folder / "log"
        self._state = self.folder / "processes.json"

    @property
    def jar(self) -> pathlib.Path:
        """Beam's job server."""
        return self.folder / "flink-job-server.jar"

    def processes(self) -> dict[str, list[int]]:
        """Numbers of the processes that live, by their part in the cluster."""
        try:
            found = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {}
        alive = {part: [pid for pid, started in pids if _started(pid) == started] for part, pids in found.items()}
        return {part: pids for part, pids in alive.items() if pids}

    def up(self) -> None:
        """Fetch, start and wait until work can be sent.

        Raises:
          Failed: something is missing, or it did not come up.
        """
        for program, what in (("java", "Java 17"), ("mvn", "Maven")):
            if not shutil.which(program):
                raise Failed(f"expected {what} ({program} on PATH), found none")
        self.folder.mkdir(parents=True, exist_ok=True)
        home = fetch_flink(self.folder)
        fetch_jar(self.folder)
        if self._is_ready():
            return
        self.down()
        if self._answers():
            raise Failed(f"expected port {REST_PORT} to be free, got somebody else's service there: {self.url}")
        shutil.rmtree(self.log_dir, ignore_errors=True)
        self.log_dir.mkdir()
        conf = self._write_settings(home)
        self._home, self._environment = home, {**os.environ, "FLINK_CONF_DIR": str(conf), "FLINK_HOME": str(home),
                                               "FLINK_LOG_DIR": str(self.log_dir)}  # fmt: skip
        self._start("jobmanager", [str(home / "bin/jobmanager.sh"), "start-foreground"])
        for number in range(TASK_MANAGERS):
            self._start("taskmanager", [str(home / "bin/taskmanager.sh"), "start-foreground"], number)
        self._start("pool", [self._python, "-m", "bulktag.pipeline.worker_pool", "--port", str(POOL_PORT)])
        self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """Wait for the JobManager, the TaskManagers and the worker pool.

        Raises:
          Failed: one of them ended, or did not answer in time.
        """
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._is_ready():
            self._check_alive()
            if time.monotonic() > deadline:
                self.down()
                raise Failed(f"the cluster was not ready after {READY_WITHIN_S:.0f} s, see {self.log_dir}")
            time.sleep(0.5)

    def _check_alive(self) -> None:
        alive = self.processes()
        for part in ("jobmanager", "taskmanager", "pool"):
            if part not in alive:
                self.down()
                lines = (self.log_dir / f"{part}-0.log").read_text().splitlines()
                raise Failed(f"the {part} ended at once: {lines[-1] if lines else ''}")

    def _write_settings(self, home: pathlib.Path) -> pathlib.Path:
        conf = self.folder / "conf"
        shutil.rmtree(conf, ignore_errors=True)
        shutil.copytree(home / "conf", conf)
        # Java 17 needs the options that Flink's own file starts with; the rest of it is left out.
        options = re.search(r"^env:\n(?: .*\n)+", (home / "conf/config.yaml").read_text(), re.M)[0]
        (conf / "config.yaml").write_text(options + "".join(f"{key}: {value}\n" for key, value in CONFIG.items()))
        return conf

    def _start(self, part: str, command: list[str], number: int = 0) -> None:
        with open(self.log_dir / f"{part}-{number}.log", "w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=self._environment, start_new_session=True)  # fmt: skip
        known = json.loads(self._state.read_text()) if self._state.exists() else {}
        known.setdefault(part, []).append((process.pid, _started(process.pid)))
        self._state.write_text(json.dumps(known))

    def start_task_manager(self) -> None:
        """One more, in the place of one that was lost."""
        home = fetch_flink(self.folder)
        self._environment = {**os.environ, "FLINK_CONF_DIR": str(self.folder / "conf"), "FLINK_HOME": str(home),
                             "FLINK_LOG_DIR": str(self.log_dir)}  # fmt: skip
        self._start("taskmanager", [str(home / "bin/taskmanager.sh"), "start-foreground"], int(time.time()))

    def _answers(self) -> dict | None:
        try:
            return requests.get(f"{self.url}/v1/overview", timeout=5).json()
        except requests.RequestException:
            return None

    def _is_ready(self) -> bool:
        alive, overview = self.processes(), self._answers()
        if not overview or "jobmanager" not in alive or "pool" not in alive:
            return False
        return (
            overview.get("taskmanagers", 0) >= TASK_MANAGERS
            and "worker pool at" in (self.log_dir / "pool-0.log").read_text()
        )

    def down(self) -> None:
        """Stop everything."""
        processes = []
        for pid in [pid for pids in self.processes().values() for pid in pids]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                processes += [process, *process.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(processes, STOP_WITHIN_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._state.unlink(missing_ok=True)


def _started(pid: int) -> float | None:
    """When a process started: with its number, a name that no later process has."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "down", "jar"))
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path(".flink"), help="(default: .flink)")
    args = parser.parse_args(argv)
    cluster = Cluster(args.dir)
    try:
        if args.action == "down":
            cluster.down()
        elif args.action == "jar":
            args.dir.mkdir(parents=True, exist_ok=True)
            print(fetch_jar(args.dir))
        else:
            cluster.up()
            print(f"Flink {FLINK_VERSION}: {cluster.url}, {TASK_MANAGERS} TaskManagers with {SLOTS} slots each; "
                  f"worker pool: localhost:{POOL_PORT}; logs: {cluster.log_dir}")  # fmt: skip
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
