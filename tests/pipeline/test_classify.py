"""`bulktag classify`: files and URLs to a small table."""

import http.server
import threading
import time

import pytest

from bulktag.pipeline.classify import download, run_classify
from bulktag.pipeline.cli import run_command
from bulktag.pipeline.config import ClassifyConfig
from bulktag.transforms.loading import ReadError


@pytest.fixture(scope="module")
def server(demo_images):
    """A real HTTP server on loopback with a picture, a text, a redirect loop and an endless body."""
    picture = next(demo_images.glob("triangle/*.jpg")).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/loop":
                self.send_response(302)
                self.send_header("Location", "/loop")
                self.end_headers()
                return
            if self.path == "/slow":
                stop.wait(20)
            if self.path in ("/dripping", "/broken"):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while self.path == "/dripping" and not stop.wait(0.05):
                    self.wfile.write(b"x")
                return
            body = {"/triangle.jpg": picture, "/text.jpg": b"<html>not an image</html>", "/large": bytes(100_000)}.get(
                self.path
            )
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_):
            pass

    stop = threading.Event()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        stop.set()
        running.shutdown()


def test_files_and_urls_give_a_table_each(server, demo_images, bundle_dir, capsys):
    path = str(next(demo_images.glob("triangle/*.jpg")))
    url = f"{server}/triangle.jpg"
    results = run_classify(ClassifyConfig(images=(path, url), model=str(bundle_dir), top_k=2))
    assert results[path] == results[url] and len(results[url]) == 2
    assert results[url][0][0] == "triangle"
    out = capsys.readouterr().out
    assert out.count("triangle") >= 2 and "probability" in out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/missing.jpg", "download_failed: the server answered 404 Not Found"),
        ("/text.jpg", "not_an_image"),
        ("/large", "too_many_bytes: expected at most 50000 bytes, got more"),
        ("/loop", "download_failed: more than 5 redirects"),
        ("/broken", "download_failed: the connection broke after 0 bytes"),
    ],
)
def test_a_url_that_gives_no_image_is_named(server, bundle_dir, name, message, capsys):
    assert run_command(["classify", "--model", str(bundle_dir), "--max-bytes", "50000", f"{server}{name}"]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_a_silent_server_is_given_up_on(server):
    with pytest.raises(ReadError, match=r"expected the whole file within 0.3 s, got 0 bytes"):
        download(f"{server}/slow", 1000, timeout_s=0.3)


def test_a_server_that_sends_a_byte_now_and_then_is_given_up_on(server):
    started = time.monotonic()
    with pytest.raises(ReadError, match=r"expected the whole file within 0.5 s, got \d+ bytes"):
        download(f"{server}/dripping", 1000, timeout_s=0.5)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.jpg", "http://[", "https://", "http://no.such.host.invalid/x"])
def test_a_url_that_leads_nowhere_is_named_in_a_few_words(url):
    with pytest.raises(ReadError) as caught:
        download(url, 1000, timeout_s=5)
    assert "HTTPConnectionPool" not in str(caught.value) and "\n" not in str(caught.value)


def test_an_image_named_twice_is_no_failure(demo_images, bundle_dir):
    good = str(next(demo_images.glob("plus/*.jpg")))
    assert run_command(["classify", "--model", str(bundle_dir), good, good]) == 0


def test_one_bad_image_does_not_hide_the_others(demo_images, bundle_dir, tmp_path, capsys):
    good = str(next(demo_images.glob("plus/*.jpg")))
    (tmp_path / "bad.jpg").write_bytes(b"")
    assert run_command(["classify", "--model", str(bundle_dir), str(tmp_path / "bad.jpg"), good]) == 1
    captured = capsys.readouterr()
    assert "bad.jpg: empty" in captured.err and "1 of 2 images could not be used" in captured.err
    assert "plus" in captured.out
