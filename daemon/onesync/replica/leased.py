"""The door for as long as the lock lets us write: asked before every single call that changes.

A call may wait for its turn, and a copy may last for hours: who carries it out asks again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

from onesync.replica.door import Replica

_READING = (
    "identify",
    "walk_anew",
    "look",
    "look_at",
    "list",
    "names",
    "fetch",
    "compare",
    "digest",
    "read",
    "arrived",
)

_mine = threading.local()


class _Leased:
    def __init__(self, replica: Replica, may_write: Callable[[], None]) -> None:
        self._replica = replica
        self._may_write = may_write

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = cast("Callable[..., Any]", getattr(self._replica, name))
        if name in _READING:
            return call

        def asked(*arguments: Any, **named: Any) -> Any:
            self._may_write()
            _mine.may_write = self._may_write
            try:
                return call(*arguments, **named)
            finally:
                _mine.may_write = None

        return asked


def leased(replica: Replica, may_write: Callable[[], None]) -> Replica:
    """Return ``replica`` with ``may_write`` asked before each call that may change it.

    An owner that slept can wake up between any two calls, and somebody may have taken over: what it
    was about to do then raises what ``may_write`` raises, and touches nothing.
    """
    return cast(Replica, _Leased(replica, may_write))


def lease_of_this_thread() -> Callable[[], None] | None:
    """Return what to ask whether this thread's call may go on; None of a call that only reads."""
    lease: Callable[[], None] | None = getattr(_mine, "may_write", None)
    return lease
