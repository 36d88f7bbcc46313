"""Settles what a dead batch left half done in the replica, by its intent.

A batch whose checkpoint stands is rolled forward (its asides go), any other one back (its asides
return to their names). New files that arrived whole stay: they are additive, and the next scan or
stage-in meets them. New markers and databases are taken back, which promise more than what arrived,
and so are files that came in part. What holds bytes is never removed but kept in the status folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType

from onesync.core.chain import Position
from onesync.core.model import (
    STATUS_FOLDER,
    Entry,
    Kind,
    RelPath,
    join,
    lies_in,
    name_of,
    show,
    unconfirmed,
)
from onesync.errors import Halted
from onesync.intent import INTENTS, Intent, NewerFormat, noted_by
from onesync.replica.door import Replica
from onesync.workers import each

TORN = STATUS_FOLDER + b"/torn"
_LONGEST = 150
"""So much of a torn file's name is kept in its new one."""


def settle(
    replica: Replica,
    head: Position | None,
    pool: ThreadPoolExecutor,
    published: Callable[[dict[RelPath, Entry]], None] = lambda _: None,
    travelling: Mapping[RelPath, RelPath] = MappingProxyType({}),
) -> list[str]:
    """Settle every intent there is, newest first. May be interrupted and done again.

    Args:
        replica: the door.
        head: the position of the newest valid checkpoint.
        pool: the workers.
        published: told, before an intent goes, the new files and directories that its batch
            published without a checkpoint. The owner of that batch may replace or remove them;
            anybody else meets them as newcomers.
        travelling: temporaries that batches with checkpoints began and that go on, with the intents
            that stand for them. Nobody but their owner knows them; all others remove them.

    Returns:
        A sentence for each thing undone. Raises Halted where a newer onesync wrote an intent.
    """
    told: list[str] = []
    intents, foreign = _intents(replica, told)
    for intent in sorted(intents, key=lambda i: i.position, reverse=True):
        notes = foreign.get(name_of(intent.path), {})
        theirs = set(notes.values())
        if head is None or intent.position > head:
            told += _roll_back(replica, intent)
            done = dict(_published(replica, intent, theirs, pool))
            taken = _to_take_back(replica, intent, theirs, done, pool)
            told += [_take_away(replica, intent, path, kind) for path, kind in taken.items()]
            left = {p: kind for p, kind in done.items() if not lies_in(p, taken.keys())}
            published(_with_digests(left, intent))
        else:
            each(pool, replica.remove, (a for _, a in intent.replace + intent.remove))
        names = {name for _, name in intent.new + intent.patch}
        each(pool, replica.remove, names - travelling.keys())
        if intent.path not in travelling.values():
            replica.remove(intent.path)
        list(map(replica.remove, notes))
    for intent_name in foreign.keys() - {name_of(intent.path) for intent in intents}:
        list(map(replica.remove, foreign[intent_name]))
    return told


def remove_torn(replica: Replica, before: Position) -> None:
    """Remove what was kept of batches earlier than ``before``."""
    with suppress(FileNotFoundError):
        for item in replica.list(TORN):
            place, _, _ = item.name.partition(b"~")
            if place < b"E%06d-%06d" % (before.epoch, before.sequence):
                replica.remove(join(TORN, item.name))


def _published(
    replica: Replica, intent: Intent, foreign: set[RelPath], pool: ThreadPoolExecutor
) -> Iterator[tuple[RelPath, Kind]]:
    """Yield what the batch published and was not taken back."""
    created = {path for path, _, _ in intent.create} - foreign
    replaced = {path for path, _ in intent.replace} | foreign | created
    renamed = [(path, name) for path, name in intent.new if path not in replaced]
    waiting = each(pool, replica.look, [name for _, name in renamed])
    arrived = [path for (path, _), there in zip(renamed, waiting, strict=True) if there is None]
    files = [path for path in [*arrived, *created] if not lies_in(path, foreign)]
    for path, found in zip(files, each(pool, replica.look, files), strict=True):
        if found is not None and found.kind is Kind.FILE:
            yield path, Kind.FILE
    for path, found in zip(intent.make, each(pool, replica.look, intent.make), strict=True):
        if found is not None and found.kind is Kind.DIRECTORY:
            yield path, Kind.DIRECTORY


