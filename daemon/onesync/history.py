"""What happened to a folder, and where a path of it stands: read from outside the daemon."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass

from pathspec import PathSpec

from onesync.core.chain import (
    Change,
    Checkpoint,
    Damaged,
    Gone,
    NewerFormat,
    Noted,
    Renamed,
    Set,
    decode,
    parse_name,
)
from onesync.core.claims import (
    EPOCHS,
    BadRecord,
    Record,
    decode_record,
    epoch_name,
    how_it_ended,
    parse_epoch,
)
from onesync.core.model import Entry, Kind, Known, RelPath, Stamp, is_beneath, join, show
from onesync.errors import Halted
from onesync.index import Index
from onesync.manifest import MANIFEST, read_head
from onesync.replica.door import Listed, Replica
from onesync.scanner import Scanner
from onesync.settings import Settings
from onesync.workers import each


@dataclass(frozen=True, slots=True)
class Deployment:
    """One epoch: its claim's record, and how it ended, if it has."""

    epoch: int
    record: Record
    ended: str | None


@dataclass(frozen=True, slots=True)
class Amount:
    """What a checkpoint changed.

    Attributes:
        files: files that it brought, new or changed.
        size: bytes of them, whole; what travelled may have been less.
        others: directories and links.
        gone: removals; a directory is one, whatever it held.
        renamed: renames.
        problems: what it left out, and told.
    """

    files: int = 0
    size: int = 0
    others: int = 0
    gone: int = 0
    renamed: int = 0
    problems: int = 0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path stands, on each side; None is nowhere.

    Attributes:
        here: the working copy's stamp.
        known: the index's row.
        entry: the newest checkpoint's entry.
        checkpoint: the newest of those that are kept that tells of the path.
        there: what stands in OneData.
        excluded: whether the configuration leaves it out.
    """

    here: Stamp | None
    known: Known | None
    entry: Entry | None
    checkpoint: str | None
    there: Listed | None
    excluded: bool


def deployments(replica: Replica) -> list[Deployment]:
    """Return every claim that has a record which can be read, from the first on."""
    found = []
    for epoch in sorted(filter(None, map(parse_epoch, replica.names(EPOCHS)))):
        place = join(EPOCHS, epoch_name(epoch))
        record = ended = None
        with suppress(FileNotFoundError, BadRecord):
            record = decode_record(replica.read(join(place, b"record.json")))
        with suppress(FileNotFoundError):
            ended = how_it_ended(replica.read(join(place, b"end.json")))
        if record is not None:
            found.append(Deployment(epoch, record, ended))
    return found


def checkpoints(replica: Replica, pool: ThreadPoolExecutor) -> list[tuple[str, Checkpoint | None]]:
    """Return all that are kept, the oldest first; None of one that is torn or of a newer format."""
    names = [name.decode("ascii", "replace") for name in replica.names(MANIFEST)]
    places = sorted((place, name) for name in names if (place := parse_name(name)) is not None)
    names = [name for _, name in places]
    return list(zip(names, each(pool, _decoded, [replica] * len(names), names), strict=True))


def checkpoint_of(replica: Replica, name: str) -> Checkpoint:
    """Return one by its name, with or without its ending. Raises Halted where there is none."""
    wanted = name.removesuffix(".jsonl.gz")
    for found in (f"{wanted}.jsonl.gz", f"{wanted}.base.jsonl.gz"):
        with suppress(FileNotFoundError):
            checkpoint = _decoded(replica, found) if parse_name(found) else None
            if checkpoint is None and parse_name(found):
                raise Halted(f"The checkpoint {found} cannot be read: it is torn or newer.")
            if checkpoint is not None:
                return checkpoint
    raise Halted(f"There is no checkpoint {name!r}: 'onesync log' lists those that are kept.")


def amount_of(changes: Sequence[Change]) -> Amount:
    """Return what ``changes`` come to."""
    entries = [change.entry for change in changes if isinstance(change, Set)]
    files = [entry for entry in entries if entry.kind is Kind.FILE]
    return Amount(
        len(files),
        sum(entry.size for entry in files),
        len(entries) - len(files),
        sum(isinstance(change, Gone) for change in changes),
        sum(isinstance(change, Renamed) for change in changes),
        sum(isinstance(change, Noted) for change in changes),
    )


def told_of_claim(deployment: Deployment) -> str:
    """Return one line for a person."""
    record = deployment.record
    who, ended = f"{record.user} on {record.host}", deployment.ended or "not ended"
    return f"E{deployment.epoch:06d} {record.started} deployed: {who}; {ended}"


def told_of(name: str, checkpoint: Checkpoint | None) -> str:
    """Return one line for a person."""
    stem = name.removesuffix(".jsonl.gz")
    if checkpoint is None:
        return f"{stem} cannot be read: it is torn or newer"
    amount, header = amount_of(checkpoint.changes), checkpoint.header
    counts = {
        "files": amount.files,
        "bytes": amount.size,
        "directories and links": amount.others,
        "gone": amount.gone,
        "renamed": amount.renamed,
        "problems": amount.problems,
    }
    words = [f"{number} {what}" for what, number in counts.items() if number]
    return f"{stem} {header.time} {header.why}: {', '.join(words) or 'nothing'}"


def told(change: Change) -> str:
    """Return one line for a person: ``+`` brought, ``-`` gone, ``>`` renamed, ``!`` a problem."""
    if isinstance(change, Gone):
        return f"- {show(change.path)}"
    if isinstance(change, Renamed):
        return f"> {show(change.source)} -> {show(change.target)}"
    if isinstance(change, Noted):
        return f"! {show(change.problem.path)} {change.problem.kind}: {change.problem.text}"
    entry = change.entry
    if entry.kind is Kind.LINK:
        return f"+ link {show(change.path)} -> {show(entry.target)}"
    size = f" {entry.size}" if entry.kind is Kind.FILE else ""
    return f"+ {entry.kind.value} {show(change.path)}{size}"


def find(settings: Settings, replica: Replica, pool: ThreadPoolExecutor, path: RelPath) -> Place:
    """Return where ``path`` stands. The index is read as it is, beside the daemon."""
    head = read_head(replica)
    entry = head.tree.get(path) if head is not None else None
    newest = None
    for name, checkpoint in checkpoints(replica, pool):
        if checkpoint is not None and any(_tells_of(change, path) for change in checkpoint.changes):
            newest = name
    excluded = PathSpec.from_lines("gitignore", settings.push.exclude)
    here, known = _here(settings, path)
    there = replica.look(path)
    return Place(here, known, entry, newest, there, excluded.match_file(os.fsdecode(path)))


def _here(settings: Settings, path: RelPath) -> tuple[Stamp | None, Known | None]:
    index_path = settings.state_dir / "index.sqlite"
    if not index_path.exists():
        return None, None
    with closing(Index(index_path, readonly=True)) as index:
        root = os.fsencode(settings.working_dir.resolve())
        try:
            here = Scanner(root, index, lambda _: False).look(path)
        except FileNotFoundError:
            here = None  # the working directory is gone
        return here, index.known(path)


def _tells_of(change: Change, path: RelPath) -> bool:
    if isinstance(change, Noted):
        return change.problem.path == path
    if isinstance(change, Set):
        return change.path == path
    if isinstance(change, Gone):
        return is_beneath(path, change.path)
    return is_beneath(path, change.source) or is_beneath(path, change.target)


def _decoded(replica: Replica, name: str) -> Checkpoint | None:
    try:
        return decode(replica.read(join(MANIFEST, name.encode())))
    except (Damaged, NewerFormat):
        return None


def sides(place: Place) -> list[tuple[str, str]]:
    """Return what stands on each side, and which checkpoint told of it last, for a person."""
    here, known, entry, there = place.here, place.known, place.entry, place.there
    found = [
        ("here", here and _sized(here.kind, here.size)),
        ("index", known and _sized(known.entry.kind, known.entry.size)),
        ("checkpoint", entry and _sized(entry.kind, entry.size)),
        ("OneData", there and _sized(there.kind, there.size)),
        ("told by", place.checkpoint and place.checkpoint.removesuffix(".jsonl.gz")),
    ]
    return [(side, told or "-") for side, told in found]


def _sized(kind: Kind, size: int) -> str:
    return f"file of {size} bytes" if kind is Kind.FILE else kind.value


def reasons(place: Place, pending: bool | None, problem: str | None) -> list[str]:
    """Return why the path stands so, a sentence for each thing to say.

    ``pending`` and ``problem`` are the daemon's word; None where it says nothing, or does not run.
    """
    told = [problem] if problem else []
    if place.excluded:
        told.append("push.exclude leaves it out: it stays on this node.")
    elif pending:
        told.append("It changed here and waits to be pushed.")
    else:
        told += _at_rest(place)
    if place.entry is not None and place.entry.kind is Kind.FILE and not _is_whole(place):
        size = "is not there" if place.there is None else f"has {place.there.size} bytes"
        told.append(
            f"In OneData it {size}, and the newest checkpoint says {place.entry.size}: 'onesync"
            " verify' tells more."
        )
    return told


def _at_rest(place: Place) -> list[str]:
    """Return what holds of a path of which nothing is known to have changed."""
    here, known = place.here, place.known
    if here is None and known is None:
        if place.entry is not None:
            return ["Nothing is deployed here; the next stage-in restores it."]
        found = place.there is not None
        word = "Somebody else put it into OneData; a stage-in restores it."
        return [word if found else "Nobody knows it."]
    if here is None:
        return ["It is gone here; the newest checkpoint has it until its removal is pushed."]
    if known is None or known.stamp is None:
        return ["It is new here and was not seen yet: the next rescan finds it."]
    if known.stamp == here or (here.kind is Kind.DIRECTORY and known.stamp.kind is here.kind):
        return ["OneData has it as it is here."]
    return ["It changed here and was not seen yet: the next rescan finds it."]


def _is_whole(place: Place) -> bool:
    entry, there = place.entry, place.there
    return entry is not None and there is not None and there.size == entry.size
