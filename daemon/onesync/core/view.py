"""What a person is shown of a status document: one word, then a line for each thing.

Pure: whoever looked says when. All text is escaped here, whatever the document holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from onesync.core.model import printable

_DEPLOYING = ("starting", "locking", "staging_in")
_WAITING = ("backing_off", "suspended")
_PAUSED = "nothing is pushed, for somebody paused it; 'onesync resume' goes on"
_ENDED = ("stopped", "halted", "fenced")
_MEASURED_PATHS = 10_000
"""Where more is pending, ``pending_bytes`` does not tell of all."""
_SHOWN_PROBLEMS = 20
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_AGES = ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s"))


class Tone(Enum):
    """How a person should take it; a screen makes colours of it."""

    GOOD = "good"
    BUSY = "busy"
    WAITING = "waiting"
    BAD = "bad"
    QUIET = "quiet"


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a deployment.

    Attributes:
        document: the status document.
        at: when, in seconds of the wall clock.
        is_live: whether the daemon itself answered; otherwise it is what it wrote last.
    """

    document: Mapping[str, Any]
    at: float
    is_live: bool


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that is told: what it is, its text, and how to take it (None: as plain text)."""

    label: str
    text: str
    tone: Tone | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What a person is shown: the state in one word, why it is called so, the rest, problems."""

    word: str
    tone: Tone
    meaning: str
    lines: tuple[Line, ...]
    problems: tuple[Line, ...]


def view_of(look: Look, earlier: Look | None = None) -> View:
    """Return the view of a look; from an ``earlier`` one it knows how fast things go."""
    word, tone, meaning = _state(look)
    lines = tuple(
        Line(line.label, printable(line.text), line.tone) for line in _lines(look, earlier)
    )
    return View(word, tone, printable(meaning), lines, tuple(_problems(look.document)))


@dataclass(frozen=True, slots=True)
class Row:
    """A file on its way, as the columns of a table."""

    way: str
    path: str
    moved: str
    seconds: str
    rate: str


def rows_of(files: Iterable[Mapping[str, Any]]) -> list[Row]:
    """Return the files on their way (control command ``flights``) as a table's rows."""
    return [
        Row(
            "from OneData" if file["is_fetched"] else "to OneData",
            str(printable(file["path"])),
            f"{size_text(file['moved'])} of {size_text(file['size'])}",
            age_text(file["seconds"]),
            f"{size_text(file['moved'] / max(file['seconds'], 0.1))}/s",
        )
        for file in files
    ]


def is_moving(look: Look) -> bool:
    """Return whether a second look would tell how fast it goes."""
    document = look.document
    phase = document["phase"]
    syncs = phase == "syncing" and document["pending_paths"] > 0
    return look.is_live and (syncs or phase in ("staging_in", "flushing"))


def rate(look: Look, earlier: Look | None) -> float | None:
    """Return the bytes that travel in a second: since ``earlier``, else on the phase's average."""
    if not is_moving(look):
        return None
    if earlier is not None and earlier.is_live and look.at > earlier.at:
        moved: int = look.document["moved_bytes"] - earlier.document["moved_bytes"]
        # Less than before: another daemon, which began to count anew.
        return moved / (look.at - earlier.at) if moved >= 0 else None
    progress = look.document["progress"]
    if look.document["phase"] == "syncing" or not progress or look.at <= progress["since"]:
        return None  # the average of days says nothing of now
    seconds: float = look.at - progress["since"]
    return float(progress["bytes"] / seconds)


def seconds_left(look: Look, bytes_per_second: float | None) -> float | None:
    """Return how long it takes until all is there, as far as that can be known."""
    document = look.document
    if not is_moving(look):
        return None
    progress = document["progress"]
    if progress and progress["total"] > progress["done"] > 0:
        each = (look.at - progress["since"]) / progress["done"]
        return float(each * (progress["total"] - progress["done"]))
    if not bytes_per_second or not 0 < document["pending_paths"] <= _MEASURED_PATHS:
        return None
    return float(document["pending_bytes"] / bytes_per_second)


def size_text(size: float) -> str:
    """Return a number of bytes as people read it."""
    for unit, name in _UNITS:
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def age_text(seconds: float) -> str:
    """Return a duration as people read it, in its two largest units."""
    seconds = max(0, int(seconds))
    for large, large_name, small, small_name in _AGES:
        if seconds >= large:
            return f"{seconds // large} {large_name} {seconds % large // small} {small_name}"
    return f"{seconds} s"


def _state(look: Look) -> tuple[str, Tone, str]:
    document = look.document
    phase = document["phase"]
    if not look.is_live and phase not in _ENDED:
        return "mute", Tone.BAD, "onesync does not answer; this is what it wrote last"
    if phase in _DEPLOYING:
        return "deploying", Tone.BUSY, _deploying(phase)
    if phase == "syncing":
        return _syncing(document)
    if phase == "paused":
        return "paused", Tone.WAITING, _PAUSED
    if phase in _WAITING:
        return "waiting", Tone.WAITING, "nothing is pushed; it goes on by itself as soon as it can"
    if phase == "flushing":
        return "flushing", Tone.BUSY, "the last changes go to OneData, then onesync ends"
    if phase == "cleaning":
        return "cleaning", Tone.BUSY, "all is in OneData; the working directory is cleaned"
    return _ended(document)


def _deploying(phase: str) -> str:
    if phase == "staging_in":
        return "the working directory is not complete yet"
    return "waiting for the folder's lock" if phase == "locking" else "looking at the folder"


