"""Durations as people write them."""

from __future__ import annotations

import pytest

from onesync.core.duration import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("90min", 5_400),
        ("36h", 129_600),
        ("3d 12h", 302_400),
        ("1w1d", 691_200),
        (" 1.5 h ", 5_400),
        (12, 12),
        (0.5, 0.5),
    ],
)
def test_what_people_write(text: str | float, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "12", "12 hours", "1h tomorrow", "-1h", "0h", "1m", True]
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="expected a duration"):
        seconds_of(text)
