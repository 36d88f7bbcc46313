"""Claims to write: their names, records and times, and the judgement of what was seen. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeGuard

from onesync.core.model import STATUS_FOLDER, printable

FORMAT = 1
LOCK_BYTES = 1024
EPOCHS = STATUS_FOLDER + b"/epochs"


class BadRecord(Exception):
    """A record is torn or foreign; the text says how."""


class NewerRecord(BadRecord):
    """A record was written by a newer onesync."""


@dataclass(frozen=True, slots=True)
class LockTimes:
    """The times of the lock in seconds, all from N, the longest one remote call may take."""

    call: float
    beat: float
    warn: float
    suspend: float
    settle: float
    dead: float

    @classmethod
    def from_timeout(
        cls,
        n_seconds: float,
        settle_seconds: float | None = None,
        *,
        beat: float | None = None,
        warn: float | None = None,
        suspend: float | None = None,
        dead: float | None = None,
    ) -> LockTimes:
        """Return the times for N, with those that are given instead; ValueError on a broken order.

        A settle of 0 is right where one provider serves the folder.
        """
        settle = 2 * n_seconds if settle_seconds is None else settle_seconds
        times = cls(
            n_seconds,
            2 * n_seconds if beat is None else beat,
            6 * n_seconds if warn is None else warn,
            8 * n_seconds if suspend is None else suspend,
            settle,
            10 * n_seconds + settle if dead is None else dead,
        )
        times.validate()
        return times

    def validate(self) -> None:
        """Raise ValueError where the order that keeps two writers apart is broken."""
        if not 0 < self.beat < self.warn < self.suspend < self.dead:
            raise ValueError(
                f"the lock's times must rise: beat {self.beat:g} < warn {self.warn:g} < suspend"
                f" {self.suspend:g} < dead {self.dead:g} seconds"
            )
        if self.settle < 0 or self.dead < 1.25 * self.suspend:
            raise ValueError("dead must be at least 1.25 times suspend, and settle not negative")
        if self.suspend < self.beat + 2 * self.call:
            raise ValueError("suspend must leave time for a beat and two calls on the mount")

    @property
    def watch(self) -> float:
        """How long a claim of our own is watched that another machine may keep alive.

        With the settling that follows, the permission to write of a beat that was sent before the
        watch is over by then, also where its clock runs a quarter slower than ours.
        """
        return max(self.suspend, 1.25 * self.suspend - self.settle)

    def beside(self, suspend: float, dead: float) -> LockTimes:
        """Return the times by which an owner is watched who has these, be they longer or shorter.

        Ours settle: who settles for longer sees the claim of one who settled for less.
        """
        return replace(self, suspend=max(self.suspend, suspend), dead=max(self.dead, dead))


UNTOLD = LockTimes.from_timeout(120)
"""By which an owner is watched whose beats tell no times: onesync's default before they did."""

_LONGEST = 1e9
"""Seconds; no time of a lock is longer."""


def epoch_name(epoch: int) -> bytes:
    """Return the name of an epoch's directory."""
    return b"%06d" % epoch


def beat_name(beat: int) -> bytes:
    """Return the name of a beat."""
    return b"beat-%06d" % beat


def parse_beat(name: bytes) -> int | None:
    """Return the number of the beat that a name stands for."""
    number = name.removeprefix(b"beat-")
    return int(number) if number.isdigit() and beat_name(int(number)) == name else None


def parse_epoch(name: bytes) -> int | None:
    """Return the epoch that a directory name stands for."""
    return int(name) if name.isdigit() and epoch_name(int(name)) == name else None


@dataclass(frozen=True, slots=True)
class Record:
    """Who claimed an epoch, where and when."""

    deployment_id: str
    epoch: int
    host: str
    boot_id: str
    machine_id: str
    user: str
    working_dir: str
    replica_dir: str
    started: str
    version: str
    parent: int | None = None
    checkpoint: str | None = None


WITHDRAWN = "withdrawn"

REMEMBERED_NAME = "claim.json"
"""In the state directory: the claim by which a later life of this node knows its own."""


@dataclass(frozen=True, slots=True)
class End:
    """How a claim ended: undeployed, unlocked, superseded or withdrawn."""

    how: str
    time: str
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True)
class Beat:
    """A beat: the permission to write for ``suspend`` seconds from before it was sent.

    Attributes:
        time: by the owner's wall clock, for people.
        checkpoint: the last one.
        token: differs in every beat, so that nobody else's is taken for ours.
        suspend: of the owner's times, in seconds.
        dead: of the owner's times, in seconds: nobody may take it for dead before.
    """

    time: str
    checkpoint: str | None
    token: str
    suspend: float
    dead: float


