"""What a push achieved, and the kinds of problems that it meets."""

from __future__ import annotations

from dataclasses import dataclass, field

from onesync.core.blocks import Blocks
from onesync.core.chain import Change
from onesync.core.model import Entry, Problem, RelPath, Stamp
from onesync.travels import Travel

BEHIND = "behind"
NAME_REFUSED = "name_refused"
OCCUPIED = "occupied"
REFUSED = "refused"
UNREADABLE = "unreadable"
NEWCOMER = "newcomer"
DATABASE_BUSY = "database_busy"
SPOOL_FULL = "spool_full"

LASTING = frozenset({NAME_REFUSED, OCCUPIED, REFUSED, UNREADABLE})
"""What keeps a file out of OneData until somebody does something about it."""

NOT_COPIED = frozenset({DATABASE_BUSY, SPOOL_FULL})
"""What keeps a database out of OneData until its snapshot is taken."""


@dataclass(slots=True)
class Outcome:
    """What a push achieved.

    Attributes:
        changes: to be committed, in order.
        stamps: the stamps that the sources had.
        retry: paths that changed while they were copied, or went; they stay dirty.
        as_it_came: what came damaged and holds no other bytes now, with its stamp: nothing is sent.
        missing: where something that should be in the replica is not there.
        lacking: data that did not come and that the databases of the cut may name.
        is_late: whether databases were held back because such data were not there in time.
        deferred: data that the next batches bring, for this one has lasted long enough.
        held: markers and databases that wait for data.
        kept: markers that wait for data which cannot come before somebody does something.
        left_out: what lies in directories whose names OneData refused, or has for others.
        growing: paths that are not done and stay dirty, with the seconds that they took in vain or
            to be published as far as they had come: the dearer, the longer they rest.
        travels: whole copies that go on in the next batches, by their targets.
        blocks: digests of the blocks of large files, by the files' digests.
        postponed: removals that wait, because databases of their run were held back.
        postponed_moves: renames, likewise.
        problems: what went wrong with single paths.
        files: how many files were published.
        size: bytes of them.
        sent: the committed files whose bytes travelled, and whether each is a database.
        overwritten: those that took the place of older bytes.
        is_told: whether OneData said that it has all of these.
    """

    changes: list[Change] = field(default_factory=list)
    stamps: dict[RelPath, Stamp] = field(default_factory=dict)
    retry: set[RelPath] = field(default_factory=set)
    as_it_came: dict[RelPath, Stamp] = field(default_factory=dict)
    missing: set[RelPath] = field(default_factory=set)
    lacking: set[RelPath] = field(default_factory=set)
    is_late: bool = False
    deferred: set[RelPath] = field(default_factory=set)
    held: set[RelPath] = field(default_factory=set)
    kept: set[RelPath] = field(default_factory=set)
    left_out: set[RelPath] = field(default_factory=set)
    growing: dict[RelPath, float] = field(default_factory=dict)
    travels: dict[RelPath, Travel] = field(default_factory=dict)
    blocks: dict[str, Blocks] = field(default_factory=dict)
    postponed: set[RelPath] = field(default_factory=set)
    postponed_moves: set[tuple[RelPath, RelPath]] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    size: int = 0
    sent: dict[RelPath, bool] = field(default_factory=dict)
    overwritten: dict[RelPath, Entry] = field(default_factory=dict)
    is_told: bool = False
