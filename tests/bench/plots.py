"""What was measured, as plots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from tests.bench.report import ENTRIES
from tests.bench.scenarios import SPREAD, Row


def draw(rows: list[Row], folder: Path) -> list[Path]:
    """Draw what was measured against files, latency, directories and entries; returns the files."""
    drawn = []
    for name, across, label in (
        ("files", lambda row: row.files, "new files of 4 KB over 20 directories, 10 ms a call"),
        ("latency", lambda row: row.latency * 1000, "milliseconds a call takes"),
        (SPREAD, _spread, "directories that 500 new files are spread over, 10 ms a call"),
    ):
        found = [row for row in rows if row.scenario.startswith(name)]
        if found:
            path = folder / f"{name.partition(':')[0]}.png"
            drawn.append(_against(found, across, label, path))
    entries = [row for row in rows if row.scenario == ENTRIES]
    if entries:
        drawn.append(_against_entries(entries, folder / "entries.png"))
    return drawn


def _spread(row: Row) -> float:
    return float(row.scenario.removeprefix(SPREAD))


def _against(rows: list[Row], across: Callable[[Row], float], label: str, path: Path) -> Path:
    figure, axes = plt.subplots(figsize=(6.4, 4))
    is_of_files = path.stem == "files"
    for tool in dict.fromkeys(row.tool for row in rows):
        mine = [row for row in rows if row.tool == tool]
        high = [row.seconds if is_of_files else row.seconds_each * 1000 for row in mine]
        axes.plot([across(row) for row in mine], high, marker="o", label=tool)
    axes.set_yscale("log")
    axes.set_xscale("linear" if path.stem == "latency" else "log")
    axes.set_xlabel(label)
    axes.set_ylabel("seconds" if is_of_files else "milliseconds a new file")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    return _saved(figure, path)


def _against_entries(rows: list[Row], path: Path) -> Path:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    number = [row.files for row in rows]
    left.plot(number, [row.memory / 1e6 for row in rows], marker="o")
    left.set_ylabel("MB resident, all processes")
    right.plot(number, [row.seconds for row in rows], marker="o")
    right.set_ylabel("seconds of a full rescan")
    for axes in (left, right):
        axes.set_xlabel("entries")
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
    return _saved(figure, path)


def _saved(figure: Any, path: Path) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
