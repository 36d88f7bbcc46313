"""Old names of what cannot come under its new one: OneData has it whole nowhere else.

A file that was renamed, and touched or renamed after events were lost, is sent anew under its new
name and removed under the old one, or replaced there by what was renamed to that. Where the new one
cannot come (somebody took it in OneData, the name is refused, it cannot be read), takes long, or is
left to the next batch, the old one stays until it has. Engine's thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain

from onesync.core.model import Problem, RelPath, join, lies_in, parent_of
from onesync.core.plan import Plan, restricted, without_beneath, without_removals
from onesync.index import Index
from onesync.local import is_another
from onesync.outcome import BEHIND, LASTING
from onesync.scanner import Scanner

_LACKING = LASTING | {BEHIND}


@dataclass(slots=True)
class OnlyCopies:
    """See the module.

    Attributes:
        problems: what went wrong with single paths, until they are pushed.
        late: what did not come with the last batch, by inode; the removals of what has the same
            ones in OneData wait for it.
        left_out: what the last push left out: in refused directories.
        put_off: where the last plan leaves an old file or directory that something of another kind
            took the place of, until its files have come under their new names, or the rows that
            name it are newer.
        beneath: the files and links that cannot come for that, with their inodes.
        named: those of them that wait for rows.
    """

    index: Index
    scanner: Scanner
    problems: Mapping[RelPath, Problem]
    _kept: dict[RelPath, RelPath] = field(default_factory=dict)
    late: Mapping[int, RelPath] = field(default_factory=dict)
    _taken_out: AbstractSet[RelPath] = frozenset()
    left_out: AbstractSet[RelPath] = frozenset()
    put_off: AbstractSet[RelPath] = frozenset()
    beneath: Mapping[RelPath, int] = field(default_factory=dict)
    named: AbstractSet[RelPath] = frozenset()

    def stay(
        self, plan: Plan, closed: Iterable[RelPath], named: AbstractSet[RelPath] = frozenset()
    ) -> Plan:
        """Return ``plan`` without the removals of what is not there under its new name.

        ``closed`` are paths that the plan leaves out, for their directories were refused. What
        changed its kind and is ``named`` stays, too.
        """
        plan = self._without_put_off(plan, named)
        gone = plan.awaited_removals.union(d.path for d in plan.removals if d.seen is None)
        self._taken_out = frozenset()
        if not gone:
            return plan
        for path in {*self._lacking(), *closed, *self.left_out}:
            for old in self._old_names(path):
                if top := _top_of(old, gone):
                    self._kept[top] = path
        self._taken_out = gone & self._kept.keys()
        plan = self._that_came_before(without_removals(plan, self._taken_out))
        now = {d.path for d in plan.removals if d.seen is None}
        wait = {top for top in now if self._holds_late(top)}
        return restricted(plan, now - wait, {(m.source, m.target) for m in plan.moves})

    def _that_came_before(self, plan: Plan) -> Plan:
        """Leave to the next batch what is first pushed by this one, in a renamed directory.

        Whether that comes is not known yet; elsewhere it was, for a removal comes a batch later.
        """
        gone = {d.path for d in plan.removals if d.seen is None}
        if not (gone and plan.stands_at):
            return plan
        coming = {d.seen.inode for d in plan.files if d.seen and d.path in plan.stands_at}
        olds = (old for inode in coming for old, _ in self.index.by_inode(inode))
        wait = {top for old in olds if (top := _top_of(old, gone))}
        return restricted(plan, gone - wait, {(m.source, m.target) for m in plan.moves})

    def _without_put_off(self, plan: Plan, named: AbstractSet[RelPath]) -> Plan:
        """Leave to the next batch what takes the place of what this one, or a later one, brings.

        Such as a link that was left where a directory was moved away from.
        """
        changed = {d.path for d in plan.removals if d.seen is not None}
        if not (changed or named):
            self.put_off, self.beneath, self.named = frozenset(), {}, frozenset()
            return plan
        at = plan.stands_at
        new = {d.seen.inode: at.get(d.path, d.path) for d in plan.files if d.seen is not None}
        # What lies beneath one that goes now cannot come before its name is free.
        going = changed - named
        new = {i: path for i, path in (new | dict(self.late)).items() if not lies_in(path, going)}
        moves = chain(((m.source, m.target) for m in plan.moves), plan.awaited_moves)
        put_off = {top for source, _ in moves if (top := _top_of(source, changed))}
        put_off |= {top for top in changed if self._holds_any(top, new)}
        self.put_off = put_off | named
        coming = [d for d in chain(plan.files, plan.links) if lies_in(d.path, self.put_off)]
        self.beneath = {d.path: d.seen.inode for d in coming if d.seen is not None}
        self.named = {path for path in self.beneath if lies_in(path, named)}
        removals = {d.path for d in plan.removals}
        into = {(m.source, m.target) for m in plan.moves if lies_in(m.target, self.put_off)}
        others = {(m.source, m.target) for m in plan.moves} - into
        return restricted(without_beneath(plan, self.put_off), removals, others)

    def _holds_late(self, top: RelPath) -> bool:
        """Whether OneData has a file at or beneath ``top`` that may be one of the late."""
        return self._holds_any(top, self.late_now())

    def late_now(self) -> dict[int, RelPath]:
        """Return ``late`` with what the last plan puts off."""
        return {**self.late, **{inode: path for path, inode in self.beneath.items()}}

    def _holds_any(self, top: RelPath, new: Mapping[int, RelPath]) -> bool:
        """Whether OneData has a file at or beneath ``top`` that may be one of the ``new``."""
        if not new:
            return False
        stamps = (known.stamp for _, known in self.index.beneath(top))
        found = ((new.get(stamp.inode), stamp) for stamp in stamps if stamp is not None)
        root = self.scanner.root
        return any(p is not None and not is_another(join(root, p), stamp) for p, stamp in found)

    def taken_out(self) -> AbstractSet[RelPath]:
        """Return, once, which removals the last plan lost.

        They stay explained, for they go when the new name has come, or when it proves to be that of
        another file: an inode's number may be a deleted file's.
        """
        taken_out, self._taken_out = self._taken_out, frozenset()
        return taken_out

    def released(self) -> set[RelPath]:
        """Return, once, which removals need to wait no longer: they are to be looked at again."""
        if not self._kept:
            return set()
        waiting = self._lacking() | self.left_out
        free = {
            old
            for old, new in self._kept.items()
            if not (lies_in(new, waiting) and self._is_at(old, new))
        }
        for old in free:
            del self._kept[old]
        return free

    def lacking(self) -> dict[int, RelPath]:
        """Return what OneData does not have whole, by inode: its old name may be all there is."""
        found = self.late_now()
        told = dict(self.scanner.problems)
        for path in self._lacking() | self.left_out:
            seen = self.scanner.look(path)
            if seen is not None:
                found[seen.inode] = path
        self.scanner.problems |= told  # a look at a directory tells nothing of what it cannot list
        return found

    def _lacking(self) -> set[RelPath]:
        told = {path for path, problem in self.problems.items() if problem.kind in _LACKING}
        return told | self.scanner.problems.keys()

    def _old_names(self, path: RelPath) -> set[RelPath]:
        seen = self.scanner.look(path)
        if seen is None:
            return set()
        found = self.index.by_inode(
            seen.inode
        )  # a number that a new file may have after an old one
        return {old for old, known in found if known.entry.kind is seen.kind} - {path}

    def _is_at(self, old: RelPath, new: RelPath) -> bool:
        return any(lies_in(name, {old}) for name in self._old_names(new))


def _top_of(path: RelPath, tops: AbstractSet[RelPath]) -> RelPath:
    """Return which of ``tops`` ``path`` is or lies beneath; nothing where it is none."""
    while path and path not in tops:
        path = parent_of(path)
    return path
