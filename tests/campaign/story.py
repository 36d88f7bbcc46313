"""The small tree's story: in few steps everything that a user's programs do to a project."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onesync.core.model import RESERVED_PREFIX, STATUS_FOLDER, parent_of
from onesync.orders import Flushed
from tests.campaign.life import LARGE, Life, Step
from tests.node import picture

if TYPE_CHECKING:
    from concurrent.futures import Future

Act = Callable[[Path], object]
Picture = dict[bytes, tuple[object, ...]]
RUN = "Runs/000001_Import/extra"


def prepare(store: Path) -> None:
    """Fill the OneData folder with what somebody put there before it is ever deployed."""
    (store / "old").mkdir(parents=True)
    (store / "old" / "frame.mrc").write_bytes(b"frame")
    (store / "notes.txt").write_bytes(b"first\n")
    for path in ("old/frame.mrc", "old", "notes.txt"):
        os.utime(
            store / path, (1_600_000_000, 1_600_000_000)
        )  # in whole seconds, as OneData has it


def creates(work: Path, large: int = LARGE) -> None:
    extra = work / RUN
    (extra / "DONE").mkdir(parents=True)
    (extra / "mic.mrc").write_bytes(b"m" * 100)
    (extra / "movie.mrcs").write_bytes(_bytes(3 * large, 1))
    (extra / "secret").write_bytes(b"s")
    (extra / "secret").chmod(0o640)
    (extra / "DONE" / "one.TXT").write_bytes(b"")
    (work / "link").symlink_to("notes.txt")
    (work / "one name").write_bytes(b"two names")
    os.link(work / "one name", work / "other name")
    (work / "empty").mkdir()
    _execute(work, "create table item (id integer primary key, path text)")
    _execute(work, f"insert into item (path) values ('{RUN}/mic.mrc')")


def changes(work: Path, large: int = LARGE) -> None:
    extra = work / RUN
    (extra / "new").write_bytes(b"M" * 120)
    (extra / "new").rename(extra / "mic.mrc")
    with (extra / "movie.mrcs").open("ab") as file:
        file.write(_bytes(large, 2))
    with (work / "notes.txt").open("ab") as file:
        file.write(b"second\n")
    (work / "link").unlink()
    (work / "link").symlink_to("old")
    (extra / "secret").chmod(0o600)
    _execute(work, "insert into item (path) values ('second')")


def patches(work: Path, large: int = LARGE) -> None:
    with (work / RUN / "movie.mrcs").open("r+b") as file:
        file.seek(large)
        file.write(_bytes(100, 3))
        file.seek(2 * large + 10)
        file.write(b"!")
    (work / RUN / "late.mrc").write_bytes(b"late")
    (work / RUN / "DONE" / "two.TXT").write_bytes(b"")


def removes(work: Path) -> None:
    older = (work / "old").rename(work / "older")
    (older / "frame.mrc").write_bytes(b"frame of the renamed directory")
    (older / "young" / "inner").mkdir(parents=True)
    (older / "young" / "inner" / "deep.mrc").write_bytes(b"deep")
    (older / "young" / "link").symlink_to("inner")
    (work / RUN / "mic.mrc").rename(work / RUN / "mic 2.mrc")
    (work / RUN / "late.mrc").unlink()
    (work / "one name").unlink()
    (work / "empty").rmdir()
    _execute(work, "delete from item where path = 'second'")


def changes_kinds(work: Path) -> None:
    (work / "notes.txt").unlink()
    (work / "notes.txt").mkdir()
    (work / "notes.txt" / "inner").write_bytes(b"inner")
    shutil.rmtree(work / RUN / "DONE")
    (work / RUN / "DONE").symlink_to("/nowhere")
    (work / "link").unlink()
    (work / "link").write_bytes(b"no link any more")


def goes_on(work: Path) -> None:
    (work / "older" / "another").write_bytes(b"another")
    (work / "older" / "young" / "inner" / "deep.mrc").rename(work / RUN / "saved.mrc")
    shutil.rmtree(work / "older" / "young")
    (work / RUN / "mic 2.mrc").write_bytes(b"changed")
    (work / RUN / "movie.mrcs").unlink()


ACTS = (creates, changes, patches, removes, changes_kinds, goes_on)
"""Each is one step. Which paths it removes or renames, the following batches carry out."""


def returns(work: Path) -> None:
    (work / "older" / "frame.mrc").write_bytes(b"frame of the second deployment")
    (work / RUN / "movie 2.mrcs").write_bytes(_bytes(2 * LARGE, 5))
    _execute(work, "insert into item (path) values ('third')")


def removes_more(work: Path) -> None:
    (work / "other name").unlink()
    (work / "notes.txt").rename(work / RUN / "notes")


RETURN = (returns, removes_more)
"""What the next deployment does."""


def _bytes(size: int, seed: int) -> bytes:
    pattern = bytes((seed * 31 + n * n) % 251 for n in range(251))
    return (pattern * (size // 251 + 1))[:size]


def _execute(work: Path, statement: str) -> None:
    with closing(sqlite3.connect(work / "Runs" / "000001_Import" / "set.sqlite")) as database:
        database.execute(statement)
        database.commit()


@dataclass
class Story:
    """A working copy's states, one after each act, and what was said to be safe.

    Attributes:
        states: the pictures, oldest first.
        safe: the states before this one may not come back: a flush said that it is in OneData.
    """

    states: list[Picture] = field(default_factory=list)
    safe: int = 0
    asked: tuple[int, Future[Flushed]] | None = None

    def step(self, act: Act) -> Step:
        """Return the step that does ``act`` and remembers what it made."""

        return lambda life: self.do(act, life.place.work)

    def do(self, act: Act, work: Path) -> None:
        """Do ``act`` and remember what it made."""
        self.settle()
        act(work)
        self.states.append(picture(work))

    def flushes(self, life: Life) -> None:
        """Ask for a flush (a step)."""
        self.asked = len(self.states) - 1, life.engine.ask_flush()

    def settle(self) -> None:
        """See what became of the flush."""
        if self.asked is None:
            return
        state, future = self.asked
        if future.done() and future.exception() is None and not future.result().problems:
            self.safe = max(self.safe, state)

    def is_state(self, found: Picture, *, after_outage: bool) -> bool:
        """Whether ``found`` is a state that the project really had, and not one before ``safe``.

        What comes first or last of a batch is that of one act, but ``after_outage`` of several:
        while nothing could be brought, they came together.
        """
        self.settle()
        first = self.safe
        return any(
            _lies_between(found, self.states[old], self.states[new])
            for new in range(first, len(self.states))
            for old in (range(first, new + 1) if after_outage else [max(first, new - 1)])
        )


def _lies_between(found: Picture, old: Picture, new: Picture) -> bool:
    """Whether ``found`` is ``old`` or ``new``, but for what comes first or last by design.

    New files may be there already, without modes and times, as newcomers; what was removed or
    renamed may still be there, until the batch after.
    """
    if all(_is_as(p, found, old) or _is_newcomer(p, found, old, new) for p in found | old):
        return True
    return all(found.get(p) == new.get(p) or _remains(p, found, old, new) for p in found | new)


def _is_as(path: bytes, found: Picture, old: Picture) -> bool:
    """Whether nothing changed; a directory has another time while something in it waits."""
    here, there = found.get(path), old.get(path)
    if here is None or there is None or here[0] != "dir":
        return here == there
    return here[:2] == there[:2]


def _is_newcomer(path: bytes, found: Picture, old: Picture, new: Picture) -> bool:
    here, there = found.get(path), new.get(path)
    if path in old or here is None or there is None or here[0] != there[0] or here[0] == "link":
        return False
    return here[0] == "dir" or here[1] == there[1]


def _remains(path: bytes, found: Picture, old: Picture, new: Picture) -> bool:
    """Whether ``path`` waits for the batch after: a removal, or a rename's either end."""
    here = found.get(path)
    if here is not None and here[0] == "dir" and path in new and new[path][0] == "dir":
        return True  # its time was another one while something in it waited
    if path in new and new[path] in old.values() and path not in old:
        return here is None
    above = parent_of(path)
    if path in new and path not in old and above in new and above not in found:
        return here is None  # it is new in what is renamed: that the directory may wait is judged
    return path not in new and here == old.get(path)


def leftovers(store: Path) -> list[str]:
    """Return what onesync should not leave behind in an undeployed folder."""
    status = store / os.fsdecode(STATUS_FOLDER)
    found: list[str] = []
    for above, directories, files in os.walk(store):
        for name in directories + files:
            if name.startswith((os.fsdecode(RESERVED_PREFIX), "probe-")):
                found.append(os.path.join(above, name))
    found += [str(path) for path in (status / "intent").glob("*")]
    # Nobody forged any: one that was refused was our own. (What is torn is kept for a while.)
    found += [str(path) for path in (status / "refused").glob("*")]
    found += [str(path) for path in (status / "lock",) if path.exists()]
    for epoch in (status / "epochs").iterdir():
        if not (epoch / "end.json").exists():
            found.append(f"{epoch} has no end")
    return [path.removeprefix(str(store) + "/") for path in found]
