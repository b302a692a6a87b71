"""What a person sees: progress while a job runs, and its result."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LOG_EVERY_S = 10.0
WIDTH_OF_FILES = 10_000

# Results go to standard output, everything about the way there to standard error: `bulktag ... > file` stays clean.
OUT = Console(highlight=False, soft_wrap=True)
ERR = Console(stderr=True, highlight=False, soft_wrap=True)


def _is_live() -> bool:
    """Whether lines can be written over: FORCE_COLOR makes no terminal of a log, and some terminals are too simple."""
    return ERR.is_interactive and ERR.file.isatty()


class ProgressDisplay:
    """Done, rate, errors and time left: one live line on a terminal, a plain line every ten seconds in a log."""

    def __init__(self, title: str, unit: str = "images"):
        self.title, self._unit = title, unit
        self._start = self._last_line = time.monotonic()
        self._first_done: tuple[float, int] | None = None
        self._live = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(), TimeRemainingColumn(), console=ERR, transient=True,
        ) if _is_live() else None  # fmt: skip
        self._task = None

    def __enter__(self):
        if self._live:
            self._live.start()
            self._task = self._live.add_task(self.title, total=None, note="starting")
        return self

    def __exit__(self, *_):
        if self._live:
            self._live.stop()

    def update(self, totals: Counter) -> None:
        """Show totals: matched, done and errors so far."""
        done = totals["done"] + totals["errors"]
        now = time.monotonic()
        if done and self._first_done is None:
            self._first_done = (now, done)
        rate = self._rate(now, done)
        note = f"{rate:{'.0f' if rate >= 3 else '.2f'}} {self._unit}/s" if rate else "starting"
        if totals["errors"]:
            note += f", {totals['errors']} errors"
        if self._live:
            self._live.update(self._task, completed=done, total=totals["matched"] or None, note=note)
        elif now - self._last_line >= LOG_EVERY_S:
            self._last_line = now
            left = max(totals["matched"] - done, 0) / rate if rate else 0
            text = f"{self.title}: {done} of {totals['matched']} {self._unit}, {note}"
            ERR.print(text + (f", {left:.0f} s left" if rate else f", {now - self._start:.0f} s"), markup=False)

    def _rate(self, now: float, done: int) -> float:
        """Since the first batch came through, so that start-up does not make the time left look long."""
        if self._first_done is None or now - self._first_done[0] < 1:
            return 0.0
        return (done - self._first_done[1]) / (now - self._first_done[0])


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Show on a terminal that something is going on that may take a few seconds."""
    if not _is_live():
        yield
        return
    with ERR.status(text):
        yield


def say(text: str = "") -> None:
    """A line about the way to the result."""
    ERR.print(printable(text), markup=False)


def warn(text: str) -> None:
    """Something that the user should know, though the job goes on."""
    ERR.print(f"warning: {printable(text)}", markup=False, style="yellow")


def printable(text: str) -> str:
    """The text on one line, its control characters escaped: names of files and labels may hold any."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def print_table(columns: tuple[str, ...], rows: list[tuple], title: str = "") -> None:
    """A small table on standard output; numbers are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, name in enumerate(columns):
        is_number = bool(rows) and isinstance(rows[0][i], int | float)
        table.add_column(Text(printable(name)), justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_cell_text, row))
    # What another program reads is never folded.
    console = OUT if OUT.is_terminal else Console(file=OUT.file, highlight=False, width=WIDTH_OF_FILES)
    if title:  # a title of the table itself would be folded to its width
        console.print(Text(printable(title), "italic"), soft_wrap=True)
    console.print(table)


def _cell_text(cell) -> Text:
    if isinstance(cell, float):
        return Text(f"{cell:.4f}" if abs(cell) < 1e6 else f"{cell:.3g}")
    return Text(printable(str(cell)))


class TrainingDisplay:
    """Step, accuracies and cross-entropy: one live line on a terminal, a plain line every ten seconds in a log."""

    def __init__(self):
        self._last_line = time.monotonic()
        self._status = ERR.status("training: reading the examples") if _is_live() else None

    def __enter__(self):
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_):
        if self._status:
            self._status.stop()

    def update(self, progress) -> None:
        """Show a `bulktag.model.fitting.Progress`."""
        validation = "" if progress.validation_accuracy is None else f"{progress.validation_accuracy:.3f}"
        text = (
            f"epoch {progress.epoch}, step {progress.step}: training accuracy {progress.training_accuracy:.3f}, "
            f"validation accuracy {validation or '-'}, cross-entropy {progress.cross_entropy:.3f}"
        )
        if progress.resumed_epochs:
            text += f" (resumed after epoch {progress.resumed_epochs})"
        if self._status:
            self._status.update(text)
        elif time.monotonic() - self._last_line >= LOG_EVERY_S:
            self._last_line = time.monotonic()
            ERR.print(text, markup=False)
