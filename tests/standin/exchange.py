"""What two providers of OneData tell each other about one space, between two backing folders.

A file or directory has a twin in the other folder, known by inode. What one side made, moved, wrote
or removed since the last exchange is done to the twin. A name that the other side took meanwhile is
shown as ``name@XXXX``, after the provider it came from, and as ``name`` again once that is free.

Simplified: whole files travel, with their names; where both sides wrote one file, that of the
greater provider stands as a whole; modes travel with creation only.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

_MEANWHILE = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR)


class Seen(NamedTuple):
    """Where an inode is, and a file's digest; a directory has none."""

    parent: int
    name: str
    digest: bytes | None


@dataclass
class Side:
    """One provider's folder."""

    root: str
    provider: str
    now: dict[int, Seen] = field(default_factory=dict)
    before: dict[int, Seen] = field(default_factory=dict)  # of those that have a twin
    twin: dict[int, int] = field(default_factory=dict)
    plain: dict[int, str] = field(default_factory=dict)  # the names of those shown with a suffix

    def top(self) -> int:
        """Return the folder's own inode."""
        return os.stat(self.root).st_ino

    def look(self) -> None:
        """Take in what the folder holds."""
        self.now = dict(_below(self.root, self.top()))

    def path(self, ino: int) -> str:
        """Return where an inode is now."""
        seen = self.now.get(ino)
        return self.root if seen is None else os.path.join(self.path(seen.parent), seen.name)

    def free(self, parent: int, name: str, other: Side) -> str:
        """Return the name that what came from the other side can have here."""
        directory = self.path(parent)
        names = (name, *(f"{name}@{other.provider[:size]}" for size in range(4, 9)))
        return next(n for n in names if not os.path.lexists(os.path.join(directory, n)))

    def gone(self, ino: int) -> bool:
        """Tell whether an inode that had a twin went away."""
        old, new = self.before.get(ino), self.now.get(ino)
        return old is not None and (new is None or (new.digest is None) != (old.digest is None))


def _below(directory: str, parent: int) -> Iterator[tuple[int, Seen]]:
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        with _whatever_goes_meanwhile():
            status = os.lstat(path)
            is_directory = stat.S_ISDIR(status.st_mode)
            yield status.st_ino, Seen(parent, name, None if is_directory else _digest(path))
            if is_directory:
                yield from _below(path, status.st_ino)


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").digest()


@contextlib.contextmanager
def _whatever_goes_meanwhile() -> Iterator[None]:
    # The mounts go on; the next exchange sees what this one missed.
    try:
        yield
    except OSError as error:
        if error.errno not in _MEANWHILE:
            raise


class Exchange:
    """Carries changes between two sides; keeps what both agreed on last."""

    def __init__(self, one: Side, two: Side) -> None:
        self._sides = (one, two)

    def run(self) -> None:
        """Tell each side what the other did since the last time."""
        one, two = self._sides
        for side in self._sides:
            side.look()
        one.twin[one.top()], two.twin[two.top()] = two.top(), one.top()
        for step in (self._remove, self._move, self._write, self._make, self._name_plainly):
            # Where both did something, what the greater provider did stands.
            for here, there in ((two, one), (one, two)):
                step(here, there)
        for side in self._sides:
            side.before = {ino: seen for ino, seen in side.now.items() if ino in side.twin}

    def _remove(self, here: Side, there: Side) -> None:
        for ino in [ino for ino in here.before if here.gone(ino)][::-1]:
            twin = here.twin.pop(ino)
            there.twin.pop(twin, None)
            seen = there.now.get(twin)
            if seen is not None:
                self._take_away(there, twin, seen)

    @staticmethod
    def _take_away(side: Side, ino: int, seen: Seen) -> None:
        with _whatever_goes_meanwhile():
            (os.rmdir if seen.digest is None else os.unlink)(side.path(ino))
            del side.now[ino]
            side.before.pop(ino, None)
            side.plain.pop(ino, None)

    def _move(self, here: Side, there: Side) -> None:
        for ino, old in here.before.items():
            new = here.now.get(ino)
            if new is None or ino not in here.twin or new[:2] == old[:2]:
                continue
            here.plain.pop(ino, None)
            parent = here.twin.get(new.parent)
            if parent is not None:
                self._place(there, here.twin[ino], parent, new.name, here)

    @staticmethod
    def _place(side: Side, ino: int, parent: int, name: str, other: Side) -> None:
        shown = side.free(parent, name, other)
        with _whatever_goes_meanwhile():
            os.rename(side.path(ino), os.path.join(side.path(parent), shown))
            moved = Seen(parent, shown, side.now[ino].digest)
            side.now[ino] = moved
            side.before[ino] = moved._replace(digest=side.before[ino].digest)
            side.plain.pop(ino, None)
            if shown != name:
                side.plain[ino] = name

    def _write(self, here: Side, there: Side) -> None:
        for ino, old in here.before.items():
            new, twin = here.now.get(ino), here.twin.get(ino)
            if new is None or twin not in there.now or new.digest == old.digest:
                continue
            with _whatever_goes_meanwhile():
                self._copy(here, ino, there, twin)

    @staticmethod
    def _copy(here: Side, ino: int, there: Side, twin: int) -> None:
        with open(here.path(ino), "rb") as source, open(there.path(twin), "r+b") as target:
            data = source.read()
            target.write(data)
            target.truncate()
        digest = hashlib.blake2b(data).digest()
        here.now[ino] = here.now[ino]._replace(digest=digest)
        there.now[twin] = there.now[twin]._replace(digest=digest)
        there.before[twin] = there.before[twin]._replace(digest=digest)

    def _make(self, here: Side, there: Side) -> None:
        # A directory comes before what is in it.
        for ino, seen in list(here.now.items()):
            parent = here.twin.get(seen.parent)
            if ino in here.twin or parent is None:
                continue
            with _whatever_goes_meanwhile():
                self._give(here, ino, there, parent)

    @staticmethod
    def _give(here: Side, ino: int, there: Side, parent: int) -> None:
        seen = here.now[ino]
        name = there.free(parent, seen.name, here)
        path = os.path.join(there.path(parent), name)
        mode = stat.S_IMODE(os.stat(here.path(ino)).st_mode)
        if seen.digest is None:
            os.mkdir(path)
        else:
            with open(here.path(ino), "rb") as source, open(path, "xb") as target:
                target.write(source.read())
        os.chmod(path, mode)
        twin = os.stat(path).st_ino
        here.twin[ino], there.twin[twin] = twin, ino
        there.now[twin] = Seen(parent, name, seen.digest)
        if name != seen.name:
            there.plain[twin] = seen.name

    def _name_plainly(self, here: Side, there: Side) -> None:
        for ino, name in list(here.plain.items()):
            seen = here.now.get(ino)
            if seen is None:
                del here.plain[ino]
            elif here.free(seen.parent, name, there) == name:
                with _whatever_goes_meanwhile():
                    os.rename(here.path(ino), os.path.join(here.path(seen.parent), name))
                    here.now[ino] = seen._replace(name=name)
                    del here.plain[ino]
