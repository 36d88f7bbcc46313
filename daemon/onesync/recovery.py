"""Settles what a dead batch left half done in the replica, by its intent.

A batch whose checkpoint stands is rolled forward (its asides go), any other one back (its asides
return to their names). New files that arrived whole stay: they are additive, and the next scan or
stage-in meets them. New markers and databases are taken back, which promise more than what arrived,
and so are files that came in part. What holds bytes is never removed but kept in the status folder.

An intent lies in a folder that others may write to. One that names anything but users' paths and
temporaries beside them, or another length than the checkpoint's, is refused as a whole and kept;
and what a checkpoint holds is never taken back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import MappingProxyType

from onesync.core.chain import Position
from onesync.core.model import (
    STATUS_FOLDER,
    Entry,
    Kind,
    Problem,
    RelPath,
    join,
    lies_in,
    name_of,
    renamed_path,
    show,
    unconfirmed,
)
from onesync.core.trouble import judge
from onesync.errors import Halted
from onesync.intent import INTENTS, Forged, Intent, NewerFormat, Torn, noted_by
from onesync.removals import kept_beside, take_out
from onesync.replica.door import Listed, Replica
from onesync.workers import each

TORN = STATUS_FOLDER + b"/torn"
REFUSED = STATUS_FOLDER + b"/refused"
_MOST_BYTES = 1 << 30
_LONGEST = 150
"""So much of a torn file's name is kept in its new one."""


def settle(
    replica: Replica,
    head: Position | None,
    committed: Callable[[RelPath], Entry | None],
    pool: ThreadPoolExecutor,
    published: Callable[[dict[RelPath, Entry]], None] = lambda _: None,
    travelling: Mapping[RelPath, RelPath] = MappingProxyType({}),
    note: Callable[[Problem], None] = lambda _: None,
) -> list[str]:
    """Settle every intent there is, newest first. May be interrupted and done again.

    Args:
        replica: the door.
        head: the position of the newest valid checkpoint.
        committed: returns what that checkpoint has at a path.
        pool: the workers.
        published: told, before an intent goes, the new files and directories that its batch
            published without a checkpoint. The owner of that batch may replace or remove them;
            anybody else meets them as newcomers.
        travelling: temporaries that batches with checkpoints began and that go on, with the intents
            that stand for them. Nobody but their owner knows them; all others remove them.
        note: told what others had put into directories that were removed, and has its name again.

    Returns:
        A sentence for each thing undone or refused. Raises Halted where a newer onesync wrote an
        intent.
    """
    told: list[str] = []
    intents, foreign = _intents(replica, told)
    told += _finish_removals(replica, intents, head, committed, pool)
    for intent in sorted(intents, key=lambda i: i.position, reverse=True):
        notes = foreign.get(name_of(intent.path), {})
        theirs = set(notes.values())
        if head is None or intent.position > head:
            if (reason := _lies(intent, committed)) is not None:
                told.append(_refuse(replica, intent.path, reason))
                continue
            told += _roll_back(replica, intent, committed, pool)
            done = _published(replica, intent, theirs, pool)
            taken = _to_take_back(replica, intent, done, pool)
            taken = {p: kind for p, kind in taken.items() if not _holds(committed(p), kind)}
            told += [_take_away(replica, intent, path, kind) for path, kind in taken.items()]
            left = {p: found.kind for p, found in done.items() if not lies_in(p, taken.keys())}
            published(_with_digests(left, intent))
        else:
            found = each(pool, partial(_finish_replacing, replica, intent), intent.replace)
            found += each(pool, partial(_finish_removal, replica, intent), intent.remove)
            for problems in found:
                told += [problem.text for problem in problems]
                list(map(note, problems))
        names = _old_and_new({name for _, name in intent.new + intent.patch}, intent)
        each(pool, replica.remove, names - travelling.keys())
        if intent.path not in travelling.values():
            replica.remove(intent.path)
        list(map(replica.remove, notes))
    for intent_name in foreign.keys() - {name_of(intent.path) for intent in intents}:
        list(map(replica.remove, foreign[intent_name]))
    return told


def _finish_replacing(
    replica: Replica, intent: Intent, pair: tuple[RelPath, RelPath]
) -> list[Problem]:
    """Remove the old version of what a committed batch replaced; returns what it was not."""
    return [
        kept_beside(replica, path, aside)
        for path, aside in _now_and_then(pair, intent)
        if replica.unlink(aside) is Kind.DIRECTORY
    ]


def _now_and_then(pair: tuple[RelPath, RelPath], intent: Intent) -> set[tuple[RelPath, RelPath]]:
    """Return ``pair`` with the names that it has where the batch's renames were carried out."""
    renamed = dict(intent.rename)
    return {pair, (renamed_path(pair[0], renamed), renamed_path(pair[1], renamed))}


