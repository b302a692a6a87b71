"""Objects of Google Cloud Storage over a real socket: listed, read, written, and what the store may do to that."""

import concurrent.futures
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import requests
from fault_proxy import Fault

from bulktag.transforms import files, gcs, gcs_client, gcs_listing
from bulktag.transforms.loading import LoadSettings, Pace, Patience, ReadError, load_ref, read_image
from bulktag.transforms.matching import find_images
from bulktag.transforms.records import ImageError, ImageRef
from bulktag.transforms.sources import Source, parse_source, split_sources

pytestmark = [pytest.mark.slow, pytest.mark.gcs]
LIMIT = 1 << 20


@pytest.fixture
def impatient(monkeypatch):
    """Waits of seconds made short."""
    for name, value in {"RETRY_FOR_S": 1.5, "FIRST_PAUSE_S": 0.05, "MAX_PAUSE_S": 0.2, "MAX_OUTAGE_S": 600.0}.items():
        monkeypatch.setattr(gcs_client, name, value)
    monkeypatch.setattr(gcs, "ANSWER_TIMEOUT_S", 0.5)
    monkeypatch.setattr(gcs, "MAX_BODY_S", 1.0)
    gcs_client._outage.note_success()
    yield
    gcs_client._outage.note_success()


def _fill(proxy, bucket, names):
    """Many small objects, past the proxy."""
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=16))
    url = f"http://127.0.0.1:{proxy.store_port}/upload/storage/v1/b/{bucket.name}/o"

    def upload(name):
        session.post(url, params={"uploadType": "media", "name": name}, data=b"x").raise_for_status()

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        list(pool.map(upload, names))


@pytest.mark.parametrize(
    "names",
    [
        [f"a{number}" for number in range(40)],
        ["", *(f"{char}/x" for char in "abÄz你\U0001f600")],
        [f"same/{'long' * 20}/{number:04x}" for number in range(0, 70_000, 1000)],
        ["a", "a/", "a0", "aa", "b"],
        ["x" * number for number in range(1, 30)],
    ],
    ids=["numbers", "scripts", "long", "nested", "prefixes"],
)
def test_parts_hold_every_name_once_whatever_the_names(proxy, bucket, monkeypatch, names):
    monkeypatch.setattr(gcs_listing, "PAGE_OBJECTS", 3)
    monkeypatch.setattr(gcs_listing, "PAGES_OF_ONE", 1)
    names = [f"p/{name}" for name in names if name]
    _fill(proxy, bucket, names)
    parts = files.split_folder(f"gs://{bucket.name}/p")
    found = [stored.uri for start, end in parts for stored in files.list_range(f"gs://{bucket.name}/p", start, end)]
    assert sorted(found) == sorted(f"gs://{bucket.name}/{name}" for name in names)
    assert len(parts) > 1


def test_few_objects_are_listed_by_one_worker_with_one_request(proxy, bucket):
    _fill(proxy, bucket, [f"p/{number}.jpg" for number in range(50)])
    proxy.reset()
    assert files.split_folder(f"gs://{bucket.name}/p") == [("", "")]
    assert len([path for _, path in proxy.requests if "/o?" in path]) == 1


