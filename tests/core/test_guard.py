"""Few unexplained absences are believed, many are held; what the kernel told is never held."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onesync.core.guard import (
    Bound,
    Told,
    absences,
    arrived,
    carried,
    certainly_gone,
    identity,
    outstanding,
    rule,
    tops,
)
from onesync.core.model import Kind, Known, RelPath, is_beneath, parent_of
from onesync.core.plan import Difference
from tests.core.test_plan import PATHS, entry_of, stamp, trees

PATH_SETS = st.sets(PATHS, max_size=6)
Rows = dict[RelPath, Known]


def rows_of(tree: dict[RelPath, object]) -> Rows:
    """An index in which every row has an inode of its own."""
    rows = {}
    for number, path in enumerate(sorted(tree), 10):
        is_above = any(parent_of(other) == path for other in tree)
        seen = stamp(Kind.DIRECTORY if is_above else Kind.FILE, number)
        rows[path] = Known(entry_of(seen), seen)
    return rows


def beneath(rows: Rows, top: RelPath) -> list[tuple[RelPath, Known]]:
    return [(path, known) for path, known in sorted(rows.items()) if is_beneath(path, top)]


@given(PATH_SETS)
def test_tops_cover_all_and_never_each_other(paths: set[RelPath]) -> None:
    found = tops(paths)
    assert all(any(is_beneath(path, top) for top in found) for path in paths)
    assert not any(is_beneath(a, b) for a in found for b in found if a != b)


@given(trees(), PATH_SETS, PATH_SETS, st.integers(0, 8))
def test_what_goes_unexplained_is_never_more_than_the_bound(
    tree: dict[RelPath, object], missing: set[RelPath], believed: set[RelPath], bound: int
) -> None:
    rows = rows_of(tree)
    gone = tops(missing & rows.keys())
    held = rule(gone, believed, lambda top: beneath(rows, top), set(), bound)
    explained = {path for path in gone if any(is_beneath(path, top) for top in believed)}
    assert held <= gone
    assert not held & explained, "the kernel is believed, whatever the number"
    unexplained = {p for top in gone - explained for p, _ in beneath(rows, top)}
    assert held == (gone - explained if len(unexplained) > bound else set())


@given(trees(), st.integers(0, 3))
def test_what_came_up_elsewhere_is_not_certainly_gone(
    tree: dict[RelPath, object], bound: int
) -> None:
    rows = rows_of(tree)
    found = {path: Difference(path, known, None) for path, known in rows.items()}
    gone = certainly_gone(found, lambda top: beneath(rows, top))
    assert gone.keys() == tops(rows)
    moved = sorted(rows)[:bound]
    stamps = {path: stamp for path in moved if (stamp := rows[path].stamp) is not None}
    found |= {b"new/" + p: Difference(b"new/" + p, None, stamp) for p, stamp in stamps.items()}
    gone = certainly_gone(found, lambda top: beneath(rows, top))
    assert not any(is_beneath(path, top) for path in moved for top in gone)


@given(trees(), st.integers(0, 3))
def test_what_was_renamed_is_not_deleted(tree: dict[RelPath, object], bound: int) -> None:
    rows = rows_of(tree)
    stamps = {path: known.stamp for path, known in rows.items() if known.stamp is not None}
    moved = {b"new/" + path: Difference(b"new/" + path, None, s) for path, s in stamps.items()}
    gone = tops(rows)
    assert rule(gone, set(), lambda top: beneath(rows, top), arrived(moved), bound) == set()


def test_another_file_with_the_inode_of_a_lost_one_does_not_stand_for_it() -> None:
    assert identity(stamp(Kind.FILE, 1)) != identity(stamp(Kind.FILE, 2))
    assert identity(stamp(Kind.DIRECTORY, 1)) != identity(stamp(Kind.FILE, 1))


def test_a_directory_that_became_a_link_is_an_absence() -> None:
    old, new = stamp(Kind.DIRECTORY, 1), stamp(Kind.LINK, 2)
    changed = {b"a": Difference(b"a", Known(entry_of(old), old), new)}
    assert absences(changed) == {b"a"}
    other = {b"a": Difference(b"a", Known(entry_of(new), new), stamp(Kind.FILE, 1))}
    assert absences(other) == set()


@given(st.integers(0, 1_000_000), st.integers(0, 2000), st.integers(0, 100))
def test_what_is_believed_is_few_and_a_small_part_whatever_the_size(
    entries: int, number: int, percent: int
) -> None:
    bound = Bound(number, percent).of(entries)
    assert 0 <= bound <= number
    assert bound <= entries * percent / 100


def test_the_default_bound() -> None:
    sizes = (0, 3, 51, 1200, 2000, 4000, 100_000)
    assert [Bound(1000, 25).of(n) for n in sizes] == [0, 0, 12, 300, 500, 1000, 1000]


def test_a_directory_stands_for_all_that_was_told_in_it() -> None:
    told = Told(limit=100)
    for number in range(99):
        told.add(b"run/%d" % number)
    told.add(b"run")
    for number in range(40):
        told.add(b"other/%d" % number)
    assert told.take() == {b"run"} | {b"other/%d" % number for number in range(40)}
    assert told.take() == set()


def test_too_many_explanations_are_forgotten_not_guessed() -> None:
    told = Told(limit=10)
    for number in range(30):
        told.add(b"%d" % number)
    assert told.take() == {b"%d" % number for number in range(10)}
    told.add(b"again")
    assert told.take() == {b"again"}


@given(PATH_SETS, PATH_SETS)
def test_explanations_beneath_what_came_back_still_count(
    told: set[RelPath], back: set[RelPath]
) -> None:
    left = outstanding(told, lambda path: path in back)
    assert not left & back
    for path in told - back:
        assert any(is_beneath(path, top) for top in left)
    assert left <= told


def test_explanations_follow_a_rename() -> None:
    told = {b"a/x", b"a/y/z", b"b", b"ax"}
    assert carried(told, {b"a": b"c", b"d": b"e"}) == {b"c/x", b"c/y/z"}


def test_a_run_beyond_the_limit_is_told_by_its_directories() -> None:
    told = Told(limit=10)
    for number in range(30):
        told.add(b"run/extra/%d" % number)
    told.add(b"other")
    told.add(b"run/extra")
    told.add(b"run")
    found = told.take()
    assert {b"run", b"run/extra"} <= found
    assert b"other" not in found, "it goes unexplained, which only holds more"
    told.add(b"other")
    assert told.take() == {b"other"}
