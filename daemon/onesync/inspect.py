"""Looks into a folder from outside the daemon: its manifest, and where the three sides differ."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pathspec import PathSpec

from onesync.core.chain import Head, Position
from onesync.core.model import Entry, Kind, RelPath, is_damaged_row, join, lies_in
from onesync.deletions import fingerprint
from onesync.errors import Halted, MountNotThere
from onesync.index import HELD_SINCE, Index, is_lost
from onesync.intent import INTENTS, Intent, NewerFormat
from onesync.local import digest_local
from onesync.manifest import read_head
from onesync.replica.children import ChildrenReplica
from onesync.scanner import Scanner
from onesync.settings import Settings
from onesync.snapshot import is_database
from onesync.verify import Finding, Verification

_PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)
"""Seconds before the manifest is read again, each time that something was changing."""


def read_manifest(settings: Settings) -> Mapping[RelPath, Entry]:
    """Return every entry of the newest checkpoint. Raises MountNotThere, or Halted without one."""
    with opened(settings) as replica:
        return _head(replica).tree


def had_copy(settings: Settings) -> bool:
    """Return whether a working copy was staged in here and not yet undeployed to the end."""
    return _has_any(settings.state_dir, "staged", "cleaning")


def has_deployment(state_dir: Path) -> bool:
    """Return whether a claim or a working copy of this node is there that was not undeployed.

    It tells of a daemon that is down too, and looks at this machine alone. A claim whose index is
    lost counts. Raises OnesyncError where the index cannot be read.
    """
    if is_lost(state_dir):
        return True
    return _has_any(state_dir, "staged", "cleaning", "claimed")


def _has_any(state_dir: Path, *keys: str) -> bool:
    path = state_dir / "index.sqlite"
    if not path.exists():
        return False
    with closing(Index(path, readonly=True)) as index:
        return any(index.get(key) is not None for key in keys)


def held_deletions(settings: Settings) -> tuple[list[RelPath], str]:
    """Return every path that is held, in the order of their bytes; see ``deletions``.

    With them comes what tells the daemon which ones these are.
    """
    path = settings.state_dir / "index.sqlite"
    tops: frozenset[RelPath] = frozenset()
    paths: list[RelPath] = []
    if path.exists():
        with closing(Index(path, readonly=True)) as index:
            held_at_all = int(index.get("format") or 0) >= HELD_SINCE
            if index.get("staged") is not None and held_at_all:
                tops = index.held()
            paths = [p for top in sorted(tops) for p, _ in index.beneath(top)]
    return paths, fingerprint(tops)


def verify_folder(
    settings: Settings,
    content: bool,
    advanced: Callable[[int, int], None],
    copied: Callable[[int], None],
) -> list[Finding]:
    """Compare working copy, manifest and replica; ``content`` reads every byte.

    The working copy is compared while it is deployed. What the daemon has not pushed yet counts as
    a difference.
    """
    path = settings.state_dir / "index.sqlite"
    excluded = PathSpec.from_lines("gitignore", settings.push.exclude)
    workers = settings.push.workers
    with opened(settings) as replica, ThreadPoolExecutor(workers) as pool:
        root = os.fsencode(settings.working_dir.resolve())
        head = _head(replica)
        verification = Verification(replica, head.tree, pool, content, advanced, copied)
        findings = list(verification.of_replica())
        if path.exists():
            with closing(Index(path, readonly=True)) as index:
                if index.get("staged") is not None or index.get("undeployed") is not None:
                    findings += verification.of_working_copy(
                        root, index, lambda p: excluded.match_file(os.fsdecode(p))
                    )
        standing, moving = _confirmed(replica, root, pool, content, head.position, findings)
        return standing + moving


def find_damage(
    settings: Settings, advanced: Callable[[int, int], None], copied: Callable[[int], None]
) -> tuple[list[Finding], list[Finding], list[Finding]]:
    """Read everything in OneData and return what is damaged there.

    Returns three lists: what the working copy has as the manifest says, or has changed since, and
    so can mend; what is as bad in the working copy; and what was changing at every look.
    """
    root = os.fsencode(settings.working_dir.resolve())
    with (
        opened(settings) as replica,
        ThreadPoolExecutor(settings.push.workers) as pool,
        closing(Index(settings.state_dir / "index.sqlite", readonly=True)) as index,
    ):
        head = _head(replica)
        verification = Verification(replica, head.tree, pool, True, advanced, copied)
        found = [finding for finding in verification.of_replica() if finding.is_damage]
        standing, moving = _confirmed(replica, root, pool, True, head.position, found)
        mendable: list[Finding] = []
        lost: list[Finding] = []
        for finding in standing:
            if finding.is_damage and finding.entry is not None:
                has_good_copy = _has_good_copy(root, finding.path, finding.entry, index)
                (mendable if has_good_copy else lost).append(finding)
    return mendable, lost, moving


def _confirmed(
    replica: ChildrenReplica,
    root: bytes,
    pool: ThreadPoolExecutor,
    content: bool,
    compared: Position,
    findings: list[Finding],
) -> tuple[list[Finding], list[Finding]]:
    """Return which findings the newest checkpoint confirms, and which never held still for that.

    The manifest was read, up to the checkpoint ``compared``, before everything else was: what was
    pushed or removed meanwhile differs from it and is looked at again, some seconds if need be.
    """
    standing: list[Finding] = []
    for pause in _PAUSES:
        if not findings:
            break
        time.sleep(pause)
        # The intents before the head: of a batch whose intent is gone the checkpoint stands.
        under_way = _under_way(replica, compared)
        head = _head(replica)
        moving: list[Finding] = []
        for finding in findings:
            (moving if _moves(finding, head.tree, under_way) else standing).append(finding)
        verification = Verification(replica, head.tree, pool, content)
        findings = list(verification.of_replica([f.path for f in moving if f.where == "replica"]))
        local = [f.path for f in moving if f.where != "replica"]
        findings += verification.of_local_contents(root, local)
        compared = head.position
    return standing, [replace(f, text=f"{f.text}, in the middle of a change") for f in findings]


def _moves(finding: Finding, tree: Mapping[RelPath, Entry], under_way: Set[RelPath]) -> bool:
    """Whether a finding may be one only because something was pushed or removed meanwhile."""
    if finding.where != "replica":
        return finding.entry is not None and finding.entry != tree.get(finding.path)
    return finding.entry != tree.get(finding.path) or lies_in(finding.path, under_way)


def _under_way(replica: ChildrenReplica, compared: Position) -> Set[RelPath]:
    """Return the paths that batches after ``compared`` change now, or what died there left so."""
    found: set[RelPath] = set()
    with suppress(FileNotFoundError):
        for name in replica.names(INTENTS):
            # What is no intent, or is not there to its end, stands for no change.
            with suppress(FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError):
                try:
                    intent = Intent.decode(replica.read(join(INTENTS, name)))
                except NewerFormat:
                    found.add(b"")  # for all that we know it changes anything
                else:
                    if intent.is_removal or intent.position > compared:
                        found |= intent.touched()
    return found


def _has_good_copy(root: bytes, path: RelPath, entry: Entry, index: Index) -> bool:
    seen = Scanner(root, index, lambda _: False).see(path)
    if seen is None or seen.kind is not entry.kind or entry.kind is Kind.DIRECTORY:
        return seen is not None and seen.kind is entry.kind
    known = index.known(path)
    try:
        if is_database(join(root, path)):
            # Its snapshot is what travels, whose bytes may differ. One that came damaged is pushed
            # when somebody commits to it, and until then as bad as OneData's.
            return not is_damaged_row(known)
        found = digest_local(join(root, path))
    except OSError:
        return False
    if is_damaged_row(known) and index.came_damaged(found.digest):
        return False
    # What was written here since the last push is newer than both, and not what was staged in.
    is_newer = known is None or known.stamp is None or known.stamp != found.before
    return is_newer or found.digest == entry.digest


def _head(replica: ChildrenReplica) -> Head:
    try:
        head = read_head(replica)
    except FileNotFoundError:
        head = None
    if head is None:
        raise Halted("The folder has no manifest: onesync never deployed it.")
    return head


@contextmanager
def opened(settings: Settings) -> Iterator[ChildrenReplica]:
    """Reach the folder in OneData. Raises MountNotThere where it cannot be read."""
    patience = settings.mount.io_timeout_seconds
    target = os.fsencode(settings.onedata_dir)
    replica = ChildrenReplica(target, 2, max(1, settings.push.workers // 2), patience)
    try:
        yield replica
    except OSError as error:
        raise MountNotThere(
            f"The OneData folder {settings.onedata_dir} cannot be read ({error.strerror}). Mount"
            " it, then try again."
        ) from error
    finally:
        replica.close()
