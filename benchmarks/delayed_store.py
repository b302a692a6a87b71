"""Google Cloud Storage as an emulator on this machine, each of whose answers comes later.

    python -m benchmarks.delayed_store --images DIR --bucket photos --delay-ms 50

Fills a bucket with the files of a folder, prints the setting that points programs at it, and serves until it is ended.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import os
import pathlib
import signal
import sys

REPO = pathlib.Path(__file__).resolve().parents[1]
UPLOADS_AT_ONCE = 16
CHUNK_BYTES = 1 << 18


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    """Pass on what comes, each piece later; a request for an object is one piece."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK_BYTES):
            if delay_s:
                await asyncio.sleep(delay_s)
            writer.write(data)
            await writer.drain()
    writer.close()


async def serve(port: int, delay_s: float, announce) -> None:
    """Listen on a port of its own, in front of another one of this machine; `announce(url)` once it does."""

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_forward(reader, store_writer, delay_s), _forward(store_reader, writer, 0.0))

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    announce(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    async with server:
        await server.serve_forever()


def upload(folder: pathlib.Path, bucket: str, url: str) -> int:
    """Put all files of a folder into a new bucket of the emulator at `url`; returns their number."""
    os.environ["STORAGE_EMULATOR_HOST"] = url
    from google.cloud import storage

    made = storage.Client.create_anonymous_client().create_bucket(bucket)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]

    def upload_one(path: pathlib.Path) -> None:
        made.blob(path.relative_to(folder).as_posix()).upload_from_filename(str(path))

    with concurrent.futures.ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        list(pool.map(upload_one, paths))
    return len(paths)


def main() -> None:
    """Fill and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--bucket", action="append", required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    arguments = parser.parse_args()
    sys.path.insert(0, str(REPO / "scripts"))
    import gcs_emulator

    emulator = gcs_emulator.Emulator(REPO / ".gcs")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        for folder, bucket in zip(arguments.images, arguments.bucket, strict=True):
            upload(folder, bucket, emulator.url)

        def announce(url: str) -> None:
            print(f"STORAGE_EMULATOR_HOST={url}", flush=True)

        asyncio.run(serve(emulator.port, arguments.delay_ms / 1000, announce))
    finally:
        emulator.stop()


if __name__ == "__main__":
    main()
