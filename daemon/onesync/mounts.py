"""The kernel's table of mounts, as it is now. Paths are compared, no FUSE mount is touched."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from typing import NamedTuple

TABLE = "/proc/self/mountinfo"
"""Whoever polls it is woken (POLLPRI) by each change."""
_LINKS_AT_MOST = 40
"""As the kernel has it."""


class Mounted(NamedTuple):
    """One mount: where, the type of its file system, and the options of that."""

    point: str
    type: str
    options: dict[str, str]


def mounts() -> Iterator[Mounted]:
    """Yield every mount; of those at one place the last is the one that is seen."""
    with open(TABLE, "rb") as table:
        for line in table:
            fields, _, rest = line.partition(b" - ")
            point = fields.split()[4].decode("unicode_escape").encode("latin-1")
            kind, _, options = os.fsdecode(rest).rstrip("\n").split(" ", 2)
            pairs = (option.partition("=") for option in options.split(","))
            yield Mounted(os.fsdecode(point), kind, {key: value for key, _, value in pairs})


def is_mount_point(path: str) -> bool:
    """Return whether something is mounted at ``path``, which may lie beneath links."""
    real = without_links(path)
    return any(mount.point == real for mount in mounts())


def mount_of(path: str) -> Mounted:
    """Return the mount that ``path`` lies on, as far as its parts on it are no links."""
    found = {mount.point: mount for mount in mounts()}
    path = without_links(path)
    while path not in found and path != "/":
        path = os.path.dirname(path)
    return found[path]


def without_links(path: str) -> str:
    """Return ``path`` as the kernel's table has it.

    Nothing is looked at that is a FUSE mount or lies on one; what is not there, or goes in circles,
    stays as it is.
    """
    untouched = {mount.point for mount in mounts() if mount.type.startswith("fuse")}
    place, left, links = "/", path, 0
    while left and place not in untouched:
        part, _, left = left.partition("/")
        if part == "..":
            place = os.path.dirname(place)
        elif part not in ("", "."):
            place, target = _followed(os.path.join(place, part), untouched)
            links += bool(target)
            left = f"{target}/{left}" if target else left
        if links > _LINKS_AT_MOST:
            return path
    return os.path.join(place, left.lstrip("/")) if left else place


def _followed(place: str, untouched: Container[str]) -> tuple[str, str]:
    """Return where to go on, and what is to be gone from there: a link's target, or ""."""
    if place in untouched:
        return place, ""
    try:
        target = os.readlink(place)
    except OSError:
        return place, ""
    return "/" if target.startswith("/") else os.path.dirname(place), target