def _finish_removal(
    replica: Replica, intent: Intent, pair: tuple[RelPath, RelPath]
) -> list[Problem]:
    """Remove what a committed batch put aside; returns what others had put there."""
    ours = intent.ours.get(pair[1])
    found: list[Problem] = []
    for path, aside in _now_and_then(pair, intent):
        if ours is None:  # an older onesync's: it did not tell
            replica.remove(aside)
        else:
            found += take_out(replica, path, aside, ours)
    return found


def _finish_removals(
    replica: Replica,
    intents: list[Intent],
    head: Position | None,
    committed: Callable[[RelPath], Entry | None],
    pool: ThreadPoolExecutor,
) -> list[str]:
    """Remove what committed batches were to remove; returns a sentence for what stays.

    Before anything else is settled: what later batches may have put there is theirs. Markers and
    databases go first, and with the oldest: they may promise what goes after them.
    """
    told: list[str] = []
    for intent in sorted(intents, key=lambda i: i.position):
        if head is None or intent.position > head:
            continue
        newer: set[RelPath] = set()
        for other in intents:
            if other.position > intent.position:
                newer.update(other.make, (path for path, _ in other.new))
                newer.update(target for _, target in other.rename)
        gone = [item for item in intent.gone if committed(item[0]) is None]
        gone = [item for item in gone if item[0] not in newer]
        promising = set(intent.promise)
        promises = [item for item in gone if item[0] in promising]
        promised = [item for item in gone if item[0] not in promising]
        for items in (promises, promised):
            told += filter(None, each(pool, lambda item: _let_go(replica, *item), items))
    return told


def _let_go(replica: Replica, path: RelPath, size: int, digest: str) -> str | None:
    """Remove a file that the checkpoint has no more; returns a sentence where another one stays."""
    found = replica.look(path)
    if found is None:
        return None
    if found.kind is Kind.FILE and found.size == size:
        try:
            is_same = replica.digest(path) == (digest, size)
        except OSError as error:
            # What was deleted, and cannot be read for good, must not keep the folder from anybody.
            if error.errno != errno.EIO and judge(error).is_suspicious:
                raise
            return f"{show(path)} was to be deleted in OneData, and cannot be read: it is kept."
        if is_same:
            replica.unlink(path)
            return None
    return f"{show(path)} was to be deleted in OneData, and is not what it was: it is kept."


def _old_and_new(names: set[RelPath], intent: Intent) -> set[RelPath]:
    """Return ``names`` with those that they have where the batch's renames were carried out."""
    return names | {renamed_path(name, dict(intent.rename)) for name in names}


def remove_torn(replica: Replica, before: Position) -> None:
    """Remove what was kept of batches earlier than ``before``."""
    with suppress(FileNotFoundError):
        for item in replica.list(TORN):
            place, _, _ = item.name.partition(b"~")
            if place < b"E%06d-%06d" % (before.epoch, before.sequence):
                replica.remove(join(TORN, item.name))


def _published(
    replica: Replica, intent: Intent, foreign: set[RelPath], pool: ThreadPoolExecutor
) -> dict[RelPath, Listed]:
    """Return what the batch published and was not taken back, as it is."""
    created = {path for path, _, _ in intent.create} - foreign
    replaced = {path for path, _ in intent.replace} | foreign | created
    renamed = [(path, name) for path, name in intent.new if path not in replaced]
    waiting = each(pool, replica.look, [name for _, name in renamed])
    arrived = [path for (path, _), there in zip(renamed, waiting, strict=True) if there is None]
    files = [path for path in [*arrived, *created] if not lies_in(path, foreign)]
    wanted = dict.fromkeys(files, Kind.FILE) | dict.fromkeys(intent.make, Kind.DIRECTORY)
    looks = zip(wanted, each(pool, replica.look, wanted), strict=True)
    return {path: found for path, found in looks if found and found.kind is wanted[path]}


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
            found.append(_read(replica, path, item))
        except NewerFormat as error:
            raise Halted(
                f"A newer onesync ({error}) left a batch half done; nothing was changed. Install"
                " the newer onesync."
            ) from error
        except Torn as error:
            # Torn while it was written: nothing that it would have named was begun.
            told.append(f"The intent {show(item.name)} is torn ({error}); removed.")
            replica.remove(path)
        except (ValueError, KeyError, TypeError) as error:
            told.append(_refuse(replica, path, repr(error)))
    return found, foreign


def _read(replica: Replica, path: RelPath, item: Listed) -> Intent:
    if item.kind is not Kind.FILE or item.size > _MOST_BYTES:
        raise Forged("no file of an intent's size")
    intent = Intent.decode(replica.read(path))
    if intent.path != path:
        raise Forged("it has another one's name")
    return intent


def _lies(intent: Intent, committed: Callable[[RelPath], Entry | None]) -> str | None:
    """Return where an intent tells of other lengths than the checkpoint; None if nowhere."""
    for path, length in intent.append:
        entry = committed(path)
        if entry is None or entry.kind is not Kind.FILE or entry.size != length:
            return f"{show(path)} has not {length} bytes in the checkpoint"
    for path, _ in intent.patch:
        if not _holds(committed(path), Kind.FILE):
            return f"the checkpoint has no file {show(path)}"
    return None


