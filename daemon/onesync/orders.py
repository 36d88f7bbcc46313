"""What other threads ask of the engine, which does it between two batches."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from onesync.core.model import RelPath
from onesync.errors import OnesyncError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Flushed:
    """The answer to a flush: committed, but for the problems."""

    problems: list[str]


@dataclass(slots=True)
class Orders:
    """Safe in several threads; ``hurry`` ends the pause between batches."""

    stop: threading.Event = field(default_factory=threading.Event)
    handover: threading.Event = field(default_factory=threading.Event)
    suspect: threading.Event = field(default_factory=threading.Event)
    hurry: threading.Event = field(default_factory=threading.Event)
    doubted: set[RelPath] = field(default_factory=set)
    accepted: set[RelPath] = field(default_factory=set)
    flushes: list[Future[Flushed]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)
    _acts: list[tuple[Callable[[], Any], Future[Any]]] = field(default_factory=list)
    _ended: OnesyncError | None = None

    def ask_flush(self) -> Future[Flushed]:
        """Ask for a flush."""
        future: Future[Flushed] = Future()
        with self.guard:
            self.flushes.append(future)
            self.hurry.set()
        return future

    def ask(self, act: Callable[[], T]) -> Future[T]:
        """Ask for ``act``, which the engine's thread calls."""
        future: Future[T] = Future()
        with self.guard:
            if self._ended is not None:
                future.set_exception(self._ended)
            elif self.stop.is_set():
                future.set_exception(OnesyncError("onesync is about to end; nothing was changed."))
            else:
                self._acts.append((act, future))
                self.hurry.set()
        return future

    def carry_out(self) -> None:
        """Do what was asked for; what an act raises is its asker's."""
        with self.guard:
            acts, self._acts = self._acts, []
            if not self.are_there():
                self.hurry.clear()
        for act, future in acts:
            try:
                future.set_result(act())
            except Exception as error:  # noqa: BLE001 - its asker's, whatever it is; we go on
                future.set_exception(error)

    def are_there(self) -> bool:
        """Return whether anything waits for the engine."""
        return self.stop.is_set() or bool(self.flushes) or bool(self._acts)

    def take_flushes(self) -> list[Future[Flushed]]:
        """Return the flushes that were asked for, as the one who answers them."""
        with self.guard:
            asked, self.flushes = self.flushes, []
            self.hurry.clear()
        return asked

    def refuse(self, error: Exception) -> None:
        """Answer all flushes with ``error``."""
        for future in self.take_flushes():
            future.set_exception(error)

    def end(self, error: OnesyncError) -> None:
        """Answer everything with ``error``, from now on too."""
        self.refuse(error)
        with self.guard:
            self._ended = error
            acts, self._acts = self._acts, []
        for _, future in acts:
            future.set_exception(error)
