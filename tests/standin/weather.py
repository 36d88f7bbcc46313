"""What may befall a call on the stand-in's mount: faults, hangs, latency; and the counts."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY = "*"
_CHANGES = ("write", "truncate", "mkdir", "rmdir", "unlink", "rename", "chmod", "utimens")
DROPPABLE = frozenset((*_CHANGES, "read", "flush", "fsync", "store"))


class Deferred(OSError):
    """An error that its call does not tell: a later call on the same handle does, once."""

    def __init__(self, number: int, told_at: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.told_at = told_at


@dataclass
class Fault:
    """Befalls ``times`` calls (-1: for ever), from the ``nth`` matching one on.

    ``effect`` is ``fail`` (with the errno ``number``), ``drop`` (success, and nothing done; a read
    tells zeros), ``kill`` (the client dies, or the processes ``victims``, with all that they
    started unless those become ``orphans``), ``hang`` (until released) or ``wait`` (``delay``
    seconds, which every effect waits first). With ``applied`` the call is carried out before it
    fails, hangs or kills. A write fails late, as a buffered one does, unless ``at_once``. The
    kernel asks again after one failed ``getattr`` of a name that it knows; its caller sees nothing.
    """

    operation: str
    number: int = 0
    effect: str = "fail"
    nth: int = 1
    times: int = 1
    pattern: str = ""
    probability: float = 1.0
    seed: int = 0
    delay: float = 0.0
    applied: bool = False
    at_once: bool = False
    victims: tuple[int, ...] = ()
    orphans: bool = False
    seen: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.effect not in ("fail", "drop", "kill", "hang", "wait"):
            raise ValueError(self.effect)
        if self.effect == "drop" and self.operation not in DROPPABLE | {EVERY}:
            raise ValueError(f"{self.operation} cannot be dropped")
        self._chance = random.Random(self.seed)

    def strikes(self, operation: str, path: str) -> bool:
        """Count a call and tell whether it is befallen."""
        if not self.times or not self._matches(operation, path):
            return False
        self.seen += 1
        if self.seen < self.nth or self._chance.random() >= self.probability:
            return False
        self.times -= 1 if self.times > 0 else 0
        return True

    def _matches(self, operation: str, path: str) -> bool:
        if self.operation != operation and self.operation != EVERY:
            return False
        if self.effect == "drop" and operation not in DROPPABLE:
            return False
        return re.search(self.pattern, path) is not None

    def befall(self, operation: str, carry_out: Callable[[], Any], drop: Callable[[], Any]) -> Any:
        """Answer a call that this fault befalls."""
        time.sleep(self.delay)
        if self.effect == "wait":
            return carry_out()
        if self.effect == "drop":
            return drop()
        outcome = _outcome(carry_out) if self.applied else carry_out
        if self.effect == "kill":
            return self._kill(outcome)
        if self.effect == "hang":
            self.over.wait()
            return outcome()
        if operation == "write" and not self.at_once and not self.applied:
            raise Deferred(self.number)
        raise OSError(self.number, os.strerror(self.number))

    def _kill(self, outcome: Callable[[], Any]) -> Any:
        ours = os.getpid()
        for victim in self.victims:
            if victim != ours:
                kill(victim, orphans=self.orphans)
        if not self.victims or ours in self.victims:
            os.kill(ours, signal.SIGKILL)
        if self.applied:
            return outcome()
        raise OSError(errno.EINTR, "nobody is left to see it")


def _outcome(carry_out: Callable[[], Any]) -> Callable[[], Any]:
    """Carry a call out now; return what tells how it went, which may be an error of its own."""
    try:
        answer = carry_out()
    except OSError as error:
        failed = error

        def tell() -> Any:
            raise failed

        return tell
    return lambda: answer


def kill(pid: int, *, orphans: bool) -> None:
    """Kill a process, and unless they become ``orphans`` those that it started."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)  # so that it starts no other one
        started = [child for child, parent in _parents() if parent == pid and not orphans]
        for victim in (*started, pid):
            os.kill(victim, signal.SIGKILL)


def _parents() -> Iterator[tuple[int, int]]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = status.read_text().rpartition(")")[2].split()
            yield int(status.parent.name), int(fields[1])


class Weather:
    """What the control socket sets for every call; used by many threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self._calls = 0
        self._latency = 0.0
        self._clear_sky = threading.Event()
        self._clear_sky.set()
        self._guard = threading.Lock()

    def verbs(self) -> dict[str, Callable[..., Any]]:
        """Return what the control socket may ask of the weather."""
        return {
            "counts": lambda: dict(self.counts),
            "reset": self.counts.clear,
            "latency": self._slow,
            "fail": self._befall,
            "clear": self._clear,
            "hang": self._clear_sky.clear,
            "release": self._release,
        }

    def meet(self, operation: str, path: str) -> tuple[int, Fault | None]:
        """Count a call, let it wait; return its number and the fault that befalls it."""
        with self._guard:
            self.counts[operation] += 1
            self._calls += 1
            number, fault = self._calls, self._struck(operation, path)
        self._clear_sky.wait()
        if self._latency:
            time.sleep(self._latency)
        return number, fault

    def reach(self, point: str, path: str) -> bool:
        """Pass a point inside an operation; tell whether to go on, or only to pretend to."""
        with self._guard:
            fault = self._struck(point, path)
        return fault is None or bool(fault.befall(point, lambda: True, lambda: False))

    def cover(self) -> None:
        """Let no call return until the weather is released."""
        self._clear_sky.clear()

    def _struck(self, operation: str, path: str) -> Fault | None:
        return next((fault for fault in self.faults if fault.strikes(operation, path)), None)

    def _slow(self, seconds: float) -> None:
        self._latency = seconds

    def _befall(self, **fault: Any) -> None:
        with self._guard:
            self.faults.append(Fault(**fault))

    def _clear(self) -> None:
        with self._guard:
            held, self.faults = self.faults, []
        for fault in held:
            fault.over.set()

    def _release(self) -> None:
        with self._guard:
            hanging = [fault for fault in self.faults if fault.effect == "hang"]
            self.faults = [fault for fault in self.faults if fault.effect != "hang"]
        for fault in hanging:
            fault.over.set()
        self._clear_sky.set()
