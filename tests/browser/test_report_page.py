"""The report in a real browser: it renders, sorts and filters, asks nobody for anything, and everybody can use it."""

import pathlib
import shutil

import numpy as np
import pytest

from bulktag.model.metrics import evaluate_scores
from bulktag.model.report import ReportContext, write_report
from bulktag.pipeline.config import EvaluateConfig
from bulktag.pipeline.evaluate import run_evaluate

pytestmark = [pytest.mark.slow, pytest.mark.browser]
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser(request):
    if "browser" not in request.config.getoption("-m").replace("not browser", ""):
        pytest.skip("needs a browser: make test-browser")
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert path, "expected Chromium on the PATH: apt-get install chromium"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def several_labels(scenes, tmp_path_factory):
    """Report of a model with several labels an image, some of them switched off, and of data with problems."""
    folder = tmp_path_factory.mktemp("report")
    config = {"examples": str(scenes / "examples"), "model": str(scenes / "model")}
    run_evaluate(EvaluateConfig(output=str(folder / "out"), **config))
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def one_label(examples_dir, bundle_dir, tmp_path_factory):
    """Report of a model with one label an image."""
    folder = tmp_path_factory.mktemp("report")
    run_evaluate(EvaluateConfig(examples=str(examples_dir), model=str(bundle_dir), output=str(folder / "out")))
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def many_labels(tmp_path_factory):
    """Report of 200 labels with hostile names."""
    generator = np.random.default_rng(0)
    ids_N = generator.integers(200, size=2000)
    scores_NL = generator.random((2000, 200)) + 2 * np.eye(200)[ids_N]
    scores_NL /= scores_NL.sum(axis=1, keepdims=True)
    labels = [f'<b onclick="x">n{i:03d}</b> {"long " * (i % 20)}' for i in range(200)]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(evaluate_scores(scores_NL, ids_N, labels), ReportContext("Many"), path)
    return path


class _Page:
    """A page that is open, and what it said and asked for meanwhile."""

    def __init__(self, browser, path: pathlib.Path, size: str, scheme: str = "light"):
        width, height = SIZES[size]
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        self.page = self.context.new_page()
        self.said, self.asked = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def column(self, number):
        cells = self.page.locator(f"#label-table tbody tr:not([hidden]) td:nth-child({number})")
        return [text.strip() for text in cells.all_inner_texts()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("report", ["one_label", "several_labels", "many_labels"])
def test_it_renders_without_errors_requests_or_barriers(browser, request, report, size, scheme, tmp_path):
    from axe_playwright_python.sync_playwright import Axe

    path = request.getfixturevalue(report)
    opened = _Page(browser, path, size, scheme)
    page = opened.page
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [path.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]  # nothing to scroll sideways
    broken = page.evaluate("[...document.images].filter(image => !image.naturalWidth).map(image => image.alt)")
    assert broken == []
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()
    picture = tmp_path / "page.png"
    page.screenshot(path=picture, full_page=True)
    assert picture.stat().st_size > 50_000
    opened.context.close()


def test_columns_sort_both_ways_by_click_and_by_key(browser, many_labels):
    opened = _Page(browser, many_labels, "desktop")

    def images():
        return [int(text) for text in opened.column(7)]

    opened.page.get_by_role("button", name="images").click()
    assert images() == sorted(images())
    opened.page.keyboard.press("Enter")
    assert images() == sorted(images(), reverse=True)
    head = opened.page.get_by_role("columnheader", name="images")
    assert head.get_attribute("aria-sort") == "descending"
    opened.page.get_by_role("button", name="label", exact=True).click()
    assert opened.column(1) == sorted(opened.column(1)) and len(opened.column(1)) == 200
    assert opened.column(1)[0].startswith('<b onclick="x">n000</b>')  # text, no markup
    opened.context.close()


def test_labels_are_filtered_by_name(browser, many_labels):
    opened = _Page(browser, many_labels, "phone")
    opened.page.get_by_role("searchbox").fill("N01")
    assert len(opened.column(1)) == 10 and all("n01" in name for name in opened.column(1))
    assert opened.page.get_by_role("status").inner_text() == "10 of 200 labels"
    opened.page.get_by_role("searchbox").fill("")
    assert len(opened.column(1)) == 200
    opened.context.close()
