"""The log of every call on the stand-in's mount, as lines of JSON; off until it is asked for.

Only ``opendir`` and ``releasedir`` are left out, which 18.02 does not have.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What is told of a call besides its path, in the order of its arguments; "" is left out.
_ARGUMENTS = {
    "write": ("size", "offset"),
    "read": ("size", "offset"),
    "truncate": ("size",),
    "rename": ("to",),
    "create": ("mode",),
    "mkdir": ("mode",),
    "chmod": ("mode",),
    "open": ("flags",),
    "fsync": ("datasync",),
    "fsyncdir": ("datasync",),
    "getxattr": ("name",),
}


@dataclass(frozen=True)
class Call:
    """One call; ``error`` is 0 for success and None where no answer was given.

    With ``later`` the call answered success, and its error is for a later call to tell. Of two
    calls the one that ``began`` after the other ``ended`` may have waited for it.
    """

    number: int
    operation: str
    path: str
    arguments: dict[str, Any]
    error: int | None = None
    later: bool = False
    began: int = 0
    ended: int = 0


class Log:
    """Writes two lines for each call: one when it comes, one when it is answered."""

    def __init__(self) -> None:
        self._fd: int | None = None

    def start(self, path: str) -> None:
        """Write into the file ``path`` from now on."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o644)

    def stop(self) -> None:
        """Write nothing any more."""
        if self._fd is not None:
            held, self._fd = self._fd, None
            os.close(held)

    def call(
        self, number: int, operation: str, path: str, arguments: tuple[Any, ...]
    ) -> AbstractContextManager[None]:
        """Note a call, and its answer when the block ends."""
        if self._fd is None:
            return contextlib.nullcontext()
        return self._noted(number, operation, path, arguments)

    @contextlib.contextmanager
    def _noted(
        self, number: int, operation: str, path: str, arguments: tuple[Any, ...]
    ) -> Iterator[None]:
        told = dict(zip(_ARGUMENTS.get(operation, ()), map(_plain, arguments), strict=False))
        self._write({"n": number, "operation": operation, "path": path, "arguments": told})
        answer: dict[str, Any] = {"n": number, "error": 0}
        try:
            yield
        except OSError as error:
            answer |= {"error": error.errno, "later": hasattr(error, "told_at")}
            raise
        finally:
            self._write(answer)

    def _write(self, line: dict[str, Any]) -> None:
        if (fd := self._fd) is not None:
            os.write(fd, json.dumps(line).encode() + b"\n")


def _plain(argument: Any) -> Any:
    return len(argument) if isinstance(argument, bytes) else argument


def read_log(path: Path) -> list[Call]:
    """Return the calls in the order in which they came."""
    calls: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(path.read_text().splitlines()):
        told = json.loads(line)
        when = "began" if "path" in told else "ended"
        calls.setdefault(told.pop("n"), {}).update(told, **{when: number})
    return [Call(number, **calls[number]) for number in sorted(calls) if "path" in calls[number]]


def rounds(calls: list[Call]) -> int:
    """Return how many of the calls came one after the other, each when the last was answered.

    That is what a slow mount is waited for, where every call takes the same time.
    """
    found, last = 0, -1
    for call in sorted(calls, key=lambda call: call.ended):
        if call.began > last:
            found, last = found + 1, call.ended
    return found
