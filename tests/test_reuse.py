"""A copy that is used again: what was edited and is not looked at is never overwritten."""

from __future__ import annotations

import os
from collections import UserDict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from blake3 import blake3

from onesync import working_copy
from onesync.core.model import Entry, Kind
from onesync.errors import Halted
from onesync.index import Index
from onesync.local import stamp_of
from onesync.scanner import Scanner
from onesync.sidecars import Sidecars
from tests.node import Node
from tests.test_bad_input import PlainNode

MINE = b"written here, and nowhere else"
TOLD = (
    "1 files in the working directory changed after the last undeploy, could not be sent before it,"
    " or may not be removed ({}); nothing was overwritten"
)


@pytest.fixture
def plain(tmp_path: Path, store: Path) -> Iterator[PlainNode]:
    node = PlainNode(tmp_path / "plain", store)
    yield node
    if node.running():
        node.end(9)


def goes_on(two: Node, name: str, *, is_deleted: bool = False) -> None:
    """Deploy on another node, where a file is changed or deleted, and undeploy."""
    two.deploy()
    if is_deleted:
        (two.work / name).unlink()
    else:
        (two.work / name).write_bytes(b"of two")
    assert two.end() == 0, two.log()


@pytest.mark.parametrize("what_two_does", ["changes it", "deletes it"])
def test_what_is_excluded_since_keeps_its_edits(
    nodes: list[Node],
    what_two_does: str,
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "notes.tmp").write_bytes(b"first")
    assert one.end() == 0, one.log()
    one.configure(push__exclude=["*.tmp"])
    one.deploy()
    (one.work / "notes.tmp").write_bytes(MINE)
    assert one.end() == 0, one.log()
    goes_on(two, "notes.tmp", is_deleted=what_two_does == "deletes it")
    assert one.refusal() == 13
    assert TOLD.format("notes.tmp") in one.log()
    assert (one.work / "notes.tmp").read_bytes() == MINE


@pytest.mark.parametrize("mode", [0o000, 0o311])
def test_what_lies_in_a_directory_that_cannot_be_listed_keeps_its_edits(
    nodes: list[Node],
    plain: PlainNode,
    mode: int,
) -> None:
    two = nodes[1]
    plain.deploy()
    (plain.work / "d").mkdir()
    (plain.work / "d" / "f").write_bytes(b"first")
    assert plain.end() == 0, plain.log()
    (plain.work / "d" / "f").write_bytes(MINE)
    (plain.work / "d").chmod(mode)
    goes_on(two, "d/f")
    assert plain.refusal() == 13
    assert TOLD.format("d/f") in plain.log()
    assert (plain.work / "d" / "f").read_bytes() == MINE


@pytest.mark.parametrize("what_two_does", ["changes it", "deletes it"])
def test_what_is_excluded_since_and_unchanged_follows_onedata(
    nodes: list[Node], what_two_does: str
) -> None:
    one, two = nodes
    one.deploy()
    (one.work / "notes.tmp").write_bytes(b"first")
    assert one.end() == 0, one.log()
    one.configure(push__exclude=["*.tmp"])
    goes_on(two, "notes.tmp", is_deleted=what_two_does == "deletes it")
    one.deploy()
    found = [path.read_bytes() for path in one.work.iterdir()]
    assert found == ([] if what_two_does == "deletes it" else [b"of two"])
    assert one.end() == 0, one.log()


def test_what_lies_in_a_closed_directory_and_is_unchanged_follows_onedata(
    nodes: list[Node], plain: PlainNode
) -> None:
    two = nodes[1]
    plain.deploy()
    (plain.work / "d").mkdir()
    (plain.work / "d" / "f").write_bytes(b"first")
    assert plain.end() == 0, plain.log()
    (plain.work / "d").chmod(0)
    goes_on(two, "d/f")
    plain.deploy()
    assert (plain.work / "d" / "f").read_bytes() == b"of two"
    assert plain.end() == 0, plain.log()


def test_what_is_edited_while_the_copy_is_made_ready_is_kept_and_told(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    for name in ("edited", "other"):
        (work / name).write_bytes(b"first")
    (work / "linked").hardlink_to(work / "other")
    entry = Entry(Kind.FILE, 5, 1, 0o644, blake3(b"first").hexdigest())
    index = Index(tmp_path / "index.sqlite")
    stamps = {path.name: stamp_of(path.lstat(), Kind.FILE) for path in work.iterdir()}
    index.replace([(name.encode(), entry, stamp) for name, stamp in stamps.items()])

    asked: set[bytes] = set()
    changed: list[bytes] = []

    class EditedBeside(UserDict[bytes, Entry]):
        """A manifest that has nothing; who asks a second time has looked at everything."""

        def __missing__(self, path: bytes) -> Entry:
            if path in asked and not changed:
                changed.append(path)
                (work / "edited").write_bytes(MINE)
            asked.add(path)
            raise KeyError(path)

        def __contains__(self, _: object) -> bool:
            return True  # or get() does not ask

    with closing(Sidecars(os.fsencode(work), tmp_path)) as sidecars:
        scanner = Scanner(os.fsencode(work), index, lambda _: False)
        with pytest.raises(Halted, match=r"^1 files .* \(edited\); nothing was overwritten"):
            working_copy.reuse(os.fsencode(work), index, scanner, EditedBeside(), sidecars)
    index.close()
    assert [path.read_bytes() for path in work.iterdir()] == [MINE]
