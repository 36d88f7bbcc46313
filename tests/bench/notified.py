"""What a daemon tells systemd, told to the benchmark: nobody asks it for its status meanwhile."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

READY, STAGING_IN = "READY=1", "STATUS=staging in"
_LOOK_SECONDS = 1.0


class Notified:
    """A notify socket (sd_notify(3)) that is read at once, or who writes to it would wait."""

    def __init__(self) -> None:
        """Open it; ``address`` is for NOTIFY_SOCKET."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("")  # the kernel finds an abstract name, which no path is too long for
        self.address = "@" + self._socket.getsockname()[1:].decode()
        self._told: SimpleQueue[tuple[float, str]] = SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def close(self) -> None:
        """Read no more."""
        self._socket.shutdown(socket.SHUT_RDWR)

    def wait(self, wanted: str, seconds: float, lives: Callable[[], bool]) -> float:
        """Return when (monotonic) it was told what is ``wanted``, all before it left out.

        Raises TimeoutError after ``seconds``, or where who tells does not live any more.
        """
        deadline = time.monotonic() + seconds
        while True:
            is_over = time.monotonic() >= deadline or not lives()
            try:
                when, told = self._told.get(timeout=0.0 if is_over else _LOOK_SECONDS)
            except Empty:
                if is_over:
                    raise TimeoutError(f"{wanted} was never told") from None
                continue
            if wanted in told.splitlines():
                return when

    def _read(self) -> None:
        with self._socket:
            while told := self._socket.recv(1 << 16):
                self._told.put((time.monotonic(), told.decode(errors="replace")))
