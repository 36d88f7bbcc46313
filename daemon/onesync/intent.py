"""What a batch is about to do to the replica, written before it does: any node can settle it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from onesync.core.chain import Position
from onesync.core.model import (
    STATUS_FOLDER,
    RelPath,
    is_place_beside,
    is_user_path,
    join,
    show,
)
from onesync.replica.door import Ours

INTENTS = STATUS_FOLDER + b"/intent"
FORMAT = 4
_NOTE = b"~occupied~"


class NewerFormat(Exception):
    """A newer onesync wrote the intent; its message names the format."""


class Torn(ValueError):
    """An intent that was not written to its end: nothing that it would name was begun."""


class Forged(ValueError):
    """An intent that is whole and names what no batch of onesync would touch."""


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
            databases, which promise other entries, and what takes a link's name; of ``gone`` those
            that go before the others.
        create: (target, size, digest) of those of ``new`` that are small and are created under
            their own names; their temporaries are for the case that they change meanwhile.
        append: (path, committed length) of files that may be written beyond it.
        patch: (path, undo file) of files whose blocks may be changed in place.
        gone: (path, size, digest) of files that are removed when the checkpoint stands.
        ours: what went aside with each of ``remove``, by its aside: anything else is others'.
        is_removal: whether it holds ``gone`` alone, and has a name of its own: a copy that travels
            needs the other one for longer.
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
    gone: list[tuple[RelPath, int, str]] = field(default_factory=list)
    ours: dict[RelPath, Ours] = field(default_factory=dict)
    is_removal: bool = False

    _PARTS = ("new", "replace", "remove", "rename", "patch")
    _SINGLE = ("make", "promise")
    _WITH_DIGESTS = ("create", "gone")
    _FIRST = ("new", "replace", "remove", "rename")
    """What every intent has; the others came later."""

    def is_needed(self) -> bool:
        """Whether the batch touches more than the manifest, where alone links and modes are."""
        return any(getattr(self, name) for name in (*self._PARTS, *self._SINGLE, "gone"))

    def touched(self) -> set[RelPath]:
        """Return the users' paths that the batch may change, of directories the topmost."""
        beside = {target for target, _ in (*self.new, *self.replace, *self.remove, *self.patch)}
        known = {path for path, _, _ in (*self.create, *self.gone)}
        grown = {path for path, _ in self.append}
        return beside.union(known, grown, self.make, self.promise, *self.rename)

    def encode(self) -> bytes:
        """Return the intent's file content: JSON, paths without loss."""
        parts = {
            name: [[_text(path) for path in pair] for pair in getattr(self, name)]
            for name in self._PARTS
        }
        head = {"onesync": "intent", "format": FORMAT, "is_removal": self.is_removal}
        place = {"epoch": self.position.epoch, "sequence": self.position.sequence}
        single = {name: [_text(path) for path in getattr(self, name)] for name in self._SINGLE}
        lengths = {"append": [[_text(path), length] for path, length in self.append]}
        known = {
            name: [[_text(path), size, digest] for path, size, digest in getattr(self, name)]
            for name in self._WITH_DIGESTS
        }
        ours = {"ours": {_text(aside): _texts(inner) for aside, inner in self.ours.items()}}
        whole = {**head, **place, **parts, **single, **known, **lengths, **ours}
        return json.dumps(whole).encode()

    @classmethod
    def decode(cls, content: bytes) -> Intent:
        """Read an intent of this or an older format.

        Raises NewerFormat on one of a newer format, Torn on one that is not JSON, Forged where it
        names anything but users' paths and temporaries beside them, and ValueError, KeyError or
        TypeError on anything else.
        """
        found = _read(content)
        position = Position(_number(found["epoch"]), _number(found["sequence"]))
        intent = cls(position, is_removal=found.get("is_removal") is True)
        for name in cls._PARTS:
            pairs = found[name] if name in cls._FIRST else found.get(name, [])
            second = _user_path if name == "rename" else _raw
            getattr(intent, name).extend((_user_path(a), second(b)) for a, b in pairs)
        for name in cls._SINGLE:
            getattr(intent, name).extend(map(_user_path, found.get(name, [])))
        for name in cls._WITH_DIGESTS:
            getattr(intent, name).extend(
                (_user_path(path), _number(size), str(digest))
                for path, size, digest in found.get(name, [])
            )
        intent.append.extend(
            (_user_path(path), _number(length)) for path, length in found.get("append", [])
        )
        for aside, inner in _mapping(found.get("ours", {})).items():
            intent.ours[_raw(aside)] = {
                _raw(directory): frozenset(map(_name, names))
                for directory, names in _mapping(inner).items()
            }
        intent._check_places()
        return intent

    def _check_places(self) -> None:
        for target, place in self.new + self.replace + self.remove + self.patch:
            if not is_place_beside(place, target):
                raise Forged(f"{show(place)} is no temporary of {show(target)}")

    @property
    def path(self) -> RelPath:
        """Where on the replica it stands."""
        part = b"~gone" if self.is_removal else b""
        place = (self.position.epoch, self.position.sequence, part)
        return join(INTENTS, b"E%06d-%06d%s.json" % place)

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
    try:
        found = json.loads(content)
    except RecursionError as error:
        raise Forged("it is nested too deeply") from error
    except ValueError as error:
        raise Torn(str(error)) from error
    if not isinstance(found, dict) or found.get("onesync") != "intent":
        raise ValueError("not an intent")
    version = int(found["format"])
    if version > FORMAT:
        raise NewerFormat(f"format {version}")
    return found


def _text(path: RelPath) -> str:
    return path.decode("utf-8", "surrogateescape")


def _texts(ours: Ours) -> dict[str, list[str]]:
    return {_text(directory): list(map(_text, names)) for directory, names in ours.items()}


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _name(text: object) -> bytes:
    if not isinstance(text, str):
        raise Forged(f"{text!r:.50} is no name")
    return _raw(text)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Forged(f"{value!r:.50} tells of no directories")
    return value


def _user_path(text: str) -> RelPath:
    path = _raw(text)
    if not is_user_path(path):
        raise Forged(f"{show(path)} leaves the folder or is onesync's own")
    return path


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise Forged(f"{value!r:.50} is no length or place")
    return value
