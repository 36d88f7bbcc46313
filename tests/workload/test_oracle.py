"""The oracle itself: what it must not let pass shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onesync.core.chain import Position, checkpoint_name
from onesync.core.model import STATUS_FOLDER
from onesync.intent import Intent
from tests.workload import content, databases
from tests.workload.oracle import Seen, check_as_browsed, check_tree

RUN = "Runs/000003_Ctf"
DATA = f"{RUN}/extra/item_000001.mrc"
MARKER = f"{RUN}/extra/DONE/item_000001.TXT"
SIZE = 10 * content.BLOCK


def write(root: Path, name: str, *, as_name: str | None = None, size: int = SIZE) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(content.pieces(as_name or name, 1, SIZE))[:size])


def project(root: Path) -> Path:
    """A run with one item, its marker, and its row."""
    write(root, DATA)
    marker = root / MARKER
    marker.parent.mkdir()
    marker.touch()
    databases.commit(root / RUN / "items.sqlite", databases.add(1, DATA, 1))
    return root


def intend(root: Path, intent: Intent) -> None:
    place = root / intent.path.decode()
    place.parent.mkdir(parents=True)
    place.write_bytes(intent.encode())


def test_what_is_right_passes(tmp_path: Path) -> None:
    seen = Seen()
    assert check_tree(project(tmp_path), seen) == check_as_browsed(tmp_path) == []
    assert (seen.rows, seen.markers, seen.files) == (1, 1, 3)


def test_data_of_another_name(tmp_path: Path) -> None:
    write(project(tmp_path), f"{RUN}/extra/item_000002.mrc", as_name=DATA)
    assert check_tree(tmp_path, Seen()) == [
        f"{RUN}/extra/item_000002.mrc: its blocks are those of another file"
    ]


def test_other_bytes_where_blocks_belong(tmp_path: Path) -> None:
    (project(tmp_path) / DATA).write_bytes(b"no block" * 1000)
    assert len(check_tree(tmp_path, Seen())) == 3  # by itself, for its marker, for its row


@pytest.mark.parametrize("size", [None, 3 * content.BLOCK], ids=["gone", "cut"])
def test_as_browsed_a_row_and_a_marker_without_data(tmp_path: Path, size: int | None) -> None:
    project(tmp_path)
    if size is None:
        (tmp_path / DATA).unlink()
    else:
        write(tmp_path, DATA, size=size)
    assert len(check_as_browsed(tmp_path)) == 2
    # That the data are on their way is no excuse: what promises them is to come after.
    target, beside = DATA.encode(), f"{RUN}/extra/.onesync~1~1".encode()
    intend(tmp_path, Intent(Position(1, 2), new=[(target, beside)], create=[(target, SIZE, "")]))
    assert len(check_as_browsed(tmp_path)) == 2


def test_as_browsed_what_is_being_renamed_may_be_missing(tmp_path: Path) -> None:
    project(tmp_path)
    (tmp_path / DATA).unlink()
    assert len(check_as_browsed(tmp_path)) == 2
    intend(tmp_path, Intent(Position(1, 2), rename=[(RUN.encode(), b"Runs/000004_Ctf")]))
    manifest = tmp_path / os.fsdecode(STATUS_FOLDER) / "manifest"
    manifest.mkdir()
    (manifest / checkpoint_name(Position(1, 1))).touch()
    assert check_as_browsed(tmp_path) == []
    (manifest / checkpoint_name(Position(1, 2))).touch()
    assert len(check_as_browsed(tmp_path)) == 2, "the batch is over"