def encode_record(record: Record | End | Beat) -> bytes:
    """Return a record's file content."""
    return json.dumps({"format": FORMAT, **asdict(record)}).encode() + b"\n"


def decode_record(content: bytes) -> Record:
    """Read a claim's record. Raises BadRecord."""
    found = _load(content)
    names = [f.name for f in fields(Record)]
    try:
        record = Record(**{name: found[name] for name in names})
    except KeyError as error:
        raise BadRecord(f"the record lacks {error}") from error
    if type(record.epoch) is not int or not isinstance(record.deployment_id, str):
        raise BadRecord("the record's fields are not what they should be")
    return record


def how_it_ended(content: bytes) -> str:
    """Return how a claim ended, by its ``end.json``; a torn one has ended in some other way."""
    try:
        return str(_load(content).get("how"))
    except BadRecord:
        return "unknown"


def told_checkpoint(content: bytes) -> str | None:
    """Return the checkpoint that a beat or an ``end.json`` names; None where it names none."""
    try:
        name = _load(content).get("checkpoint")
    except BadRecord:
        return None
    return name if isinstance(name, str) else None


def told_times(content: bytes) -> tuple[float, float]:
    """Return ``suspend`` and ``dead`` of the owner that sent a beat. Raises BadRecord.

    One that tells none, or such as nobody has, is watched by the default ones.
    """
    found = _load(content)
    suspend, dead = found.get("suspend"), found.get("dead")
    if _is_time(suspend) and _is_time(dead):
        return suspend, dead
    return UNTOLD.suspend, UNTOLD.dead


def _is_time(found: object) -> TypeGuard[float]:
    if not isinstance(found, int | float) or isinstance(found, bool):
        return False
    return 0 < found < _LONGEST


def _load(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"the record is torn ({error})") from error
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise BadRecord("the record is not onesync's")
    if found["format"] > FORMAT:
        raise NewerRecord(f"the record has format {found['format']}, newer than this onesync knows")
    return found


def lock_text(record: Record, beat: int, time: str) -> bytes:
    """Return the ``lock`` file: fixed size, readable, in the old scripts' own words."""
    lines = [
        f"HOST: {record.host}",
        f"MOUNT: {record.replica_dir}",
        f"DIR: {record.working_dir}",
        f"USER: {record.user}",
        f"DATE: {record.started}",
        f"DEPLOYMENT: {record.deployment_id}",
        f"EPOCH: {record.epoch}",
        f"BEAT: {beat} {time}",
        f"WRITER: onesync {record.version}",
    ]
    text = "\n".join(line[:160] for line in lines).encode("utf-8", "replace")[: LOCK_BYTES - 1]
    return text.ljust(LOCK_BYTES - 1) + b"\n"


def parse_lock(content: bytes) -> dict[str, str]:
    """Return the fields of a ``lock`` file, ours or West-Life's, by their upper-case names."""
    found = {}
    for line in content.decode("utf-8", "replace").splitlines():
        name, colon, value = line.partition(":")
        if colon and name.isupper():
            found[name] = value.strip()
    return found


def is_old_scripts(lock: Mapping[str, str]) -> bool:
    """Whether a ``lock`` file is West-Life's: readable, and of no deployment of onesync's."""
    return bool(lock) and "DEPLOYMENT" not in lock


def epoch_of(lock: Mapping[str, str]) -> int | None:
    """Return the epoch that a ``lock`` file of onesync's names."""
    text = lock.get("EPOCH", "")
    return int(text) if text.isdecimal() and "DEPLOYMENT" in lock else None


@dataclass(frozen=True, slots=True)
class Claim:
    """One epoch as it was seen.

    Attributes:
        epoch: its number.
        record: None where it is missing or torn.
        ended: how it ended; None while it is open.
        torn: whether there is a record that cannot be read.
    """

    epoch: int
    record: Record | None
    ended: str | None
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the state directory holds of our last claim, written before others can see it.

    Attributes:
        deployment_id: of the deployment.
        epoch: the claim; with beat 0 it may have been tried for in vain.
        beat: the last beat that may have been sent.
        folder_id: of the folder; None where it had none yet, or an earlier onesync wrote it.
    """

    deployment_id: str
    epoch: int
    beat: int
    folder_id: str | None = None


def encode_remembered(remembered: Remembered) -> str:
    """Return the content of the state directory's ``claim.json``."""
    return json.dumps({"format": FORMAT, **asdict(remembered)})


