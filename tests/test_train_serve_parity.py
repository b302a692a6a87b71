"""One image, one answer: whichever way it is scored."""

import json
import pathlib
import subprocess
import sys

import duckdb
import numpy as np
import pytest
import tensorflow as tf

from bulktag.pipeline.classify import run_classify
from bulktag.pipeline.config import ClassifyConfig, ExtractConfig, TagConfig
from bulktag.pipeline.extract import run_extract
from bulktag.pipeline.tag import run_tag

# Scores of the same weights in fp32, and in what a processor offers for speed (bf16 has 8 bits).
TOLERANCES = {"fp32": 1e-3, "auto": 0.02}


def tag_scores(tmp_path: pathlib.Path, source, bundle_dir, precision) -> dict[str, np.ndarray]:
    """Scores of all labels by uri, through `tag`."""
    output = tmp_path / f"tags-{pathlib.Path(source).name}"
    run_tag(TagConfig(input=(str(source),), model=str(bundle_dir), output=str(output), scores=True,
                      precision=precision))  # fmt: skip
    rows = duckdb.sql(f"SELECT uri, scores FROM '{output}/tags/**/*.parquet'").fetchall()
    return {uri: np.array(scores) for uri, scores in rows}


@pytest.mark.parametrize("precision", TOLERANCES)
def test_all_ways_to_score_an_image_agree(demo_images, bundle_dir, tmp_path, precision):
    tolerance = TOLERANCES[precision]
    from_images = tag_scores(tmp_path, demo_images, bundle_dir, precision)
    uris = sorted(from_images)
    assert len(uris) == 160

    examples = tmp_path / "examples"
    run_extract(ExtractConfig(input=(str(demo_images),), output=str(examples), backbone="builtin",
                              precision=precision))  # fmt: skip
    from_bottlenecks = tag_scores(tmp_path, examples, bundle_dir, precision)
    assert sorted(from_bottlenecks) == uris

    labels = json.loads((bundle_dir / "bundle.json").read_text())["labels"]
    few = uris[::8]
    classified = run_classify(ClassifyConfig(images=tuple(few), model=str(bundle_dir), top_k=len(labels)))
    model = tf.saved_model.load(str(bundle_dir / "saved_model"))
    encoded = tf.constant([pathlib.Path(uri).read_bytes() for uri in few])
    served = model.signatures["serving_default"](image_bytes=encoded)["scores"].numpy()
    for i, uri in enumerate(few):
        by_label = dict(classified[uri])
        np.testing.assert_allclose([by_label[label] for label in labels], from_images[uri], atol=tolerance)
        np.testing.assert_allclose(served[i], from_images[uri], atol=tolerance)
    for uri in uris:
        np.testing.assert_allclose(from_bottlenecks[uri], from_images[uri], atol=1e-6)  # the head never changes


@pytest.mark.slow
def test_a_plain_tensorflow_program_serves_the_bundle(demo_images, bundle_dir, tmp_path):
    images = sorted(map(str, demo_images.glob("*/*.jpg")))[:4]
    program = pathlib.Path(__file__).parent / "e2e" / "serve_bundle.py"
    done = subprocess.run(
        [sys.executable, str(program), str(bundle_dir), *images],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    answer = json.loads(done.stdout)
    assert answer["imported"] == []
    classified = run_classify(ClassifyConfig(images=tuple(images), model=str(bundle_dir), top_k=4))
    for image in images:
        scores = dict(zip(answer["labels"], answer["scores"][image], strict=True))
        for label, score in classified[image]:
            assert abs(scores[label] - score) < TOLERANCES["fp32"]
