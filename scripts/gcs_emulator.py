"""An emulator of Google Cloud Storage on this machine, for trying and testing without a bucket.

    python scripts/gcs_emulator.py up       fetch it once, start it, print the setting that points programs at it
    python scripts/gcs_emulator.py binary   fetch it only

It is fake-gcs-server (https://github.com/fsouza/fake-gcs-server), built once into `.gcs/` (`--dir`) by the ordinary
`go` command; objects live in its memory and are gone with it. Needs Go 1.21 or newer. The version stands here and
nowhere else.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

MODULE, VERSION = "github.com/fsouza/fake-gcs-server", "v1.56.1"
PORT = 4443
READY_WITHIN_S = 20.0
# Where Go's own installer puts it, which is not on every path. Source: https://go.dev/doc/install
GO_FOLDER = "/usr/local/go/bin"


class Failed(Exception):
    """The emulator cannot be had; the message says why in one line."""


def fetch_binary(folder: pathlib.Path) -> pathlib.Path:
    """The emulator's program, built where it is not there yet."""
    binary = folder / f"fake-gcs-server-{VERSION}"
    if binary.is_file():
        return binary
    go = shutil.which("go") or shutil.which("go", path=GO_FOLDER)
    if go is None:
        raise Failed("expected the command go, version 1.21 or newer, got none: https://go.dev/doc/install")
    print(f"building {MODULE} {VERSION} (a minute or two)", file=sys.stderr)
    made = folder / "bin"
    environment = {**os.environ, "GOBIN": str(made.absolute()), "CGO_ENABLED": "0"}
    done = subprocess.run([go, "install", f"{MODULE}@{VERSION}"], env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason"]
        raise Failed(f"expected go to build {MODULE}@{VERSION}, got: {lines[-1]}")
    (made / "fake-gcs-server").rename(binary)
    return binary


class Emulator:
    """The emulator as a process of this one.

    Args:
      folder: where its program is kept.
      port: that it listens on, on this machine alone; 0: any.
      public_url: under which programs reach it, where that is another address, such as a proxy's.
      data: a folder whose folders are buckets that it begins with.
    """

    def __init__(self, folder: pathlib.Path, port: int = 0, public_url: str = "", data: pathlib.Path | None = None):
        self._binary = fetch_binary(folder)
        self.port = port or _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        public_url = public_url or self.url
        self.process = subprocess.Popen(
            [str(self._binary), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port),
             "-external-url", public_url, "-public-host", public_url.removeprefix("http://"), "-log-level", "error",
             *(["-data", str(data)] if data else [])]
        )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return
            time.sleep(0.05)
        raise Failed(f"expected the emulator to listen at {self.url}, got nothing there")

    def stop(self) -> None:
        """End it, with all that it holds."""
        self.process.kill()
        self.process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("up", "binary"))
    parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path(".gcs"), help="folder for the program")
    parser.add_argument("--port", type=int, default=PORT)
    parsed = parser.parse_args()
    try:
        if parsed.action == "binary":
            print(fetch_binary(parsed.dir))
            return 0
        emulator = Emulator(parsed.dir, parsed.port)
        print(f"export STORAGE_EMULATOR_HOST={emulator.url}     (until this is interrupted)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            emulator.process.wait()
        emulator.stop()
    except Failed as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
