import hashlib
import os
import threading
import time
import tracemalloc

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from bulktag.model.image import BadImage, ImageLimits, load_image
from bulktag.transforms import files, loading, read
from bulktag.transforms.loading import LoadSettings, Pace, Patience, ReadError, load_ref, read_image
from bulktag.transforms.progress import read_progress
from bulktag.transforms.read import ReadImages
from bulktag.transforms.records import ImageError, ImageInfo, ImageRef, PixelBatch, unpack_images

LIMIT = 1 << 20


def _ref(path, num_bytes=-1):
    return ImageRef(str(path), ("l",), num_bytes, -1)


def _pace():
    return Pace(threading.Semaphore())


def _load(ref, **limits):
    return load_ref(
        ref, np.zeros((8, 8, 3), np.uint8), LoadSettings(8, "crop", ImageLimits(**limits)), _pace(), Patience(0)
    )


def test_a_picture_is_read_decoded_and_described(tmp_path, picture):
    data = picture(1, (30, 20), "JPEG")
    path = tmp_path / "ü [1]#%.jpg"
    path.write_bytes(data)
    os.utime(path, ns=(0, 1_600_000_000_123_456_789))
    pixels_HWC = np.zeros((8, 8, 3), np.uint8)
    info = load_ref(_ref(path), pixels_HWC, LoadSettings(8, "squash", keep_encoded=True), _pace(), Patience(0))
    assert info == ImageInfo(
        str(path), ("l",), len(data), 1_600_000_000_123_456, hashlib.sha256(data).digest(), 30, 20, data
    )
    np.testing.assert_array_equal(pixels_HWC, load_image(data, 8, "squash", ImageLimits()).pixels_HWC)


def test_the_bytes_that_count_are_the_ones_read_and_not_the_ones_listed(tmp_path, picture):
    path = tmp_path / "a.png"
    path.write_bytes(picture(2))
    for listed in (-1, 0, 1, len(picture(2)) - 1, len(picture(2)) + 1):  # grown or shrunk since
        assert read_image(_ref(path, listed), LIMIT)[0] == picture(2)


