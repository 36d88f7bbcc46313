"""The order in which a batch publishes, and what holds back what.

Scipion skips an item for ever once its marker is there, and a set's rows are promises of files. So
data come first, then empty markers, then databases, the project's last; and while data of a run are
held back, so are the markers and databases of that run.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from onesync.core.model import RelPath, name_of

SIDECARS = (b"-journal", b"-wal", b"-shm")


class Stage(IntEnum):
    """When in a batch a path is published; lower goes first."""

    DATA = 0
    MARKER = 1
    SET = 2
    RUN = 3
    PROJECT = 4


def stage_of(path: RelPath, *, size: int, is_database: bool) -> Stage:
    """Return the stage of a file: empty files under ``DONE`` are markers."""
    name = name_of(path)
    if is_database:
        if name == b"project.sqlite":
            return Stage.PROJECT
        return Stage.RUN if name in (b"run.db", b"steps.sqlite") else Stage.SET
    if b"DONE" in path.split(b"/")[:-1]:
        return Stage.MARKER
    return Stage.DATA


def scope_of(path: RelPath) -> RelPath:
    """Return the run that ``path`` belongs to (``Runs/000123_X``), or ``b""`` for the project."""
    parts = path.split(b"/")
    return b"/".join(parts[:2]) if parts[0] == b"Runs" and len(parts) > 2 else b""


def is_held(path: RelPath, stage: Stage, held_scopes: Iterable[RelPath]) -> bool:
    """Return whether held-back data of its run hold ``path`` back."""
    return stage > Stage.DATA and scope_of(path) in held_scopes


def database_of(path: RelPath) -> RelPath | None:
    """Return the database that ``path`` would be a sidecar of, judged by its name alone."""
    for suffix in SIDECARS:
        if path.endswith(suffix) and name_of(path) != suffix:
            return path[: -len(suffix)]
    return None
