"""The kernel's table of mounts, as it is now. Paths are compared, no mount is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

TABLE = "/proc/self/mountinfo"
"""Whoever polls it is woken (POLLPRI) by each change."""


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
    """Return whether something is mounted at ``path``."""
    return any(mount.point == path for mount in mounts())


def mount_of(path: str) -> Mounted:
    """Return the mount that ``path`` lies on, as far as its parts are no links."""
    found = {mount.point: mount for mount in mounts()}
    while path not in found and path != "/":
        path = os.path.dirname(path)
    return found[path]
