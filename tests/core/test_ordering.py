"""The order of a batch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onesync.core.model import parent_of
from onesync.core.ordering import spread

PATHS = st.lists(st.sampled_from([b"a/1", b"a/2", b"a/3", b"b/1", b"b/2", b"c", b"d/e/1"]))


@given(PATHS)
def test_spread_keeps_everything_and_takes_turns(paths: list[bytes]) -> None:
    ordered = spread(paths, lambda path: path)
    assert sorted(ordered) == sorted(paths)
    for number in range(len({parent_of(path) for path in paths})):
        assert parent_of(ordered[number]) not in {parent_of(p) for p in ordered[:number]}
    for parent in {parent_of(path) for path in paths}:
        kept = [path for path in ordered if parent_of(path) == parent]
        assert kept == [path for path in paths if parent_of(path) == parent]
