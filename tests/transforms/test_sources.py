import os
import socket
import subprocess

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from bulktag.transforms.listing import skip_reason
from bulktag.transforms.matching import MatchImages, find_images, folder_label, merge_refs
from bulktag.transforms.records import ImageError, ImageRef, SkippedFile
from bulktag.transforms.sources import Source, parse_source

ODD_NAMES = [
    "a b.jpg",
    "ü-日本.PNG",
    "100%.jpg",
    "%41.jpg",
    "a#1.jpg",
    "a?.jpg",
    "[1].jpg",
    "*.jpg",
    "new\nline.jpg",
    "plain",
]


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def _found(text, **kwargs):
    return list(find_images(parse_source(str(text)), **kwargs))


def _refs(text, root):
    return [os.path.relpath(item.uri, root) for item in _found(text) if isinstance(item, ImageRef)]


def _skipped(items):
    return [(item.reason, os.path.basename(item.uri)) for item in items if isinstance(item, SkippedFile)]


def test_a_folder_with_odd_names_lists_every_image_once(tmp_path):
    _touch(tmp_path, *ODD_NAMES, "sub/deeper/x.TIFF", "dot.")
    assert sorted(_refs(tmp_path, tmp_path)) == sorted([*ODD_NAMES, "sub/deeper/x.TIFF", "dot."])


def test_what_is_no_image_in_a_folder_is_named(tmp_path):
    _touch(tmp_path, "a.jpg", "notes.txt", ".DS_Store", ".git/x.jpg", "b.heic")
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "socket.png"))
    items = _found(tmp_path)
    server.close()
    assert sorted(_skipped(items)) == [
        ("hidden", ".DS_Store"), ("hidden", "x.jpg"), ("not_a_file", "pipe"), ("not_a_file", "socket.png"),
        ("not_an_image", "notes.txt"),
    ]  # fmt: skip
    assert sorted(os.path.basename(item.uri) for item in items if isinstance(item, ImageRef)) == ["a.jpg", "b.heic"]


def test_a_source_folder_that_is_hidden_itself_hides_nothing(tmp_path):
    _touch(tmp_path / ".cache" / "images", "a.jpg")
    assert _refs(tmp_path / ".cache" / "images", tmp_path) == [".cache/images/a.jpg"]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a.JPG", None),
        ("a", None),
        ("a.", None),
        ("x/a.txt", "not_an_image"),
        (".a.jpg", "hidden"),
        (".x/a.jpg", "hidden"),
    ],
)
def test_skip_reason(path, reason):
    assert skip_reason(path) == reason


def test_links_are_followed_once_and_never_in_a_loop(tmp_path):
    _touch(tmp_path, "photos/zoo/lion.jpg", "elsewhere/deep/tiger.jpg")
    photos = tmp_path / "photos"
    (photos / "again").symlink_to(photos)  # a loop
    (photos / "zoo" / "up").symlink_to("..")  # another
    (photos / "first").symlink_to(photos / "zoo")  # a second way to the same folder, earlier in the alphabet
    (photos / "other").symlink_to(tmp_path / "elsewhere")
    assert sorted(_refs(photos, photos)) == ["other/deep/tiger.jpg", "zoo/lion.jpg"]
    assert sorted(_refs(f"{photos}/**/*.jpg", photos)) == ["other/deep/tiger.jpg", "zoo/lion.jpg"]


