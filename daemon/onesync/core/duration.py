"""Durations as people write them: ``90min``, ``36h``, ``3d 12h``."""

from __future__ import annotations

import re

_UNITS = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|min|h|d|w)(?![a-z])")


def seconds_of(text: str | float) -> float:
    """Return the seconds of a duration; a number is one already. Raises ValueError."""
    if isinstance(text, int | float) and not isinstance(text, bool):
        return float(text)
    rest, seconds = str(text).strip(), 0.0
    while rest and (part := _PART.match(rest)) is not None:
        seconds += float(part[1]) * _UNITS[part[2]]
        rest = rest[part.end() :].strip()
    if rest or not seconds:
        raise ValueError("expected a duration such as '90min', '36h' or '3d 12h'")
    return seconds
