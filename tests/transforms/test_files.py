import os

import pytest

from bulktag.transforms import files

ODD_NAMES = ["a b.jpg", "ü-日本.jpg", "100%.jpg", "%41.jpg", "a#1.jpg", "a?b.jpg", "[1].jpg", "*.jpg", "new\nline.gz"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_local_name_is_taken_literally_in_reading_and_writing(tmp_path, name):
    path = str(tmp_path / name)
    with files.create_file(path) as file:
        file.write(b"\x1f\x8bnot really gzip")
    assert os.listdir(tmp_path) == [name]
    assert files.read_bytes(path) == b"\x1f\x8bnot really gzip"
    assert files.normalise(path) == path
    files.write_bytes(path, b"other")
    assert files.read_bytes(path) == b"other"
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    "spelling",
    ["/x/b.jpg", "//x/b.jpg", "///x//b.jpg", "/x/./b.jpg", "/x/a/../b.jpg", "/../x/b.jpg", "/x/b.jpg/",
     "file:///x/b.jpg", "FILE:///x/b.jpg", "file://localhost/x/b.jpg", "file:////x/%62.jpg"],
)  # fmt: skip
def test_every_spelling_of_a_path_has_one_form(spelling):
    assert files.normalise(spelling) == "/x/b.jpg"


def test_file_urls_keep_number_signs_and_question_marks_that_nobody_quoted():
    assert files.normalise("file:///x/a#1?.jpg") == "/x/a#1?.jpg"
    assert files.normalise("file:///x/a%231.jpg") == "/x/a#1.jpg"


def test_a_file_url_without_an_absolute_path_is_refused():
    for url in ("file://photos/a.jpg", "file://"):
        with pytest.raises(ValueError, match="expected file:///ABSOLUTE/PATH, got"):
            files.normalise(url)


def test_dots_behind_a_link_go_where_the_system_goes(tmp_path):
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "b.jpg").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere" / "deep")
    path = files.normalise(f"{tmp_path}/link/../b.jpg")
    assert os.path.samefile(path, tmp_path / "elsewhere" / "b.jpg")
    assert files.normalise(f"{tmp_path}/link/./b.jpg") == f"{tmp_path}/link/b.jpg"  # a link alone stays


def test_relative_paths_and_the_home_folder_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert files.normalise("a/../b") == f"{tmp_path}/b"
    assert files.normalise("~/b") == "/home/somebody/b"


@pytest.mark.parametrize("path", ["/x/\udcff.jpg", "/x/\0.jpg"])
def test_a_path_that_no_table_can_hold_is_refused(path):
    with pytest.raises(ValueError, match=r"expected a path .*, got"):
        files.normalise(path)


def test_a_scheme_without_a_file_system_is_refused_in_one_line():
    with pytest.raises(ValueError, match=r"got scheme 'nowhere': nowhere://b/x") as caught:
        files.normalise("nowhere://b/x")
    assert "\n" not in str(caught.value)


def test_paths_that_are_not_utf8_have_printable_forms_of_their_own():
    odd, like_it = os.fsdecode(b"/x/\xff.jpg"), "/x/\\xff.jpg"
    assert files.printable(odd) == "file:///x/%FF.jpg"
    assert files.printable(like_it) == like_it
    assert files.resolve("/x", files.printable(odd)) == odd


@pytest.mark.parametrize(
    ("folder", "name", "uri"),
    [
        ("/m", "a.jpg", "/m/a.jpg"),
        ("/m", "../n/./a.jpg", "/n/a.jpg"),
        ("/", "a.jpg", "/a.jpg"),
        ("/m", "/abs//a.jpg", "/abs/a.jpg"),
        ("/m", "file:///abs/a%20b.jpg", "/abs/a b.jpg"),
        ("/m", "a%20b.jpg", "/m/a%20b.jpg"),
        ("/m", "memory://b/a//../x.jpg", "memory://b/a//../x.jpg"),  # a store's names are the store's business
        ("memory://b/m", "a.jpg", "memory://b/m/a.jpg"),
        ("memory://b/m", "../a.jpg", "memory://b/a.jpg"),
        ("memory://b/m", "/local/a.jpg", "/local/a.jpg"),
    ],
)
def test_names_in_a_table_resolve_against_its_folder(folder, name, uri):
    assert files.resolve(folder, name) == uri


def test_write_bytes_leaves_the_old_file_and_nothing_else_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)  # fails between writing and renaming
    with pytest.raises(OSError, match="No space left"):
        files.write_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["run.json"]


def test_write_bytes_takes_the_longest_name_that_the_disk_allows(tmp_path):
    path = str(tmp_path / ("n" * 255))
    files.write_bytes(path, b"x")
    assert files.read_bytes(path) == b"x"


def test_a_store_folder_is_found_when_all_lies_deeper_below_it(store):
    store.objects["memory://b/photos/roses/red/1.jpg"] = b"x"
    assert files.is_folder("memory://b/photos")
    assert files.exists("memory://b/photos/roses")
    assert not files.is_folder("memory://b/phot")


def test_store_folders_with_pattern_characters_are_taken_literally(store):
    store.objects["memory://b/[a]*/1.jpg"] = b"1"
    store.objects["memory://b/a/2.jpg"] = b"2"
    assert [found.uri for found in files.list_below("memory://b/[a]*")] == ["memory://b/[a]*/1.jpg"]
    assert files.is_folder("memory://b/[a]*")


def test_folders_travel_to_a_store_and_back(store, tmp_path):
    def write(folder):
        for name in ("a", "b/c"):
            path = os.path.join(folder, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write(name)

    files.write_folder(write, "memory://b/out")
    assert sorted(store.objects) == ["memory://b/out/a", "memory://b/out/b/c"]
    local = files.fetch_folder("memory://b/out")
    assert files.read_bytes(f"{local}/b/c") == b"b/c"
    files.delete_folder("memory://b/out")
    assert not store.objects
    with pytest.raises(FileNotFoundError, match="found nothing below"):
        files.fetch_folder("memory://b/out")
    with pytest.raises(FileNotFoundError, match="found none"):
        files.fetch_folder(str(tmp_path / "none"))
