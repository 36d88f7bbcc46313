"""What a batch is about to do to the replica, written before it does: any node can settle it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from onesync.core.chain import Position
from onesync.core.model import STATUS_FOLDER, RelPath, join

INTENTS = STATUS_FOLDER + b"/intent"
FORMAT = 2
_NOTE = b"~occupied~"


class NewerFormat(Exception):
    """A newer onesync wrote the intent; its message names the format."""


@dataclass(slots=True)
class Intent:
    """What a batch is about to do, in pairs of paths.

    Attributes:
        position: the checkpoint that will commit it.
        new: (target, temporary) of every file whose content travels.
        replace: (target, aside) of files whose old version goes aside.
        remove: (path, aside).
        rename: (source, target).
        make: directories.
        promise: those of ``new`` and ``make`` that must not stand without a checkpoint: markers and
            databases, which promise other entries, and what takes a link's name.
        create: (target, size, digest) of those of ``new`` that are small and are created under
            their own names; their temporaries are for the case that they change meanwhile.
        append: (path, committed length) of files that may be written beyond it.
        patch: (path, undo file) of files whose blocks may be changed in place.
    """

    position: Position
    new: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    replace: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    remove: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    rename: list[tuple[RelPath, RelPath]] = field(default_factory=list)
    make: list[RelPath] = field(default_factory=list)
    promise: list[RelPath] = field(default_factory=list)
    create: list[tuple[RelPath, int, str]] = field(default_factory=list)
    append: list[tuple[RelPath, int]] = field(default_factory=list)
    patch: list[tuple[RelPath, RelPath]] = field(default_factory=list)

    _PARTS = ("new", "replace", "remove", "rename", "patch")
    _SINGLE = ("make", "promise")
    _FIRST = ("new", "replace", "remove", "rename")
    """What every intent has; the others came later."""

    def encode(self) -> bytes:
        """Return the intent's file content: JSON, paths without loss."""
        parts = {
            name: [[_text(path) for path in pair] for pair in getattr(self, name)]
            for name in self._PARTS
        }
        head = {"onesync": "intent", "format": FORMAT}
        place = {"epoch": self.position.epoch, "sequence": self.position.sequence}
        single = {name: [_text(path) for path in getattr(self, name)] for name in self._SINGLE}
        lengths = {"append": [[_text(path), length] for path, length in self.append]}
        create = {"create": [[_text(path), size, digest] for path, size, digest in self.create]}
        return json.dumps({**head, **place, **parts, **single, **create, **lengths}).encode()

    @classmethod
    def decode(cls, content: bytes) -> Intent:
        """Read an intent of this or an older format.

        Raises NewerFormat on one of a newer format, ValueError on anything else.
        """
        found = _read(content)
        intent = cls(Position(int(found["epoch"]), int(found["sequence"])))
        for name in cls._PARTS:
            pairs = found[name] if name in cls._FIRST else found.get(name, [])
            getattr(intent, name).extend((_raw(a), _raw(b)) for a, b in pairs)
        for name in cls._SINGLE:
            getattr(intent, name).extend(map(_raw, found.get(name, [])))
        intent.create.extend(
            (_raw(path), int(size), str(digest)) for path, size, digest in found.get("create", [])
        )
        intent.append.extend((_raw(path), int(length)) for path, length in found.get("append", []))
        return intent

    @property
    def path(self) -> RelPath:
        """Where on the replica it stands."""
        return join(INTENTS, b"E%06d-%06d.json" % (self.position.epoch, self.position.sequence))

    def note_of(self, number: int) -> RelPath:
        """Return the name of a note that tells what was found where this batch wanted to create.

        Its content is the path: what stands there is somebody else's.
        """
        return self.path[: -len(b".json")] + _NOTE + b"%d" % number


def noted_by(name: bytes) -> bytes | None:
    """Return the name of the intent that the note ``name`` belongs to; None of anything else."""
    intent, mark, _ = name.partition(_NOTE)
    return intent + b".json" if mark else None


def _read(content: bytes) -> dict[str, Any]:
    found = json.loads(content)
    if not isinstance(found, dict) or found.get("onesync") != "intent":
        raise ValueError("not an intent")
    version = int(found["format"])
    if version > FORMAT:
        raise NewerFormat(f"format {version}")
    return found


def _text(path: RelPath) -> str:
    return path.decode("utf-8", "surrogateescape")


def _raw(text: str) -> RelPath:
    path = text.encode("utf-8", "surrogateescape")
    if path.startswith(b"/") or b".." in path.split(b"/") or b"\0" in path or not path:
        raise ValueError("a path leaves the folder")
    return path
