"""Blocks: their sizes, their digests, and the runs in which they are read and written."""

from __future__ import annotations

from itertools import pairwise

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from onesync.core.blocks import (
    ALGORITHM,
    OLD_ALGORITHM,
    PATCH_FROM,
    BlockHasher,
    Blocks,
    block_size,
    runs,
)

_SIZE = 64


def _hashed(pieces: list[bytes], algorithm: str = ALGORITHM) -> Blocks:
    hasher = BlockHasher(_SIZE, algorithm)
    for piece in pieces:
        hasher.update(piece)
    return hasher.blocks()


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


@given(st.lists(st.binary(max_size=3 * _SIZE), max_size=8))
def test_digests_are_those_of_the_blocks_in_whatever_pieces_a_file_comes(
    pieces: list[bytes],
) -> None:
    whole = b"".join(pieces)
    blocks = [whole[start : start + _SIZE] for start in range(0, len(whole), _SIZE)]
    assert _hashed(pieces).digests == b"".join(map(xxh3_128_digest, blocks))
    old = b"".join(blake3(block).digest(length=16) for block in blocks)
    assert _hashed(pieces, OLD_ALGORITHM) == Blocks(_SIZE, old, OLD_ALGORITHM)


@pytest.mark.parametrize("algorithm", [ALGORITHM, OLD_ALGORITHM])
def test_blocks_hold_what_they_were_made_of_and_nothing_else(algorithm: str) -> None:
    content = bytes(range(_SIZE))
    blocks = _hashed([content, b"more"], algorithm)
    assert blocks.holds(0, content)
    assert blocks.holds(1, memoryview(b"more"))
    assert not blocks.holds(2, b"")
    for place in range(_SIZE):
        changed = bytearray(content)
        changed[place] ^= 1
        assert not blocks.holds(0, bytes(changed))


@pytest.mark.parametrize("algorithm", [ALGORITHM, OLD_ALGORITHM])
def test_what_is_to_be_compared_is_digested_alike(algorithm: str) -> None:
    blocks = _hashed([b"content"], algorithm)
    hasher = blocks.hasher()
    hasher.update(b"content")
    assert hasher.blocks() == blocks
