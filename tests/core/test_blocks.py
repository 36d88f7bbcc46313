"""Blocks: their sizes, and the runs in which they are read and written."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from onesync.core.blocks import PATCH_FROM, block_size, runs


@given(st.sets(st.integers(0, 60)), st.integers(1, 8))
def test_runs_hold_every_number_once_and_are_as_few_as_can_be(numbers: set[int], most: int) -> None:
    found = list(runs(sorted(numbers), most))
    assert [number for run in found for number in run] == sorted(numbers)
    assert all(1 <= len(run) <= most for run in found)
    joined = [(one, two) for one, two in pairwise(found) if one.stop == two.start]
    assert all(len(one) == most for one, _ in joined)


@given(st.integers(PATCH_FROM, 1 << 42), st.integers(PATCH_FROM, 1 << 42))
def test_a_smaller_files_blocks_divide_a_larger_ones(one: int, other: int) -> None:
    small, large = sorted((block_size(one), block_size(other)))
    assert large % small == 0
    assert (one <= other) <= (block_size(one) <= block_size(other))
