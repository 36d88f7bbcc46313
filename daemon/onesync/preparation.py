"""What a batch is about to do, named in its intents and read from the working copy's side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

from onesync.core.blocks import Blocks
from onesync.core.model import (
    RESERVED_PREFIX,
    Entry,
    Kind,
    RelPath,
    is_damaged_row,
    is_sound,
    is_unconfirmed,
    join,
    lies_in,
    parent_of,
)
from onesync.core.ordering import DATA, PublishOrder, ranks
from onesync.core.plan import Difference, Plan
from onesync.intent import Intent
from onesync.local import digest_local, is_another, local_size
from onesync.removals import Removals
from onesync.transfer import Source, may_patch
from onesync.travels import Travel
from onesync.workers import each

CREATED_AT_MOST = 1 << 20
"""Larger new files get their names when they are whole."""


class Preparation:
    """Fills the intents of one batch. Used by the push's thread; its workers read what it found.

    Attributes:
        sources: where each file's content is read and travels, by its path.
        replaced: the asides of the versions that are replaced.
        removes: what each removal takes out of the replica before the checkpoint.
        removed: the asides of that.
    """

    def __init__(
        self,
        root: bytes,
        pool: ThreadPoolExecutor,
        order: PublishOrder,
        intent: Intent,
        removal: Intent,
        removals: Removals,
        blocks_of: Callable[[str], Blocks | None],
        damaged: Callable[[], AbstractSet[str]],
        travel_to: Callable[[RelPath], Travel | None],
        lacking: Mapping[int, RelPath],
    ) -> None:
        """Prepare nothing yet; the arguments are the push's."""
        self._root = root
        self._pool = pool
        self._order = order
        self._intent = intent
        self._removal = removal
        self._removals = removals
        self._blocks_of = blocks_of
        self._damaged = damaged
        self._travel_to = travel_to
        self._lacking = dict(lacking)
        self._needed: dict[RelPath, RelPath] = {}
        self._came: AbstractSet[str] = frozenset()
        self._count = 0
        self.sources: dict[RelPath, Source] = {}
        self.replaced: dict[RelPath, RelPath] = {}
        self.removes: dict[RelPath, list[RelPath]] = {}
        self.removed: dict[RelPath, RelPath] = {}

    def lacks(self, difference: Difference) -> None:
        """Take note of what this batch does not bring: its old name may be all there is."""
        if difference.seen is not None:
            self._lacking[difference.seen.inode] = difference.path

    def prepare(
        self, plan: Plan, snapshots: Mapping[RelPath, bytes], pinned: Mapping[RelPath, bytes]
    ) -> None:
        """Name all of ``plan`` in the intents; small new files are read, for their digests."""
        self._needed = self._find_needed(plan, pinned)
        if any(is_damaged_row(difference.known) for difference in plan.files):
            self._came = self._damaged()
        new = [d for d in plan.files if is_new(d) and d.path not in snapshots]
        places = [pinned.get(d.path) or join(self._root, d.path) for d in new]
        found = each(self._pool, _digest_of_small, places)
        digests = {d.path: digested for d, digested in zip(new, found, strict=True) if digested}
        for difference in plan.files:
            path = difference.path
            local = snapshots.get(path) or pinned.get(path) or join(self._root, path)
            is_database = path in snapshots
            is_promise = is_database or self._order.group_of(path, is_database=False) != DATA
            # Under a name that differs from its own the project never had it.
            if is_promise or was_link(difference) or path in plan.stands_at:
                self._intent.promise.append(path)
            self._prepare_file(difference, local, digests.get(path), is_database=is_database)
        self._prepare_removals(plan)
        self._intent.make.extend(difference.path for difference in plan.directories)
        self._intent.promise.extend(
            d.path for d in plan.directories if was_link(d) or d.path in plan.stands_at
        )
        moves = [m for m in plan.moves if m.kind is not Kind.LINK]
        self._intent.rename.extend((m.source, m.target) for m in moves)

    def _prepare_file(
        self,
        difference: Difference,
        local: bytes,
        digested: tuple[int, str] | None,
        *,
        is_database: bool,
    ) -> None:
        path, known = difference.path, difference.known
        travel = self._travel(difference, is_database=is_database)
        temporary = travel.temporary if travel else self._name_beside(path)
        self._intent.new.append((path, temporary))
        undo, blocks = None, None
        if known is not None and known.entry.kind is Kind.FILE:
            self.replaced[path] = self._name_beside(path)
            self._intent.replace.append((path, self.replaced[path]))
            if may_patch(known) and self.needed_at(difference) is None:
                undo, blocks = self._name_beside(path), self._blocks_of(known.entry.digest)
                self._intent.append.append((path, known.entry.size))
                self._intent.patch.append((path, undo))
        if digested is not None:
            self._intent.create.append((path, *digested))
        digest = digested[1] if digested is not None else None
        so_far = travel.copied if travel else None
        came = self._came if is_damaged_row(known) else frozenset[str]()
        self.sources[path] = Source(
            local, is_database, temporary, undo, blocks, digest, so_far, came
        )

    def _prepare_removals(self, plan: Plan) -> None:
        moved = {move.source for move in plan.moves}
        late = {d.path: d.known.entry for d in plan.removals if d.known and _goes_late(d, moved)}
        if moved or any(d.removes_directory for d in plan.removals):
            # Those are done before the checkpoint: what may name them must not stand there longer.
            late = {path: entry for path, entry in late.items() if not self._promises(path, entry)}
        self._removal.gone.extend((path, e.size, e.digest) for path, e in late.items())
        self._removal.promise.extend(
            path for path in late if self._order.group_of(path, is_database=False) != DATA
        )
        early = [difference for difference in plan.removals if difference.path not in late]
        early += plan.revoked
        for difference, tops in zip(early, self._removals.tops(early), strict=True):
            self.removes[difference.path] = list(tops)
            for path, ours in tops.items():
                aside = self.removed[path] = self._name_beside(path)
                self._intent.remove.append((path, aside))
                self._intent.ours[aside] = ours

    def _promises(self, path: RelPath, entry: Entry) -> bool:
        """Whether a file may be a database; an empty marker is none."""
        return bool(entry.size) and self._order.group_of(path, is_database=False) != DATA

    def find_ranks(self, plan: Plan, pinned: Mapping[RelPath, bytes]) -> dict[RelPath, int | None]:
        """Return after how many others what replaces a file that stands elsewhere now can come.

        See ``ordering.ranks``. Files that wait for none are left out.
        """
        return ranks(self._find_needed(plan, pinned))

    def needed_at(self, difference: Difference) -> RelPath | None:
        """Return where the file stands now whose old version ``difference`` replaces.

        It was renamed, and what has its old name was renamed to that.
        """
        return self._needed.get(difference.path)

    def _find_needed(self, plan: Plan, pinned: Mapping[RelPath, bytes]) -> dict[RelPath, RelPath]:
        """Return ``needed_at`` of the files of ``plan``."""
        stands_at = {d.seen.inode: d.path for d in plan.files if d.seen is not None}
        stands_at = {**self._lacking, **stands_at}
        found = {}
        for difference in plan.files:
            path, known = difference.path, difference.known
            if known is None or known.stamp is None or known.entry.kind is not Kind.FILE:
                continue
            place = stands_at.get(known.stamp.inode, path)
            local = pinned.get(place) or join(self._root, place)
            if place != path and not is_another(local, known.stamp):
                found[path] = place
        return found

    def _travel(self, difference: Difference, *, is_database: bool) -> Travel | None:
        """Return the copy that earlier batches began, where it can still be used."""
        if is_database or is_new(difference):
            return None
        return self._travel_to(difference.path)

    def _name_beside(self, path: RelPath) -> RelPath:
        self._count += 1
        place = self._intent.position
        tag = b"E%06d-%06d~%d" % (place.epoch, place.sequence, self._count)
        return join(parent_of(path), RESERVED_PREFIX + tag)


def is_new(difference: Difference) -> bool:
    """Whether the last checkpoint has nothing at this path that OneData holds."""
    known = difference.known
    return known is None or known.entry.kind is Kind.LINK


def was_link(difference: Difference) -> bool:
    """Whether the last checkpoint has a link there, where nothing else may stand in OneData."""
    return difference.known is not None and difference.known.entry.kind is Kind.LINK


def _goes_late(difference: Difference, moved: AbstractSet[RelPath]) -> bool:
    """Whether what is removed stays until the checkpoint stands: under that name it is a file."""
    known = difference.known
    if known is None or known.entry.kind is not Kind.FILE or difference.seen is not None:
        return False
    # Whoever finishes it must be able to tell whether it is that file.
    is_certain = bool(known.entry.digest) and not is_unconfirmed(known.entry)
    is_certain &= is_sound(known)
    return is_certain and not lies_in(difference.path, moved)


def _digest_of_small(local: bytes) -> tuple[int, str] | None:
    """Return size and digest; None of what is large, cannot be read or is no file any more."""
    try:
        if local_size(local) > CREATED_AT_MOST:
            return None
        found = digest_local(local)
    except OSError:
        return None  # the transfer meets it again, and says so
    return (found.size, found.digest) if found.steady else None
