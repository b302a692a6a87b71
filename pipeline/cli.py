"""The `bulktag` command.

Exit codes: 0 done, 1 the job failed, 2 the request was wrong; 130 interrupted, 143 terminated, 129 hung up.
"""

import argparse
import dataclasses
import importlib.util
import os
import sys
import traceback
import typing
from collections.abc import Callable
from typing import Any, NoReturn

import bulktag
from bulktag.pipeline.quiet import import_tensorflow, quiet_environment
from bulktag.pipeline.signals import exit_code, hear_stop_signals

# Heavy imports (TensorFlow, Beam) happen inside the functions: `--help` and a typo answer at once.

EXIT_OK, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_BROKEN_PIPE = 141  # as shells report a process that ended by SIGPIPE

EPILOGS = {
    "extract": "Beam's own options (--runner ...) may follow. "
    "Example: bulktag extract --input photos/ --output examples/",
    "train": "With --remote, Beam's own options (--runner ...) follow. "
    "Example: bulktag train --examples examples/ --model model/ --min-accuracy 0.9",
    "evaluate": "Example: bulktag evaluate --examples examples/ --model model/ --output report/",
    "tag": "Beam's own options (--runner ...) may follow. "
    "Example: bulktag tag --input photos/ --model model/ --output tags/",
    "plan": "Example: bulktag plan --input photos/ --model model/ --price-per-worker-hour 0.40",
    "export": "Example: bulktag export --model model/ --output exported/ --formats frozen tflite",
    "classify": "Example: bulktag classify --model model/ panda.jpg https://example.com/cat.png",
}


