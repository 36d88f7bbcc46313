"""Which differences are renames: the kernel's pairs lead there, and inode and stamp agree. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onesync.core.model import Kind, RelPath
from onesync.core.plan import Difference, Move


def renames_among(
    differences: Mapping[RelPath, Difference], pairs: Iterable[tuple[RelPath, RelPath]]
) -> list[Move]:
    """Return the renames among ``differences``, of those that the kernel told as ``pairs``."""
    came_from = {target: source for source, target in pairs}
    found = []
    for target in came_from:
        come = differences.get(target)
        passed = {target}
        source = came_from.get(target)
        # Renamed more than once since the last batch: back along the pairs.
        while come is not None and source is not None and source not in passed:
            gone = differences.get(source)
            if gone is not None and come.seen is not None and _is_rename(gone, come):
                found.append(Move(source, target, come.seen.kind, come.seen))
                break
            passed.add(source)
            source = came_from.get(source)
    return found


def _is_rename(gone: Difference, come: Difference) -> bool:
    seen, old = come.seen, gone.known.stamp if gone.known is not None else None
    if gone.seen is not None or come.known is not None or seen is None or old is None:
        return False
    if seen.kind is Kind.LINK or (seen.kind, seen.inode) != (old.kind, old.inode):
        return False
    same = (old.size, old.mtime_ns) == (seen.size, seen.mtime_ns)
    return seen.kind is Kind.DIRECTORY or same