def _holds(entry: Entry | None, kind: Kind) -> bool:
    return entry is not None and entry.kind is kind


def _refuse(replica: Replica, path: RelPath, reason: str) -> str:
    """Move an intent that no onesync wrote out of the way of those that are; returns a sentence."""
    kept = _keep(replica, path, REFUSED, name_of(path)[:_LONGEST])
    return (
        f"The intent {show(name_of(path))} was refused ({reason}): no onesync wrote it, and nothing"
        f" that it names was touched. It is kept as {show(kept)}; see who may write to the folder."
    )


def _roll_back(
    replica: Replica,
    intent: Intent,
    committed: Callable[[RelPath], Entry | None],
    pool: ThreadPoolExecutor,
) -> list[str]:
    # What was removed last comes back first: something may have been renamed out of it. What went
    # before its directory was renamed is there again when that was undone.
    told = _returned(replica, intent, intent.remove, pool) if intent.rename else []
    for source, target in reversed(intent.rename):
        if replica.look(source) is None and replica.look(target) is not None:
            replica.rename(target, source)
            told.append(f"The rename of {show(source)} was undone.")
    told += _returned(replica, intent, intent.replace + intent.remove, pool)
    for path, undo in intent.patch:
        entry = committed(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            if entry is not None and replica.undo(path, undo, entry.size):
                told.append(f"{show(path)} has its blocks of the last checkpoint again.")
    for path, length in intent.append:
        found = replica.look(path)
        if found is not None and found.kind is Kind.FILE and found.size > length:
            replica.truncate(path, length)
            told.append(f"{show(path)} ends again where the last checkpoint says.")
    return told


def _returned(
    replica: Replica,
    intent: Intent,
    pairs: Iterable[tuple[RelPath, RelPath]],
    pool: ThreadPoolExecutor,
) -> list[str]:
    """Give each path its aside back, where that is; returns a sentence for each."""
    told: list[str] = []
    left = list(pairs)
    while True:
        there = each(pool, replica.look, [aside for _, aside in left])
        now = [pair for pair, found in zip(left, there, strict=True) if found is not None]
        if not now:
            return told
        for path, aside in now:
            _return(replica, intent, path, aside)
            told.append(f"{show(path)} has its version of the last checkpoint again.")
        # What came back may hold others' asides.
        back = set(now)
        left = [pair for pair in left if pair not in back]


def _return(replica: Replica, intent: Intent, path: RelPath, aside: RelPath) -> None:
    found = replica.look(path)
    if found is not None:
        _take_away(replica, intent, path, found.kind)
    replica.rename(aside, path)


def _to_take_back(
    replica: Replica, intent: Intent, done: dict[RelPath, Listed], pool: ThreadPoolExecutor
) -> dict[RelPath, Kind]:
    """Return what promises more than what arrived, and what arrived in part."""
    promised = set(intent.promise)
    taken = {path: found.kind for path, found in done.items() if path in promised}
    files = [item for item in intent.create if item[0] in done.keys() - taken.keys()]

    def is_torn(item: tuple[RelPath, int, str]) -> bool:
        path, size, digest = item
        if done[path].size > size:
            return False  # what is longer than anything that we wrote is not ours
        return done[path].size < size or replica.digest(path) != (digest, size)

    torn = [
        path for (path, _, _), bad in zip(files, each(pool, is_torn, files), strict=True) if bad
    ]
    return taken | dict.fromkeys(torn, Kind.FILE)


def _take_away(replica: Replica, intent: Intent, path: RelPath, kind: Kind) -> str:
    """Take ``path`` out of the folder; what holds bytes is kept, for it might be somebody's."""
    found = replica.look(path)
    if found is None or not (found.size or (kind is Kind.DIRECTORY and replica.list(path))):
        replica.remove(path)
        return f"{show(path)} was taken back: no checkpoint has it."
    kept = keep_torn(replica, path, intent.position)
    return f"{show(path)} was taken back: no checkpoint has it. It is kept as {show(kept)}."


def keep_torn(replica: Replica, path: RelPath, position: Position) -> RelPath:
    """Take a file out of the folder as long as checkpoints of ``position`` are kept; says where."""
    place = b"E%06d-%06d" % (position.epoch, position.sequence)
    return _keep(replica, path, TORN, name_of(path)[:_LONGEST], place)


def _keep(
    replica: Replica, path: RelPath, folder: RelPath, name: bytes, place: bytes = b""
) -> RelPath:
    """Rename ``path`` to a free name in a folder of the status folder; returns that."""
    with suppress(FileExistsError):
        replica.make_directory(folder)
    number = 1
    while replica.look(kept := join(folder, place + b"~%d~" % number + name)) is not None:
        number += 1
    replica.rename(path, kept)
    return kept
