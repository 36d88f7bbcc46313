"""Shows how far a phase is: a bar on a terminal, ``STATUS=`` under systemd, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from onesync.core.view import size_text
from onesync.systemd import Notifier

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

log = logging.getLogger(__name__)

_STATUS_SECONDS = 1.0
_LOG_SECONDS = 10.0
_LOOK_SECONDS = 0.3


class Progress:
    """Safe in several threads."""

    def __init__(self, notifier: Notifier) -> None:
        """Show on standard error when that is a terminal."""
        self._notifier = notifier
        self._guard = threading.Lock()
        self._phase = "starting"
        self._copied = 0
        self._earlier = 0
        self._since = time.time()
        self._files = (0, 0)
        self._shown = 0.0
        self._logged = time.monotonic()
        self._bar = _make_bar() if sys.stderr.isatty() else None

    def phase(self, name: str) -> None:
        """Begin a phase."""
        with self._guard:
            if name == self._phase:
                return
            self._earlier += self._copied
            self._phase, self._copied = name, 0
            self._since, self._files = time.time(), (0, 0)
            self._drop_bar()
            self._notifier.status(name.replace("_", " "))

    def copied(self, size: int) -> None:
        """Count bytes that travelled."""
        with self._guard:
            self._copied += size

    def advanced(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` files are done, not more often than a person can read."""
        now = time.monotonic()
        with self._guard:
            self._files = done, total
            if now - self._shown < _STATUS_SECONDS and done != total:
                return
            self._shown = now
            size = self._size()
            told = f"{self._phase.replace('_', ' ')}: {done} of {total}"
            self._notifier.status(f"{told}, {size}" if size else told)
            if self._bar is not None:
                self._draw(self._bar, done, total, size)
            elif now - self._logged >= _LOG_SECONDS:
                self._logged = now
                log.info(self._phase, extra={"done": done, "of": total, "bytes": self._copied})

    def _size(self) -> str:
        """Return how much travelled in this phase, and how fast; nothing where nothing did."""
        if not self._copied:
            return ""
        seconds = max(time.time() - self._since, 0.1)  # a clock may be set back
        return f"{size_text(self._copied)}, {size_text(self._copied / seconds)}/s"

    def moved(self) -> int:
        """Return the bytes that travelled since the start."""
        with self._guard:
            return self._earlier + self._copied

    def told(self) -> dict[str, Any]:
        """Return how far the phase is, as the status document has it."""
        with self._guard:
            done, total = self._files
            return {"since": self._since, "done": done, "total": total, "bytes": self._copied}

    def end(self) -> None:
        """Take the bar away."""
        with self._guard:
            self._drop_bar()

    def _draw(self, bar: Bar, done: int, total: int, size: str) -> None:
        if not bar.tasks:
            bar.start()
            bar.add_task(self._phase.replace("_", " "), total=total, rate="")
        bar.update(bar.tasks[0].id, completed=done, total=total, rate=size)

    def _drop_bar(self) -> None:
        if self._bar is not None and self._bar.tasks:
            self._bar.stop()
            self._bar.remove_task(self._bar.tasks[0].id)


@contextmanager
def shown(phase: str) -> Iterator[Progress]:
    """Show on a terminal how far a command is, with what it yields."""
    progress = Progress(Notifier())
    progress.phase(phase)
    try:
        yield progress
    finally:
        progress.end()


@contextmanager
def following(look: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Show on a terminal how a daemon's backlog shrinks, as its status documents tell."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(look, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(look: Callable[[], Mapping[str, Any]], ended: threading.Event) -> None:
    most, moved = 0, look()["moved_bytes"]
    with shown("flush") as progress:
        while not ended.wait(_LOOK_SECONDS):
            found = look()
            most = max(most, found["pending_paths"])
            progress.copied(max(0, found["moved_bytes"] - moved))
            moved = found["moved_bytes"]
            progress.advanced(most - found["pending_paths"], most)


def _make_bar() -> Bar:
    # Imported where a person looks on: a daemon does without, in time and memory.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
