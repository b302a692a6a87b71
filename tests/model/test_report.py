"""model/report.py: one file, self-contained, safe with any label."""

import html.parser
import re

import numpy as np

from bulktag.model.metrics import evaluate_multi_label, evaluate_scores
from bulktag.model.report import Problem, ReportContext, Sheet, Tile, write_report


class Collector(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.text += data


def evaluate(labels):
    ids_N = np.arange(60) % len(labels)
    given_N = np.where(np.arange(60) % 5 == 0, 0, ids_N)
    return evaluate_scores(np.eye(len(labels), dtype=np.float32)[given_N], ids_N, labels)


def collect(path):
    collector = Collector()
    collector.feed(path.read_text(encoding="utf-8"))
    return collector


def test_report_stands_alone_without_outside_requests(tmp_path):
    write_report(evaluate(["daisy", "rose", "tulip"]), ReportContext("Flowers"), tmp_path / "report.html")
    found = collect(tmp_path / "report.html")
    assert found.tags.count("script") == 1  # its own
    assert {link.split(",")[0].split("#")[0] for link in found.links} == {
        "", "data:", "data:image/png;base64", "data:image/svg+xml;base64",
    }  # fmt: skip
    assert not re.search(r"url\(|@import|https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_report_shows_figures_pairs_labels_facts_and_warnings(tmp_path):
    evaluation = evaluate(["daisy", "rose", "tulip"])
    context = ReportContext("Flowers", {"model": "abc123"}, ["2 labels with fewer than 20 images"])
    write_report(evaluation, context, tmp_path / "report.html")
    text = collect(tmp_path / "report.html").text
    for expected in (f"{evaluation.accuracy:.1%}", "abc123", "2 labels with fewer", "Most confused", "tulip", "60"):
        assert expected in text


def test_labels_and_warnings_are_shown_as_text_never_as_markup(tmp_path):
    nasty = "<script>alert('x')</script>"
    write_report(evaluate([nasty, "b"]), ReportContext(nasty, {nasty: nasty}, [nasty]), tmp_path / "report.html")
    found = collect(tmp_path / "report.html")
    assert found.tags.count("script") == 1  # its own
    assert nasty in found.text


def test_report_of_several_labels_per_image_says_what_was_missed_and_wrongly_given(tmp_path):
    targets_NL = np.eye(3)[np.arange(30) % 3]
    evaluation = evaluate_multi_label(targets_NL * 0.9, targets_NL, list("abc"), np.full(3, 0.5))
    write_report(evaluation, ReportContext("Several"), tmp_path / "report.html")
    text = collect(tmp_path / "report.html").text
    assert "mean average precision" in text and "No two labels were confused" in text


def test_switched_off_labels_sheets_and_problems_are_shown(tmp_path):
    scores_NL, ids_N = np.full((40, 2), 0.5), np.arange(40) % 2
    evaluation = evaluate_scores(scores_NL, ids_N, ["on", "never"], thresholds_L=np.array([0.1, np.inf]))
    context = ReportContext(
        "Off",
        sheets=[Sheet("Wrong", "note", [Tile("", "gs://b/gone.jpg", "on", "never", 0.5)])],
        problems=[Problem("Tiny labels", "Too few.", ("label", "images"), [("never", "3")], 1)],
        novelty={"auroc": 0.91, "by_label": {"on": 0.91}},
    )
    write_report(evaluation, context, tmp_path / "report.html")
    text = collect(tmp_path / "report.html").text
    for expected in ("1 label is switched off: never", "gone.jpg", "could not be read", "Tiny labels: 1", "0.91"):
        assert expected in text
