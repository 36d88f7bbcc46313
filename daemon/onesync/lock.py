"""The lock on the folder: claim, heartbeat, release, and the watch for life.

The election is an exclusive mkdir of the next epoch. Dead is never read off a clock in a file: the
next beat's name does not appear for long enough on our own CLOCK_BOOTTIME. It is an advisory lease
with detection, not mutual exclusion: see ARCHITECTURE.md.
"""

from __future__ import annotations

import datetime
import errno
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from onesync.core.claims import (
    BadRecord,
    Claim,
    End,
    Free,
    Held,
    LockTimes,
    Ours,
    Record,
    Remembered,
    beat_name,
    decode_record,
    encode_record,
    epoch_name,
    judge,
    lock_text,
    parse_epoch,
    parse_lock,
)
from onesync.core.clock import Clock
from onesync.core.model import STATUS_FOLDER, Kind, join
from onesync.errors import DeployedElsewhere, Halted, LockLost, MountNotThere
from onesync.replica.door import Replica

LOCK = STATUS_FOLDER + b"/lock"
EPOCHS = STATUS_FOLDER + b"/epochs"
DOCKER_LOCK = b"scipion-docker/project.lock"
_KEPT_BEATS = 3
_PROBE = b"probe-"
_PROBES = 3


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who we are, as the record tells others."""

    host: str
    boot_id: str
    machine_id: str
    user: str
    working_dir: str
    replica_dir: str
    version: str


class Lock:
    """Our side of the lock. ``beat`` and ``check`` may run in another thread than the rest."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        times: LockTimes,
        claimant: Claimant,
        remembered: Remembered | None,
        remember: Callable[[Remembered], None] = lambda _: None,
    ) -> None:
        """Prepare; nothing is touched before ``acquire``.

        Args:
            replica: the door, best a lane of its own so that beats never queue behind files.
            clock: times are its boottime.
            times: of the lock.
            claimant: who we are.
            remembered: what the state directory holds of our last claim.
            remember: keeps what the state directory must hold; called before each step that others
                can see, so that a claim of ours is always known again.
        """
        self.times = times
        self._replica = replica
        self._clock = clock
        self._claimant = claimant
        self._remembered = remembered
        self._remember = remember
        self._record: Record | None = None
        self._beat = 0
        self._confirmed = float("-inf")
        self._pause: Callable[[float], None] = clock.sleep

    def state(self) -> Remembered:
        """Return what the state directory must remember."""
        record = self._held()
        return Remembered(record.deployment_id, record.epoch, self._beat)

    def is_held(self) -> bool:
        """Whether this lock was taken; says nothing about whether it was lost since."""
        return self._record is not None

    def acquire(self, wait_seconds: float = 0, pause: Callable[[float], None] | None = None) -> int:
        """Take the lock; returns the epoch.

        ``pause`` waits (default: the clock's sleep) and may raise to give up. Raises
        DeployedElsewhere with the whole story when somebody else holds it for longer than
        ``wait_seconds``, Halted when a second provider serves the folder.
        """
        self._pause = pause or self._clock.sleep
        self._prepare()
        deadline = self._clock.boottime() + wait_seconds
        while True:
            epoch = self._try()
            if isinstance(epoch, int):
                return epoch
            if self._clock.boottime() >= deadline:
                raise DeployedElsewhere(
                    f"The folder is deployed elsewhere: {epoch.story}. Nothing was changed."
                    " Undeploy it there, or, if that node is dead for good, run 'onesync unlock'."
                )
            self._pause(min(self.times.beat, deadline - self._clock.boottime()))

    def beat(self, checkpoint: str | None = None) -> None:
        """Create the next beat's name, and say so in the lock file.

        Raises LockLost when the name is taken by somebody else.
        """
        record = self._held()
        sent = self._clock.boottime()
        number = self._beat + 1
        if not self.may_write():
            # Nobody heard of us for so long that somebody may have taken over: two good looks.
            self.check()
            self._clock.sleep(self.times.call)
            self.check()
        self._remember(Remembered(record.deployment_id, record.epoch, number))
        content = encode_record(End("beat", self._now(), checkpoint))
        path = join(self._place(record.epoch), beat_name(number))
        try:
            self._replica.write_new(path, content)
        except FileExistsError:
            # Our own call of unknown result may have arrived; anybody else's content is not ours.
            if self._replica.read(path) != content:
                self._beat = number
                raise LockLost(
                    f"Beat {number} of epoch {record.epoch} was written by somebody else, so this"
                    " node does not hold the lock any more; local data are kept."
                ) from None
        self._beat = number
        self._confirmed = sent
        self._replica.overwrite(LOCK, lock_text(record, number, self._now()))
        if number > _KEPT_BEATS:
            self._replica.remove(join(self._place(record.epoch), beat_name(number - _KEPT_BEATS)))

    def check(self) -> None:
        """Look whether the lock is still ours; raises LockLost with the reason."""
        record = self._held()
        reason = self._lost() and self._lost()  # two good looks: one may be stale
        if reason:
            raise LockLost(
                f"The lock of epoch {record.epoch} is lost: {reason}. Local data are kept and"
                " nothing more is written; see who deployed the folder."
            )

    def age(self) -> float:
        """Return seconds since the last confirmed beat was sent."""
        return self._clock.boottime() - self._confirmed

    def may_write(self) -> bool:
        """Whether the last confirmed beat is young enough to write."""
        return self.age() < self.times.suspend

    def release(self, checkpoint: str | None, how: str = "undeployed") -> None:
        """End the claim and remove the lock file. Raises LockLost when it is not ours."""
        record = self._held()
        self.check()
        with suppress(FileExistsError):  # an earlier try of ours already wrote it
            self._end(record.epoch, how, checkpoint)
        self._replica.remove(LOCK)

    def release_earlier(self, checkpoint: str | None) -> None:
        """End the claim that an earlier life of ours left; nothing to end is success."""
        remembered = self._remembered
        for claim in self._claims():
            ours = remembered is not None and claim.epoch == remembered.epoch and not claim.ended
            if ours:
                self._end(claim.epoch, "undeployed", checkpoint)
                fields = self._lock_fields()
                if fields is not None and fields.get("EPOCH") == str(claim.epoch):
                    self._replica.remove(LOCK)

    def unlock(self, epoch: int) -> list[str]:
        """End a dead claim, after watching it for life; returns what was removed.

        Raises DeployedElsewhere when it lives, Halted when there is no such open claim.
        """
        claim = next((c for c in self._claims() if c.epoch == epoch and not c.ended), None)
        if claim is None:
            raise Halted(f"There is no open claim with epoch {epoch}; nothing was changed.")
        if self._lives(epoch, self.times.dead):
            raise DeployedElsewhere(
                f"Epoch {epoch} is alive: it beat just now. Nothing was changed."
            )
        self._end(epoch, "unlocked", None)
        removed = [f"the claim of epoch {epoch}"]
        fields = self._lock_fields()
        if fields is not None and fields.get("EPOCH") in (str(epoch), None):
            self._replica.remove(LOCK)
            removed.append("the lock file")
        return removed

    def _held(self) -> Record:
        if self._record is None:
            raise LockLost("The lock was never taken; nothing was changed.")
        return self._record

    def _prepare(self) -> None:
        for path in (STATUS_FOLDER, EPOCHS):
            with suppress(FileExistsError):
                self._replica.make_directory(path)
        if not any(self._is_given_back() for _ in range(_PROBES)):
            raise MountNotThere(
                "The mount does not give back what was written; nothing was changed."
            )

    def _is_given_back(self) -> bool:
        """Write, read and remove a probe; who takes the lock meanwhile may have removed it."""
        probe = join(EPOCHS, _PROBE + uuid.uuid4().hex.encode())
        self._replica.write_new(probe, probe)
        try:
            return self._replica.read(probe) == probe
        except FileNotFoundError:
            return False
        finally:
            self._replica.remove(probe)

    def _try(self) -> int | Held:
        verdict = judge(self._claims(), self._lock_fields(), self._docker_lock(), self._remembered)
        if isinstance(verdict, Held):
            return verdict
        if isinstance(verdict, Ours):
            held = self._watch_own(verdict)
            if held is not None:
                return held
        return self._claim(verdict)

    def _watch_own(self, ours: Ours) -> Held | None:
        """After a reboot or in a clone: is the claim that we remember really dead?"""
        epoch, record, remembered = ours.claim.epoch, ours.claim.record, self._remembered
        assert remembered is not None
        beats = remembered.beat if epoch == remembered.epoch else 0
        if (
            record is not None
            and epoch == remembered.epoch
            and self._newest_beat(epoch) > beats + 1
        ):
            return Held(f"epoch {epoch} is ours by name but has gone on without this node")
        same_boot = record is not None and record.boot_id == self._claimant.boot_id
        if not same_boot and self._lives(epoch, 2 * self.times.beat + self.times.call):
            return Held(f"epoch {epoch} is ours by name but another machine keeps it alive")
        return None

    def _claim(self, verdict: Free | Ours) -> int | Held:
        epoch = verdict.next_epoch
        deployment = uuid.uuid4().hex
        if isinstance(verdict, Ours) and verdict.claim.record is not None:
            deployment = verdict.claim.record.deployment_id
        self._remember(Remembered(deployment, epoch, 0))
        try:
            self._replica.make_directory(self._place(epoch))
        except FileExistsError:
            if self._remembered is not None:
                self._remember(self._remembered)
            return Held(f"another node claimed epoch {epoch} at the same moment")
        try:
            self._pause(self.times.settle)
        except BaseException:
            self._end(epoch, "withdrawn", None)
            raise
        names = [item.name for item in self._replica.list(EPOCHS)]
        if twins := [name for name in names if b"@" in name]:
            self._end(epoch, "withdrawn", None)
            raise Halted(
                f"A second OneData provider serves this folder ({twins[0]!r}); nothing was changed."
                " Mount it through one provider only."
            )
        for name in names:
            if name.startswith(_PROBE):  # of a start that died there
                self._replica.remove(join(EPOCHS, name))
        if max(filter(None, map(parse_epoch, names)), default=epoch) > epoch:
            return Held(f"a claim newer than ours ({epoch}) stands there")
        self._take(verdict, epoch, deployment)
        return epoch

    def _take(self, verdict: Free | Ours, epoch: int, deployment: str) -> None:
        me = self._claimant
        parent = verdict.claim.epoch if isinstance(verdict, Ours) else None
        self._record = Record(
            deployment, epoch, me.host, me.boot_id, me.machine_id, me.user, me.working_dir,
            me.replica_dir, self._now(), me.version, parent,
        )  # fmt: skip
        # The lock file before the record: a record without a lock file then always means that a
        # person deleted it, which frees the folder.
        content = lock_text(self._record, 0, self._now())
        try:
            self._replica.write_new(LOCK, content)
        except FileExistsError:
            self._replica.overwrite(LOCK, content)
        self._replica.write_new(
            join(self._place(epoch), b"record.json"), encode_record(self._record)
        )
        self._confirmed = self._clock.boottime()
        self.beat()
        for claim in self._claims():
            if claim.epoch < epoch and not claim.ended:
                self._end(claim.epoch, "superseded", None)

    def _lost(self) -> str | None:
        record = self._held()
        fields = self._lock_fields()
        if fields is None:
            return "the lock file was removed"
        if (fields.get("DEPLOYMENT"), fields.get("EPOCH")) != (
            record.deployment_id,
            str(record.epoch),
        ):
            return f"the lock file names {fields.get('HOST', 'somebody else')} now"
        if self._replica.look(self._place(record.epoch + 1)) is not None:
            return f"epoch {record.epoch + 1} was claimed"
        return None

    def _claims(self) -> list[Claim]:
        found = []
        for item in self._replica.list(EPOCHS):
            epoch = parse_epoch(item.name)
            if epoch is not None and item.kind is Kind.DIRECTORY:
                place = self._place(epoch)
                ended = self._replica.look(join(place, b"end.json")) is not None
                found.append(Claim(epoch, self._read_record(place), ended))
        return found

    def _read_record(self, place: bytes) -> Record | None:
        try:
            return decode_record(self._replica.read(join(place, b"record.json")))
        except (FileNotFoundError, BadRecord):
            return None

    def _lock_fields(self) -> dict[str, str] | None:
        try:
            return parse_lock(self._replica.read(LOCK))
        except FileNotFoundError:
            return None

    def _docker_lock(self) -> str | None:
        try:
            return self._replica.read(DOCKER_LOCK).decode("utf-8", "replace")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def _newest_beat(self, epoch: int) -> int:
        numbers = [
            int(item.name[5:])
            for item in self._replica.list(self._place(epoch))
            if item.name.startswith(b"beat-") and item.name[5:].isdigit()
        ]
        newest = max(numbers, default=0)
        while self._replica.look(join(self._place(epoch), beat_name(newest + 1))) is not None:
            newest += 1
        return newest

    def _lives(self, epoch: int, seconds: float) -> bool:
        """Watch for the next beat's name for ``seconds`` of our own clock, between good looks."""
        newest = self._newest_beat(epoch)
        start = self._clock.boottime()
        while self._clock.boottime() - start < seconds:
            self._pause(min(self.times.call, seconds))
            if self._newest_beat(epoch) > newest:
                return True
        return False

    def _end(self, epoch: int, how: str, checkpoint: str | None) -> None:
        path = join(self._place(epoch), b"end.json")
        self._replica.write_new(path, encode_record(End(how, self._now(), checkpoint)))

    def _place(self, epoch: int) -> bytes:
        return join(EPOCHS, epoch_name(epoch))

    def _now(self) -> str:
        wall = self._clock.wall_ns() / 1e9
        return datetime.datetime.fromtimestamp(wall, datetime.UTC).isoformat(timespec="seconds")
