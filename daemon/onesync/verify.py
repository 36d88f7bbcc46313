"""Compares working copy, manifest and replica, and lists the differences. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from onesync.core.model import Entry, Kind, RelPath, is_reserved, join
from onesync.index import Index
from onesync.local import digest_local
from onesync.replica.door import Listed, Replica
from onesync.scanner import Scanner

_SHORT = 12
_KINDS = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.LINK: "link"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; ``where`` is ``working copy`` or ``replica``, against the manifest.

    Damage is where the replica does not hold what the manifest says. ``entry`` is what that was for
    this path; None where it has none, and where the working copy was compared with the index.
    """

    path: RelPath
    where: str
    text: str
    is_damage: bool = False
    entry: Entry | None = None


class Verification:
    """One comparison. Reads the mount: a listing of every directory, with content every file."""

    def __init__(
        self,
        replica: Replica,
        tree: Mapping[RelPath, Entry],
        pool: ThreadPoolExecutor,
        content: bool,
        advanced: Callable[[int, int], None] = lambda *_: None,
        copied: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Compare with the manifest's ``tree``; ``content`` reads every byte on both sides.

        ``advanced`` is told how many of how many files are read, ``copied`` their bytes.
        """
        self._advanced = advanced
        self._copied = copied
        self._replica = replica
        self._tree = tree
        self._pool = pool
        self._content = content

    def of_replica(self, only: Collection[RelPath] | None = None) -> Iterator[Finding]:
        """Yield where the replica differs from the manifest, or where ``only`` these paths do."""
        if only is None:
            listed = dict(listing(self._replica, self._pool))
            wanted = sorted(self._tree.items())
        else:
            looks = zip(only, self._pool.map(self._replica.look, only), strict=True)
            listed = {path: found for path, found in looks if found is not None}
            wanted = [(path, self._tree[path]) for path in only if path in self._tree]
        files = []
        for path, entry in wanted:
            if entry.kind is Kind.LINK:
                continue
            found = listed.get(path) or self._replica.look(path)
            if found is None:
                yield Finding(path, "replica", "is missing", is_damage=True, entry=entry)
            elif found.kind is not entry.kind:
                text = f"is a {_KINDS[found.kind]} in OneData now"
                yield Finding(path, "replica", text, is_damage=True, entry=entry)
            elif entry.kind is Kind.FILE and found.size != entry.size:
                text = f"has {found.size} of {entry.size} bytes"
                yield Finding(path, "replica", text, is_damage=True, entry=entry)
            elif entry.kind is Kind.FILE:
                files.append(path)
        for path in sorted(listed.keys() - self._tree.keys()):
            yield Finding(path, "replica", "is not in the manifest")
        if self._content:
            yield from self._contents(files, "replica", self._replica.digest)

    def of_working_copy(
        self, root: bytes, index: Index, excluded: Callable[[RelPath], bool]
    ) -> Iterator[Finding]:
        """Yield where the working copy differs from the manifest.

        Databases differ in their bytes and times while they live; what onesync has seen and
        pushed is known by the index's stamps.
        """
        scanner = Scanner(root, index, excluded)
        for path, difference in sorted(scanner.scan((), [b""], passes_over=True).items()):
            if path and difference.seen is None:
                yield Finding(path, "working copy", "is gone")
            elif path:
                is_new = difference.known is None
                yield Finding(path, "working copy", "is new" if is_new else "has changed")
        for problem in scanner.problems.values():
            yield Finding(problem.path, "working copy", problem.kind)
        if self._content:
            yield from self.of_local_contents(root, self._tree.keys())

    def of_local_contents(self, root: bytes, only: Collection[RelPath]) -> Iterator[Finding]:
        """Yield which of ``only`` these paths' files have other contents than the manifest says."""
        entries = ((path, self._tree.get(path)) for path in sorted(only))
        files = [path for path, entry in entries if entry and entry.kind is Kind.FILE]
        yield from self._contents(files, "working copy", lambda p: _local(join(root, p)))

    def _contents(
        self, files: list[RelPath], where: str, digest: Callable[[RelPath], tuple[str, int]]
    ) -> Iterator[Finding]:
        def compare(path: RelPath) -> Finding | None:
            entry = self._tree[path]
            try:
                found, _ = digest(path)
            except OSError as error:
                return Finding(path, where, f"cannot be read: {error.strerror}", entry=entry)
            if found == entry.digest:
                return None
            text = f"has other content ({found[:_SHORT]}…, expected {entry.digest[:_SHORT]}…)"
            return Finding(path, where, text, is_damage=where == "replica", entry=entry)

        for number, found in enumerate(self._pool.map(compare, files), 1):
            self._copied(self._tree[files[number - 1]].size)
            self._advanced(number, len(files))
            if found is not None:
                yield found


def listing(replica: Replica, pool: ThreadPoolExecutor) -> Iterator[tuple[RelPath, Listed]]:
    """Yield everything in the replica but what is onesync's own, directories before their names."""
    level: list[RelPath] = [b""]
    while level:
        below = []
        for directory, found in zip(level, pool.map(replica.list, level), strict=True):
            for item in found:
                path = join(directory, item.name)
                if is_reserved(path):
                    continue
                if item.kind is Kind.DIRECTORY:
                    below.append(path)
                yield path, item
        level = below


def _local(path: bytes) -> tuple[str, int]:
    copied = digest_local(os.fspath(path))
    return copied.digest, copied.size
