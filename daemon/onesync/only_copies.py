"""Old names of what cannot come under its new one: OneData has it whole nowhere else.

A file that was renamed, and touched or renamed after events were lost, is sent anew under its new
name and removed under the old one. Where the new one cannot come (somebody took it in OneData, the
name is refused, it cannot be read) or takes long, the old one stays until it has. Engine's thread
only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from onesync.core.model import Problem, RelPath, lies_in
from onesync.core.plan import Plan, without_removals
from onesync.index import Index
from onesync.push import BEHIND, NAME_REFUSED, OCCUPIED, REFUSED, UNREADABLE
from onesync.scanner import Scanner

_LACKING = frozenset({BEHIND, NAME_REFUSED, OCCUPIED, REFUSED, UNREADABLE})


@dataclass(slots=True)
class OnlyCopies:
    """See the module.

    Attributes:
        problems: what went wrong with single paths, until they are pushed.
    """

    index: Index
    scanner: Scanner
    problems: Mapping[RelPath, Problem]
    _kept: dict[RelPath, RelPath] = field(default_factory=dict)
    _left_out: AbstractSet[RelPath] = frozenset()

    def left_out(self, paths: AbstractSet[RelPath]) -> None:
        """Remember what the last push left out, in directories that OneData refused."""
        self._left_out = paths

    def stay(self, plan: Plan, closed: Iterable[RelPath]) -> Plan:
        """Return ``plan`` without the removals of what is not there under its new name.

        ``closed`` are paths that the plan leaves out, for their directories were refused.
        """
        gone = plan.awaited_removals.union(d.path for d in plan.removals if d.seen is None)
        if not gone:
            return plan
        for path in {*self._lacking(), *closed, *self._left_out}:
            for old in self._old_names(path):
                top = old
                while top and top not in gone:
                    top = top.rpartition(b"/")[0]
                if top:
                    self._kept[top] = path
        return without_removals(plan, self._kept.keys())

    def released(self) -> set[RelPath]:
        """Return, once, which removals need to wait no longer: they are to be looked at again."""
        free = {old for old, new in self._kept.items() if not self._is_needed(old, new)}
        for old in free:
            del self._kept[old]
        return free

    def _lacking(self) -> set[RelPath]:
        told = {path for path, problem in self.problems.items() if problem.kind in _LACKING}
        return told | self.scanner.problems.keys()

    def _old_names(self, path: RelPath) -> set[RelPath]:
        seen = self.scanner.look(path)
        if seen is None:
            return set()
        return {old for old, _ in self.index.by_inode(seen.inode)} - {path}

    def _is_needed(self, old: RelPath, new: RelPath) -> bool:
        waits = lies_in(new, self._lacking() | self._left_out)
        return waits and any(lies_in(name, {old}) for name in self._old_names(new))
