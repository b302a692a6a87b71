import json

import pytest

from benchmarks.bench import main

pytestmark = pytest.mark.slow


def _run(tmp_path, *flags):
    report = tmp_path / "report.json"
    common = ["--cache", str(tmp_path / "cache"), "--output", str(report), "--repeats", "1", "--counts", "6", "12"]
    code = main([*common, "--engines", "tensorflow", "--network", "builtin", "--batch-size", "4", *flags])
    return code, json.loads(report.read_text())["suites"]


def test_the_whole_comparison_runs_on_a_small_network(tmp_path, capsys):
    code, suites = _run(tmp_path, "--peers", "none")
    table, agreement = suites["tag"]["table"], suites["tag"]["agreement"]
    assert code == 0
    assert [row["system"] for row in table] == ["bulktag tensorflow", "limit, tensorflow"]
    assert table[0]["images/s in total"] > 0.1 and table[0]["peak MiB"] > 100
    assert agreement["tensorflow"]["images"] == 6
    assert agreement["tensorflow"]["cosine_min"] > 0.99
    assert "bulktag tensorflow" in capsys.readouterr().out


def test_start_up_and_a_slow_store_are_measured(tmp_path):
    code, suites = _run(tmp_path, "--suite", "startup,slow-store")
    assert code == 0
    assert suites["startup"]["table"][0]["s to the first batch"] > 1
    assert [row["system"] for row in suites["slow-store"]["table"]][-1] == "slow:// with 50 ms"