def test_broken_links_get_a_row(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    assert sorted(_refs(tmp_path, tmp_path)) == ["gone.jpg", "self.jpg"]


def test_a_tree_deeper_than_pythons_stack_is_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(1500):
        os.mkdir("d")
        os.chdir("d")
    with open("a.jpg", "wb"):
        pass
    monkeypatch.chdir(tmp_path)
    try:
        assert [os.path.basename(uri) for uri in _refs(tmp_path, tmp_path)] == ["a.jpg"]
        assert [os.path.basename(uri) for uri in _refs(f"{tmp_path}/**", tmp_path)] == ["a.jpg"]
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # shutil.rmtree recurses


def test_a_path_longer_than_the_system_takes_is_an_error_and_not_lost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(20):
        os.mkdir("d" * 250)
        os.chdir("d" * 250)
    with open("a.jpg", "wb"):
        pass
    monkeypatch.chdir(tmp_path)
    assert [(item.stage, item.error_type) for item in _found(tmp_path)] == [("match", "listing_failed")]


def test_a_name_that_is_not_utf8_is_an_error_with_a_name_of_its_own(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.jpg", "wb"):
        pass
    _touch(tmp_path, "caf\\xe9.jpg", "caf%E9.jpg")
    with open(os.fsencode(tmp_path) + b"/.caf\xe9.jpg", "wb"):
        pass
    items = _found(tmp_path)
    assert len({item.uri for item in items}) == 4
    assert [(i.uri, i.error_type) for i in items if isinstance(i, ImageError)] == [
        (f"file://{tmp_path}/caf%E9.jpg", "bad_name")
    ]
    assert all(item.uri.encode() for item in items)


def test_a_folder_that_may_not_be_listed_is_an_error(open_folder, without_root):
    _touch(open_folder, "open/a.jpg", "closed/b.jpg", "lost/.hidden/c.jpg")
    for name in ("closed", "lost/.hidden"):
        (open_folder / name).chmod(0)
    with without_root():
        items = _found(open_folder)
        by_glob = _found(f"{open_folder}/**/*.jpg")
        with pytest.raises(ValueError, match="expected a source that may be read, got one below a closed folder"):
            parse_source(f"{open_folder}/closed/b.jpg")
    errors = [(item.uri, item.error_type) for item in items if isinstance(item, ImageError)]
    assert errors == [(f"{open_folder}/closed", "permission_denied")]
    assert _skipped(items) == [("hidden", ".hidden")]
    assert [item.uri for item in items if isinstance(item, ImageRef)] == [f"{open_folder}/open/a.jpg"]
    assert sorted(type(item).__name__ for item in by_glob) == ["ImageError", "ImageRef"]


def test_a_folder_that_vanishes_while_it_is_listed_is_an_error(tmp_path):
    _touch(tmp_path, "a/1.jpg", "b/2.jpg")
    listing = find_images(parse_source(str(tmp_path)))
    first = next(listing)
    os.unlink(tmp_path / "b/2.jpg")
    os.rmdir(tmp_path / "b")
    rest = list(listing)
    assert first.uri.endswith("1.jpg")
    assert [(i.uri, i.error_type) for i in rest] == [(f"{tmp_path}/b", "listing_failed")]


def test_an_empty_folder_lists_nothing(tmp_path):
    assert _found(tmp_path) == []


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.jpg", ["1.jpg", "2.jpg"]),
        ("?.jpg", ["1.jpg", "2.jpg"]),
        ("**/*.png", ["r/3.png", "r/s/4.png"]),
        ("**", ["1.jpg", "2.jpg", "5.odd", "r/3.png", "r/s/4.png"]),
        ("r/**/s/*", ["r/s/4.png"]),
        ("**/r/**/*.png", ["r/3.png", "r/s/4.png"]),
        ("*/[34].png", ["r/3.png"]),
        ("*.odd", ["5.odd"]),
        ("*.none", []),
    ],
)
def test_globs(tmp_path, pattern, names):
    _touch(tmp_path, "1.jpg", "2.jpg", "5.odd", "r/3.png", "r/s/4.png", ".h/6.jpg", ".7.jpg")
    assert sorted(set(_refs(f"{tmp_path}/{pattern}", tmp_path))) == names


def test_a_folder_named_like_a_pattern_is_that_folder(tmp_path, monkeypatch):
    _touch(tmp_path, "[ab]/1.jpg", "a/2.jpg", "*/3.jpg")
    assert _refs(tmp_path / "[ab]", tmp_path) == ["[ab]/1.jpg"]
    assert _refs(f"{tmp_path}/[ab]/*.jpg", tmp_path) == ["[ab]/1.jpg"]
    assert _refs(f"{tmp_path}/*/3.jpg", tmp_path) == ["*/3.jpg"]
    monkeypatch.chdir(tmp_path / "[ab]")
    assert _refs("*.jpg", tmp_path) == ["[ab]/1.jpg"]


def test_a_file_named_like_a_pattern_is_that_file(tmp_path):
    _touch(tmp_path, "*.jpg", "a.jpg")
    assert _refs(tmp_path / "*.jpg", tmp_path) == ["*.jpg"]


def test_sources_are_told_apart(tmp_path):
    _touch(tmp_path, "photos/a.jpg", "list.CSV", "done/examples.json", "b.jpg")
    kinds = {
        name: parse_source(f"{tmp_path}/{name}").kind
        for name in ("photos", "photos/", "list.CSV", "done", "b.jpg", "*.gif")
    }
    assert kinds == {
        "photos": "folder",
        "photos/": "folder",
        "list.CSV": "manifest",
        "done": "examples",
        "b.jpg": "file",
        "*.gif": "glob",
    }


@pytest.mark.parametrize("name", ["nothing", "\udcff.jpg"])
def test_a_source_that_cannot_be_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"expected a (folder|path).*, (found|got)"):
        parse_source(f"{tmp_path}/{name}")


def test_the_folder_is_the_label(tmp_path):
    _touch(tmp_path, "roses/a.jpg", "roses/old/b.jpg", "c.jpg")
    assert [item.labels for item in _found(tmp_path)] == [(), ("roses",), ("old",)]
    assert [item.labels for item in _found(tmp_path, labels="none")] == [(), (), ()]
    assert [item.labels for item in _found(f"{tmp_path}/roses/*.jpg")] == [("roses",)]
    assert folder_label("/photos/a.jpg", "/photos") == ""
    assert folder_label("/a.jpg", "/") == ""


