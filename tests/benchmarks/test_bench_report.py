import io
import json

import pytest
from rich.console import Console

from benchmarks.bench import build_parser, main, make_context
from benchmarks.measure import Cost
from benchmarks.report import SUMMARY_COLUMNS, Bar, Section, print_section, summary_cells, to_json, write_json
from benchmarks.rounds import summarise
from benchmarks.suite_scale import fit_line, steady_share


def _cost(seconds: float, cpu_seconds: float = 4.0, peak_mib: float = 100.0) -> Cost:
    return Cost(0, seconds, cpu_seconds, peak_mib, (peak_mib,), 0.0)


def test_the_steady_state_leaves_start_up_out_and_takes_medians():
    costs = {100: [_cost(6.0, 5.0), _cost(7.0, 5.0), _cost(90.0, 5.0)], 300: [_cost(9.0, 9.0)] * 3}
    summary = summarise("some", costs)
    assert summary.steady_images_per_s == pytest.approx(200 / (9.0 - 7.0))
    assert summary.images_per_s == pytest.approx(300 / 9.0)
    assert summary.steady_cpu_s_per_image == pytest.approx(4.0 / 200)
    assert summary.cpu_s_per_image == pytest.approx(9.0 / 300)


def test_noise_larger_than_the_difference_gives_no_steady_state():
    summary = summarise("some", {100: [_cost(6.0)], 300: [_cost(5.0)]})
    assert summary.steady_images_per_s is None
    assert summary.steady_by_round == ()


def test_a_bar_is_kept_from_below_or_from_above():
    assert Bar("rate", 2.0, 2.0).is_kept
    assert not Bar("rate", 1.9, 2.0).is_kept
    assert Bar("seconds", 2.0, 2.0, at_most=True).is_kept
    assert not Bar("seconds", 2.1, 2.0, at_most=True).is_kept


@pytest.fixture
def section() -> Section:
    summary = summarise("bulktag", {100: [_cost(6.0)], 300: [_cost(8.0)]})
    bars = [Bar("steady state", 0.5, 0.9)]
    return Section(
        "tag", "tag: a title", SUMMARY_COLUMNS, [summary_cells(summary)], bars, ["a note"], {"runs": {1: []}}
    )


def test_a_table_shows_rows_bars_and_notes(section):
    text = io.StringIO()
    print_section(section, Console(file=text))
    lines = text.getvalue().splitlines()
    assert "tag: a title" in lines
    assert any(line.split() == ["bulktag", "37.5", "100", "13.3", "100"] for line in lines)
    assert "bar MISSED: steady state: 0.5 (least 0.9)" in lines
    assert "note: a note" in lines


def test_the_json_holds_the_table_by_column_and_the_bars(section, tmp_path):
    write_json(tmp_path / "a" / "report.json", to_json({"cpu": "some"}, {"counts": (100, 300)}, [section]))
    found = json.loads((tmp_path / "a" / "report.json").read_text())
    suite = found["suites"]["tag"]
    assert found["machine"] == {"cpu": "some"}
    assert suite["table"][0]["system"] == "bulktag"
    assert suite["table"][0]["images/s steady"] == pytest.approx(100.0)
    assert suite["bars"] == [{"text": "steady state", "value": 0.5, "wanted": 0.9, "at_most": False, "kept": False}]
    assert suite["runs"] == {"1": []}


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--suite", "speed"], "expected a suite of tag"),
        (["--peers", "spark"], "expected a peer of beam"),
        (["--counts", "300", "100"], "smallest first, got 300 100"),
        (["--images", "/nowhere"], "expected a folder of photos"),
    ],
)
def test_a_wrong_request_is_one_line(flags, message, capsys):
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_options_become_the_context():
    flags = ["--suite", "retag,tag", "--peers", "none", "--counts", "5", "9", "--engines", "openvino/int8"]
    context, suites = make_context(build_parser().parse_args(flags))
    assert suites == ["retag", "tag"]
    assert (context.peers, context.counts, context.engines) == ((), (5, 9), ("openvino/int8",))


def test_distances_from_a_line_are_shares():
    _, off = fit_line([1, 2, 3], [10.0, 20.0, 30.0])
    assert off == pytest.approx([0, 0, 0])
    line, off = fit_line([1, 2, 3], [10.0, 26.0, 30.0])
    assert off == pytest.approx([10 / 12 - 1, 26 / 22 - 1, 30 / 32 - 1])
    assert line == pytest.approx([12, 22, 32])


def test_a_gpus_use_counts_between_its_first_and_last_work():
    samples = [(0.0, 1.0), (0.0, 1.0), (0.9, 1.0), (0.0, 1.0), (0.9, 1.0), (0.0, 1.0)]
    assert steady_share(samples) == pytest.approx(0.6)
    assert steady_share([(0.0, 1.0)]) is None