def test_a_bucket_is_listed_like_a_folder(proxy, bucket):
    names = ["p/a.jpg", "p/r/B.PNG", "p/notes.txt", "p/.h.jpg", "p/r/", "q/x.jpg", "p/odd [1]#%?.jpg", "p/ü/1.jpg"]
    _fill(proxy, bucket, names)
    root = f"gs://{bucket.name}"
    refs = [item for item in find_images(parse_source(f"{root}/p")) if isinstance(item, ImageRef)]
    assert {ref.uri.removeprefix(root): ref.labels for ref in refs} == {
        "/p/a.jpg": (), "/p/odd [1]#%?.jpg": (), "/p/r/B.PNG": ("r",), "/p/ü/1.jpg": ("ü",)
    }  # fmt: skip
    assert all(ref.generation > 0 and ref.md5 == hashlib.md5(b"x").hexdigest() and ref.num_bytes == 1 for ref in refs)
    found = [ref.uri for ref in find_images(parse_source(f"{root}/p/*.jpg"), "none")]
    assert found == [f"{root}/p/.h.jpg", f"{root}/p/a.jpg", f"{root}/p/odd [1]#%?.jpg"]
    assert [ref.uri for ref in find_images(parse_source(f"{root}/**/B.PNG"), "none")] == [f"{root}/p/r/B.PNG"]
    assert [ref.labels for ref in find_images(parse_source(f"{root}/p/odd [1]#%?.jpg"))] == [("p",)]
    whole = [item.uri for item in find_images(parse_source(root), "none") if isinstance(item, ImageRef)]
    assert whole == [f"{root}/{name}" for name in sorted({*names} - {"p/notes.txt", "p/.h.jpg", "p/r/"})]


def test_an_image_is_one_request_and_brings_its_identity(proxy, bucket, picture):
    data = picture(1)
    bucket.blob("a.jpg").upload_from_string(data)
    uri = f"gs://{bucket.name}/a.jpg"
    (listed,) = find_images(parse_source(uri), "none")
    proxy.reset()
    for ref in (ImageRef(uri, (), -1, -1), listed):
        read, known = read_image(ref, LIMIT)
        assert read == data
        assert (known.num_bytes, known.generation, known.md5) == (
            len(data), listed.generation, hashlib.md5(data).hexdigest()
        )  # fmt: skip
        assert abs(known.modified_us - listed.modified_us) < 1_000_000
    assert len(proxy.requests) == 2
    bucket.blob("a.jpg").upload_from_string(picture(2))
    read, known = read_image(listed, LIMIT)  # replaced since it was listed: what was read is what is said of it
    assert read == picture(2) and known.generation > listed.generation


def test_the_store_is_asked_for_objects_only(proxy, bucket, picture, monkeypatch):
    # Google's client would ask for the bucket's facts too, in a thread beside the first request.
    monkeypatch.setattr(gcs_client, "_clients", gcs_client._Clients())
    monkeypatch.delenv(gcs_client.NO_BUCKET_FACTS, raising=False)
    uri = f"gs://{bucket.name}/a.jpg"
    gcs.write_bytes(uri, picture(1))
    list(find_images(parse_source(f"gs://{bucket.name}/"), "none"))
    read_image(ImageRef(uri, (), -1, -1), LIMIT)
    time.sleep(0.5)
    assert not [path for _, path in proxy.requests if re.search(rf"/b/{bucket.name}(\?|$)", path)]


def test_many_reads_are_on_their_way_at_once_over_few_connections(proxy, bucket, picture):
    bucket.blob("a.jpg").upload_from_string(picture(1))
    proxy.reset()
    proxy.delay_s = 0.1
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        list(pool.map(lambda _: read_image(ImageRef(f"gs://{bucket.name}/a.jpg", (), -1, -1), LIMIT), range(160)))
    assert proxy.most_at_once >= 24
    assert proxy.connections <= 40


@pytest.mark.parametrize(
    "fault",
    [Fault(status=429), Fault(status=500), Fault(status=503), Fault(cut=0.5), Fault(cut=0.0), Fault(stall_s=2)],
    ids=["429", "500", "503", "cut short", "no body", "stalled"],
)
def test_what_passes_is_tried_again(proxy, bucket, picture, impatient, fault):
    bucket.blob("a.jpg").upload_from_string(picture(1))
    fault.times, fault.path = 2, "/o/a.jpg"
    proxy.faults = [fault]
    assert read_image(ImageRef(f"gs://{bucket.name}/a.jpg", (), -1, -1), LIMIT)[0] == picture(1)
    assert fault.times == 0