def test_a_file_that_grows_while_it_is_read_is_read_to_its_end_or_to_the_limit(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    plain = os.fstat

    def grow_after(handle):
        status = plain(handle)
        with open(path, "ab") as file:
            file.write(b"y" * 50)
        return status

    monkeypatch.setattr(os, "fstat", grow_after)
    assert read_image(_ref(path), 1000)[0].startswith(b"x" * 10 + b"y" * 50)
    with pytest.raises(BadImage, match="expected at most 200 bytes, got at least 201"):
        for _ in range(3):
            read_image(_ref(path), 200)


def test_a_small_file_does_not_cost_the_memory_of_the_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    tracemalloc.start()
    read_image(_ref(path), 1 << 30)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_above_the_limit_is_not_opened(tmp_path):
    with pytest.raises(BadImage) as caught:
        read_image(_ref(tmp_path / "not there", num_bytes=11), 10)
    assert caught.value.error_type == "too_many_bytes"


@pytest.mark.timeout(20)
def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    found = {}
    for name in ("pipe", "zero", "loop", "broken", "folder", "gone", "file/below", "n" * 300, "nul\0"):
        with pytest.raises(ReadError) as caught:
            read_image(_ref(tmp_path / name), LIMIT)
        found[name[:10]] = caught.value.error_type
    assert found == {
        "pipe": "not_a_file", "zero": "not_a_file", "loop": "link_loop", "broken": "not_found", "folder": "is_a_folder",
        "gone": "not_found", "file/below": "not_found", "n" * 10: "not_found", "nul\0": "bad_uri",
    }  # fmt: skip


def test_a_file_that_may_not_be_read_is_an_error(open_folder, without_root, picture):
    path = open_folder / "a.png"
    path.write_bytes(picture())
    path.chmod(0)
    with without_root():
        error = _load(_ref(path))
    assert error == ImageError(str(path), "read", "permission_denied", "Permission denied", -1)


def test_a_store_that_fails_is_an_error_of_one_image(store, picture):
    store.objects["memory://b/a.png"] = store.objects["memory://b/b.png"] = picture()
    store.failing.add("memory://b/a.png")
    assert _load(_ref("memory://b/a.png")).error_type == "io_error"
    assert _load(_ref("memory://b/none.png")).error_type == "not_found"
    assert _load(_ref("nowhere://b/none.png")).error_type == "bad_uri"
    assert _load(ImageRef("memory://b/b.png", (), 7, 8)).modified_us == 8
    assert _load(_ref("memory://b/b.png"), max_bytes=20).error_type == "too_many_bytes"


@pytest.mark.parametrize(
    ("data", "slug"),
    [(b"", "empty"), (b"just text", "not_an_image"), (None, "truncated")],
)
def test_bad_bytes_are_errors_of_decoding(tmp_path, picture, data, slug):
    data = picture(0, (300, 300), "JPEG")[:2000] if data is None else data
    (tmp_path / "a.jpg").write_bytes(data)
    error = _load(_ref(tmp_path / "a.jpg"))
    assert (error.stage, error.error_type, error.num_bytes) == ("decode", slug, len(data))
    assert "\n" not in error.message


def test_a_bug_is_raised_and_not_counted_as_a_bad_image(tmp_path, picture, monkeypatch):
    (tmp_path / "a.png").write_bytes(picture())

    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(loading, "load_image", broken)
    with pytest.raises(TypeError, match="a bug"):
        _load(_ref(tmp_path / "a.png"))


def _run_fn(fn, refs):
    fn.setup()
    fn.start_bundle()
    for ref in refs:
        yield from fn.process(ref)
    yield from (getattr(item, "value", item) for item in fn.finish_bundle())
    fn.teardown()


def _write(folder, picture, num):
    for i in range(num):
        (folder / f"{i:03d}.png").write_bytes(picture(i))
    return [_ref(folder / f"{i:03d}.png") for i in range(num)]


def test_the_next_batches_are_being_read_while_one_is_on_the_engine(tmp_path, picture, monkeypatch):
    refs = _write(tmp_path, picture, 40)
    started = []
    plain = loading.load_ref
    monkeypatch.setattr(loading, "load_ref", lambda ref, *args: started.append(ref.uri) or plain(ref, *args))
    batches = _run_fn(read._LoadImages(ReadImages(8, "crop", batch_size=4)), refs)
    first = next(batches)
    deadline = time.monotonic() + 10
    while len(started) < 4 * (1 + read.BATCHES_AHEAD) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(started) == 4 * (1 + read.BATCHES_AHEAD)  # and no more: memory stays bounded
    uris = [uri for batch in [first, *batches] for uri in batch.images["uri"].to_pylist()]
    assert uris == [ref.uri for ref in refs]


def test_images_of_a_batch_are_read_at_once(tmp_path, picture, monkeypatch):
    refs = _write(tmp_path, picture, 8)
    together = threading.Barrier(8, timeout=10)
    plain = loading.load_ref
    monkeypatch.setattr(loading, "load_ref", lambda *args: (together.wait(), plain(*args))[1])
    list(_run_fn(read._LoadImages(ReadImages(8, "crop", batch_size=8, read_threads=8)), refs))


def test_failures_leave_a_batch_and_the_rest_stays_in_step(tmp_path, picture):
    refs = _write(tmp_path, picture, 7)
    for i in (0, 3, 6):
        (tmp_path / f"{i:03d}.png").write_bytes(b"broken")
    items = list(_run_fn(read._LoadImages(ReadImages(8, "squash", batch_size=3)), refs))
    batches = [item for item in items if isinstance(item, PixelBatch)]
    assert [batch.images.num_rows for batch in batches] == [2, 2]  # the last batch had nothing left
    for batch in batches:
        assert batch.pixels_BHWC.shape == (batch.images.num_rows, 8, 8, 3)
        for info, pixels_HWC in zip(unpack_images(batch.images), batch.pixels_BHWC, strict=True):
            expected = load_image(files.read_bytes(info.uri), 8, "squash", ImageLimits()).pixels_HWC
            np.testing.assert_array_equal(pixels_HWC, expected)
    assert sum(not isinstance(item, PixelBatch) for item in items) == 3


def test_a_bundle_that_failed_leaves_nothing_for_its_retry(tmp_path, picture):
    refs = _write(tmp_path, picture, 5)
    fn = read._LoadImages(ReadImages(8, "crop", batch_size=2))
    fn.setup()
    fn.start_bundle()
    for ref in refs:
        list(fn.process(ref))
    fn.start_bundle()  # the runner tries again, with the same instance
    retried = [item for ref in refs for item in fn.process(ref)] + [item.value for item in fn.finish_bundle()]
    assert [uri for batch in retried for uri in batch.images["uri"].to_pylist()] == [ref.uri for ref in refs]


def test_read_images_sends_each_image_to_exactly_one_output(tmp_path, picture):
    refs = _write(tmp_path, picture, 10)
    (tmp_path / "004.png").unlink()  # vanished between match and read
    (tmp_path / "005.png").write_bytes(b"")
    progress = tmp_path / "progress"
    progress.mkdir()

    def check_batches(batches):
        uris = sorted(uri for batch in batches for uri in batch.images["uri"].to_pylist())
        assert uris == sorted(ref.uri for i, ref in enumerate(refs) if i not in (4, 5))

    def check_errors(errors):
        assert sorted((os.path.basename(e.uri), e.stage, e.error_type) for e in errors) == [
            ("004.png", "read", "not_found"), ("005.png", "decode", "empty")
        ]  # fmt: skip

    pipeline = beam.Pipeline(runner=FnApiRunner())
    outputs = pipeline | beam.Create(refs) | ReadImages(8, "crop", batch_size=4, progress_dir=str(progress))
    assert_that(outputs["batches"], check_batches, label="batches")
    assert_that(outputs["errors"], check_errors, label="errors")
    result = pipeline.run()
    result.wait_until_finish()
    counters = {f"{c.key.metric.namespace}/{c.key.metric.name}": c.result for c in result.metrics().query()["counters"]}
    assert counters == {"read/loaded": 8, "read/failed": 1, "decode/failed": 1}
    assert read_progress(str(progress))["errors"] == 2


@pytest.mark.parametrize("field", ["image_size_px", "batch_size", "read_threads"])
def test_sizes_below_one_are_refused_when_the_transform_is_made(field):
    with pytest.raises(ValueError, match=f"expected {field} of at least 1, got 0"):
        ReadImages(**{"image_size_px": 8, "resize": "crop", field: 0})


def test_a_folder_that_is_away_is_waited_for(tmp_path, picture):
    (tmp_path / "photos").mkdir()
    path = tmp_path / "photos" / "a.png"
    path.write_bytes(picture(1))
    (tmp_path / "photos").rename(tmp_path / "away")
    comes_back = threading.Timer(0.7, lambda: (tmp_path / "away").rename(tmp_path / "photos"))
    comes_back.start()
    assert Patience(30).read(_ref(path, len(picture(1))), LIMIT)[0] == picture(1)
    comes_back.join()


def test_a_disk_that_is_unmounted_leaves_an_empty_folder_and_is_waited_for(tmp_path, picture):
    path = tmp_path / "a.png"
    comes_back = threading.Timer(0.7, lambda: path.write_bytes(picture(1)))
    comes_back.start()
    assert Patience(30).read(_ref(path, len(picture(1))), LIMIT)[0] == picture(1)
    comes_back.join()


def test_a_file_that_was_deleted_is_not_waited_for(tmp_path):
    (tmp_path / "other").touch()
    for ref in (_ref(tmp_path / "gone", 10), _ref(tmp_path / "no folder" / "named by a manifest")):
        before = time.monotonic()
        with pytest.raises(ReadError) as caught:
            Patience(30).read(ref, LIMIT)
        assert caught.value.error_type == "not_found" and time.monotonic() - before < 10


def test_a_folder_that_stays_away_is_waited_for_once(tmp_path, monkeypatch):
    pauses = []
    monkeypatch.setattr(loading.time, "sleep", lambda s: pauses.append(s))
    now = [0.0]
    monkeypatch.setattr(loading.time, "monotonic", lambda: now.__setitem__(0, now[0] + 1) or now[0])
    patience = Patience(10)
    for _ in range(50):
        with pytest.raises(ReadError):
            patience.read(_ref(tmp_path / "gone" / "a.jpg", 10), LIMIT)
    assert 1 <= len(pauses) <= 10


def _delayed(monkeypatch, delay_s):
    plain = loading.read_image
    monkeypatch.setattr(loading, "read_image", lambda *args: (time.sleep(delay_s), plain(*args))[1])


@pytest.mark.parametrize(("delay_s", "enough"), [(0, range(1, 12)), (0.2, [40])], ids=["fast disk", "slow store"])
def test_more_images_are_read_at_once_the_slower_the_store_is(tmp_path, picture, monkeypatch, delay_s, enough):
    _delayed(monkeypatch, delay_s)
    monkeypatch.setattr(loading, "num_cores", lambda: 2)
    refs = _write(tmp_path, picture, 80)
    loader = loading.BatchLoader(LoadSettings(64, "crop", read_threads=40))
    for batch in (refs[:40], refs[40:]):
        loader.start(batch)
        loader.finish()
    started = []
    monkeypatch.setattr(loader._pool, "submit", lambda *args: started.append(args))
    loader.start(refs[:40])
    assert len(started) in enough


def test_no_more_images_are_decoded_at_once_than_there_are_cores(tmp_path, picture, monkeypatch):
    monkeypatch.setattr(loading, "num_cores", lambda: 2)
    plain, now, most = loading.load_image, [0], [0]
    lock = threading.Lock()

    def counted(*args):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.01)
        with lock:
            now[0] -= 1
        return plain(*args)

    monkeypatch.setattr(loading, "load_image", counted)
    list(_run_fn(read._LoadImages(ReadImages(8, "crop", batch_size=20)), _write(tmp_path, picture, 40)))
    assert most == [2]
