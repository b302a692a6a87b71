"""What a person sees, on a terminal and in a file."""

import collections
import os
import pty
import subprocess
import sys

import pytest

from bulktag.pipeline import console
from bulktag.pipeline.console import ProgressDisplay, print_table, printable, warn

SHOW = """
import collections, time
from bulktag.pipeline import console
console.LOG_EVERY_S = 0.3
with console.ProgressDisplay("tag") as display:
    for done in range(0, 1300, 100):
        display.update(collections.Counter(matched=1200, done=done, errors=2))
        time.sleep(0.15)
console.say("the end")
"""


def test_names_of_files_and_labels_cannot_write_on_the_terminal(capsys):
    assert printable("a\x1b[31m\nb é日") == "a\\x1b[31m\\nb é日"
    print_table(("label",), [("[/red]\n",)], title="[bold]x[/].jpg")
    warn("[/red] \udc80")
    captured = capsys.readouterr()
    assert captured.out.split() == ["[bold]x[/].jpg", "label", "[/red]\\n"]
    assert captured.err == "warning: [/red] \\udc80\n"


def test_tables_in_files_are_never_folded(capsys):
    long = "/photos/" + "x" * 300
    print_table(("uri", "images", "share"), [(long, 3, 0.5), ("b", 10, 2e9)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == [long, "3", "0.5000"] and lines[2].split() == ["b", "10", "2e+09"]
    assert len(lines) == 3


def test_a_log_gets_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(console, "LOG_EVERY_S", 0.0)
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressDisplay("tag") as display:
        display.update(collections.Counter(matched=10, done=3, errors=1))
        display._first_done = (display._first_done[0] - 2, 0)
        display.update(collections.Counter(matched=10, done=7, errors=1))
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tag: 4 of 10 images, starting, 1 errors, ")
    assert second.startswith("tag: 8 of 10 images, 4 images/s, 1 errors, ") and second.endswith(" s left")


def _on_terminal(environment) -> str:
    master, slave = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", SHOW], stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    shown = b""
    while True:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break  # the other end is closed
        if not chunk:
            break
        shown += chunk
    assert process.wait(30) == 0
    os.close(master)
    return shown.decode()


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_one_live_line_and_a_simple_one_plain_lines(term):
    shown = _on_terminal({**os.environ, "TERM": term, "COLUMNS": "120"})
    assert "1202" in shown and "2 errors" in shown and "images/s" in shown
    assert shown.rstrip().endswith("the end")
    assert ("\x1b[2K" in shown) == (term == "xterm")
    assert (shown.count("\n") > 4) == (term == "dumb")
