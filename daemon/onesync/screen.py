"""Shows views to a person: in colour on a terminal, plain elsewhere. Never wraps what is piped."""

from __future__ import annotations

import io
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from math import ceil
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from onesync.core.diagnosis import Check, Verdict, summary
from onesync.core.model import printable
from onesync.core.view import Look, Tone, View, is_moving, rows_of, view_of

_STYLES = {
    Tone.GOOD: "green",
    Tone.BUSY: "cyan",
    Tone.WAITING: "yellow",
    Tone.BAD: "red",
    Tone.QUIET: "dim",
}
_VERDICTS = {
    Verdict.OK: Tone.GOOD,
    Verdict.WARNING: Tone.WAITING,
    Verdict.FAILURE: Tone.BAD,
    Verdict.NOT_CHECKED: Tone.QUIET,
}
_LABEL_WIDTH = 12
_CHECK_WIDTH = 19
_SECOND_LOOK_SECONDS = 0.5
_RATE_SECONDS = 10.0
"""The rate is that of so many seconds: batches come in bursts."""


def show_once(look: Callable[[], Look]) -> None:
    """Print what ``look`` finds; where something moves it looks twice, to tell how fast."""
    console = _console()
    found, earlier = look(), None
    if is_moving(found):
        time.sleep(_SECOND_LOOK_SECONDS)
        found, earlier = look(), found
    console.print(_text(view_of(found, earlier)), soft_wrap=True)


def watch(look: Callable[[], Look], interval: float) -> None:
    """Show what ``look`` finds every ``interval`` seconds, until Ctrl-C or SIGTERM.

    On a terminal it is drawn anew in place, elsewhere one view follows the other.
    """
    # A plain death would leave the terminal without its cursor.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = _console()
    with suppress(KeyboardInterrupt):
        if not console.is_terminal or console.is_dumb_terminal:
            _follow(look, interval, lambda text: console.print(text, soft_wrap=True, end="\n\n"))
            return
        with Live(console=console, auto_refresh=False) as live:
            _follow(look, interval, lambda text: live.update(text, refresh=True))


def watch_files(ask: Callable[[], Mapping[str, Any]], interval: float, *, is_once: bool) -> None:
    """Show the files on their way (control command ``flights``), until Ctrl-C or once."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = _console()
    if is_once:
        console.print(_table(ask()), soft_wrap=True)
        return
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_table(ask()), refresh=True)
            time.sleep(interval)


def _table(found: Mapping[str, Any]) -> Table:
    others = found["others"]
    told = ", ".join(f"{count} {name}" for name, count in sorted(others.items())) or "none"
    table = Table(
        box=None,
        title=f"{len(found['files'])} files on their way, other calls: {told};"
        f" small ones: at most {found['allowed']} at once",
        title_justify="left",
        pad_edge=False,
    )
    for name in ("way", "moved", "for", "rate"):
        table.add_column(name, no_wrap=True)
    table.add_column("file", overflow="fold")
    for row in rows_of(found["files"]):
        cells = (row.way, row.moved, row.seconds, row.rate, row.path)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _follow(look: Callable[[], Look], interval: float, draw: Callable[[Text], None]) -> None:
    looks: deque[Look] = deque(maxlen=1 + ceil(_RATE_SECONDS / interval))
    while True:
        looks.append(look())
        earlier = looks[0] if len(looks) > 1 else None
        draw(_text(view_of(looks[-1], earlier)))
        time.sleep(interval)


def show_checks(checks: Iterable[Check]) -> list[Check]:
    """Print each check as soon as it is made, and how it all went; returns them."""
    console, made = _console(), []
    for check in checks:
        made.append(check)
        console.print(_line(check), soft_wrap=True)
    console.print(summary(made), soft_wrap=True)
    return made


def _line(check: Check) -> Text:
    text, style = Text(), _STYLES[_VERDICTS[check.verdict]]
    text.append(f"{check.verdict:{_LABEL_WIDTH}}", style=style)
    text.append(f"{check.name:{_CHECK_WIDTH}}", style="bold")
    text.append(printable(check.found))
    if check.remedy:
        text.append("\n" + " " * (_LABEL_WIDTH + _CHECK_WIDTH) + printable(check.remedy))
    return text


def _console() -> Console:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name need not fit the locale
    return Console(highlight=False, markup=False, emoji=False)


def _text(view: View) -> Text:
    """Return the view's lines; names in it are no markup."""
    text = Text()
    text.append(view.word, style=f"bold {_STYLES[view.tone]}")
    text.append(f": {view.meaning}")
    for line in view.lines:
        text.append(f"\n  {line.label:{_LABEL_WIDTH}}", style="dim")
        text.append(line.text, style=_STYLES[line.tone] if line.tone else "")
    if view.problems:
        text.append("\nproblems", style="bold")
    for line in view.problems:
        text.append(f"\n  {line.label}: ", style=_STYLES[line.tone] if line.tone else "")
        text.append(line.text)
    return text
