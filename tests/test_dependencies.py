"""Which room may import which: pipeline -> transforms -> model, and nothing back."""

import ast
import pathlib

import pytest

REPO = pathlib.Path(__file__).resolve().parents[1]
ROOMS = ("model", "transforms", "pipeline")
BEAM = "apache_beam"
# Room -> what no module of it may import. Argument parsing and the choice of a runner are pipeline's.
FORBIDDEN = {
    "model": (BEAM, "bulktag.transforms", "bulktag.pipeline", "argparse"),
    "transforms": ("bulktag.pipeline", "argparse", f"{BEAM}.options", f"{BEAM}.runners"),
    "pipeline": (),
}
OUTSIDE_TESTS = [
    path for room in (*ROOMS, "benchmarks", "scripts", "bulktag") for path in sorted((REPO / room).rglob("*.py"))
]


def imported_names(source: str, package: str) -> set[str]:
    """Dotted names of everything that a module imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) in (
            "import_module",
            "__import__",
        ):
            names.update(argument.value for argument in node.args if isinstance(argument, ast.Constant))
    return names


def _is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def _violations(path: pathlib.Path, forbidden: tuple[str, ...]) -> list[str]:
    names = imported_names(path.read_text(encoding="utf-8"), f"bulktag.{path.parent.name}")
    return [
        f"{path.relative_to(REPO)} imports {name}"
        for name in sorted(names)
        for bad in forbidden
        if _is_below(name, bad)
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    modules = sorted((REPO / room).rglob("*.py"))
    assert len(modules) > 5
    assert [found for path in modules for found in _violations(path, FORBIDDEN[room])] == []


def test_only_pipeline_imports_pipeline():
    others = [path for path in OUTSIDE_TESTS if path.parent.name not in ("pipeline", "benchmarks", "scripts")]
    assert [found for path in others for found in _violations(path, ("bulktag.pipeline",))] == []


def test_modules_are_imported_by_their_one_name():
    # `import transforms` works in a checkout and nowhere else.
    assert [found for path in OUTSIDE_TESTS for found in _violations(path, ROOMS)] == []


def test_codecs_are_known_in_model_alone():
    outside = [path for path in OUTSIDE_TESTS if path.parent.name in ("transforms", "pipeline")]
    assert [found for path in outside for found in _violations(path, ("PIL",))] == []


def test_every_form_of_import_is_seen():
    source = """
import a.b as c
from d import e
from . import f
from .g import h
from ..i import j
def late():
    import k
    importlib.import_module("l.m")
"""
    names = imported_names(source, "bulktag.model")
    assert names >= {"a.b", "d.e", "bulktag.model.f", "bulktag.model.g.h", "bulktag.i.j", "k", "l.m"}
    assert _is_below("apache_beam.io", BEAM) and not _is_below("apache_beam_like", BEAM)
