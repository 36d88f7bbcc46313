"""Makes the working copy complete: resumed where it was, or staged in.

Engine's thread only, between the claim and the first batch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path

from onesync import recovery, working_copy
from onesync.batch import Batches
from onesync.core.chain import Change, Gone, Head, Noted, Set
from onesync.core.claims import Ours
from onesync.core.model import (
    Kind,
    Problem,
    RelPath,
    Stamp,
    is_unconfirmed,
    join,
    lost_stamp,
    show,
    unconfirmed,
)
from onesync.core.ordering import database_of
from onesync.core.tree import Fold, Tree
from onesync.errors import Halted, MountNotThere
from onesync.index import Index
from onesync.intent import INTENTS
from onesync.local import Origin, origin_of, write_out
from onesync.lock import Lock
from onesync.manifest import MANIFEST, read_head, remove_torn_beginnings
from onesync.mount import Mount
from onesync.outcome import BEHIND
from onesync.rebuild import rebuild
from onesync.replica.door import Replica
from onesync.scanner import Scanner
from onesync.settings import Settings
from onesync.sidecars import Sidecars
from onesync.snapshot import is_database
from onesync.stagein import CHANGED_OUTSIDE, Conflict, Staged, StageIn
from onesync.stored_tree import stored_trees
from onesync.workers import each

log = logging.getLogger(__name__)

ADOPTED = "adopted"
"""What ``staged`` in the index says, instead of a deployment, until an adopted copy has one."""
_NAMED = 5
_MOST_FRESH = 50_000
"""Where more is new at stage-in than that, a base tells of it, which takes no memory."""


class Deploy:
    """One deployment's beginning."""

    def __init__(
        self,
        settings: Settings,
        replica: Replica,
        index: Index,
        lock: Lock,
        mount: Mount,
        scanner: Scanner,
        pool: ThreadPoolExecutor,
        spool: Path,
        problems: dict[RelPath, Problem],
        make_batches: Callable[[str, Head | None, int], Batches],
        advanced: Callable[[int, int], None],
    ) -> None:
        """Prepare; nothing is touched.

        Args:
            settings: the configuration.
            replica: the door.
            index: of this node.
            lock: held when ``take_over`` is called.
            mount: looked at already.
            scanner: of the working copy.
            pool: the workers.
            spool: a local directory for what memory must not hold.
            problems: what stage-in finds is added.
            make_batches: from the folder's id, its head and our epoch.
            advanced: told files done and files in all; may raise to give up.
        """
        self._settings = settings
        self._replica = replica
        self._index = index
        self._lock = lock
        self._mount = mount
        self._scanner = scanner
        self._pool = pool
        self._spool = spool
        self._problems = problems
        self._make_batches = make_batches
        self._advanced = advanced
        self.absent: Problem | None = None
        self._root = os.fsencode(settings.working_dir.resolve())
        self._working_dirs = (os.fsencode(settings.working_dir), self._root)

    def is_known_copy(self) -> bool:
        """Return whether the working copy is one that onesync made."""
        keys = ("staged", "undeployed", "staging")
        return any(self._index.get(key) is not None for key in keys)

    def may_wait(self) -> bool:
        """Return whether something here may wait for OneData, before the folder is ours again.

        An index that was lost tells nothing of the copy: then the claim of its deployment counts.
        """
        if self._index.get("staged") is not None:
            return True
        return self._index.get("claimed") is not None and not self.is_known_copy()

    def is_held_copy(self) -> bool:
        """Return whether what stands here is of the claim that was taken, and may wait for OneData.

        Where the index was lost, that is so if the claim goes on with an earlier one.
        """
        if self.is_known_copy():
            return self._index.get("staged") in (self._lock.state().deployment_id, ADOPTED)
        return self._lock.is_resumed()

    def verify_root(self) -> None:
        """Raise WorkingCopyLost unless the working copy is the one that was staged in."""
        inode, birth = self._index.get("root_inode"), self._index.get("root_birth")
        if inode is not None:
            self._scanner.origin = Origin(int(inode), None if birth is None else int(birth))
        self._scanner.verify_root()

    def take_over(self, epoch: int) -> Batches:
        """Make the working copy complete, as the owner of ``epoch``.

        Raises Halted where a person must decide, StopRequested where ``advanced`` gives up, OSError
        or MountNotThere where the mount fails: it goes on at the next start.
        """
        with stored_trees(self._spool) as make_tree:
            batches = self._take_over(epoch, make_tree)
        if self._index.get("root_birth") is None:  # an index of before it was kept
            self._index.set(**root_values(self._root))
        self.verify_root()
        return batches

    def _take_over(self, epoch: int, make_tree: Callable[[], Fold]) -> Batches:
        named = self._pool.submit(self._mount.open_folder, self._lock.folder_id)
        each(self._pool, self._make_folder, (MANIFEST, INTENTS))
        folder_id = self._lock.folder_id = named.result()
        head = read_head(self._replica, folder_id, self._spool, make_tree, self._pool, epoch)
        if head is None:
            remove_torn_beginnings(self._replica)
        self._tell_of(head)
        batches = self._make_batches(folder_id, head, epoch)
        if not self.is_known_copy() and os.listdir(self._root):
            self._know_again(head)
        if self._index.get("staged") == ADOPTED:
            self._take_adopted(batches)
        elif self._index.get("staged") is not None:
            self._resume(batches, head)
        else:
            for sentence in recovery.settle(
                self._replica,
                head.position if head else None,
                head.tree.get if head else lambda _: None,
                self._pool,
            ):
                log.warning("half-done batch settled", extra={"what": sentence})
            self._stage_in(batches, head, make_tree())
        return batches

    def _make_folder(self, path: RelPath) -> None:
        with suppress(FileExistsError):
            self._replica.make_directory(path)

    def _tell_of(self, head: Head | None) -> None:
        if head is None:
            return
        for sentence in head.ignored:
            text = f"The manifest is damaged: {sentence}. The checkpoint {head.name} is used."
            log.error(text)
            self._problems[MANIFEST] = Problem(MANIFEST, "manifest_damaged", text)

    def refuse_another_folder(self) -> None:
        """Raise Halted where this node's state is another folder's, or a newer onesync's is there.

        Nothing is changed. A state of before folders were remembered goes with any. Raises
        MountNotThere where the folder has no id: it may be a bare mount point.
        """
        wanted, found = self._folder_of_state(), self._mount.read_id()
        is_lost = found is None and wanted is not None and self._is_claimed_here()
        self._lock.folder_id = wanted if is_lost else found
        if wanted in (None, self._lock.folder_id):
            return
        state_dir, path = self._settings.state_dir, self._settings.onedata_dir
        way_out = (
            "Mount the right folder there, or correct onedata_dir, then start again. To give up"
            " what of that deployment is here alone, move the working directory and state_dir away,"
            " and free its folder with 'onesync unlock'."
        )
        if found is None:
            raise MountNotThere(
                f"{path} has no folder.json, so it is not the OneData folder {wanted} that the"
                f" state in {state_dir} belongs to; nothing was changed there. {way_out}"
            )
        raise Halted(
            f"The state in {state_dir} belongs to the OneData folder {wanted}, and {path} is the"
            f" folder {found}; nothing was changed there. {way_out}"
        )

    def _folder_of_state(self) -> str | None:
        """Return the folder to which the state is bound, until it is released; None: to none."""
        if all(self._index.get(key) is None for key in ("staged", "cleaning", "claimed")):
            return None
        told = self._index.get("folder_id")
        if told is None and self._index.get("claimed") is not None:
            return self._lock.claimed_folder()
        return told

    def _is_claimed_here(self) -> bool:
        """Whether a claim in the folder is this node's own, though OneData lost folder.json."""
        holder = self._lock.holder()
        return isinstance(holder, Ours) and holder.claim.record is not None

    def refuse_foreign(self) -> None:
        """Raise Halted where the working copy is not ours and no claim tells that it may be."""
        if self._index.get("adopting") is not None and self._index.get("staged") is None:
            raise Halted(
                "The folder of the predecessors is adopted by half; nothing is lost. Run 'onesync"
                " adopt' again, then start."
            )
        if not self.is_known_copy() and not self._lock.remembers():
            working_copy.refuse_foreign(self._root)

    def _know_again(self, head: Head | None) -> None:
        """Make the index of a deployment of this node anew that was lost; refuse any other copy."""
        if head is None or not self._lock.is_resumed():
            working_copy.refuse_foreign(self._root)
            return
        log.error("index lost, the working copy is compared with the manifest")
        damaged = {p for p, it in head.problems.items() if it.kind == CHANGED_OUTSIDE}
        rebuilt = rebuild(self._root, self._scanner, head.tree, self._pool, self._advanced, damaged)
        write_out(self._root)
        self._index.replace(
            rebuilt.rows,
            staged=self._lock.state().deployment_id,
            **self._known_of(head),
            **root_values(self._root),
        )
        # Nobody knows any more what of it was staged in, and what pushed and only believed. What is
        # not here nobody could send again.
        files = (p for p, entry, stamp in rebuilt.rows if entry.kind is Kind.FILE and stamp)
        self._index.believe(files, lately=False)
        self._index.remember_blocks(rebuilt.blocks)
        self._index.remember_damaged(rebuilt.damaged)
        log.info("index made anew", extra={"paths": len(rebuilt.rows)})
        if rebuilt.absent:
            self.absent = _absent(rebuilt.absent)
            log.warning(self.absent.text)

    def _take_adopted(self, batches: Batches) -> None:
        """Commit what OneData holds as the first checkpoint of a copy that was compared with it."""
        batches.settle()
        batches.base()
        write_out(self._root)
        staged = self._lock.state().deployment_id
        self._index.set(staged=staged, adopting=None, folder_id=self._lock.folder_id)

    def _resume(self, batches: Batches, head: Head | None) -> None:
        """Go on on this node: what the chain has and the index lacks is taken over as dirty."""
        ours = self._index.get("staged") == self._lock.state().deployment_id
        if not ours and not self._equals(head):
            raise Halted(
                "The deployment of this working directory was ended elsewhere and the folder went"
                " on without it; nothing was changed. What was not yet in OneData is still here:"
                " move the working directory away, then start again and copy what you miss."
            )
        self._index.set(staged=self._lock.state().deployment_id)
        if head is not None:
            self._catch_up(head)
            self._problems.update(_lasting(head))
        self._index.set(**self._known_of(head))
        batches.settle()
        if head is None or head.ignored:
            batches.base()
            # Nothing is missing: this working copy has all that its deployment ever pushed, what
            # the head lacks is pushed again, and the new base needs nothing that is damaged.
            if self._problems.pop(MANIFEST, None) is not None:
                log.info("manifest mended from the working copy")

    def _equals(self, head: Head | None) -> bool:
        """Whether the index is that of the head; earlier ones may have kept another's digest."""
        if head is None or head.name != self._index.get("head_name"):
            return False
        return self._index.get("folder_id") is None or head.digest == self._index.get("head_digest")

    def _known_of(self, head: Head | None) -> dict[str, str | None]:
        """Return what the index keeps of the folder, to know it again, and of its head."""
        told = {"folder_id": self._lock.folder_id}
        return told if head is None else told | {"head_name": head.name, "head_digest": head.digest}

    def _catch_up(self, head: Head) -> None:
        """Take over what the chain has and the index lacks."""
        recorded = (self._index.get("head_name"), self._index.get("head_digest"))
        if recorded == (head.name, head.digest):
            return  # what a checkpoint says is recorded together with its name
        gone: list[Change] = []
        ours: list[Set] = []
        changed: list[Set] = []
        both = 0
        for path, row in self._index.beneath(b""):
            old, entry = row.entry, head.tree.get(path)
            both += entry is not None
            if entry is not None:
                changed += [Set(path, entry)] if entry != old else []
            elif path and not is_unconfirmed(old) and head.ignored and old.kind is not Kind.LINK:
                # A checkpoint that OneData lost told of what this node put there: it is still ours.
                ours.append(Set(path, unconfirmed(old.kind, old.size, old.digest)))
            elif path and not is_unconfirmed(old):
                gone.append(Gone(path))
        if both < len(head.tree):
            missing = (p for p in head.tree if self._index.known(p) is None)
            changed += [Set(path, head.tree[path]) for path in missing]
        if changes := [*gone, *ours, *changed]:
            log.info("resumed behind the manifest", extra={"paths": len(changes)})
            absent = {c.path for c in changed if self._is_absent(c.path)}
            left = (c for c in ours + changed if c.path not in absent)
            self._index.commit(changes, {c.path: lost_stamp(c.entry.kind) for c in left})

    def _is_absent(self, path: RelPath) -> bool:
        """Whether this node is known to have never had ``path``."""
        known = self._index.known(path)
        return known is not None and known.stamp is None

    def _stage_in(self, batches: Batches, head: Head | None, newcomers: Fold) -> None:
        with closing(Sidecars(self._root, self._spool)) as sidecars:
            self._take_staged(batches, head, self._staged(head, newcomers, sidecars))

    def _staged(self, head: Head | None, newcomers: Fold, sidecars: Sidecars) -> Staged:
        tree = head.tree if head else Tree()
        name = head.name if head else ""
        unwritten: dict[RelPath, Stamp] = {}
        if self._index.get("undeployed") is not None:
            unwritten = working_copy.reuse(self._root, self._index, self._scanner, tree, sidecars)
        elif not self._goes_on(name) and os.listdir(self._root):
            raise Halted(
                "The working directory holds half of another folder, or of an older state of this"
                " one, which went on elsewhere; nothing was changed. Empty it, then start again."
            )
        self._index.set(
            staging=name,
            stager=self._lock.state().deployment_id,
            undeployed=None,
            folder_id=self._lock.folder_id,
        )
        asked = head.problems.keys() if head else set()
        try:
            with self._index.refilled() as rows:
                return StageIn(
                    self._replica,
                    self._root,
                    self._pool,
                    self._advanced,
                    rows,
                    self._link_moves(head),
                    asked,
                    sidecars,
                    unwritten,
                ).run(tree, newcomers)
        except Conflict as conflict:
            raise Halted(
                f"{conflict} stands in the working directory with another content than in OneData;"
                " nothing was overwritten. Move it away, then start again."
            ) from conflict

    def _goes_on(self, head_name: str) -> bool:
        """Whether what was staged in so far is part of the head.

        Where the same deployment began it, nobody else wrote meanwhile: a newer head is the
        checkpoint that recorded what was staged in.
        """
        if self._index.get("stager") == self._lock.state().deployment_id:
            return True
        is_same = self._index.get("folder_id") in (None, self._lock.folder_id)
        return is_same and self._index.get("staging") in (None, head_name)

    def _take_staged(self, batches: Batches, head: Head | None, staged: Staged) -> None:
        staged.problems += self._set_aside(staged.strays, batches)
        marked = self._still_marked(head, staged)
        for problem in staged.problems + marked:
            self._problems[problem.path] = problem
            log.warning(problem.text)
        if staged.relocated:
            log.info("links follow the working directory", extra={"links": staged.relocated})
        self._index.remember_damaged(staged.damaged)
        self._index.remember_blocks({})  # forgets those of what is no more
        healed = (head.problems.keys() if head else set()) & staged.fetched
        healed -= self._problems.keys()
        fresh = self._fresh(head, healed)
        # A chain that is forked or torn is mended at once: the next reader needs none of it.
        if head is None or head.ignored or len(fresh) > _MOST_FRESH:
            batches.base()
        elif fresh or staged.problems:
            # They keep their stamps: without one what goes would not be missed.
            rows = {change.path: self._index.known(change.path) for change in fresh}
            stamps = {path: row.stamp for path, row in rows.items() if row and row.stamp}
            batches.commit([*fresh, *map(Noted, staged.problems)], stamps, "incremental")
        # After a power cut what the disk lacks would seem to have been deleted, or emptied.
        write_out(self._root)
        name, digest = batches.manifest.head or (None, None)
        self._index.set(
            staged=self._lock.state().deployment_id,
            staging=None,
            stager=None,
            head_name=name,
            head_digest=digest,
            **root_values(self._root),
        )

    def _set_aside(self, strays: Mapping[RelPath, Kind], batches: Batches) -> list[Problem]:
        """Take journals away from databases, which they would undo; leave and tell all else."""
        found = []
        for path, kind in sorted(strays.items()):
            base = database_of(path) or b""
            text = f"{show(path)} is not of the {show(base)} that is restored: "
            if kind is Kind.FILE and is_database(join(self._root, base)):
                batches.may_write()
                try:
                    kept = recovery.keep_torn(self._replica, path, batches.manifest.position)
                except FileNotFoundError:
                    continue  # somebody removed it
                text += f"kept in OneData as {show(kept)}, for it would undo that."
            else:
                text += "left in OneData."
            found.append(Problem(path, "stray_sidecar", text))
        return found

    def _fresh(self, head: Head | None, healed: AbstractSet[RelPath]) -> list[Set]:
        """Return what the next checkpoint must tell of: as much as a base is not better for."""
        if head is None:
            return []
        entries = ((path, entry) for path, entry in self._index.entries() if path)
        fresh = (Set(p, e) for p, e in entries if head.tree.get(p) != e or p in healed)
        return list(islice(fresh, _MOST_FRESH + 1))

    def _still_marked(self, head: Head | None, staged: Staged) -> list[Problem]:
        """Return the problems of the head that hold on.

        Of damaged files whose local copies were reused and so not seen again, and of files that
        were travelling when their node ended.
        """
        if head is None:
            return []
        found = []
        for path, problem in _lasting(head).items():
            if self._index.known(path) is None:
                continue
            if problem.kind == BEHIND:
                text = (
                    f"{show(path)} was still travelling when its node ended: here are the"
                    f" {head.tree[path].size} bytes that OneData has of it, what came later never"
                    " reached OneData."
                )
                found.append(Problem(path, BEHIND, text))
            elif path not in staged.fetched:
                found.append(problem)
        return found

    def _link_moves(self, head: Head | None) -> list[tuple[bytes, bytes]]:
        if head is None or not self._settings.stagein.relocate_links:
            return []
        pairs = zip(head.working_dirs, self._working_dirs, strict=False)
        return [(old, new) for old, new in pairs if old != new and len(old) > 1 and old[:1] == b"/"]


def _absent(paths: list[RelPath]) -> Problem:
    named = ", ".join(map(show, sorted(paths)[:_NAMED])) + (", …" if len(paths) > _NAMED else "")
    text = (
        f"The index was lost, and {len(paths)} paths of the manifest are not in the working copy"
        f" ({named}). They stay in OneData, and come back with the next stage-in."
    )
    return Problem(b"", "absent", text)


def root_values(root: bytes) -> dict[str, str | None]:
    """Return what the index keeps of the directory ``root``, to know it again."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        origin = origin_of(fd)
    finally:
        os.close(fd)
    birth = origin.birth_ns
    return {"root_inode": str(origin.inode), "root_birth": None if birth is None else str(birth)}


def _lasting(head: Head) -> dict[RelPath, Problem]:
    """Return the problems of the head that the next base must tell too: of what OneData holds."""
    kinds = (BEHIND, CHANGED_OUTSIDE)
    return {p: it for p, it in head.problems.items() if p in head.tree and it.kind in kinds}
