"""The generator itself: the same seed gives the same tree, and a damaged copy shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.workload.content import BLOCK, Broken, Verdict, content_of, generation_of, pieces
from tests.workload.oracle import check_end
from tests.workload.tree import make_tree

NAME = "Runs/000001_X/extra/mic.mrc"
SIZE = 20 * BLOCK + 100


def data(generation: int) -> bytes:
    return b"".join(pieces(NAME, generation, SIZE))


@pytest.mark.parametrize(
    ("damaged", "verdict"),
    [
        (data(1), Verdict.WHOLE),
        (data(1)[: 9 * BLOCK + 5], Verdict.PREFIX),
        (b"", Verdict.PREFIX),
        (data(2)[: 7 * BLOCK] + data(1)[7 * BLOCK :], Verdict.MIXED),
        (data(2)[: 7 * BLOCK + 100] + data(1)[7 * BLOCK + 100 :], Verdict.TORN),
        (data(1)[: 3 * BLOCK] + bytes(BLOCK) + data(1)[4 * BLOCK :], Verdict.ZERO),
        (data(1)[BLOCK:], Verdict.TORN),
        (data(1) + b"more", Verdict.TORN),
        (b"another file", Verdict.FOREIGN),
    ],
)
def test_a_copy_tells_what_it_is(tmp_path: Path, damaged: bytes, verdict: Verdict) -> None:
    path = tmp_path / "copy"
    path.write_bytes(damaged)
    assert content_of(path).verdict is verdict


def test_the_generation_of_a_mixed_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_bytes(data(4))
    assert generation_of(path) == 4
    path.write_bytes(data(4)[:BLOCK] + data(3)[BLOCK:])
    with pytest.raises(Broken):
        generation_of(path)


def test_the_same_seed_gives_the_same_names_and_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert make_tree(one, "XS", 3) == make_tree(two, "XS", 3) > 200
    # Folders, databases and markers have the time of now.
    dressed = [line for line in check_end(one, two) if "FoilHole" in line and "DONE" not in line]
    assert dressed == []
    for path in one.glob("Runs/000002_Motion/extra/*.mrc"):
        assert generation_of(path) == 1
