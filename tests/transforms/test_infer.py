import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from bulktag.model.backbone import build_backbone
from bulktag.model.bundle import load_bundle
from bulktag.model.engine import EngineSettings, build_backbone_engine
from bulktag.model.fixed_batch import FixedBatchEngine
from bulktag.transforms import records
from bulktag.transforms.examples import WriteExamples
from bulktag.transforms.infer import BackboneHandler, HeadHandler, InferBatches, TaggerHandler
from bulktag.transforms.matching import MatchImages
from bulktag.transforms.progress import flush_progress, read_progress
from bulktag.transforms.read import ReadImages
from bulktag.transforms.records import ImageInfo, PixelBatch, ScoredBatch, pack_images
from bulktag.transforms.sources import parse_source


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("pixels", "none")


@pytest.fixture(scope="module")
def backbone_dir(backbone, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("backbone"))
    backbone.save(folder)
    return folder


def _batch(n, side, seed=0):
    pixels_BHWC = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)
    infos = [ImageInfo(f"/i/{seed}/{i}", (), 1, 1, b"x" * 32, 1, 1) for i in range(n)]
    return PixelBatch(pack_images(infos), pixels_BHWC)


def test_batches_of_every_length_keep_their_rows_in_order(backbone, backbone_dir, tmp_path):
    side = backbone.spec.image_size_px
    batches = [_batch(n, side, seed=n) for n in (4, 1, 3)]
    engine = build_backbone_engine(backbone.graph_def, EngineSettings(4))
    expected = [
        (uri, row.tolist())
        for batch in batches
        for uri, row in zip(batch.images["uri"].to_pylist(), engine.run(batch.pixels_BHWC), strict=True)
    ]
    pipeline = beam.Pipeline(runner=FnApiRunner())
    handler = BackboneHandler(backbone_dir, EngineSettings(batch_size=4))
    scored = pipeline | beam.Create(batches) | InferBatches(handler, str(tmp_path))

    def rows(batch):
        assert batch.scores_BL is None
        return [
            (uri, row.tolist()) for uri, row in zip(batch.images["uri"].to_pylist(), batch.bottleneck_BD, strict=True)
        ]

    assert_that(scored | beam.FlatMap(rows), equal_to(expected))
    result = pipeline.run()
    result.wait_until_finish()
    counters = {f"{c.key.metric.namespace}/{c.key.metric.name}": c.result for c in result.metrics().query()["counters"]}
    assert counters["infer/scored"] == 8
    flush_progress(str(tmp_path))
    assert read_progress(str(tmp_path)) == {"done": 8}


def test_a_batch_of_batches_is_answered_in_order(backbone, backbone_dir):
    handler = BackboneHandler(backbone_dir, EngineSettings(batch_size=4))
    batches = [_batch(2, backbone.spec.image_size_px, seed) for seed in range(3)]
    scored = list(handler.run_inference(batches, handler.load_model()))
    assert [item.images for item in scored] == [batch.images for batch in batches]


def test_the_size_of_a_batch_is_the_size_of_its_array():
    handler = BackboneHandler("/nowhere", EngineSettings())
    pixels, scored = _batch(2, 8), ScoredBatch(pack_images([]), np.zeros((3, 5), np.float32), None)
    assert handler.get_num_bytes([pixels, pixels]) == 2 * 2 * 8 * 8 * 3
    assert handler.get_num_bytes([scored]) == 60
    assert handler.batch_elements_kwargs() == {"min_batch_size": 1, "max_batch_size": 1}