def _syncing(document: Mapping[str, Any]) -> tuple[str, Tone, str]:
    mount = document["mount"]
    if mount is not None and not mount["up"]:
        return "waiting", Tone.WAITING, "the mount is not there; it goes on when it comes back"
    if document["pending_paths"]:
        return "syncing", Tone.BUSY, "changes are on their way to OneData"
    if document["problems"]:
        return "attention", Tone.WAITING, "nothing is on its way, but look at the problems below"
    return "safe", Tone.GOOD, "everything is in OneData"


def _ended(document: Mapping[str, Any]) -> tuple[str, Tone, str]:
    phase = document["phase"]
    if any(problem["kind"] == "died" for problem in document["problems"]):
        return "died", Tone.BAD, "onesync does not run, and did not end in order"
    if phase == "stopped":
        return "stopped", Tone.QUIET, _stopped(document)
    if phase == "fenced":
        return "fenced", Tone.BAD, "the lock was lost; nothing more is written, local data are kept"
    if phase == "halted":
        return "halted", Tone.BAD, "onesync stopped itself; the problems below say what to do"
    return str(printable(phase)), Tone.WAITING, "a phase that this version does not know"


def _stopped(document: Mapping[str, Any]) -> str:
    if document["mount"] is None:
        return "onesync has not run here yet"
    lock = document["lock"]
    if lock is None:
        return "onesync does not run; it ended before it had deployed the folder"
    if lock.get("released"):
        return "undeployed; the folder can be deployed elsewhere"
    return "onesync does not run; the folder stays locked for this node, the next start goes on"


def _lines(look: Look, earlier: Look | None) -> Iterator[Line]:
    document = look.document
    yield Line("phase", document["phase"].replace("_", " "))
    if document["progress"] and document["progress"]["total"] and look.is_live:
        yield Line("progress", _progress(document["progress"]))
    yield _unsaved(look)
    speed = rate(look, earlier)
    if speed is not None:
        yield Line("rate", f"{size_text(speed)}/s")
    left = seconds_left(look, speed)
    if left is not None:
        yield Line("time left", f"about {age_text(left)}")
    yield _checkpoint(look)
    yield _lock(look)
    yield _mount(look)
    if document["expires_at"] is not None and document["phase"] not in _ENDED:
        yield Line("ends", f"in {age_text(document['expires_at'] - look.at)}, by itself")
    if document["phase"] not in _ENDED:
        yield _watches(document["watches"])


def _progress(progress: Mapping[str, Any]) -> str:
    size = size_text(progress["bytes"])
    return f"{progress['done']:,} of {progress['total']:,} files, {size}"


def _unsaved(look: Look) -> Line:
    document = look.document
    count, size = document["pending_paths"], document["pending_bytes"]
    if not count:
        return Line("unsaved", "nothing", Tone.GOOD if document["phase"] == "syncing" else None)
    least = "at least " if count > _MEASURED_PATHS else ""
    text = f"{count:,} {'path' if count == 1 else 'paths'}, {least}{size_text(size)}"
    if document["oldest_unsynced_at"] is not None:
        text += f", for {age_text(look.at - document['oldest_unsynced_at'])}"
    if document["pending"]:
        named = ", ".join(document["pending"][:3])
        text += f" ({named}{', …' if count > 3 else ''})"
    return Line("unsaved", text, Tone.WAITING)


def _checkpoint(look: Look) -> Line:
    last = look.document["last_checkpoint"]
    if last is None:
        return Line("checkpoint", "none yet")
    return Line("checkpoint", f"{last['name']}, {age_text(look.at - last['at'])} ago")


def _lock(look: Look) -> Line:
    document = look.document
    lock = document["lock"]
    if lock is None:
        return Line("lock", "not held")
    if lock.get("released"):
        return Line("lock", f"released, it was epoch {document['epoch']}")
    if document["phase"] == "fenced":
        return Line("lock", f"lost, it was epoch {document['epoch']}", Tone.BAD)
    confirmed = age_text(look.at - lock["confirmed_at"])
    text = f"epoch {document['epoch']}, beat {lock['beat']}, confirmed {confirmed} ago"
    return Line("lock", text)


def _mount(look: Look) -> Line:
    mount = look.document["mount"]
    if mount is None:
        return Line("mount", "unknown")
    if look.document["phase"] in _ENDED:
        return Line("mount", f"{mount['path']}, not looked at since onesync ended")
    if mount["up"]:
        return Line("mount", mount["path"])
    return Line("mount", f"{mount['path']}, not there", Tone.BAD)


def _watches(watches: Mapping[str, int]) -> Line:
    count = watches["kernel"]
    text = f"{count:,} {'directory' if count == 1 else 'directories'}"
    if not watches["polled"]:
        return Line("watches", text)
    return Line("watches", f"{text}, {watches['polled']:,} more are polled", Tone.WAITING)


def _problems(document: Mapping[str, Any]) -> Iterator[Line]:
    problems = document["problems"]
    for problem in problems[:_SHOWN_PROBLEMS]:
        path, text = problem["path"], problem["text"]
        told = text if path in text else f"{path}: {text}"
        yield Line(printable(problem["kind"]), printable(told), Tone.BAD)
    if len(problems) > _SHOWN_PROBLEMS:
        yield Line("more", f"{len(problems) - _SHOWN_PROBLEMS:,} others; --json lists them all")
