"""Plan applied = snapshot, planned again = nothing, deletions one batch later."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesync.core import plan as plan_module
from onesync.core.chain import Change, Gone, Set, apply
from onesync.core.model import Entry, Kind, Known, RelPath, Stamp, is_beneath, parent_of
from onesync.core.plan import Difference, Move, Plan, Promises, make_plan, portioned
from onesync.core.tree import Tree

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
KINDS = st.sampled_from(list(Kind))


def stamp(kind: Kind, number: int) -> Stamp:
    size = number if kind is Kind.FILE else 0
    return Stamp(kind, number, size, number, number, 0o644, b"t" if kind is Kind.LINK else b"")


@st.composite
def trees(draw: st.DrawFn) -> dict[RelPath, Stamp]:
    """A working copy: everything above a path is a directory."""
    tree: dict[RelPath, Stamp] = {}
    for path in draw(st.lists(PATHS, max_size=8)):
        above = parent_of(path)
        if path in tree or (above and tree.get(above, stamp(Kind.FILE, 0)).kind != "dir"):
            continue
        tree[path] = stamp(draw(KINDS), draw(st.integers(1, 3)))
    return tree


def entry_of(seen: Stamp) -> Entry:
    return Entry(seen.kind, seen.size, seen.mtime_ns, seen.mode, str(seen.size), seen.target)


def differences(
    index: dict[RelPath, tuple[Entry, Stamp]], work: dict[RelPath, Stamp]
) -> dict[RelPath, Difference]:
    found = {}
    for path in index.keys() | work.keys():
        row = index.get(path)
        if row is None or path not in work or row[1] != work[path]:
            known = None if row is None else Known(*row)
            found[path] = Difference(path, known, work.get(path))
    return found


def planned(found: dict[RelPath, Difference], awaited: frozenset[RelPath] = frozenset()) -> Plan:
    """Plan where nothing is renamed."""
    return make_plan(found, [], awaited, frozenset(), lambda _: None)


def changes_of(plan: Plan) -> list[Change]:
    """What a push of the whole plan commits, in its order."""
    changes: list[Change] = [Gone(d.path) for d in plan.removals if d.seen is not None]
    for difference in plan.directories + plan.files + plan.links + plan.metadata:
        assert difference.seen is not None
        changes.append(Set(difference.path, entry_of(difference.seen)))
    return changes + [Gone(d.path) for d in plan.removals if d.seen is None]


def commit(
    index: dict[RelPath, tuple[Entry, Stamp]], work: dict[RelPath, Stamp], changes: list[Change]
) -> None:
    tree = Tree({path: row[0] for path, row in index.items()})
    old = {path: row[1] for path, row in index.items()}
    apply(tree, changes)
    fresh = {change.path for change in changes if isinstance(change, Set)}
    index.clear()
    for path, entry in tree.items():
        index[path] = (entry, work[path] if path in fresh else old[path])


@given(trees(), trees(), st.data())
def test_any_prefix_of_a_plan_and_a_rescan_converge(
    before: dict[RelPath, Stamp], after: dict[RelPath, Stamp], data: st.DataObject
) -> None:
    index = {path: (entry_of(seen), seen) for path, seen in before.items()}
    first = changes_of(planned(differences(index, after)))
    commit(index, after, first[: data.draw(st.integers(0, len(first)))])
    awaited: frozenset[RelPath] = frozenset()
    for _ in range(3):
        plan = planned(differences(index, after), awaited)
        commit(index, after, changes_of(plan))
        awaited = plan.awaited_removals
    assert {path: row[0] for path, row in index.items()} == {
        path: entry_of(seen) for path, seen in after.items()
    }
    again = planned(differences(index, after), awaited)
    assert again.empty
    assert not again.awaited_removals


def test_a_deletion_waits_for_the_next_batch() -> None:
    seen = stamp(Kind.FILE, 1)
    gone = {b"a": Difference(b"a", Known(entry_of(seen), seen), None)}
    plan = planned(gone)
    assert plan.empty
    assert plan.awaited_removals == {b"a"}
    assert [d.path for d in planned(gone, plan.awaited_removals).removals] == [b"a"]


@given(trees(), st.integers(1, 3))
def test_many_deletions_are_carried_out_in_portions(tree: dict[RelPath, Stamp], most: int) -> None:
    index = {path: (entry_of(seen), seen) for path, seen in tree.items()}
    awaited = planned(differences(index, {})).awaited_removals
    wanted, rounds = len(awaited), 0
    while awaited:
        whole = planned(differences(index, {}), awaited)
        plan = portioned(whole, most)
        assert len(plan.removals) == min(most, len(awaited))
        assert {d.path for d in plan.removals} | plan.awaited_removals == awaited
        commit(index, {}, changes_of(plan))
        awaited = plan.awaited_removals
        rounds += 1
    assert rounds == -(-wanted // most)
    assert index == {}


def test_thousands_of_renames_are_compared_with_their_parents_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []
    monkeypatch.setattr(plan_module, "is_beneath", lambda *ends: compared.append(ends))
    moves = [
        Move(b"Runs/1/item_%d" % n, b"Runs/1/other_%d" % n, Kind.FILE, stamp(Kind.FILE, n + 1))
        for n in range(2000)
    ]
    found = {}
    for move in moves:
        known = Known(entry_of(move.seen), move.seen)
        found[move.source] = Difference(move.source, known, None)
        found[move.target] = Difference(move.target, None, move.seen)
    plan = make_plan(found, moves, frozenset(), frozenset(), lambda _: None)
    assert len(plan.awaited_moves) == len(moves)
    assert len(compared) <= len(moves)


def test_of_runs_whose_data_do_not_change_no_promise_is_looked_for() -> None:
    """One that waits to be removed may hold ten thousand files."""
    rows = {
        path: Known(Entry(Kind.FILE, 512), stamp(Kind.FILE, number))
        for number, path in enumerate(
            [b"Runs/1/DONE/a", b"Runs/1/data", b"Runs/2/DONE/b", b"Runs/2/data", b"Runs/top", b"x"]
        )
    }
    asked: list[RelPath] = []

    def is_promise(path: RelPath) -> bool:
        return b"/DONE/" in path or path in (b"Runs/top", b"x")

    def promised(top: RelPath) -> list[tuple[RelPath, Known]]:
        asked.append(top)
        there = ((p, known) for p, known in rows.items() if p == top or is_beneath(p, top))
        return [(path, known) for path, known in there if is_promise(path)]

    gone = frozenset({b"Runs/1", b"Runs/2", b"Runs/top", b"x"})
    found = {top: Difference(top, rows.get(top), None) for top in gone & rows.keys()}
    promises = Promises(found, promised, is_promise, lambda *_: False, {})
    changed = Difference(b"Runs/1/data", rows[b"Runs/1/data"], stamp(Kind.FILE, 9))
    plan = promises.revoked(Plan(files=[changed], awaited_removals=gone))
    assert {d.path for d in plan.revoked} == {b"Runs/1/DONE/a", b"Runs/top", b"x"}
    assert sorted(asked) == [b"Runs/1", b"Runs/top", b"x"]
