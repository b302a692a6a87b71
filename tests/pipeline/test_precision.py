import json

import pytest

from bulktag.model import quantise as quantising
from bulktag.pipeline.config import ExtractConfig, TagConfig
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.tag import run_tag


def tag(demo_images, bundle_dir, tmp_path, **options):
    output = tmp_path / "tags"
    return run_tag(TagConfig(input=(str(demo_images),), model=str(bundle_dir), output=str(output), **options))


@pytest.mark.slow
def test_int8_is_compared_with_fp32_on_the_jobs_own_images_first(
    demo_images, bundle_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(quantising, "MIN_COSINE", 0.5)  # the comparison is real; only its bars are low
    monkeypatch.setattr(quantising, "MIN_SAME_TOP_LABEL", 0.5)
    run = tag(demo_images, bundle_dir, tmp_path, precision="int8")
    assert run["engine"] == "openvino, int8, CPU"
    assert run["counters"]["engine/openvino, int8, CPU"] == 160
    assert run["int8"].endswith(" of 40 images") and run["int8"].startswith("bottleneck cosine at least 0.")
    assert "int8 beside fp32: bottleneck cosine at least 0." in capsys.readouterr().err


@pytest.mark.slow
def test_int8_that_does_not_agree_is_not_used_and_the_job_goes_on(
    demo_images, bundle_dir, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(quantising, "MIN_COSINE", 1.1)
    run = tag(demo_images, bundle_dir, tmp_path, precision="int8")
    assert "int8" not in run["engine"] and run["counts"]["used"] == 160
    assert run["int8"].startswith("int8 is not used (bottleneck cosine at least 0.")
    assert "warning: int8 is not used" in capsys.readouterr().err


def test_too_few_images_for_int8_are_named(demo_images, tmp_path):
    few = str(demo_images / "circle")
    run = run_extract(
        ExtractConfig(
            input=(few,), output=str(tmp_path / "examples"), backbone="builtin", precision="int8", labels="none"
        )
    )
    assert run["int8"] == "int8 is not used (only 40 of the first images can be used)"
    assert run["counts"]["used"] == 40


@pytest.mark.parametrize(("engine", "precision"), [("tensorflow", "fp32"), ("openvino", "fp32")])
def test_the_engine_that_was_asked_for_is_the_one_that_counts(demo_images, bundle_dir, tmp_path, engine, precision):
    tag(demo_images / "circle", bundle_dir, tmp_path, engine=engine, precision=precision)
    run = json.loads((tmp_path / "tags" / "run.json").read_text())
    assert run["engine"] == f"{engine}, {precision}, CPU"
    assert run["counters"][f"engine/{engine}, {precision}, CPU"] == 40
