"""The storage behind the stand-in: how much it takes, and whether it takes anything."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any


def walk(root: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Return every path below a directory; what goes meanwhile is left out."""
    for name in os.listdir(root):
        path = os.path.join(root, name)
        with contextlib.suppress(FileNotFoundError):
            status = os.lstat(path)
            yield path, status
            if stat.S_ISDIR(status.st_mode):
                yield from walk(path)


class Space:
    """The storage's limits: a quota in bytes, and whether it is read-only."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._quota: int | None = None
        self._used = 0
        self.number = 0
        self.told_at = ""
        self.read_only = False

    def verbs(self) -> dict[str, Callable[..., Any]]:
        """Return what the control socket may ask of the space."""
        return {"quota": self._limit, "read_only": self._protect}

    def admits(self, growth: int) -> bool:
        """Tell whether a file may grow by so many bytes, and count them if so."""
        if self._quota is None or growth <= 0:
            return True
        if self._used + growth > self._quota:
            self._used = self._measured()
        if self._used + growth > self._quota:
            return False
        self._used += growth
        return True

    def _limit(self, size: int | None, number: int, told_at: str) -> None:
        if told_at not in ("write", "fsync", "close"):
            raise ValueError(told_at)
        self._quota, self.number, self.told_at = size, number, told_at
        self._used = self._measured()

    def _protect(self, on: bool) -> None:
        self.read_only = on

    def _measured(self) -> int:
        found = (status for _, status in walk(self._root))
        return sum(status.st_size for status in found if stat.S_ISREG(status.st_mode))