def test_no_batch_is_encoded_or_copied_between_reading_and_writing(
    backbone, backbone_dir, tmp_path, picture, monkeypatch
):
    # Pixels of a whole data set in the runner's memory, or pickled for every step, cost more than the network.
    for i in range(60):
        (tmp_path / "in" / f"class {i % 3}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"class {i % 3}" / f"{i}.png").write_bytes(picture(i))
    encoded, given, seen = [], [], []
    monkeypatch.setattr(records.BatchCoder, "encode", lambda self, value: encoded.append(value))
    for kind in (PixelBatch, ScoredBatch):
        monkeypatch.setattr(kind, "__reduce__", lambda self: encoded.append(self), raising=False)
    monkeypatch.setattr(
        FixedBatchEngine, "run", lambda self, pixels: seen.append(id(pixels)) or np.zeros((len(pixels), 4), np.float32)
    )
    plain = PixelBatch.__init__
    monkeypatch.setattr(
        PixelBatch, "__init__", lambda self, images, pixels: given.append(pixels) or plain(self, images, pixels)
    )

    pipeline = beam.Pipeline(runner=FnApiRunner())
    matched = pipeline | MatchImages((parse_source(str(tmp_path / "in")),))
    read = matched["refs"] | ReadImages(backbone.spec.image_size_px, "crop", batch_size=2)
    scored = read["batches"] | InferBatches(BackboneHandler(backbone_dir, EngineSettings(2)))
    staged = scored | WriteExamples(str(tmp_path / "out"), matched["labels"])
    assert_that(staged | beam.Map(lambda file: file.num_images) | beam.CombineGlobally(sum), equal_to([60]))
    pipeline.run().wait_until_finish()
    assert encoded == []
    assert seen == [id(pixels) for pixels in given] and len(seen) == 30


def test_a_runner_that_does_not_fuse_can_encode_batches():
    coder = records.BatchCoder()
    batch = _batch(2, 8)
    again = coder.decode(coder.encode(batch))
    np.testing.assert_array_equal(again.pixels_BHWC, batch.pixels_BHWC)
    assert again.images == batch.images
    assert coder.estimate_size(batch) == batch.pixels_BHWC.nbytes
    assert (
        coder.estimate_size(ScoredBatch(pack_images([]), np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)))
        == 56
    )


def test_tagger_and_head_of_a_bundle_agree(bundle_dir):
    bundle = load_bundle(str(bundle_dir))
    batch = _batch(5, bundle.backbone.image_size_px)
    tagger, head = (kind(str(bundle_dir), EngineSettings(8, "cpu")) for kind in (TaggerHandler, HeadHandler))
    (scored,) = tagger.run_inference([batch], tagger.load_model())
    assert scored.scores_BL.shape == (5, len(bundle.labels))
    assert scored.images == batch.images
    (again,) = head.run_inference([ScoredBatch(scored.images, scored.bottleneck_BD, None)], head.load_model())
    np.testing.assert_allclose(again.scores_BL, scored.scores_BL, atol=1e-5)
    np.testing.assert_array_equal(again.bottleneck_BD, scored.bottleneck_BD)


def test_a_damaged_network_is_refused_by_the_worker(backbone, tmp_path):
    backbone.save(str(tmp_path))
    graph = next(path for path in tmp_path.iterdir() if path.suffix == ".pb")
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    with pytest.raises(ValueError, match="expected"):
        BackboneHandler(str(tmp_path), EngineSettings()).load_model()


def test_a_gpu_that_is_not_there_is_refused_by_the_worker(backbone_dir, monkeypatch):
    monkeypatch.setattr("bulktag.model.hardware._gpu_name", lambda: None)
    with pytest.raises(ValueError, match="expected a GPU"):
        BackboneHandler(backbone_dir, EngineSettings(device="gpu")).load_model()


def test_a_gpu_has_one_model_for_all_processes_and_a_cpu_one_a_process(monkeypatch):
    def shared(**settings):
        handler = TaggerHandler("/nowhere", EngineSettings(**settings))
        return handler.share_model_across_processes(), handler.model_copies()

    assert shared() == (False, 1)
    assert shared(model_copies=2) == (True, 2)
    monkeypatch.setattr("bulktag.model.hardware._gpu_name", lambda: "a GPU")
    assert shared() == (True, 1)
    assert shared(device="cpu") == (False, 1)