@pytest.mark.parametrize(
    ("fault", "error_type", "text", "most_requests"),
    [
        (Fault(status=429), "throttled", "429", 40),
        (Fault(status=500), "store_failed", "500", 40),
        (Fault(status=503), "store_failed", "503", 40),
        (Fault(cut=0.5), "store_failed", "bytes", 40),
        (Fault(stall_s=2), "timeout", "in time", 10),
        (Fault(trickle_s=0.02), "timeout", "in time", 10),
        (Fault(status=404), "not_found", "no such", 1),
        (Fault(status=403), "permission_denied", "403", 1),
        (Fault(status=401), "permission_denied", "without credentials", 1),
    ],
    ids=["429", "500", "503", "cut short", "stalled", "trickling", "404", "403", "401"],
)
def test_what_stays_is_an_errors_row_with_its_reason(
    proxy, bucket, picture, impatient, fault, error_type, text, most_requests
):
    for name in ("bad.jpg", "good.jpg"):
        bucket.blob(name).upload_from_string(picture(1))
    fault.path = "/o/bad.jpg"
    refs = list(find_images(parse_source(f"gs://{bucket.name}/"), "none"))
    proxy.reset()
    proxy.faults = [fault]
    settings, pixels_HWC = LoadSettings(32, "crop"), np.zeros((32, 32, 3), np.uint8)
    error = load_ref(refs[0], pixels_HWC, settings, Pace(threading.Semaphore()), Patience())
    assert isinstance(error, ImageError)
    assert (error.uri, error.stage, error.error_type) == (f"gs://{bucket.name}/bad.jpg", "read", error_type)
    assert text in error.message
    assert len(proxy.requests) <= most_requests
    assert read_image(refs[1], LIMIT)[0] == picture(1)


def test_after_an_outage_of_minutes_nothing_is_tried_again_until_something_succeeds(
    proxy, bucket, picture, impatient, monkeypatch
):
    bucket.blob("a.jpg").upload_from_string(picture(1))
    ref = ImageRef(f"gs://{bucket.name}/a.jpg", (), -1, -1)
    monkeypatch.setattr(gcs_client, "MAX_OUTAGE_S", 0.3)
    proxy.faults = [Fault(status=503)]
    with pytest.raises(ReadError):
        read_image(ref, LIMIT)
    proxy.requests.clear()
    for _ in range(5):
        with pytest.raises(ReadError):
            read_image(ref, LIMIT)
    assert len(proxy.requests) == 5
    proxy.faults = []
    assert read_image(ref, LIMIT)[0] == picture(1)
    proxy.faults = [Fault(status=503, times=1)]
    assert read_image(ref, LIMIT)[0] == picture(1)


def test_no_more_than_the_limit_is_read(proxy, bucket, impatient):
    bucket.blob("large").upload_from_string(os.urandom(300_000))
    with pytest.raises(Exception, match="expected at most 1000 bytes"):
        read_image(ImageRef(f"gs://{bucket.name}/large", (), -1, -1), 1000)


def test_an_object_that_is_packed_for_the_way_is_unpacked(proxy, bucket, picture):
    blob = bucket.blob("a.jpg")
    blob.content_encoding = "gzip"
    blob.upload_from_string(gzip.compress(picture(3)), "image/jpeg")
    assert read_image(ImageRef(f"gs://{bucket.name}/a.jpg", (), -1, -1), LIMIT)[0] == picture(3)


def test_a_listing_that_breaks_off_is_no_short_listing(proxy, bucket, impatient):
    _fill(proxy, bucket, [f"p/{number:04d}.jpg" for number in range(1500)])
    proxy.faults = [Fault(path="pageToken", status=503)]
    with pytest.raises(OSError, match="503"):
        list(find_images(Source("folder", f"gs://{bucket.name}/p"), "none"))
    proxy.faults = [Fault(path="pageToken", status=503, times=1)]
    assert len(list(find_images(Source("folder", f"gs://{bucket.name}/p"), "none"))) == 1500


def test_a_bucket_that_may_not_be_listed_is_one_line(proxy, bucket):
    proxy.faults = [Fault(status=403)]
    with pytest.raises(ValueError, match=r"expected a source that may be read, got .*403"):
        parse_source(f"gs://{bucket.name}/p")


