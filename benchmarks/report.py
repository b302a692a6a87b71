"""Sections of a report: a table, bars and notes, on the terminal and as JSON."""

import dataclasses
import json
import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.rounds import Summary

SCHEMA_VERSION = 1
WIDTH_OF_FILES = 160


@dataclasses.dataclass(frozen=True)
class Bar:
    """A promise and what was measured.

    Attributes:
      text: what is promised, with its unit.
      value: measured.
      wanted: the least that keeps the promise, or the most.
      at_most: `wanted` is the most.
    """

    text: str
    value: float
    wanted: float
    at_most: bool = False

    @property
    def is_kept(self) -> bool:
        """Whether the promise is kept."""
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted


@dataclasses.dataclass
class Section:
    """What one suite found.

    Attributes:
      name: of the suite.
      title: above the table.
      columns, rows: the table; cells are text or numbers.
      bars: promises.
      notes: lines below.
      data: everything that was measured, for JSON.
    """

    name: str
    title: str
    columns: tuple[str, ...] = ()
    rows: list[tuple] = dataclasses.field(default_factory=list)
    bars: list[Bar] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


SUMMARY_COLUMNS = ("system", "images/s in total", "images/s steady", "CPU ms/image", "peak MiB")


def summary_cells(summary: Summary) -> tuple:
    """A row for SUMMARY_COLUMNS."""
    return (
        summary.name, summary.images_per_s, summary.steady_images_per_s, 1000 * summary.cpu_s_per_image,
        round(summary.peak_mib),
    )  # fmt: skip


def print_section(section: Section, console: Console | None = None) -> None:
    """Print one section."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(file=console.file, highlight=False, width=WIDTH_OF_FILES)
    console.print(f"\n{section.title}", style="italic", markup=False)
    if section.rows:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for i, column in enumerate(section.columns):
            is_number = any(isinstance(row[i], int | float) for row in section.rows)
            table.add_column(column, justify="right" if is_number else "left", overflow="fold")
        for row in section.rows:
            table.add_row(*map(format_cell, row))
        console.print(table)
    for bar in section.bars:
        verdict = "kept" if bar.is_kept else "MISSED"
        line = f"bar {verdict}: {bar.text}: {bar.value:.4g} ({'most' if bar.at_most else 'least'} {bar.wanted:.4g})"
        console.print(line, style="" if bar.is_kept else "bold red", markup=False)
    for note in section.notes:
        console.print(f"note: {note}", markup=False)


def format_cell(cell) -> str:
    """Text of a cell: three digits that count."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def to_json(machine: dict, options: dict, sections: list[Section]) -> dict:
    """The report as plain values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "machine": machine,
        "options": options,
        "suites": {
            section.name: {
                "title": section.title,
                "table": [dict(zip(section.columns, row, strict=True)) for row in section.rows],
                "bars": [dataclasses.asdict(bar) | {"kept": bar.is_kept} for bar in section.bars],
                "notes": section.notes,
                **section.data,
            }
            for section in sections
        },
    }


def write_json(path: pathlib.Path, report: dict) -> None:
    """Write a report; numbers that are none become null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, default=_plain) + "\n", encoding="utf-8")


def _plain(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return str(value)
