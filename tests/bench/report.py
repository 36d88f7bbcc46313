"""What was measured, for people: a table, and the section of the README."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from tests.bench.scenarios import SPREAD, Row
from tests.bench.targets import TARGETS

ENTRIES = "rescan of all entries"
_OF_SCALE = (
    "manifest folded",
    "idle",
    "final flush, nothing dirty",
    "staged in, but for the copying",
)
_HEAD = ("tool", "time", "a file", "calls a file", "written", "read", "CPU", "memory", "x onesync")
_BEGIN, _END = "<!-- bench -->", "<!-- /bench -->"


def machine() -> str:
    """Return what it was measured on, and when."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    name = model[1] if model else platform.machine()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    load = os.getloadavg()[0]
    kernel = platform.release().partition("-")[0]
    return (
        f"{os.cpu_count()} cores ({name}), {pages / 2**30:.0f} GiB, Linux {kernel},"
        f" Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}, load {load:.1f} at the"
        " end"
    )


def as_json(rows: Iterable[Row], failed: Mapping[str, str], place: str) -> str:
    """Return everything as JSON."""
    found = {"machine": place, "failed": failed, "rows": [asdict(row) for row in rows]}
    return json.dumps(found, indent=1) + "\n"


def table(rows: list[Row], failed: Mapping[str, str]) -> str:
    """Return a table in Markdown for each scenario; ratios are of the time that a file takes.

    ``failed`` are the scenarios that broke off, and why.
    """
    parts = _scenarios(rows)
    parts += [
        f"**{name}** broke off, what it lacks was not measured: {failed[name]}\n" for name in failed
    ]
    return "\n".join([*parts, "**Targets**\n", targets(rows), ""])


def _scenarios(rows: list[Row]) -> list[str]:
    scenarios = dict.fromkeys(row.scenario for row in rows if _is_told(row))
    parts = [_scenario(name, [row for row in rows if row.scenario == name]) for name in scenarios]
    entries = [row for row in rows if row.scenario in (ENTRIES, *_OF_SCALE)]
    return [*parts, _entries(entries)] if entries else parts


def _is_told(row: Row) -> bool:
    """Whether a row stands beside those of other tools, and is in no plot alone."""
    plotted = row.scenario in ("files", "latency") or row.scenario.startswith(SPREAD)
    return not plotted and row.scenario not in (ENTRIES, *_OF_SCALE)


def _scenario(name: str, rows: list[Row]) -> str:
    first = rows[0]
    ours = next((row.seconds_each for row in rows if row.tool == "onesync"), 0.0)
    title = f"**{name}**, {first.latency * 1000:g} ms a call"
    lines = [title, "", _line(_HEAD), _line(["---", *["--:"] * (len(_HEAD) - 1)])]
    lines += [_line(_cells(row, ours)) for row in rows]
    lines += [f"\n{row.tool}: {row.note}" for row in rows if row.note]
    return "\n".join([*lines, ""])


def _cells(row: Row, ours: float) -> list[str]:
    many = f" ({row.files:,})" if row.files > 1 else ""
    ratio = row.seconds_each / ours if ours else 0.0
    return [
        row.tool + many,
        _seconds(row.seconds),
        _seconds(row.seconds_each) if row.files > 1 else "",
        f"{row.calls_each:,.1f}",
        _bytes(row.written),
        _bytes(row.read) if row.read >= 0 else "",
        f"{row.cpu:.1f} s" if row.cpu else "",
        _bytes(row.memory) if row.memory else "",
        f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}",
    ]


def summary(rows: list[Row]) -> str:
    """Return one table of all scenarios: time and calls, of one file where there are many."""
    told = list(filter(_is_told, rows))
    tools = list(dict.fromkeys(row.tool.partition(" --")[0] for row in told))
    lines = [_line(["", *tools]), _line(["---", *["--:"] * len(tools)])]
    for scenario in dict.fromkeys(row.scenario for row in told):
        mine = [row for row in told if row.scenario == scenario]
        cells = [_best(row for row in mine if row.tool.partition(" --")[0] == t) for t in tools]
        lines.append(_line([f"{scenario}, {mine[0].latency * 1000:g} ms a call", *cells]))
    return "\n".join(lines)


def _best(rows: Iterable[Row]) -> str:
    """Return the quickest of a tool's ways in few words."""
    row = min(rows, key=lambda row: row.seconds_each, default=None)
    if row is None:
        return ""
    written = f", {row.written / 1e6:,.0f} MB" if row.files == 1 and row.written >= 1e6 else ""
    calls = f"{row.calls_each:,.1f}" if row.calls_each % 1 else f"{row.calls_each:,.0f}"
    slowed = f"writer {100 * row.slowed:+.0f} %" if row.slowed is not None else ""
    way = "".join(row.tool.partition(" --")[1:]).strip()
    note = "".join(f"; {text}" for text in (way, slowed, row.note) if text)
    return f"{_seconds(row.seconds_each)}, {calls} calls{written}{note}"


def targets(rows: list[Row]) -> str:
    """Return a table of what was to be reached and was measured."""
    lines = [_line(["target", "wanted", "measured", ""]), _line(["---", "--:", "--:", "---"])]
    lines += [_line(cells) for target in TARGETS if (cells := target.line(rows)) is not None]
    return "\n".join(lines)


def _entries(rows: list[Row]) -> str:
    lines = ["**projects of many entries**", ""]
    lines += [
        _line(["", "entries", "time", "memory", ""]),
        _line(["---", "--:", "--:", "--:", "---"]),
    ]
    for row in rows:
        time = _seconds(row.seconds) if row.seconds else ""
        cells = [row.scenario, f"{row.files:,}", time, _bytes(row.memory), row.note]
        lines.append(_line(cells))
    return "\n".join([*lines, ""])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seconds(seconds: float) -> str:
    if 0 < seconds < 1e-4:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _bytes(number: int) -> str:
    return f"{number / 1e6:,.1f} MB"


def into_readme(readme: Path, rows: list[Row], place: str, plot: Path) -> None:
    """Put the summary and one plot between the marks of the README."""
    shown = readme.parent / "tests" / "bench" / plot.name
    if plot.exists():
        shown.write_bytes(plot.read_bytes())
    drawn = f"\n\n![time against latency](tests/bench/{plot.name})" if plot.exists() else ""
    whole = "\n".join(["<details><summary>All of it</summary>\n", *_scenarios(rows), "</details>"])
    text = f"Measured on {place}:\n\n{summary(rows)}\n\n{targets(rows)}{drawn}\n\n{whole}\n"
    before, _, rest = readme.read_text().partition(_BEGIN)
    after = rest.partition(_END)[2]
    readme.write_text(f"{before}{_BEGIN}\n{text}\n{_END}{after}")
