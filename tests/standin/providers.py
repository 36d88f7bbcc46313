"""Two stand-ins as two providers of one space."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from types import TracebackType

from tests.standin.exchange import Exchange, Side
from tests.standin.mounted import Mounted


class Providers:
    """Mounts ``one`` and ``two``, which see each other's changes after an exchange.

    With ``interval`` there is one every so many seconds; without, only when a test asks for it. Of
    the two, ``two`` has the greater id. Names that both made are shown as ``name@2b2b`` on one,
    ``name@1a1a`` on two.
    """

    def __init__(
        self, home: Path, *, profile: str = "plain", interval: float | None = None
    ) -> None:
        self.one = Mounted(home / "one", profile=profile)
        self.two = Mounted(home / "two", profile=profile)
        sides = (Side(str(self.one.backing), "1a1a1a1a"), Side(str(self.two.backing), "2b2b2b2b"))
        self._exchange = Exchange(*sides)
        self._interval = interval
        self._apart = False
        self._over = threading.Event()
        self._guard = threading.Lock()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Providers:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.one)
            stack.enter_context(self.two)
            if self._interval is not None:
                thread = threading.Thread(target=self._go_on)
                thread.start()
                stack.callback(thread.join)
                stack.callback(self._over.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def exchange(self) -> None:
        """Tell each provider what the other did; nothing is told during a partition."""
        with self._guard:
            if not self._apart:
                self._exchange.run()

    def partition(self) -> None:
        """Let neither provider hear of the other until ``heal``."""
        with self._guard:
            self._apart = True

    def heal(self) -> None:
        """Let them hear of each other again, from the next exchange on."""
        with self._guard:
            self._apart = False

    def _go_on(self) -> None:
        while not self._over.wait(self._interval):
            self.exchange()