class UsageError(Exception):
    """The request was wrong; the message is one line."""


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, raised instead of printed."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    from bulktag.pipeline.config import VERBS

    parser = _Parser(
        prog="bulktag", description="Tag buckets of images: bottlenecks, a trained head, Parquet of labels and scores.",
        allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"bulktag {bulktag.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser)
    for name, kind in VERBS.items():
        add_config_verb(verbs, name, kind)
    run = _add_verb(verbs, "run", "Do the stages of one YAML file, in order.",
                    "Example: bulktag run run_configs/local.yaml --set tag.top_k=3")  # fmt: skip
    run.add_argument(
        "config", nargs="?", metavar="CONFIG.yaml",
        help="stages extract, train, evaluate, tag, with their options; ${NAME} is a variable of the environment"
    )  # fmt: skip
    run.add_argument("--schema", action="store_true", help="print the JSON Schema of run files, for editors")
    run.add_argument("--set", action="append", default=[], metavar="STAGE.FIELD=VALUE", help="replace one value")
    run.add_argument("--dry-run", action="store_true", help="check the whole run offline, print what would be launched")
    follow = _add_verb(verbs, "follow", "Watch a job that another launcher started, until it has ended.",
                       "Example: bulktag follow tags/")  # fmt: skip
    follow.add_argument("output", metavar="OUTPUT", help="the job's output folder")
    demo = _add_verb(verbs, "demo", "Draw images, and do the whole journey on them.", "Example: bulktag demo")
    demo.add_argument(
        "--workdir", default="bulktag-demo", metavar="DIR", help="folder for everything (default: %(default)s)"
    )
    demo.add_argument(
        "--images-per-class", type=int, default=150, metavar="N", help="images drawn a class (default: %(default)s)"
    )
    return parser


def _add_verb(verbs, name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return verbs.add_parser(name, help=description, description=description, epilog=epilog, allow_abbrev=False)


def add_config_verb(verbs, name: str, kind: type) -> None:
    """A verb whose flags are the fields of a configuration."""
    description = " ".join((kind.__doc__ or "").split())
    parser = _add_verb(verbs, name, description, EPILOGS[name])
    # What must be given comes first.
    for field in sorted(dataclasses.fields(kind), key=lambda field: not field.metadata["required"]):
        if field.name in ("beam", "images"):
            continue
        parser.add_argument("--" + field.name.replace("_", "-"), **_flag_settings(field))
    if name == "classify":
        images = next(field for field in dataclasses.fields(kind) if field.name == "images")
        parser.add_argument("images", nargs="+", metavar=images.metadata["metavar"], help=images.metadata["help"])


def _flag_settings(field: dataclasses.Field) -> dict[str, Any]:
    settings: dict[str, Any] = {"help": _help_text(field), "default": argparse.SUPPRESS, "dest": field.name}
    if field.type is bool:
        return {**settings, "action": "store_true"}
    if field.metadata["choices"]:
        return {**settings, "choices": [choice for choice in field.metadata["choices"] if choice]}
    settings |= {"metavar": field.metadata["metavar"], "required": field.metadata["required"]}
    if typing.get_origin(field.type) is tuple:
        settings["nargs"] = "+"
        return settings
    return settings


def _help_text(field: dataclasses.Field) -> str:
    text = field.metadata["help"].replace("%", "%%")
    default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
    if field.metadata["required"]:
        return text + " (required)"
    if default in ("", (), None) or field.type is bool:
        return text
    return f"{text} (default: {default})"


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit."""
    quiet_environment()
    hear_stop_signals()
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # `bulktag ... | head`: whoever read this has seen enough
        code = EXIT_BROKEN_PIPE
    except Exception:  # a bug: told in full
        traceback.print_exc()
        code = EXIT_FAILED
    sys.stderr.flush()
    # Worker threads of a job that was interrupted or failed may still be in a long call: they must not keep us.
    os._exit(code)


def run_command(arguments: list[str]) -> int:
    """Run one command.

    Returns:
      the exit code; a bug is raised.
    """
    try:
        parser = build_parser()
        parsed, rest = parser.parse_known_args(arguments)
        if parsed.verb is None:
            raise UsageError("bulktag: expected a verb, got none (see bulktag --help)")
        return _VERBS.get(parsed.verb, _run_job)(parsed, rest)
    except SystemExit as stop:  # --help and --version
        return stop.code or EXIT_OK
    except UsageError as error:
        print(_one_line(str(error)), file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt as stop:
        print(f"interrupted: {stop.args[0] if stop.args else 'nothing was published'}", file=sys.stderr)
        return exit_code(stop)


def _guarded(verb: str, work: Callable[[], Any]) -> int:
    """Run a job: users' mistakes and failures become a line and an exit code."""
    from bulktag.pipeline.failures import JobFailed, find_disk_error

    try:
        work()
    except JobFailed as failure:
        print(_one_line(f"bulktag {verb}: failed: {failure}"), file=sys.stderr)
        return EXIT_FAILED
    except ValueError as error:
        if not _is_users_mistake(error):
            raise
        raise UsageError(f"bulktag {verb}: {error}") from error
    except Exception as error:
        if (message := find_disk_error(error)) is None:
            raise
        print(_one_line(f"bulktag {verb}: failed: {message}"), file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _is_users_mistake(error: ValueError) -> bool:
    """Our own checks say what they expected; any other ValueError is a bug and keeps its traceback."""
    return type(error) is ValueError and str(error).startswith(
        ("expected ", *(f"{verb}: expected " for verb in _JOB_NAMES))
    )


_JOB_NAMES = ("extract", "train", "evaluate", "tag")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _require_tensorflow() -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(
            "bulktag: expected TensorFlow, found none: pip install 'bulktag[cpu]', or 'bulktag[gpu]' with CUDA"
        )
    import_tensorflow()


def _run_job(parsed: argparse.Namespace, rest: list[str]) -> int:
    """extract, train, evaluate, tag, classify: flags -> configuration -> job."""
    from bulktag.pipeline.config import VERBS, PlanConfig, build_config

    kind = VERBS[parsed.verb]
    values = {name: value for name, value in vars(parsed).items() if name != "verb"}
    names = {field.name for field in dataclasses.fields(kind)} - ({"beam"} if kind is PlanConfig else set())
    if rest and ("beam" not in names or not rest[0].startswith("-")):
        raise UsageError(f"bulktag {parsed.verb}: {_unknown_flag(rest[0], names)}")
    if rest:
        _check_rest(parsed.verb, rest, names)
    try:
        config = build_config(kind, {**values, **({"beam": rest} if rest else {})})
    except ValueError as error:
        raise UsageError(f"bulktag {parsed.verb}: {error}") from error
    _require_tensorflow()
    return _guarded(parsed.verb, lambda: run_stage(parsed.verb, config))


def _unknown_flag(flag: str, names) -> str:
    from bulktag.pipeline.runners import unknown_flag_message

    return unknown_flag_message(flag, ["--" + name.replace("_", "-") for name in names])


def _check_rest(verb: str, rest: list[str], names) -> None:
    """What is no flag of ours must be one of Beam's; the nearest name of either is suggested."""
    from bulktag.pipeline.runners import check_beam_options

    try:
        check_beam_options(tuple(rest), also=["--" + name.replace("_", "-") for name in names])
    except ValueError as error:
        raise UsageError(f"bulktag {verb}: {error}") from error


def run_stage(job: str, config) -> Any:
    """Do one job with its configuration."""
    if getattr(config, "beam", ()):
        from bulktag.pipeline.runners import use_storage_options

        use_storage_options(config.beam, getattr(config, "workers", 1))
    if job == "extract":
        from bulktag.pipeline.extract import run_extract as work
    elif job == "train":
        from bulktag.pipeline.train import run_train as work
    elif job == "evaluate":
        from bulktag.pipeline.evaluate import run_evaluate as work
    elif job == "tag":
        from bulktag.pipeline.tag import run_tag as work
    elif job == "plan":
        from bulktag.pipeline.plan import run_plan as work
    elif job == "export":
        from bulktag.pipeline.export import run_export as work
    else:
        from bulktag.pipeline.classify import run_classify as work
    return work(config)


def _run_file(parsed: argparse.Namespace, rest: list[str]) -> int:
    from bulktag.pipeline.run import load_run

    if rest:
        raise UsageError(f"bulktag run: {_unknown_flag(rest[0], ('set', 'dry_run', 'schema'))}")
    if parsed.schema:
        from bulktag.pipeline.run_schema import format_schema

        sys.stdout.write(format_schema())
        return EXIT_OK
    if not parsed.config:
        raise UsageError("bulktag run: expected CONFIG.yaml, got none")
    try:
        run = load_run(parsed.config, tuple(parsed.set), offline=parsed.dry_run)
        _require_tensorflow()
        if parsed.dry_run:
            from bulktag.pipeline.dry_run import describe_dry_run

            print(describe_dry_run(run))
            return EXIT_OK
    except ValueError as error:
        if not _is_users_mistake(error):
            raise
        raise UsageError(f"bulktag run: {error}") from error
    done: list[str] = []
    for job, config in run.stages:
        print(f"== {job} ==", file=sys.stderr)
        try:
            code = _guarded(f"run: {job}", lambda job=job, config=config: run_stage(job, config))
        except KeyboardInterrupt as stop:
            if done and not stop.args:
                stop.args = (f"{job} published nothing; done before: {', '.join(done)}",)
            raise
        if code != EXIT_OK:
            return code
        done.append(job)
    return EXIT_OK


def _run_follow(parsed: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise UsageError(f"bulktag follow: {_unknown_flag(rest[0], ())}")
    from bulktag.pipeline.follow import run_follow

    return _guarded("follow", lambda: run_follow(parsed.output))


def _run_demo(parsed: argparse.Namespace, rest: list[str]) -> int:
    if rest:
        raise UsageError(f"bulktag demo: {_unknown_flag(rest[0], ('workdir', 'images_per_class'))}")
    if parsed.images_per_class < 10:
        raise UsageError(f"bulktag demo: expected images-per-class of at least 10, got {parsed.images_per_class}")
    _require_tensorflow()
    from bulktag.pipeline.demo import run_demo

    return _guarded("demo", lambda: run_demo(parsed.workdir, parsed.images_per_class))


_VERBS = {"run": _run_file, "follow": _run_follow, "demo": _run_demo}
