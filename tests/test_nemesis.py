"""The lock's nemesis: at most one chain is accepted, and nobody may write beside its owner."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.nemesis import History

HISTORIES = int(os.environ.get("ONESYNC_HISTORIES", "40"))
TOTAL: Counter[str] = Counter()


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_nobody_writes_beside_the_owner(seed: int) -> None:
    history = History(seed)
    history.run()
    assert history.broken == []
