"""Old names of what cannot come under its new one: OneData has it whole nowhere else.

A file that was renamed, and touched or renamed after events were lost, is sent anew under its new
name and removed under the old one, or replaced there by what was renamed to that. Where the new one
cannot come (somebody took it in OneData, the name is refused, it cannot be read), takes long, or is
left to the next batch, the old one stays until it has. Engine's thread only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import chain

from onesync.core.model import Kind, Problem, RelPath, Stamp, join, lies_in, parent_of, show
from onesync.core.ordering import waiting_one_way
from onesync.core.plan import Difference, Plan, restricted, without_beneath, without_removals
from onesync.index import Index
from onesync.local import is_another
from onesync.outcome import BEHIND, LASTING, OCCUPIED
from onesync.scanner import Scanner


@dataclass(slots=True)
class OnlyCopies:
    """See the module.

    Attributes:
        problems: what went wrong with single paths, until they are pushed; is told what waits for
            those.
        late: what did not come with the last batch, by inode; the removals of what has the same
            ones in OneData wait for it.
        left_out: what the last push left out: in directories that are refused or occupied.
        put_off: where the last plan leaves an old file or directory that something of another kind
            took the place of, until its files have come under their new names, or the rows that
            name it are newer.
        beneath: the files and links that cannot come for that, with their inodes.
        named: those of them that wait for rows.
    """

    index: Index
    scanner: Scanner
    problems: dict[RelPath, Problem]
    _kept: dict[RelPath, RelPath] = field(default_factory=dict)
    _with_kept: set[RelPath] = field(default_factory=set)
    _hidden: dict[RelPath, RelPath] = field(default_factory=dict)
    _standing: dict[RelPath, RelPath] = field(default_factory=dict)
    _waiting: set[RelPath] = field(default_factory=set)
    _owed: set[RelPath] = field(default_factory=set)
    late: Mapping[int, RelPath] = field(default_factory=dict)
    _taken_out: AbstractSet[RelPath] = frozenset()
    left_out: AbstractSet[RelPath] = frozenset()
    put_off: AbstractSet[RelPath] = frozenset()
    beneath: Mapping[RelPath, int] = field(default_factory=dict)
    named: AbstractSet[RelPath] = frozenset()

    def stay(
        self,
        plan: Plan,
        closed: Iterable[RelPath],
        named: AbstractSet[RelPath] = frozenset(),
    ) -> Plan:
        """Return ``plan`` without the removals of what is not there under its new name.

        ``closed`` are paths that the plan leaves out, for OneData cannot have their directories, or
        they wait for others. What changed its kind and is ``named`` stays, too.
        """
        lasting = self._lasting()
        self._waiting = {path for path in self._waiting if lies_in(path, lasting)}.union(
            closed, self.left_out
        )
        self._owed = {path for path in self._owed if self._lacks(path)}
        plan = self._without_standing(plan)
        plan = self._without_put_off(plan, named - self._standing.keys())
        gone = plan.awaited_removals.union(d.path for d in plan.removals if d.seen is None)
        self._taken_out = frozenset()
        if not gone:
            return plan
        for path in self._lacking():
            for old in self._old_names(path):
                if top := _top_of(old, gone):
                    self._kept[top] = path
        left_out = self.scanner.beneath_left_out()
        held = ((top, self._held_by(top, left_out)) for top in gone)
        self._kept |= {top: path for top, path in held if path is not None}
        self._kept |= {top: now for old, now in self._hidden.items() if (top := _top_of(old, gone))}
        self._taken_out = gone & self._kept.keys()
        plan = self._that_came_before(without_removals(plan, self._taken_out))
        now = {d.path for d in plan.removals if d.seen is None}
        late = self.late_now() if now else {}
        wait = {top for top in now if self._holds_any(top, late)}
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

    def _without_standing(self, plan: Plan) -> Plan:
        """Leave out what took the place of the only copy of what cannot come before somebody helps.

        And what would come at and beneath that, and what took the place of its only copies.
        """
        tops = {d.path for d in plan.removals if d.seen is not None}
        tops |= {d.path for d in plan.files if _replaces(d)}
        if not tops:
            return plan
        at = plan.stands_at
        waiting = self._by_inode({at.get(p, p) for p in self._lasting() | self._waiting})
        waiting |= self.scanner.beneath_left_out()
        found: set[RelPath] = set()
        while waiting and tops:
            new = {top: path for top in tops if (path := self._held_by(top, waiting, plan))}
            self._standing |= new
            self.problems |= {top: _waits(top, path) for top, path in new.items()}
            waiting = _coming(plan, new.keys())
            self._waiting |= set(waiting.values())
            tops -= new.keys()
            found |= new.keys()
        return _without(plan, found)

    def standing_left_out(self, gone: AbstractSet[RelPath]) -> AbstractSet[RelPath]:
        """Return which of ``gone`` stand, all or in part, under names that cannot come."""
        new = self._by_inode(self._lasting()) | self.scanner.beneath_left_out()
        hidden = {top for old in self._hidden if (top := _top_of(old, gone))}
        return hidden | self.holding(gone, new)

    def see_moves(self, moves: Iterable[tuple[RelPath, RelPath]]) -> None:
        """Remember what was moved to where nobody can look, perhaps by way of other names.

        It cannot come from there, and no inode tells that it is there.
        """
        pairs = {**self._hidden, **dict(moves)}
        hidden = {old: now for old, now in pairs.items() if self.scanner.is_hidden(now)}
        new = hidden
        while new := {o: hidden[n] for o, n in pairs.items() if n in new and o not in hidden}:
            hidden |= new
        self._hidden = hidden

    def kept(self) -> AbstractSet[RelPath]:
        """Return the old names that stay until what has them has come under its new one."""
        return self._kept.keys()

    def stay_with_kept(self, plan: Plan, named: AbstractSet[RelPath]) -> Plan:
        """Return ``plan`` without the removals of what is ``named`` by databases that are kept."""
        self._with_kept |= named
        self._taken_out |= named
        return without_removals(plan, named)

    def standing(self) -> AbstractSet[RelPath]:
        """Return where something waits until the only copy that stands there has come elsewhere."""
        for top in [top for top in self._standing if not self._is_other_thing(top)]:
            self._stands_no_more(top)
        return self._standing.keys()

    def _is_other_thing(self, top: RelPath) -> bool:
        known, seen = self.index.known(top), self.scanner.see(top)
        if known is None or known.stamp is None or seen is None:
            return False
        if known.entry.kind is not seen.kind:
            return True
        return seen.kind is Kind.FILE and known.stamp.inode != seen.inode

    def _stands_no_more(self, top: RelPath) -> None:
        del self._standing[top]
        self.problems.pop(top, None)

    def _without_put_off(self, plan: Plan, named: AbstractSet[RelPath]) -> Plan:
        """Leave to the next batch what takes the place of what this one, or a later one, brings.

        Such as a link that was left where a directory was moved away from.
        """
        changed = {d.path for d in plan.removals if d.seen is not None}
        if not (changed or named):
            self.put_off, self.beneath, self.named = frozenset(), {}, frozenset()
            return plan
        new = self._by_inode(self._behind() | self._owed) | _coming(plan) | dict(self.late)
        moves = chain(((m.source, m.target) for m in plan.moves), plan.awaited_moves)
        put_off = {top for source, _ in moves if (top := _top_of(source, changed))}
        put_off |= self._one_way(changed, new, changed - named)
        self.put_off, self.beneath = frozenset(), {}
        plan = self.leave(plan, put_off | named)
        self.named = {path for path in self.beneath if lies_in(path, named)}
        return plan

    def _one_way(
        self, tops: AbstractSet[RelPath], new: Mapping[int, RelPath], going: AbstractSet[RelPath]
    ) -> set[RelPath]:
        """Return those of ``tops`` that wait until what OneData has there alone has come elsewhere.

        What lies beneath one that is ``going`` cannot come before that: those that wait for each
        other so, and for no others, go together.
        """
        above = {top: self._waits_for(top, new, going) for top in tops}
        wait, more = set[RelPath](), {top for top, of in above.items() if b"" in of}
        while more:
            wait |= more
            more = {top for top, of in above.items() if of & wait} - wait
        return wait | waiting_one_way({top: of for top, of in above.items() if top not in wait})

    def _waits_for(
        self, top: RelPath, new: Mapping[int, RelPath], going: AbstractSet[RelPath]
    ) -> set[RelPath]:
        """Return beneath which of those that are ``going`` that comes; nothing is elsewhere."""
        found: set[RelPath] = set()
        for path in self._all_held_by(top, new):
            found.add(_top_of(path, going))
            if b"" in found:  # it waits in any case: the rest would be looked at in vain
                break
        return found - {top}

    def leave(self, plan: Plan, tops: AbstractSet[RelPath]) -> Plan:
        """Return ``plan`` without what is there at and beneath ``tops``, which are put off, too."""
        if not tops:
            return plan
        coming = (d for d in chain(plan.files, plan.links) if lies_in(d.path, tops))
        new = {d.path: d.seen.inode for d in coming if d.seen is not None}
        self.put_off, self.beneath = self.put_off | tops, {**self.beneath, **new}
        return _without(plan, tops)

    def coming(self, plan: Plan, tops: AbstractSet[RelPath]) -> dict[int, RelPath]:
        """Return the files that ``plan``, or a later one, brings at and beneath ``tops``."""
        later = {i: path for path, i in self.beneath.items() if lies_in(path, tops)}
        return later | _coming(plan, tops)

    def holding(
        self, tops: AbstractSet[RelPath], new: Mapping[int, RelPath]
    ) -> AbstractSet[RelPath]:
        """Return those of ``tops`` that may be all that OneData has of any of the ``new``."""
        return {top for top in tops if self._holds_any(top, new)}

    def late_now(self) -> dict[int, RelPath]:
        """Return ``late`` with what the last plan puts off, and what was waited for and is due."""
        put_off = {inode: path for path, inode in self.beneath.items()}
        return {**self.late, **put_off, **self._by_inode(self._owed)}

    def _holds_any(self, top: RelPath, new: Mapping[int, RelPath]) -> bool:
        return self._held_by(top, new) is not None

    def _held_by(
        self, top: RelPath, new: Mapping[int, RelPath], plan: Plan | None = None
    ) -> RelPath | None:
        """Return which of the ``new`` OneData may have under another name, at or beneath ``top``.

        What ``plan`` brings under an old name does not count as another.
        """
        return next(self._all_held_by(top, new, plan), None)

    def _all_held_by(
        self, top: RelPath, new: Mapping[int, RelPath], plan: Plan | None = None
    ) -> Iterator[RelPath]:
        for path, known in self.index.beneath(top) if new else ():
            place = None if known.stamp is None else new.get(known.stamp.inode)
            if place is None or place == (plan.stands_at.get(path, path) if plan else None):
                continue
            if known.stamp and known.stamp.linked and self._has_other_name(known.stamp, top):
                continue
            if known.stamp and not is_another(join(self.scanner.root, place), known.stamp):
                yield place

    def _has_other_name(self, stamp: Stamp, top: RelPath) -> bool:
        """Whether OneData has the file of ``stamp`` also outside of ``top``, where it still is."""
        names = (path for path, _ in self.index.by_inode(stamp.inode) if not lies_in(path, {top}))
        return any(_is_same_file(stamp, self.scanner.see(path)) for path in names)

    def taken_out(self) -> AbstractSet[RelPath]:
        """Return, once, which removals the last plan lost.

        They stay explained, for they go when the new name has come, or when it proves to be that of
        another file: an inode's number may be a deleted file's.
        """
        taken_out, self._taken_out = self._taken_out, frozenset()
        return taken_out

    def released(self) -> set[RelPath]:
        """Return, once, what needs to wait no longer: it is to be looked at again."""
        if not (self._kept or self._standing):
            return set()
        waiting = self._lacking()
        kept, standing = (
            {o for o, n in waits.items() if not (lies_in(n, waiting) and self._is_at(o, n))}
            for waits in (self._kept, self._standing)
        )
        self._owed |= {self._kept[old] for old in kept} | {self._standing[o] for o in standing}
        for old in kept:
            del self._kept[old]
        for top in standing:
            self._stands_no_more(top)
        with_kept = set[RelPath]()
        if kept or not self._kept:  # who is still named by others is kept again
            with_kept, self._with_kept = self._with_kept, with_kept
        return kept | standing | with_kept

    def _lacks(self, path: RelPath) -> bool:
        """Whether OneData does not have under its name yet what stands at ``path``."""
        known, seen = self.index.known(path), self.scanner.see(path)
        return seen is not None and (known is None or not _is_same_file(known.stamp, seen))

    def lacking(self, plan: Plan) -> dict[int, RelPath]:
        """Return what OneData does not have whole, by inode: its old name may be all there is.

        Nothing where ``plan`` replaces no file.
        """
        if not any(map(_replaces, plan.files)):
            return {}
        return self.late_now() | self._by_inode(self._lacking())

    def _by_inode(self, paths: AbstractSet[RelPath]) -> dict[int, RelPath]:
        seen = ((path, self.scanner.see(path)) for path in paths)
        return {stamp.inode: path for path, stamp in seen if stamp is not None}

    def _lacking(self) -> set[RelPath]:
        return self._lasting() | self._behind() | self._waiting

    def _lasting(self) -> set[RelPath]:
        """Return what cannot come before somebody does something."""
        told = {path for path, problem in self.problems.items() if problem.kind in LASTING}
        return told | self.scanner.problems.keys() | self.left_out

    def _behind(self) -> set[RelPath]:
        """Return what has not come whole yet."""
        return {path for path, problem in self.problems.items() if problem.kind == BEHIND}

    def _old_names(self, path: RelPath) -> set[RelPath]:
        seen = self.scanner.see(path)
        if seen is None:
            return set()
        # A number that a new file may have after an old one.
        found = self.index.by_inode(seen.inode)
        return {old for old, known in found if known.entry.kind is seen.kind} - {path}

    def _is_at(self, old: RelPath, new: RelPath) -> bool:
        if self.scanner.is_hidden(new):
            return True
        return any(lies_in(name, {old}) for name in self._old_names(new))


def _is_same_file(one: Stamp | None, other: Stamp | None) -> bool:
    return one is not None and other is not None and one.inode == other.inode


def _replaces(difference: Difference) -> bool:
    """Whether a file takes the place of a file, as far as inodes tell."""
    known, seen = difference.known, difference.seen
    if known is None or known.stamp is None or seen is None:
        return False
    return known.entry.kind is Kind.FILE and known.stamp.inode != seen.inode


def _coming(plan: Plan, tops: AbstractSet[RelPath] | None = None) -> dict[int, RelPath]:
    """Return the files that ``plan`` brings (at and beneath ``tops``), by inode, where they are."""
    coming = (d for d in plan.files if tops is None or lies_in(d.path, tops))
    at = plan.stands_at
    return {d.seen.inode: at.get(d.path, d.path) for d in coming if d.seen is not None}


def _without(plan: Plan, tops: AbstractSet[RelPath]) -> Plan:
    """Leave out what is done at and beneath ``tops``, and renames to there."""
    removals = {d.path for d in plan.removals}
    moves = {(m.source, m.target) for m in plan.moves if not lies_in(m.target, tops)}
    return restricted(without_beneath(plan, tops), removals, moves)


def _waits(top: RelPath, path: RelPath) -> Problem:
    text = (
        f"{show(top)} waits: what has its name in OneData is all that there is of {show(path)},"
        " which cannot come under its own."
    )
    return Problem(top, OCCUPIED, text)


def _top_of(path: RelPath, tops: AbstractSet[RelPath]) -> RelPath:
    """Return which of ``tops`` ``path`` is or lies beneath; nothing where it is none."""
    while path and path not in tops:
        path = parent_of(path)
    return path
