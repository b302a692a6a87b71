import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from bulktag.transforms.records import SkippedFile, StagedFile
from bulktag.transforms.sources import MAX_NAMED_SKIPPED
from bulktag.transforms.staging import CommitFiles, new_file_uri, read_manifest


def _commit(folder, staged, num_matched, skipped=None, labels=None):
    pipeline = beam.Pipeline(runner=FnApiRunner())

    def side(name, items):
        return None if items is None else pipeline | name >> beam.Create(items)

    files = pipeline | "Staged" >> beam.Create(staged)
    files | CommitFiles(folder, side("Num", [num_matched]), side("Skipped", skipped), side("Labels", labels))
    pipeline.run().wait_until_finish()
    return read_manifest(folder)


def test_the_manifest_names_what_counts(tmp_path):
    staged = [
        StagedFile("tags", "/s/b", 2, 20, {"x": 1}),
        StagedFile("tags", "/s/a", 1, 10, {}),
        StagedFile("errors", "/s/c", 1, 5, {"empty": 1}),
    ]
    skipped = [SkippedFile("hidden", f"/i/.{i:03d}") for i in range(50)] + [SkippedFile("not_an_image", "/i/ü\n.txt")]
    manifest = _commit(str(tmp_path), staged, 4, skipped, ["z", "ä"])
    assert manifest == {
        "files": [staged[2], staged[1], staged[0]],
        "num_matched": 4,
        "skipped": {
            "hidden": {"count": 50, "examples": [f"/i/.{i:03d}" for i in range(MAX_NAMED_SKIPPED)]},
            "not_an_image": {"count": 1, "examples": ["/i/ü\n.txt"]},
        },
        "labels": ["z", "ä"],
    }


def test_a_job_that_made_nothing_commits_just_that(tmp_path):
    assert _commit(str(tmp_path), [], 0) == {"files": [], "num_matched": 0, "skipped": {}, "labels": []}


def test_a_manifest_lies_on_a_store_too(store):
    assert _commit("memory://b/staging", [], 3)["num_matched"] == 3


def test_a_job_that_failed_before_commits_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_manifest(str(tmp_path))


def test_two_attempts_never_write_the_same_file():
    assert len({new_file_uri("/s", "tags", ".parquet") for _ in range(100)}) == 100
    assert new_file_uri("/s", "tags", ".parquet").startswith("/s/tags/")
