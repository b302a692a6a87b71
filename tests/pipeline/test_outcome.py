"""What a run came to."""

import json

import pytest

from bulktag.pipeline import outcome, publish
from bulktag.pipeline.config import TagConfig
from bulktag.pipeline.failures import JobFailed
from bulktag.transforms.records import StagedFile

CONFIG = TagConfig(input=("photos",), model="m", output="o")


def manifest(num_matched, *counts):
    staged = [StagedFile(table, f"/s/{i}", number, 1, {}) for i, (table, number) in enumerate(counts)]
    return {"num_matched": num_matched, "files": staged}


def test_counts_are_taken_from_what_is_published():
    counts = outcome.count_images(manifest(7, ("tags", 4), ("tags", 2), ("errors", 1)), ("tags",))
    assert counts == {"matched": 7, "used": 6, "errors": 1}


@pytest.mark.parametrize("num_matched", [5, 7])
def test_an_image_lost_or_twice_is_a_bug_and_no_result(num_matched):
    with pytest.raises(AssertionError, match=f"{num_matched} images matched, but 5 used \\+ 1 errors = 6"):
        outcome.count_images(manifest(num_matched, ("tags", 5), ("errors", 1)), ("tags",))


@pytest.mark.parametrize(
    ("matched", "errors", "message"),
    [
        (0, 0, "no image matched the input"),
        (3, 3, "none of 3 images could be tagged"),
        (100, 6, r"6 of 100 images \(6.0%\) could not be tagged, more than --max-error-share 0.05"),
    ],
)
def test_no_false_success(matched, errors, message):
    with pytest.raises(JobFailed, match=message):
        outcome.check_counts({"matched": matched, "used": matched - errors, "errors": errors}, 0.05, "tagged")


def test_the_share_itself_is_allowed():
    outcome.check_counts({"matched": 100, "used": 95, "errors": 5}, 0.05, "tagged")


def test_run_json_holds_facts_configuration_and_versions():
    record = outcome.RunRecord("tag", "r", CONFIG)
    record.note(counts={"matched": 4, "used": 4, "errors": 0}, device="CPU")
    record.warn("something")
    run = json.loads(json.dumps(record.to_json("succeeded")))
    assert run["job"] == "tag" and run["run_id"] == "r" and run["status"] == "succeeded" and run["device"] == "CPU"
    assert run["warnings"] == ["something"] and run["config"]["input"] == ["photos"]
    assert run["images_per_second"] > 0 and run["seconds"] >= 0
    assert {"python", "bulktag", "apache-beam", "keras", "pyarrow"} <= run["versions"].keys()


def test_a_run_without_images_keeps_nothing(tmp_path):
    with publish.staging(str(tmp_path / "out"), "r") as made:
        record = outcome.RunRecord("tag", "r", CONFIG)
        record.note(counts={"matched": 0, "used": 0, "errors": 0})
        failure = outcome.keep_failed(record, made, JobFailed("no image matched the input"))
    assert str(failure) == "no image matched the input; nothing was published"
    assert not (tmp_path / "out").exists()


def test_skipped_files_are_named_in_words(capsys):
    found = {
        "hidden": {"count": 1, "examples": ["/p/.DS_Store"]},
        "not_an_image": {"count": 5, "examples": ["/p/a.txt", "/p/b.txt", "/p/c\x1b[31m.txt", "/p/d.txt"]},
    }
    outcome.report_skipped(found)
    assert capsys.readouterr().err.splitlines() == [
        "skipped 1 hidden file: .DS_Store",
        "skipped 5 files that are no images: a.txt, b.txt, c\\x1b[31m.txt, ...",
    ]
