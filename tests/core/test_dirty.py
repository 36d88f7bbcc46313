"""The dirty set against a naive one: nothing that was marked is ever lost."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from onesync.core.dirty import DirtySet, Due
from onesync.core.model import RelPath, is_beneath

SETTLE = 2.0
MAX_DELAY = 5.0
PATHS = st.lists(st.sampled_from([b"a", b"b"]), min_size=1, max_size=3).map(b"/".join)
STEPS = st.sampled_from([0.0, 0.5, 2.0])


def covered(path: RelPath, due: Due) -> bool:
    return path in due.paths or any(is_beneath(path, tree) for tree in due.trees)


class Marking(RuleBasedStateMachine):
    """Whatever was marked and not taken must come out."""

    def __init__(self) -> None:
        super().__init__()
        self.dirty = DirtySet(SETTLE, MAX_DELAY, limit=6)
        self.now = 100.0
        self.expected: dict[RelPath, tuple[float, float]] = {}
        self.left: set[RelPath] = set()
        self.untouched: set[RelPath] = set()
        self.moves: set[tuple[RelPath, RelPath]] = set()
        self.taken: list[tuple[Due, dict[RelPath, tuple[float, float]]]] = []

    @rule(seconds=STEPS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(path=PATHS, restless=st.booleans(), scratch=st.booleans())
    def mark(self, path: RelPath, restless: bool, scratch: bool) -> None:
        self.dirty.mark(path, self.now, restless, scratch)
        self._marked(path)

    def _marked(self, path: RelPath) -> None:
        first, _ = self.expected.get(path, (self.now, self.now))
        self.expected[path] = (first, self.now)
        self.untouched.discard(path)

    @rule(path=PATHS | st.just(b""))
    def mark_tree(self, path: RelPath) -> None:
        self.dirty.mark_tree(path, self.now)

    @rule(ends=st.tuples(PATHS, PATHS))
    def move(self, ends: tuple[RelPath, RelPath]) -> None:
        self.dirty.moved(*ends, self.now)
        for path in ends:
            self._marked(path)
        self.moves.add(ends)

    @rule(everything=st.booleans())
    def take(self, everything: bool) -> None:
        due = self.dirty.take(self.now, everything)
        gone = {path: mark for path, mark in self.expected.items() if covered(path, due)}
        for path, (first, last) in self.expected.items():
            ripe = path in self.left or self.now >= min(last + SETTLE, first + MAX_DELAY)
            assert not (everything or ripe) or path in gone, "due, and not taken"
        for path in gone:
            del self.expected[path]
        self.left = {path for path in self.left if not covered(path, due)}
        self.untouched &= self.left
        assert set(due.moves) <= self.moves
        self.moves -= set(due.moves)
        self.taken.append((due, gone))

    @precondition(lambda self: self.taken)
    @rule()
    def give_back(self) -> None:
        due, gone = self.taken.pop()
        self.dirty.give_back(due, self.now)
        self._looked_at_again(due)
        for path, (first, last) in gone.items():
            old_first, old_last = self.expected.get(path, (first, last))
            self.expected[path] = (min(first, old_first), max(last, old_last))
        self.moves |= set(due.moves)

    @precondition(lambda self: self.taken and not self.taken[-1][0].trees)
    @rule()
    def leave(self) -> None:
        due, gone = self.taken.pop()
        self.dirty.leave(dict(due.since))
        self.left |= due.paths
        self.untouched -= due.paths
        for path, (first, last) in gone.items():
            old_first, old_last = self.expected.get(path, (first, last))
            self.expected[path] = (min(first, old_first), max(last, old_last))

    @precondition(lambda self: self.taken and not self.taken[-1][0].trees)
    @rule()
    def leave_untouched(self) -> None:
        due, gone = self.taken.pop()
        if b"" not in self.dirty._trees:
            self.untouched |= due.paths - self.expected.keys()
            self.left |= due.paths
        self.dirty.leave_untouched(dict(due.since))
        for path, (first, last) in gone.items():
            old_first, old_last = self.expected.get(path, (first, last))
            self.expected[path] = (min(first, old_first), max(last, old_last))
        assert self.untouched - self.dirty.backlog() == set()

    @rule(backlog=st.integers(0, 3), first=st.sets(PATHS))
    def take_some(self, backlog: int, first: set[RelPath]) -> None:
        before = self.dirty.backlog()
        due = self.dirty.take(self.now, backlog=backlog, first=first)
        assert len(due.paths & before) == min(backlog, len(before))
        self.dirty.give_back(due, self.now)
        self.left -= due.paths
        self.untouched -= due.paths

    def _looked_at_again(self, due: Due) -> None:
        """What is given back settles anew, unless it was marked as left meanwhile."""
        self.left -= due.paths & self.untouched
        self.untouched -= due.paths

    @invariant()
    def a_mark_of_the_whole_tree_subsumes_what_was_left(self) -> None:
        if b"" in self.dirty._trees:
            self.left.clear()
            self.untouched.clear()

    @invariant()
    def its_length_and_age_are_told(self) -> None:
        assert bool(len(self.dirty)) or not self.expected
        oldest = self.dirty.oldest()
        if self.expected:
            assert oldest is not None
            assert oldest <= min(first for first, _ in self.expected.values())

    @invariant()
    def what_is_due_next_is_told(self) -> None:
        seconds = self.dirty.next_due(self.now)
        assert (seconds is None) == (len(self.dirty) == 0)
        if seconds is not None:
            assert 0 <= seconds <= MAX_DELAY

    def teardown(self) -> None:
        due = self.dirty.take(self.now, everything=True)
        assert all(covered(path, due) for path in self.expected)
        assert set(due.moves) == self.moves
        assert len(self.dirty) == 0


TestMarking = Marking.TestCase


def test_what_is_left_keeps_its_age_where_the_whole_tree_was_marked_since() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark(b"a", 100)
    due = dirty.take(100, everything=True)
    dirty.mark_tree(b"", 100.5)
    dirty.leave_untouched(dict(due.since))
    assert dirty.oldest() == 100


def test_a_path_settles_and_is_never_too_late() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark(b"a", 0)
    assert dirty.take(1.9).paths == frozenset()
    assert dirty.next_due(1.9) == 2.0 - 1.9
    for now in range(1, 5):
        dirty.mark(b"a", now)
        assert dirty.take(now + 0.9).paths == frozenset()
    assert dirty.take(MAX_DELAY).paths == {b"a"}


def test_a_restless_path_does_not_wait_for_rest() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    for tenths in range(20):
        dirty.mark(b"project.sqlite", tenths / 10, restless=True)
    assert dirty.take(SETTLE).paths == {b"project.sqlite"}


def test_a_growing_file_rests_and_others_do_not_wait_for_it() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    for path in (b"growing", b"other"):
        dirty.mark(path, 0)
    dirty.rest(b"growing", 20)
    assert dirty.next_due(0) == SETTLE
    assert dirty.take(9, everything=True, resting=False).paths == {b"other"}
    assert dirty.next_due(9) == 11
    assert dirty.take(19.9, resting=False).paths == frozenset()
    assert dirty.take(20, resting=False).paths == {b"growing"}


def test_scratch_is_taken_when_it_is_due_and_not_with_everything_else() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark(b"scratch", 0, scratch=True)
    dirty.mark(b"other", 0)
    assert dirty.take(1.9, everything=True, resting=False).paths == {b"other"}
    assert dirty.is_scratch(b"scratch")
    assert dirty.take(SETTLE, everything=True, resting=False).paths == {b"scratch"}
    dirty.mark(b"scratch", 3, scratch=True)
    for now in (4, 5, 6, 7):
        dirty.mark(b"scratch", now, scratch=True)
    assert dirty.take(3 + MAX_DELAY).paths == {b"scratch"}, "it never settles"
    dirty.mark(b"scratch", 9, scratch=True)
    assert dirty.take(9, everything=True).paths == {b"scratch"}, "a flush"


def test_scratch_that_went_elsewhere_does_not_wait() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark(b"scratch", 0, scratch=True)
    dirty.moved(b"scratch", b"done", 0)
    due = dirty.take(0, everything=True, resting=False)
    assert due.moves == ((b"scratch", b"done"),)
    assert due.paths == {b"scratch", b"done"}


def test_a_flush_takes_what_rests_too() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark(b"growing", 0)
    dirty.rest(b"growing", 20)
    assert dirty.take(1, everything=True).paths == {b"growing"}


def test_the_ends_of_moves_are_taken_together() -> None:
    """Or what took the old name would replace the only copy of what is written on under the new."""
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.moved(b"a", b"b", 0)
    dirty.moved(b"b", b"c", 0)
    for path in (b"b", b"c", b"other"):
        dirty.mark(path, 1.5)
    due = dirty.take(2.0)
    assert due.paths == {b"a", b"b", b"c"}
    assert due.moves == ((b"a", b"b"), (b"b", b"c"))


def test_what_is_renamed_over_a_file_that_rests_does_not_rest() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark(b"b", 0)
    dirty.rest(b"b", 20)
    dirty.moved(b"a", b"b", 1)
    due = dirty.take(3.0, resting=False)
    assert due.paths == {b"a", b"b"}
    assert due.moves == ((b"a", b"b"),)
    assert not dirty.rests(b"b")


def test_a_long_chain_of_moves_is_taken_in_little_time() -> None:
    """Whoever marks waits meanwhile; one look at all pairs for each link would take minutes."""
    dirty = DirtySet(SETTLE, 30)
    count = 20_000
    for number in range(count):
        dirty.moved(b"%d" % (number + 1), b"%d" % number, 100 + number * 1e-5)
    began = time.monotonic()
    due = dirty.take(102.0)
    assert len(due.paths) == count + 1
    assert time.monotonic() - began < 10


@given(st.lists(st.tuples(STEPS, PATHS), max_size=20), STEPS)
def test_what_is_due_is_taken_and_nothing_else(
    marks: list[tuple[float, RelPath]], rest: float
) -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    expected: dict[RelPath, tuple[float, float]] = {}
    now = 0.0
    for step, path in marks:
        now += step
        dirty.mark(path, now)
        expected[path] = (expected.get(path, (now, now))[0], now)
    now += rest
    due = {p: min(last + SETTLE, first + MAX_DELAY) for p, (first, last) in expected.items()}
    seconds = dirty.next_due(now)
    assert seconds == (max(0.0, min(due.values()) - now) if due else None)
    now += seconds or 0.0
    taken = dirty.take(now)
    assert taken.paths == {path for path, when in due.items() if when <= now}
    assert bool(taken.paths) == bool(marks)
    assert dict(taken.since) == {path: expected[path][0] for path in taken.paths}


def test_a_new_tree_settles_too_and_hurries_nothing_else() -> None:
    """Who fills a new directory is not disturbed by one who lists it meanwhile."""
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark_tree(b"a", 0)
    dirty.mark_tree(b"a", SETTLE / 2)  # it is not put off
    dirty.mark(b"a/b", SETTLE / 2)
    assert dirty.next_due(0) == SETTLE
    assert not dirty.take(SETTLE - 0.1).trees
    assert dirty.next_due(SETTLE) == 0
    first = dirty.take(SETTLE)
    assert first.trees == {b"a"}
    assert list(first.since) == [(b"a", 0)]
    assert dirty.take(1.5 * SETTLE).paths == {b"a/b"}


def test_a_tree_waits_neither_for_the_longest_delay_nor_where_everything_is_taken() -> None:
    dirty = DirtySet(MAX_DELAY + 1, MAX_DELAY)
    dirty.mark_tree(b"a", 0)
    assert dirty.next_due(0) == MAX_DELAY
    assert dirty.take(0, everything=True).trees == {b"a"}


def test_what_a_failed_batch_took_is_due_at_once() -> None:
    """Else the next try would find nothing to do, and be told as a success."""
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark_tree(b"a", 0)
    dirty.mark(b"b", 0)
    dirty.give_back(dirty.take(0, everything=True), 0)
    assert dirty.next_due(0) == 0
    again = dirty.take(0)
    assert again.trees == {b"a"}
    assert set(again.paths) == {b"b"}
    dirty.mark_tree(b"a", 1)
    assert dirty.next_due(1) == SETTLE


def test_the_whole_tree_is_due_at_once() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.mark_tree(b"a", 0)
    dirty.mark_tree(b"", 1)
    assert dirty.next_due(1) == 0
    assert dirty.take(1).trees == {b""}


def test_beyond_the_limit_the_whole_tree_is_marked_with_the_oldest_age() -> None:
    for mark in (DirtySet.mark, DirtySet.mark_tree):
        dirty = DirtySet(SETTLE, MAX_DELAY, limit=3)
        for number in range(10):
            mark(dirty, b"%d" % number, number)
        assert len(dirty) == 1
        assert dirty.take(10).since == ((b"", 0),)


def test_that_somebody_wrote_outlives_a_scan_of_everything_and_a_batch_that_failed() -> None:
    dirty = DirtySet(2.0, 30.0)
    dirty.mark(b"a", 0.0)
    dirty.written(b"a")
    assert not dirty.take(1.0).written, "it has not settled"
    dirty.mark_tree(b"", 1.0)
    due = dirty.take(1.0)
    assert due.written == {b"a"}
    dirty.give_back(due, 1.0)
    assert dirty.take(1.0).written == {b"a"}
    assert not dirty.take(1.0).written


def test_of_a_backlog_each_batch_takes_some_in_turns() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    many = [b"many/%d" % number for number in range(8)]
    few = [b"few/%d" % number for number in range(2)]
    dirty.leave_untouched(dict.fromkeys([*many, *few], 0.0))
    assert (len(dirty), dirty.next_due(1.0), dirty.oldest()) == (10, 0.0, 0.0)
    assert dirty.take(1.0, everything=True, backlog=0).paths == frozenset()
    assert dirty.take(1.0, backlog=4).paths == {many[0], few[0], many[1], few[1]}
    assert dirty.take(1.0, backlog=4, first={many[6], many[7]}).paths == {*many[2:4], *many[6:]}
    dirty.mark(many[4], 2.0)
    assert dirty.backlog() == {many[5]}
    assert dirty.take(2.5, backlog=0).paths == {many[4]}, "it was due"
    assert dirty.take(2.5, backlog=4).paths == {many[5]}


def test_a_backlog_keeps_its_age_and_goes_with_a_whole_scan() -> None:
    dirty = DirtySet(SETTLE, MAX_DELAY)
    dirty.leave_untouched({b"a": 1.0, b"b": 2.0})
    dirty.leave_untouched({b"a": 9.0})
    assert dirty.oldest() == 1.0
    dirty.mark(b"b", 5.0)
    assert dict(dirty.take(10.0).since) == {b"a": 1.0, b"b": 2.0}
    dirty.leave_untouched({b"a": 1.0})
    dirty.mark_tree(b"", 11.0)
    assert dirty.backlog() == set()
    assert dirty.take(11.0).since == ((b"", 1.0),)
