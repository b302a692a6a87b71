"""The invariant: each input image ends in exactly one row, of tags or of errors; none is lost, none stands twice."""

import dataclasses
import io
import json
import os
import pathlib
import random

import duckdb
import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from bulktag.pipeline.config import TagConfig
from bulktag.pipeline.failures import JobFailed
from bulktag.pipeline.tag import run_tag

STEMS = [
    "plain",
    "a b",
    "ü-日本",
    "100%",
    "%41",
    "a#1",
    "a?b",
    "[1]",
    "*",
    "new\nline",
    "quote'\"",
    "back\\slash",
    "-dash",
    "x" * 200,
]
SUFFIXES = [".jpg", ".JPG", ".jpeg", ".png", ".PNG", ".bmp", ".gif", ".webp", ".tif", ""]
FOLDERS = ["", "roses", "deep/er/still", "[odd] *", "ünï/100%"]


@dataclasses.dataclass
class Tree:
    """A generated folder and what must become of it."""

    root: pathlib.Path
    tagged: set[str] = dataclasses.field(default_factory=set)
    failed: set[str] = dataclasses.field(default_factory=set)
    skipped: int = 0


def draw(rng: random.Random) -> bytes:
    """A picture in one of the formats, whatever its file will be called."""
    pixels_HWC = np.random.default_rng(rng.randrange(2**32)).integers(
        0, 256, (rng.randint(1, 60), rng.randint(1, 60), 3), np.uint8
    )
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, rng.choice(["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP"]))
    return buffer.getvalue()


def grow_tree(root: pathlib.Path, rng: random.Random, num: int) -> Tree:
    """Fill a folder with files of all kinds."""
    tree = Tree(root)
    root.mkdir()
    contents = [draw(rng) for _ in range(4)]  # few, so that many files are duplicates
    makers = ["picture"] * 6 + [
        "empty",
        "text",
        "truncated",
        "broken link",
        "link",
        "hidden",
        "no image",
        "pipe",
        "not utf-8",
    ]
    for i in range(num):
        kind = makers[i] if i < len(makers) and num >= len(makers) else rng.choice(makers)
        folder = root / rng.choice(FOLDERS)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{rng.choice(STEMS)}{i}{rng.choice(SUFFIXES)}"
        _make(tree, kind, path, rng, contents)
    path = root / "certainly.png"
    path.write_bytes(contents[0])
    tree.tagged.add(str(path))
    return tree


def _make(tree: Tree, kind: str, path: pathlib.Path, rng: random.Random, contents: list[bytes]) -> None:
    if kind == "picture":
        path.write_bytes(rng.choice(contents))
        tree.tagged.add(str(path))
    elif kind == "link":
        target = tree.root.parent / "aside"
        target.write_bytes(contents[0])
        path.symlink_to(target)
        tree.tagged.add(str(path))
    elif kind in ("hidden", "no image", "pipe"):
        tree.skipped += 1
        if kind == "hidden":
            path.with_name("." + path.name[:50]).write_bytes(contents[0])
        elif kind == "no image":
            path.with_name(path.name + ".txt").write_bytes(b"text")
        else:
            os.mkfifo(path)
    elif kind == "not utf-8":
        with open(os.fsencode(path) + b"\xff.jpg", "wb") as file:
            file.write(contents[0])
        tree.failed.add(pathlib.PurePosixPath(os.fsdecode(os.fsencode(path) + b"\xff.jpg")).as_uri())
    else:
        if kind == "broken link":
            path.symlink_to(tree.root / "nowhere")
        else:
            path.write_bytes({"empty": b"", "text": b"only text", "truncated": contents[0][:11]}[kind])
        tree.failed.add(str(path))


def write_manifest(tree: Tree, rng: random.Random) -> pathlib.Path:
    """A manifest beside the folder that names its images again, spelt in other ways, and a few that are not there."""
    path = tree.root.parent / "list.jsonl"
    rows = []
    for uri in sorted(tree.tagged | tree.failed):
        if uri.startswith("file://"):
            spellings = [uri]
        else:
            relative = os.path.relpath(uri, path.parent)
            spellings = [uri, "/" + uri, relative, f"./x/../{relative}", pathlib.PurePosixPath(uri).as_uri()]
        rows += rng.choices(spellings, k=2)
    rows.append("gone/away.jpg")
    tree.failed.add(str(path.parent / "gone" / "away.jpg"))
    rows.append(str(tree.root))
    tree.failed.add(str(tree.root))
    path.write_text("".join(json.dumps({"uri": uri}) + "\n" for uri in rows) + "no json\n")
    tree.failed.add(f"{path}#line {len(rows) + 1}")
    return path


