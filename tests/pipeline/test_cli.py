"""The command: exit codes, one line for a user's mistake, help."""

import re

import pytest

from bulktag.pipeline import cli, signals
from bulktag.pipeline.cli import run_command

TAG = ("tag", "--input", "{photos}", "--model", "m", "--output", "o")
EXTRACT = ("extract", "--input", "{photos}", "--output", "{photos}.out")
VERBS = ("extract", "train", "evaluate", "tag", "classify")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a verb, got none"),
        (["tga"], "invalid choice: 'tga'"),
        (["tag", "--input", "{photos}", "--model", "m"], "the following arguments are required: --output"),
        ([*TAG, "--topk", "3"], "did you mean --top-k?"),
        ([*TAG, "--top-k", "x"], "expected top_k to be a whole"),
        ([*TAG, "--layout", "x"], "invalid choice: 'x'"),
        ([*TAG, "--runer", "x"], "got --runer (did you mean --runner?)"),
        ([*TAG, "--flink_version", "0.1"], "expected Beam options"),
        (["tag", "--input", "nowhere", "--model", "m", "--output", "o"], "found nothing there: nowhere"),
        (["tag", "--input", "{photos}", "--model", "nowhere", "--output", "{photos}.out"], "expected a model bundle"),
        (["tag", "--input", "ftp://x/y", "--model", "m", "--output", "o"], "got scheme 'ftp'"),
        (["tag", "--input", "{photos}", "--model", "m", "--output", "{photos}.out", "--run-date", "1 May"], "YYYY-MM"),
        ([*EXTRACT, "--backbone", "incepton_v3"], "inception_v3"),
        ([*EXTRACT, "--backbone", "vgg16", "--weights", "no.h5"], "no.h5"),
        ([*EXTRACT, "--split", "0.5", "0.6", "0.1"], "add up to 1"),
        ([*EXTRACT, "--device", "gpu"], "expected a GPU"),
        (["train", "--examples", "{photos}", "--model", "{photos}.model"], "expected a folder that extract wrote"),
        (["train", "--examples", "{photos}", "--model", "m", "--worker", "2"], "expected a known option, got --worker"),
        (["evaluate", "--examples", "{photos}", "--model", "m", "--output", "o"], "a folder that extract wrote"),
        (["classify", "--model", "m", "x.jpg"], "expected a model bundle"),
        (["demo", "--images-per-class", "1"], "expected images-per-class of at least 10"),
    ],
)  # fmt: skip
def test_a_wrong_request_costs_one_line_and_code_2(arguments, message, photos, capsys, monkeypatch):
    monkeypatch.chdir(photos)
    assert run_command([argument.format(photos=photos) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1, captured.err
    assert captured.out == ""
    assert list(photos.iterdir()) == []


@pytest.mark.parametrize("verb", VERBS)
def test_help_explains_every_option(verb, capsys):
    assert run_command([verb, "--help"]) == 0
    text = capsys.readouterr().out
    options = re.findall(r"^  (--[a-z-]+)(?: .*)?$", text, re.MULTILINE)
    assert len(options) > 5
    assert "Example: bulktag" in text
    assert "(required)" in text
    for name in ("batch-size", "max-bytes", "epochs", "top-k"):
        if f"--{name}" in options:
            assert re.search(rf"--{name} [^-]*?\(default: \d+\)", text, re.DOTALL), name


def test_version_and_help_end_well(capsys):
    assert run_command(["--version"]) == 0
    assert run_command(["--help"]) == 0
    assert "bulktag" in capsys.readouterr().out


def test_a_bug_keeps_its_traceback(monkeypatch, photos):
    def broken(job, config):
        raise ValueError("could not broadcast")

    monkeypatch.setattr(cli, "run_stage", broken)
    with pytest.raises(ValueError, match="could not broadcast"):
        run_command(["tag", "--input", str(photos), "--model", "m", "--output", "o"])


def test_a_full_disk_is_one_line_and_code_1(monkeypatch, photos, capsys):
    def full(job, config):
        raise RuntimeError("Traceback ...\nOSError: [Errno 28] No space left on device [while running 'WriteTags']")

    monkeypatch.setattr(cli, "run_stage", full)
    assert run_command(["tag", "--input", str(photos), "--model", "m", "--output", "o"]) == 1
    assert capsys.readouterr().err == "bulktag tag: failed: No space left on device, in a worker\n"


def test_interruptions_have_the_codes_of_their_signals(monkeypatch, photos):
    for error, code in ((KeyboardInterrupt, 130), (signals.Terminated, 143), (signals.HungUp, 129)):

        def stopped(job, config, error=error):
            raise error

        monkeypatch.setattr(cli, "run_stage", stopped)
        assert run_command(["tag", "--input", str(photos), "--model", "m", "--output", "o"]) == code
