"""What a machine lacks that a test needs: no test is left out silently where it could run."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacks(reason: str, *, but_root_has: bool = False) -> NoReturn:
    """Leave the test out; a failure under CI, and for root where he always can."""
    if os.environ.get("CI") or (but_root_has and os.geteuid() == 0):
        pytest.fail(reason)
    pytest.skip(reason)
