"""What the mount tells about files and directories when it does not know the latest."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tests.standin.space import walk


class Told(NamedTuple):
    """The part of a file's attributes that travels by events: bytes, nanoseconds."""

    size: int
    mtime_ns: int
    ctime_ns: int


class Late:
    """Sizes and times as they were before, until a change is ``seconds`` old.

    A file made since then is told with 0 bytes. An append knows where its file ends; with
    ``own`` false this mount knows at once what it changed itself.
    """

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._seconds = 0.0
        self._own = True
        self._known: dict[int, Told] = {}
        self._changed_here: set[int] = set()

    def set(self, seconds: float, own: bool = True) -> None:
        """Let changes be told this late from now on; 0 tells all at once."""
        self._seconds, self._own = seconds, own
        self._changed_here.clear()
        found = walk(self._root) if seconds else []
        self._known = {status.st_ino: real_of(status) for _, status in found}

    def changed(self, ino: int) -> None:
        """Note that this mount itself changed a file."""
        if self._seconds:
            self._changed_here.add(ino)

    def told(self, status: os.stat_result) -> Told:
        """Return what the mount tells of a file in this state."""
        real = real_of(status)
        fresh = time.time_ns() - real.ctime_ns < self._seconds * 10**9
        if fresh and (self._own or status.st_ino not in self._changed_here):
            return self._known.get(status.st_ino, real._replace(size=0))
        if self._seconds:
            self._known[status.st_ino] = real
        return real


def real_of(status: os.stat_result) -> Told:
    """Return a file's attributes as they are."""
    return Told(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Listings:
    """Directories as they are listed: without some names, or as they once were.

    A look-up by name always finds what is there.
    """

    def __init__(self, root: bytes, hidden: str) -> None:
        self._root = root
        self._always = [hidden] if hidden else []
        self._hidden: list[str] = []
        self._frozen: dict[bytes, list[bytes]] = {}

    def verbs(self) -> dict[str, Callable[..., Any]]:
        """Return what the control socket may ask of the listings."""
        return {"hide": self._hide, "freeze": self._freeze, "show": self._show}

    def names(self, path: str) -> list[str]:
        """Return what a listing of a directory shows."""
        at = self._root + os.fsencode(path)
        listed = self._frozen.get(os.path.normpath(at)) if self._frozen else None
        names = map(os.fsdecode, os.listdir(at) if listed is None else listed)
        patterns = self._always + self._hidden
        inside = path.rstrip("/")
        return [n for n in names if not any(re.search(p, f"{inside}/{n}") for p in patterns)]

    def _hide(self, pattern: str) -> None:
        self._hidden.append(pattern)

    def _freeze(self) -> None:
        below = [path for path, status in walk(self._root) if stat.S_ISDIR(status.st_mode)]
        found = [os.path.normpath(path) for path in (self._root, *below)]
        self._frozen = {path: os.listdir(path) for path in found}

    def _show(self) -> None:
        self._hidden.clear()
        self._frozen = {}
