"""Snapshots that wait for the data of their cut.

A batch that leaves data to the next one cannot publish its databases, for any row may name what did
not come. Taken anew by each batch they would never come while new data do: so they are kept, and
published as soon as the data of their own cut are there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from onesync.core.model import RelPath
from onesync.core.ordering import scope_of
from onesync.core.plan import Plan
from onesync.cut import Cut, Frozen
from onesync.push import Outcome


@dataclass(frozen=True, slots=True)
class Waiting:
    """A cut whose data came in part.

    Attributes:
        frozen: its databases' snapshots.
        data: what of its data is still to come, the targets of ``moves`` among them.
        removals: what had been seen to be gone before the cut: no row of it names them.
        moves: (source, target) of renames, likewise.
    """

    frozen: Mapping[RelPath, Frozen]
    data: AbstractSet[RelPath]
    removals: frozenset[RelPath]
    moves: frozenset[tuple[RelPath, RelPath]]

    def let_go(self) -> None:
        """Remove the snapshots."""
        for item in self.frozen.values():
            Path(os.fsdecode(item.path)).unlink(missing_ok=True)


def what_waits(earlier: Waiting | None, cut: Cut, plan: Plan, outcome: Outcome) -> Waiting | None:
    """Return what waits after a push of ``plan`` had this ``outcome``.

    Databases that are held back for a file that changes all the time do not, nor those that may
    name what a rename of their cut has not brought yet: they are taken anew.
    """
    if not outcome.is_late:
        return None
    renamed = {scope_of(target) for _, target in plan.awaited_moves} if earlier is None else set()
    held = {p: f for p, f in cut.frozen.items() if p in outcome.held and scope_of(p) not in renamed}
    if not held:
        return None
    return Waiting(
        held,
        outcome.lacking.union(target for _, target in outcome.postponed_moves),
        frozenset(outcome.postponed),
        frozenset(outcome.postponed_moves),
    )