def _with_digests(published: dict[RelPath, Kind], intent: Intent) -> dict[RelPath, Entry]:
    """Return entries; of a created file that was found whole the digest is known."""
    created = {path: (size, digest) for path, size, digest in intent.create}
    return {
        path: unconfirmed(kind, *(created.get(path, ()) if kind is Kind.FILE else ()))
        for path, kind in published.items()
    }


def _intents(
    replica: Replica, told: list[str]
) -> tuple[list[Intent], dict[bytes, dict[RelPath, RelPath]]]:
    """Return the intents, and by their names the notes: of each its path and what it tells of."""
    found: list[Intent] = []
    foreign: dict[bytes, dict[RelPath, RelPath]] = {}
    for item in replica.list(INTENTS):
        path = join(INTENTS, item.name)
        intent_name = noted_by(item.name)
        if intent_name is not None:
            foreign.setdefault(intent_name, {})[path] = replica.read(path)
            continue
        try:
            found.append(Intent.decode(replica.read(path)))
        except NewerFormat as error:
            raise Halted(
                f"A newer onesync ({error}) left a batch half done; nothing was changed. Install"
                " the newer onesync."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            # Torn while it was written: nothing that it would have named was begun.
            told.append(f"The intent {show(item.name)} is torn ({error}); removed.")
            replica.remove(path)
    return found, foreign


def _roll_back(replica: Replica, intent: Intent) -> list[str]:
    told = []
    for source, target in reversed(intent.rename):
        if replica.look(source) is None and replica.look(target) is not None:
            replica.rename(target, source)
            told.append(f"The rename of {show(source)} was undone.")
    for path, aside in intent.replace + intent.remove:
        if replica.look(aside) is not None:
            _return(replica, path, aside)
            told.append(f"{show(path)} has its version of the last checkpoint again.")
    for path, undo in intent.patch:
        with suppress(FileNotFoundError):
            if replica.undo(path, undo):
                told.append(f"{show(path)} has its blocks of the last checkpoint again.")
    for path, length in intent.append:
        found = replica.look(path)
        if found is not None and found.kind is Kind.FILE and found.size > length:
            replica.truncate(path, length)
            told.append(f"{show(path)} ends again where the last checkpoint says.")
    return told


def _return(replica: Replica, path: RelPath, aside: RelPath) -> None:
    replica.remove(path)
    replica.rename(aside, path)


def _to_take_back(
    replica: Replica,
    intent: Intent,
    foreign: set[RelPath],
    done: dict[RelPath, Kind],
    pool: ThreadPoolExecutor,
) -> dict[RelPath, Kind]:
    """Return what promises more than what arrived, and what arrived in part."""
    promised = set(intent.promise)
    taken = {path: kind for path, kind in done.items() if path in promised}

    def judge(item: tuple[RelPath, int, str]) -> RelPath | None:
        path, size, digest = item
        if path in taken or path in foreign or _is_good(replica, path, size, digest):
            return None
        return path

    torn = [path for path in each(pool, judge, intent.create) if path is not None]
    return taken | dict.fromkeys(torn, Kind.FILE)


def _is_good(replica: Replica, path: RelPath, size: int, digest: str) -> bool:
    """Whether nothing has to be done about a file that was to be created."""
    found = replica.look(path)
    # What is longer than anything that we wrote is not ours.
    if found is None or found.kind is not Kind.FILE or found.size > size:
        return True
    return found.size == size and replica.digest(path) == (digest, size)


def _take_away(replica: Replica, intent: Intent, path: RelPath, kind: Kind) -> str:
    """Take ``path`` out of the folder; what holds bytes is kept, for it might be somebody's."""
    found = replica.look(path)
    if kind is Kind.DIRECTORY or found is None or found.size == 0:
        replica.remove(path)
        return f"{show(path)} was taken back: no checkpoint has it."
    with suppress(FileExistsError):
        replica.make_directory(TORN)
    kept = _free_name(replica, intent.position, name_of(path)[:_LONGEST])
    replica.rename(path, kept, is_file=True)
    return f"{show(path)} was taken back: no checkpoint has it. It is kept as {show(kept)}."


def _free_name(replica: Replica, place: Position, name: bytes) -> RelPath:
    number = 1
    while True:
        tag = b"E%06d-%06d~%d~" % (place.epoch, place.sequence, number)
        if replica.look(join(TORN, tag + name)) is None:
            return join(TORN, tag + name)
        number += 1