def test_a_bucket_that_is_not_there_is_one_line(proxy):
    with pytest.raises(ValueError, match="found nothing there"):
        parse_source("gs://no-such-bucket/photos")
    with pytest.raises(ValueError, match="with a bucket"):
        parse_source("gs://")


def test_files_travel_to_a_bucket_and_back(proxy, bucket, tmp_path, impatient):
    root = f"gs://{bucket.name}/out"
    large = os.urandom(20 << 20)

    def write(folder):
        os.makedirs(f"{folder}/b")
        for name, data in (("a", b"1"), ("b/large", large)):
            with open(f"{folder}/{name}", "wb") as file:
                file.write(data)

    proxy.faults = [Fault(method="PUT|POST", status=503, times=2)]
    files.write_folder(write, root)
    assert [stored.uri for stored in files.list_below(root)] == [f"{root}/a", f"{root}/b/large"]
    proxy.faults = [Fault(path="alt=media", cut=0.5, times=2)]
    local = files.fetch_folder(root)
    assert files.read_bytes(f"{local}/b/large") == large
    with files.open_file(f"{root}/b/large") as file:
        file.seek(-10, io.SEEK_END)
        assert file.read() == large[-10:]
    files.move_files([(f"{root}/b/large", f"{root}/c/large"), (f"{root}/a", f"{root}/c/a")])
    assert [stored.uri for stored in files.list_below(root)] == [f"{root}/c/a", f"{root}/c/large"]
    assert files.read_bytes(f"{root}/c/large") == large
    files.delete_folder(root)
    assert not files.exists(root)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(f"{root}/c/a")


def test_a_file_whose_writer_fails_is_not_there(proxy, bucket):
    with pytest.raises(ZeroDivisionError), files.create_file(f"gs://{bucket.name}/half") as file:
        file.write(b"x" * (20 << 20))
        raise ZeroDivisionError
    assert not files.exists(f"gs://{bucket.name}/half")


def test_a_version_is_replaced_only_by_who_has_seen_it(proxy, bucket):
    uri = f"gs://{bucket.name}/lock"
    first = files.write_generation(uri, b"1", 0)
    with pytest.raises(FileExistsError):
        files.write_generation(uri, b"2", 0)
    second = files.write_generation(uri, b"2", first)
    with pytest.raises(FileExistsError):
        files.write_generation(uri, b"3", first)
    assert files.describe_object(uri).generation == second and files.read_bytes(uri) == b"2"


@pytest.mark.parametrize("setting", ["STORAGE_EMULATOR_HOST", "CLOUDSDK_AUTH_DISABLE_CREDENTIALS"])
def test_credentials_are_not_searched_for_where_none_are_wanted(proxy, setting):
    value = proxy.url if setting == "STORAGE_EMULATOR_HOST" else "true"
    program = (
        "import google.auth, sys\n"
        "google.auth.default = lambda *_, **__: sys.exit('searched for credentials')\n"
        "from bulktag.transforms import gcs_client\n"
        "print(type(gcs_client.get_client()._credentials).__name__)\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "STORAGE_EMULATOR_HOST"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**environment, setting: value}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "AnonymousCredentials"), done.stderr


def test_ten_thousand_objects_are_matched_page_by_page_and_in_parts(proxy, many_names):
    expected = sorted(f"gs://many/{name}" for name in many_names)
    assert len(expected) == 10_000

    whole = list(find_images(Source("folder", "gs://many/photos"), "none"))
    assert sorted(ref.uri for ref in whole) == expected
    assert len([path for _, path in proxy.requests if "/b/many/o?" in path]) == 10  # a page holds a thousand

    parts = split_sources([parse_source("gs://many/photos")])
    assert len(parts) >= 8
    found = [[ref.uri for ref in find_images(part, "none")] for part in parts]
    assert sorted(uri for part in found for uri in part) == expected
    assert max(map(len, found)) < len(expected) / 4
