"""Every operation of the door makes its calls on the mount by number, so each of them can fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.blocks import BlockHasher, Blocks
from onesync.errors import MountHung
from onesync.replica.door import Replica
from tests.campaign.calls import Calls, Fault
from tests.campaign.life import LARGE, Direct, edges

BLOCK = LARGE // 4
OLD = bytes(range(256)) * (2 * LARGE // 256)
NEW = OLD[:BLOCK] + bytes(BLOCK) + OLD[2 * BLOCK :]


@dataclass
class Node:
    """A replica of a small folder, and local files to copy from and to."""

    home: Path
    fault: Fault | None = None

    def __post_init__(self) -> None:
        store = self.home / "store"
        (store / "folder").mkdir(parents=True)
        (store / "notes").write_bytes(b"notes")
        (store / "folder" / "small").write_bytes(b"small")
        (store / "folder" / "large").write_bytes(OLD)
        (self.home / "small").write_bytes(b"small and more")
        (self.home / "new").write_bytes(NEW)
        self.calls = Calls(os.fsencode(store), self.fault)
        self.replica = Direct(os.fsencode(store), self.calls)

    def local(self, name: str) -> bytes:
        return os.fsencode(self.home / name)

    def saves(self) -> None:
        """Prepare a patch: save the old bytes of the block that will change."""
        blocks = blocks_of(OLD)
        assert self.replica.write_undo(b"folder/large", b"folder/undo", len(OLD), blocks, (1,))

    def patches(self) -> None:
        blocks = blocks_of(NEW)
        assert self.replica.patch(self.local("new"), b"folder/large", blocks, (1,), len(NEW))

    def undoes(self) -> None:
        self.saves()
        self.patches()
        assert self.replica.undo(b"folder/large", b"folder/undo", len(OLD))

    def appends(self) -> None:
        digest = blake3(b"small").hexdigest()
        assert self.replica.append(self.local("small"), b"folder/small", 5, digest)

    def fetches(self, path: bytes) -> None:
        self.replica.fetch(path, self.local("fetched"), 0o600, 0)


def blocks_of(content: bytes) -> Blocks:
    hasher = BlockHasher(BLOCK)
    hasher.update(content)
    return hasher.blocks()


Act = Callable[[Node], object]
OPERATIONS: list[tuple[str, Act, str]] = [
    ("identify", lambda n: n.replica.identify(), "open"),
    ("look", lambda n: n.replica.look(b"folder/small"), "open walk look"),
    ("look_at", lambda n: n.replica.look_at([b"folder/small"]), "open walk look"),
    ("walk_anew", lambda n: n.replica.walk_anew(), ""),
    ("list", lambda n: n.replica.list(b"folder"), "open walk list look"),
    ("names", lambda n: n.replica.names(b"folder"), "open walk list"),
    ("make_directory", lambda n: n.replica.make_directory(b"folder/new"), "open walk mkdir"),
    ("put", lambda n: n.replica.put(n.local("small"), b"a"), "open write fsync close"),
    ("put", lambda n: n.replica.put(n.local("new"), b"a"), "open write fsync close"),
    ("fetch", lambda n: n.fetches(b"folder/small"), "open walk read close"),
    ("fetch", lambda n: n.fetches(b"folder/large"), "open walk read close"),
    ("append", Node.appends, "open walk stat write fsync close"),
    ("compare", lambda n: n.replica.compare(n.local("new"), len(OLD), blocks_of(OLD)), ""),
    ("write_undo", Node.saves, "open walk stat read write fsync close"),
    ("patch", Node.patches, "open walk write fsync close"),
    ("undo", Node.undoes, "open walk stat read write truncate fsync close"),
    ("truncate", lambda n: n.replica.truncate(b"notes", 1), "open truncate fsync close"),
    ("digest", lambda n: n.replica.digest(b"folder/large"), "open walk read close"),
    ("arrived", lambda n: n.replica.arrived([b"folder/small"]), "open walk attribute"),
    ("rename", lambda n: n.replica.rename(b"folder/small", b"folder/a"), "open walk rename"),
    ("remove", lambda n: n.replica.remove(b"folder"), "open walk unlink list rmdir"),
    (
        "remove_ours",
        lambda n: n.replica.remove_ours(b"folder", {b"": [b"small", b"large"]}),
        "open walk unlink list rmdir",
    ),
    ("unlink", lambda n: n.replica.unlink(b"folder/small"), "open walk unlink"),
    ("read", lambda n: n.replica.read(b"folder/small"), "open walk read close"),
    ("write_new", lambda n: n.replica.write_new(b"folder/a", b"a"), "open walk write fsync close"),
    ("overwrite", lambda n: n.replica.overwrite(b"notes", b"a"), "open write fsync close"),
]
"""Each with the calls that it makes: of a small file, and of a large one where these are others."""


def test_every_operation_of_the_door_is_here() -> None:
    assert {name for name in vars(Replica) if not name.startswith("_")} == {
        name for name, *_ in OPERATIONS
    }


@pytest.mark.parametrize(
    ("act", "kinds"),
    [operation[1:] for operation in OPERATIONS],
    ids=[name for name, *_ in OPERATIONS],
)
def test_an_operation_makes_its_calls_by_number(act: Act, kinds: str, tmp_path: Path) -> None:
    node = Node(tmp_path)
    with edges(), node.calls.installed():
        act(node)
    assert set(node.calls.names) == set(kinds.split())


@pytest.mark.parametrize("what", ["EIO", "hang"])
@pytest.mark.parametrize(
    "act", [act for _, act, _ in OPERATIONS], ids=[name for name, *_ in OPERATIONS]
)
def test_an_operation_does_not_succeed_where_one_of_its_calls_fails(
    act: Act, what: str, tmp_path: Path
) -> None:
    for number in count(1):
        node = Node(tmp_path / str(number), Fault(number, what))
        with edges(), node.calls.installed():
            try:
                act(node)
            except (OSError, MountHung):
                assert node.calls.struck
            else:
                assert not node.calls.struck, (number, node.calls.names)
                break