def read_uris(output: pathlib.Path, table: str) -> list[str]:
    """URIs of a table's rows; one for each image in either layout."""
    found = ds.dataset(output / table, format="parquet", partitioning="hive").to_table()
    if "rank" in found.schema.names:
        return [
            uri
            for uri, rank in zip(found["uri"].to_pylist(), found["rank"].to_pylist(), strict=True)
            if rank in (None, 1)
        ]
    return found["uri"].to_pylist()


def check_run(tree: Tree, bundle_dir, output: pathlib.Path, sources: list, **changes) -> dict:
    """Tag the tree and compare what came out with what must."""
    config = TagConfig(
        input=tuple(map(str, sources)), model=str(bundle_dir), output=str(output), max_error_share=1.0, batch_size=4,
        **changes,
    )  # fmt: skip
    run = run_tag(config)
    tagged, failed = read_uris(output, "tags"), read_uris(output, "errors")
    assert len(set(tagged + failed)) == len(tagged + failed)
    assert set(tagged) == tree.tagged
    assert set(failed) == tree.failed
    assert run["counts"] == {"matched": len(tagged) + len(failed), "used": len(tagged), "errors": len(failed)}
    assert (output / "_SUCCESS").exists()
    return run


@pytest.mark.parametrize("seed", range(6))
def test_every_image_of_a_folder_has_one_row(tmp_path, bundle_dir, seed):
    rng = random.Random(seed)
    tree = grow_tree(tmp_path / "in", rng, num=(0, 1, 15, 25, 60, 120)[seed])
    run = check_run(tree, bundle_dir, tmp_path / "out", [tree.root], layout=rng.choice(["wide", "long"]))
    assert sum(skipped["count"] for skipped in run["skipped"].values()) == tree.skipped


def test_images_that_several_sources_name_have_one_row(tmp_path, bundle_dir):
    rng = random.Random(7)
    tree = grow_tree(tmp_path / "in", rng, num=40)
    manifest = write_manifest(tree, rng)
    sources = [
        tree.root,
        manifest,
        f"{tree.root}/**/*.[jJ][pP]*",
        tree.root / "certainly.png",
        f"{tree.root}//./",
        manifest,
    ]
    sources += [folder for folder in tree.root.iterdir() if folder.is_dir()]
    # A pattern names what a folder skips, too: suffixes say nothing then.
    check_run(tree, bundle_dir, tmp_path / "out", sources)


@pytest.mark.parametrize("model_copies", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_every_image_has_one_row_with_two_worker_processes(tmp_path, bundle_dir, model_copies):
    rng = random.Random(11)
    tree = grow_tree(tmp_path / "in", rng, num=80)
    check_run(tree, bundle_dir, tmp_path / "out", [tree.root, write_manifest(tree, rng)], workers=2,
              model_copies=model_copies)  # fmt: skip
    query = f"SELECT count(*), count(DISTINCT uri) FROM '{tmp_path}/out/*/*/*.parquet'"
    total = len(tree.tagged) + len(tree.failed)
    assert duckdb.sql(query).fetchall() == [(total, total)]
    assert len(list((tmp_path / "out").glob("tags/*/*.parquet"))) > 1  # each worker wrote files of its own


def test_a_run_without_a_usable_image_keeps_one_row_for_each(tmp_path, bundle_dir):
    for i in range(3):
        path = tmp_path / "in" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"text")
    with pytest.raises(JobFailed, match="none of 3 images could be tagged"):
        run_tag(TagConfig(input=(str(tmp_path / "in"),), model=str(bundle_dir), output=str(tmp_path / "out")))
    assert sorted(read_uris(tmp_path / "out" / "failed", "errors")) == [f"{tmp_path}/in/{i}.jpg" for i in range(3)]
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 112))
def test_every_image_of_more_folders_has_one_row(tmp_path, bundle_dir, seed):
    rng = random.Random(seed)
    tree = grow_tree(tmp_path / "in", rng, num=rng.randint(1, 300))
    sources = [tree.root] + ([write_manifest(tree, rng)] if rng.random() < 0.5 else [])
    check_run(
        tree, bundle_dir, tmp_path / "out", sources,
        workers=rng.choice([1, 1, 2, 3]), layout=rng.choice(["wide", "long"]), read_threads=rng.choice([1, 16]),
    )  # fmt: skip