def decode_remembered(content: str) -> Remembered:
    """Read ``claim.json``. Raises BadRecord."""
    found = _load(content.encode())
    folder = found.get("folder_id")
    try:
        return Remembered(
            str(found["deployment_id"]),
            int(found["epoch"]),
            int(found["beat"]),
            folder if isinstance(folder, str) else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(f"the remembered claim lacks {error}") from error


@dataclass(frozen=True, slots=True)
class Free:
    """Nobody holds the folder; ``unended`` are the open claims that whoever takes it ends."""

    next_epoch: int
    unended: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Ours:
    """Our own deployment from an earlier life holds it; ``unended`` as in ``Free``."""

    claim: Claim
    next_epoch: int
    unended: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    """Somebody else holds it.

    Attributes:
        story: for a person.
        epoch: the claim that holds it; None where it is an old script's lock.
    """

    story: str
    epoch: int | None = None


def judge(
    claims: list[Claim],
    lock: Mapping[str, str] | None,
    other_lock: str | None,
    remembered: Remembered | None,
) -> Free | Ours | Held:
    """Decide who holds the folder.

    Args:
        claims: every epoch seen, or the highest down to one that ended other than by withdrawal:
            whoever has a lower one is fenced.
        lock: the fields of the ``lock`` file; None where there is none.
        other_lock: the content of scipion-docker's lock; None where there is none.
        remembered: our own last deployment.
    """
    highest = max((claim.epoch for claim in claims), default=0)
    if lock is not None and is_old_scripts(lock):
        return Held(f"an old script's lock stands there ({_words(lock)})")
    held = _who_holds(claims, lock, remembered)
    if held is not None:
        return held
    if other_lock is not None:
        return Held(f"scipion-docker's lock stands there ({printable(other_lock.strip()[:100])})")
    return Free(highest + 1, _unended(claims))


def _unended(claims: list[Claim]) -> tuple[int, ...]:
    """Return the open ones, from the oldest on."""
    return tuple(sorted(claim.epoch for claim in claims if claim.ended is None))


def _who_holds(
    claims: list[Claim], lock: Mapping[str, str] | None, remembered: Remembered | None
) -> Ours | Held | None:
    highest = max((claim.epoch for claim in claims), default=0)
    last = max((c for c in claims if c.ended is None), key=lambda c: c.epoch, default=None)
    if last is None:
        # A claim's end comes before its lock file goes, so one of an ended claim is only left over.
        left_over = lock is None or (epoch_of(lock) or highest + 1) <= highest
        return (
            None if left_over else Held(f"a lock of no claim stands there ({_words(lock or {})})")
        )
    if lock is None and (last.record is not None or last.torn):
        # As of old: a person deleted the lock file by hand, which frees the folder. The lock file
        # stands before the record does.
        return None
    if _is_ours(last, remembered):
        return Ours(last, highest + 1, _unended(claims))
    return Held(_story(last, lock), last.epoch)


def _is_ours(claim: Claim, remembered: Remembered | None) -> bool:
    if remembered is None:
        return False
    # With beat 0 the epoch that we remember was tried for, perhaps in vain: the one before is ours.
    tried = remembered.beat == 0 and claim.epoch == remembered.epoch - 1
    # Without a record: we may have died before it was written, also twice in a row. The watch for
    # life settles whose it is.
    ours = claim.record is None or claim.record.deployment_id == remembered.deployment_id
    return ours and (claim.epoch == remembered.epoch or tried)


def _story(claim: Claim, lock: Mapping[str, str] | None) -> str:
    record = claim.record
    if record is None:
        return f"claim {claim.epoch} has no readable record: its owner may be starting right now"
    beat = (lock or {}).get("BEAT", "unknown")
    return printable(
        f"{record.user} on {record.host} holds it since {record.started} as epoch {record.epoch},"
        f" in {record.working_dir}, last beat {beat}"
    )


def _words(lock: Mapping[str, str]) -> str:
    return printable(", ".join(f"{name} {value}" for name, value in lock.items())) or "unreadable"
