"""The `bulktag` command with a measuring hook: everything after `--` is bulktag's own command line.

    python -m benchmarks.run_bulktag [--full-decoding] [--slow-ms MS] [--first-batch FILE] -- tag --input ...

--full-decoding switches scaled JPEG decoding off, --slow-ms installs the `slow://` file system with that delay, and
--first-batch writes when the first batch had left the engine.
"""

import argparse
import json
import pathlib
import sys
import time


def note_first_batch(path: pathlib.Path) -> None:
    """Write the moment at which the engine has done its first batch: a JSON object with `first_batch` (epoch, s)."""
    from bulktag.transforms.infer import BackboneHandler, HeadHandler, TaggerHandler

    def noting(run_inference):
        def run_and_note(self, *arguments, **options):
            for result in run_inference(self, *arguments, **options):
                if not path.exists():
                    path.write_text(json.dumps({"first_batch": time.time()}), encoding="utf-8")
                yield result

        return run_and_note

    path.unlink(missing_ok=True)
    for handler in (BackboneHandler, TaggerHandler, HeadHandler):
        handler.run_inference = noting(handler.run_inference)


def main() -> None:
    """Install the hooks and be the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full-decoding", action="store_true")
    parser.add_argument("--slow-ms", type=float)
    parser.add_argument("--first-batch", type=pathlib.Path)
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    from bulktag.pipeline.quiet import import_tensorflow, quiet_environment

    quiet_environment()
    if arguments.full_decoding:
        from bulktag.model import image

        image.REDUCING_GAP = float("inf")
    if arguments.slow_ms is not None:
        from benchmarks import slow_store

        slow_store.DELAY_S = arguments.slow_ms / 1000
    if arguments.first_batch:
        import_tensorflow()
        note_first_batch(arguments.first_batch)
    from bulktag.pipeline import cli

    sys.argv[0] = "bulktag"
    cli.main(arguments.command)


if __name__ == "__main__":
    main()