def test_a_store_is_listed_like_a_folder(store):
    for name in ("p/a.jpg", "p/r/B.PNG", "p/notes.txt", "p/.h.jpg", "p/r/", "q/x.jpg", "p/odd [1]#%.jpg"):
        store.objects[f"memory://b/{name}"] = b"data"
    items = _found("memory://b/p")
    refs = {item.uri: item for item in items if isinstance(item, ImageRef)}
    assert sorted(refs) == ["memory://b/p/a.jpg", "memory://b/p/odd [1]#%.jpg", "memory://b/p/r/B.PNG"]
    assert refs["memory://b/p/r/B.PNG"] == ImageRef("memory://b/p/r/B.PNG", ("r",), 4, 1_700_000_000_500_000)
    assert refs["memory://b/p/a.jpg"].labels == ()
    assert sorted(_skipped(items)) == [("hidden", ".h.jpg"), ("not_an_image", "notes.txt")]
    assert [item.uri for item in _found("memory://b/p/*.jpg", labels="none")] == [
        "memory://b/p/.h.jpg", "memory://b/p/a.jpg", "memory://b/p/odd [1]#%.jpg"
    ]  # fmt: skip
    assert [item.uri for item in _found("memory://b/p/odd [1]#%.jpg")] == ["memory://b/p/odd [1]#%.jpg"]


def test_a_store_that_fails_to_list_ends_the_job(store):
    """A row of errors would stand for all the images that nobody has seen."""
    store.failing.add("listing")
    with pytest.raises(OSError, match="the store is down"):
        list(find_images(Source("folder", "memory://b/p")))


def test_merge_refs_keeps_every_label_and_what_is_known():
    refs = [ImageRef("/a", ("y",), -1, -1), ImageRef("/a", ("x", "y"), 5, 6), ImageRef("/a", (), -1, -1)]
    assert merge_refs(refs) == ImageRef("/a", ("x", "y"), 5, 6)
    assert merge_refs(reversed(refs)) == merge_refs(refs)


def _match(sources, check, labels="auto"):
    pipeline = beam.Pipeline(runner=FnApiRunner())
    matched = pipeline | MatchImages(tuple(sources), labels)
    for name, expected in check.items():
        assert_that(matched[name], equal_to(expected), label=name)
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query()["counters"]
    return {f"{c.key.metric.namespace}/{c.key.metric.name}": c.result for c in counters}


def test_overlapping_sources_match_each_image_once(tmp_path):
    _touch(tmp_path, "roses/a.jpg", "roses/b.jpg", "roses/notes.txt", "roses/.h.jpg")
    os.mkdir(tmp_path / "lists")
    manifest = tmp_path / "lists" / "m.csv"
    manifest.write_text(
        f"uri,label\n../roses/a.jpg,red\n../roses/./x/../a.jpg,pink\n/{tmp_path}//roses/a.jpg,\nfile://{tmp_path}/roses/%61.jpg,\n"
        f"../roses/.h.jpg,\n,none\n"
    )
    texts = [
        tmp_path,
        f"{tmp_path}/roses",
        f"{tmp_path}/roses/*.jpg",
        f"{tmp_path}/roses/a.jpg",
        manifest,
        f"{tmp_path}//roses/",
    ]
    size, modified = 1, (tmp_path / "roses/a.jpg").stat().st_mtime_ns // 1000
    modified_b = (tmp_path / "roses/b.jpg").stat().st_mtime_ns // 1000
    counters = _match(
        [parse_source(str(text)) for text in texts],
        {
            "refs": [
                ImageRef(f"{tmp_path}/roses/a.jpg", ("pink", "red", "roses"), size, modified),
                ImageRef(f"{tmp_path}/roses/b.jpg", ("roses",), size, modified_b),
                ImageRef(f"{tmp_path}/roses/.h.jpg", (), -1, -1),  # hidden to a folder, but a manifest may name it
            ],
            "errors": [ImageError(f"{manifest}#line 7", "match", "no_uri", "expected a uri, got ''", -1)],
            "skipped": [
                SkippedFile("not_an_image", f"{tmp_path}/{name}") for name in ("lists/m.csv", "roses/notes.txt")
            ],
            "num_matched": [4],
            "labels": ["pink", "red", "roses"],
        },
    )  # fmt: skip
    assert {name: counters[name] for name in ("match/found", "match/failed", "match/skipped")} == {
        "match/found": 3, "match/failed": 1, "match/skipped": 2
    }  # fmt: skip
    assert counters["match/named_again"] > 0


def test_a_folder_named_by_a_manifest_and_unlistable_too_is_one_row(tmp_path, monkeypatch):
    # As a folder it cannot be listed, as an image it cannot be read: one URI, one row.
    from bulktag.transforms.matching import _Sighting, decide

    error = _Sighting("error", stage="match", reason="listing_failed", message="no")
    assert decide("/x", [error, _Sighting("skipped", reason="hidden")]) == ImageError(
        "/x", "match", "listing_failed", "no", -1
    )
    assert decide("/x", [error, _Sighting("image", ("l",))]) == ImageRef("/x", ("l",), -1, -1)


def test_nothing_at_all_matches_nothing(tmp_path):
    counters = _match([parse_source(str(tmp_path))], {"refs": [], "errors": [], "num_matched": [], "labels": []})
    assert counters == {}


def test_no_source_is_refused_when_the_transform_is_made():
    with pytest.raises(ValueError, match="expected at least one source"):
        MatchImages(())
