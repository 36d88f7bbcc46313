"""Settles what a dead batch left half done in the replica, by its intent.

A batch whose checkpoint stands is rolled forward (its asides go), any other one back (its asides
return to their names). New files that were already published stay: they are additive, and the next
scan or stage-in meets them. Only new markers and databases are taken back, which promise more than
what arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

from onesync.core.chain import Position
from onesync.core.model import Kind, RelPath, join, lies_in, show
from onesync.intent import INTENTS, Intent
from onesync.replica.door import Replica


def settle(
    replica: Replica,
    head: Position | None,
    published: Callable[[dict[RelPath, Kind]], None] = lambda _: None,
) -> list[str]:
    """Settle every intent there is, newest first. May be interrupted and done again.

    Args:
        replica: the door.
        head: the position of the newest valid checkpoint.
        published: told, before an intent goes, the new files and directories that its batch
            published without a checkpoint. The owner of that batch may replace or remove them;
            anybody else meets them as newcomers.

    Returns:
        A sentence for each thing undone.
    """
    told: list[str] = []
    for intent in sorted(_intents(replica, told), key=lambda i: i.position, reverse=True):
        if head is None or intent.position > head:
            told += _roll_back(replica, intent)
            done = dict(_published(replica, intent))
            taken_back = done.keys() & set(intent.promise)
            for path in taken_back:
                replica.remove(path)
                told.append(f"{show(path)} was taken back: no checkpoint has it.")
            published({p: kind for p, kind in done.items() if not lies_in(p, taken_back)})
        else:
            for _, aside in intent.replace + intent.remove:
                replica.remove(aside)
        for _, temporary in intent.new + intent.patch:
            replica.remove(temporary)
        replica.remove(intent.path)
    return told


def _published(replica: Replica, intent: Intent) -> Iterator[tuple[RelPath, Kind]]:
    replaced = dict(intent.replace)
    for path, temporary in intent.new:
        if path not in replaced and replica.look(temporary) is None and replica.look(path):
            yield path, Kind.FILE
    for path in intent.make:
        found = replica.look(path)
        if found is not None and found.kind is Kind.DIRECTORY:
            yield path, Kind.DIRECTORY


def _intents(replica: Replica, told: list[str]) -> list[Intent]:
    found = []
    for item in replica.list(INTENTS):
        try:
            found.append(Intent.decode(replica.read(join(INTENTS, item.name))))
        except (ValueError, KeyError, TypeError) as error:
            # Torn while it was written: nothing that it would have named was begun.
            told.append(f"The intent {show(item.name)} is torn ({error}); removed.")
            replica.remove(join(INTENTS, item.name))
    return found


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
