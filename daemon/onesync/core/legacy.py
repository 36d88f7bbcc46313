"""The link lists of onesync's two predecessors."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator

from onesync.core.model import LONGEST_PATH, RelPath, is_user_path, join, name_of, parent_of

_LINKLIST = re.compile(rb'"(?P<dir>.*)" "(?P<name>[^"/]*)" "(?P<target>.*)"')


def linklist(content: bytes, directories: Collection[RelPath]) -> Iterator[tuple[RelPath, bytes]]:
    """Yield (path, target) from West-Life's ``"dir" "name" "target"`` lines.

    ``dir`` is an absolute path of another machine: it is found by its longest suffix that is one of
    ``directories``. A line that names no directory here is left out.
    """
    for line in content.splitlines():
        match = _LINKLIST.fullmatch(line.strip())
        if match is None or not match["name"] or not match["target"]:
            continue
        path = join(_longest_suffix(match["dir"], directories), match["name"])
        if _is_link(path, match["target"]):
            yield path, match["target"]


def links_beneath(content: bytes, root: bytes) -> Iterator[tuple[RelPath, bytes]]:
    """Yield (path, target) from West-Life's lines of the working directory ``root`` alone."""
    top = _parts(root)
    for line in content.splitlines():
        match = _LINKLIST.fullmatch(line.strip())
        if match is None or not match["name"] or not match["target"]:
            continue
        parts = _parts(match["dir"])
        path = join(b"/".join(parts[len(top) :]), match["name"])
        if parts[: len(top)] == top and _is_link(path, match["target"]):
            yield path, match["target"]


def symlink_dump(
    content: bytes, directories: Collection[RelPath]
) -> Iterator[tuple[RelPath, bytes]]:
    """Yield (path, target) from scipion-docker's ``target link`` lines.

    Blanks are not escaped there: the link is the rest of the line from the first blank whose suffix
    leads into one of ``directories``.
    """
    for line in content.splitlines():
        target, blank, link = line.strip().partition(b" ")
        above, _, name = link.rpartition(b"/")
        if blank and name:
            path = join(_longest_suffix(above, directories), name)
            if _is_link(path, target):
                yield path, target


def write_linklist(root: bytes, links: Iterable[tuple[RelPath, bytes]]) -> bytes:
    """Return West-Life's lines for (path, target) pairs beneath the absolute directory ``root``.

    The format has no escapes: a link whose name or target holds a quote or a line break is left
    out.
    """
    lines = []
    for path, target in links:
        fields = (join(root, parent_of(path)) if parent_of(path) else root, name_of(path), target)
        if not any(byte in field for field in fields for byte in (b'"', b"\n")):
            lines.append(b'"%b" "%b" "%b"\n' % fields)
    return b"".join(lines)


def _longest_suffix(directory: bytes, directories: Collection[RelPath]) -> RelPath:
    parts = _parts(directory)
    for start in range(len(parts)):
        suffix = b"/".join(parts[start:])
        if suffix in directories:
            return suffix
    return b""


def _parts(directory: bytes) -> list[bytes]:
    return [part for part in directory.split(b"/") if part not in (b"", b".")]


def _is_link(path: RelPath, target: bytes) -> bool:
    """Whether the kernel would make such a link, and onesync keep it."""
    return is_user_path(path) and len(target) <= LONGEST_PATH and b"\0" not in target
