"""Waits a little for what OneData tells late."""

from __future__ import annotations

import time
from collections.abc import Callable

_PAUSES = (0.2, 0.3, 0.5, 1.0, 1.0)
"""A client that lost its connection unseen asks the provider for what it knew before, and that
learns of a write one or two seconds after the file was closed."""


def comes(is_there: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> bool:
    """Return whether something is there, at once or within three seconds."""
    for pause in _PAUSES:
        if is_there():
            return True
        sleep(pause)
    return is_there()
