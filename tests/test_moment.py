"""What a file was at one moment, though it is written while it is read: head, tail and length."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from blake3 import blake3

from onesync.core.blocks import Blocks
from onesync.replica import moment
from onesync.replica.door import Copied
from onesync.replica.folder import FolderReplica
from onesync.replica.pour import Pour
from onesync.transfer import Brought

HEAD = 1024
IMAGE = 20_000
IMAGES = 200


class Stack:
    """A head that counts the images, written before each of them; of all states it ever had."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.states: dict[str, int] = {}
        path.write_bytes(bytes(HEAD))
        self._fd = os.open(path, os.O_RDWR)
        self.count = 0

    def close(self) -> None:
        os.close(self._fd)

    def know(self) -> None:
        content = self._path.read_bytes()
        self.states[blake3(content).hexdigest()] = len(content)

    def add(self, images: int = 1, *, known: bool = True) -> None:
        for _ in range(images):
            self.count += 1
            os.pwrite(self._fd, b"%d images" % self.count, 0)
            if known:
                self.know()
            os.pwrite(self._fd, os.urandom(IMAGE), os.fstat(self._fd).st_size)
            if known:
                self.know()


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "stack.mrcs")
    made.add(IMAGES, known=False)
    yield made
    made.close()


@contextmanager
def at(
    monkeypatch: pytest.MonkeyPatch, acts: Mapping[int, Callable[[], None]]
) -> Iterator[list[int]]:
    """Let something happen before the reading number so-and-so of a local file."""
    count = [0]
    real = os.pread

    def pread(fd: int, size: int, offset: int) -> bytes:
        count[0] += 1
        if act := acts.get(count[0]):
            act()
        return real(fd, size, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", pread)
        patched.setattr(
            Pour.run, "__kwdefaults__", {**(Pour.run.__kwdefaults__ or {}), "read": pread}
        )
        yield count


def put(tmp_path: Path, *, seconds: float | None) -> Copied:
    (tmp_path / "replica").mkdir()
    replica = FolderReplica(os.fsencode(tmp_path / "replica"))
    return replica.put(os.fsencode(tmp_path / "stack.mrcs"), b"copy", seconds)


def compare(tmp_path: Path, *, seconds: float | None) -> Copied:
    (tmp_path / "replica").mkdir()
    replica = FolderReplica(os.fsencode(tmp_path / "replica"))
    none = Blocks(16 << 10, b"")
    return replica.compare(os.fsencode(tmp_path / "stack.mrcs"), 0, none, seconds).copied


@pytest.mark.parametrize("way", [put, compare])
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("when", range(1, 25))
def test_a_stack_that_grows_while_it_is_read_is_what_it_was_once(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[..., Copied],
    first: int,
    when: int,
) -> None:
    """Its head never counts images that are not there, whenever they come."""
    stack.know()
    images = (1, 3, 30)[when % 3]
    with at(monkeypatch, {first: stack.add, when: lambda: stack.add(images)}) as count:
        copied = way(tmp_path, seconds=None if when % 2 else 60.0)
    assert count[0] >= min(when, 12), "nothing happened meanwhile"
    assert copied.prefix
    assert not Brought(copied, 0).is_behind
    assert stack.states[copied.digest] == copied.size
    if way is put:
        content = (tmp_path / "replica" / "copy").read_bytes()
        assert blake3(content).hexdigest() == copied.digest


@pytest.mark.parametrize("way", [put, compare])
def test_one_that_grows_faster_than_can_be_kept_is_a_beginning(
    stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: Callable[..., Copied],
) -> None:
    """Of what it was at one moment: the head is that of then, what follows it is cut, and told."""
    monkeypatch.setattr(moment, "_KEPT_AT_MOST", 10 * IMAGE)
    size = (tmp_path / "stack.mrcs").stat().st_size
    with at(monkeypatch, {2: lambda: stack.add(30)}):
        copied = way(tmp_path, seconds=60.0)
    assert stack.count == IMAGES + 30, "nothing happened meanwhile"
    assert copied.prefix
    assert copied.size == size
    assert copied.whole == (tmp_path / "stack.mrcs").stat().st_size
    assert Brought(copied, 0).is_behind
    beginning = (tmp_path / "stack.mrcs").read_bytes()[:size]
    assert copied.digest == blake3(beginning).hexdigest()


def test_what_grows_at_each_look_is_a_beginning_too(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acts = dict.fromkeys(range(3, 400), partial(stack.add, known=False))
    with at(monkeypatch, acts):
        copied = put(tmp_path, seconds=60.0)
    assert copied.prefix
    content = (tmp_path / "replica" / "copy").read_bytes()
    assert blake3(content).hexdigest() == copied.digest
    counted = int(content.partition(b" ")[0])
    assert IMAGES <= counted <= stack.count
    assert len(content) <= HEAD + counted * IMAGE
    assert content[HEAD:] == (tmp_path / "stack.mrcs").read_bytes()[HEAD : len(content)]
