"""The lock on the folder: claim, heartbeat, release, and the watch for life.

The election is an exclusive mkdir of the next epoch. Dead is never read off a clock in a file: the
next beat's name does not appear for long enough on our own CLOCK_BOOTTIME. It is an advisory lease
with detection, not mutual exclusion: see ARCHITECTURE.md.
"""

from __future__ import annotations

import datetime
import errno
import uuid
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from onesync.core.claims import (
    EPOCHS,
    UNTOLD,
    WITHDRAWN,
    BadRecord,
    Beat,
    Claim,
    End,
    Free,
    Held,
    LockTimes,
    NewerRecord,
    Ours,
    Record,
    Remembered,
    beat_name,
    decode_record,
    encode_record,
    epoch_name,
    epoch_of,
    how_it_ended,
    is_old_scripts,
    judge,
    lock_text,
    parse_beat,
    parse_epoch,
    parse_lock,
    told_times,
)
from onesync.core.clock import Clock
from onesync.core.model import STATUS_FOLDER, join, printable
from onesync.errors import DeployedElsewhere, Halted, LockLost, MountNotThere
from onesync.replica.door import Replica
from onesync.workers import begin

T = TypeVar("T")

LOCK = STATUS_FOLDER + b"/lock"
DOCKER_LOCK = b"scipion-docker/project.lock"
_KEPT_BEATS = 12
"""What a listing of twenty calls ago does not show is found by name, from the last one it shows."""
_TWINS = {b"": (STATUS_FOLDER,), STATUS_FOLDER: (b"lock", b"epochs", b"manifest", b"folder.json")}
"""By directory, the names of ours of which a second provider would show another one."""
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
        workers: Executor | None = None,
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
            workers: make looks that say nothing of each other side by side; None: one by one.
        """
        self.times = times
        self._replica = replica
        self._clock = clock
        self._claimant = claimant
        self._remembered = remembered
        self._remember = remember
        self._workers = workers
        self._record: Record | None = None
        self._beat = 0
        self._confirmed = float("-inf")
        self._sent: tuple[float, bytes] | None = None  # a beat whose result is unknown
        self._releasing = False
        self._adopted: Mapping[str, str] | None = None
        self.folder_id: str | None = None
        """Of the folder, once it is known: a later life of this node asks for it."""
        self.is_released = False
        self._pause: Callable[[float], None] = clock.sleep

    @property
    def replica(self) -> Replica:
        """The door that the lock uses."""
        return self._replica

    def adopt(self, fields: Mapping[str, str]) -> None:
        """Take an old script's lock of exactly these ``fields`` for none: it is this node's own."""
        self._adopted = fields

    def state(self) -> Remembered:
        """Return what the state directory must remember."""
        record = self._held()
        return Remembered(record.deployment_id, record.epoch, self._beat, self.folder_id)

    def is_held(self) -> bool:
        """Whether this lock was taken; says nothing about whether it was lost since."""
        return self._record is not None

    def remembers(self) -> bool:
        """Whether this node's state directory tells of a claim of its own."""
        return self._remembered is not None

    def claimed_folder(self) -> str | None:
        """Return the id of the folder that an earlier life claimed last; None: nobody knows."""
        return None if self._remembered is None else self._remembered.folder_id

    def is_resumed(self) -> bool:
        """Whether the claim that was taken goes on with a deployment that this node had before."""
        return self._record is not None and self._record.parent is not None

    def holder(self) -> Free | Ours | Held:
        """Look who holds the folder; nothing is changed. Raises Halted for a newer onesync's."""
        try:
            return self._judge()
        except FileNotFoundError:  # no claim was ever made; other programs have locks too
            return judge([], self._foreign_lock(), self._docker_lock(), self._remembered)

    def last_beat(self) -> datetime.datetime | None:
        """Return when the holder beat last, by his own clock, as his lock file tells people."""
        _, _, when = ((self._lock_fields() or {}).get("BEAT", "")).partition(" ")
        try:
            found = datetime.datetime.fromisoformat(when)
        except ValueError:
            return None
        return found if found.tzinfo is not None else None

    def claimed_epoch(self) -> int | None:
        """Return the newest epoch that this node remembers to have held; None where it has none."""
        remembered = self._remembered
        return None if remembered is None or not remembered.beat else remembered.epoch

    def has_claim(self, epoch: int) -> bool:
        """Whether the folder has a claim of this epoch, open or ended."""
        return self._stands(self._place(epoch))

    def times_beside(self, epoch: int) -> LockTimes:
        """Return the times by which this node watches the owner of a claim: the longer of both's.

        His newest beat that can be read tells them. Only a beat permits to write, so where none
        ever came ours will do.
        """
        newest = self._newest_beat(epoch)
        for number in range(newest, max(0, newest - _KEPT_BEATS), -1):
            with suppress(FileNotFoundError, BadRecord):
                beat = self._replica.read(join(self._place(epoch), beat_name(number)))
                return self.times.beside(*told_times(beat))
        return self.times.beside(UNTOLD.suspend, UNTOLD.dead) if newest else self.times

    def acquire(
        self,
        wait_seconds: float = 0,
        pause: Callable[[float], None] | None = None,
        gives_up: Callable[[float], bool] | None = None,
    ) -> int:
        """Take the lock; returns the epoch.

        ``pause`` waits (default: the clock's sleep) and may raise to give up. ``gives_up`` waits
        where somebody else holds the folder, and returns whether that is to be all. Raises
        DeployedElsewhere with the whole story when somebody else holds it for longer than
        ``wait_seconds``, Halted when a second provider serves the folder.
        """
        self._pause = pause or self._clock.sleep
        gives_up = gives_up or self._waits
        self._prepare()
        probed = self._begin(self._probe)
        deadline = self._clock.boottime() + wait_seconds
        while True:
            epoch = self._try(probed)
            if isinstance(epoch, int):
                return epoch
            left = deadline - self._clock.boottime()
            if left <= 0 or gives_up(min(self.times.beat, left)):
                raise DeployedElsewhere(
                    f"The folder is deployed elsewhere: {epoch.story}. Nothing was changed."
                    f" Undeploy it there, or, if that node is dead for good, {_way_out(epoch)}."
                )

    def _waits(self, seconds: float) -> bool:
        self._pause(seconds)
        return False

    def beat(self, checkpoint: str | None = None) -> None:
        """Create the next beat's name, read it back, look whether the lock is ours; that confirms.

        The permission to write counts from before the name was sent. Whoever takes over makes his
        claim first and looks for beats then; we look for claims after the beat: one of us sees the
        other. Raises LockLost, or OSError where the beat is not confirmed.
        """
        if self._releasing:
            return
        record = self._held()
        if not self.may_write():
            # Nobody heard of us for so long that somebody may have taken over: two good looks.
            self.check()
            self._clock.sleep(self.times.call)
            self.check()
        sent = self._send(record, checkpoint)
        self.check()
        self._confirmed = max(self._confirmed, sent)
        self._show(record)

    def check(self) -> None:
        """Look whether the lock is still ours; raises LockLost with the reason."""
        record = self._held()
        reason = self._lost() and self._lost()  # two good looks: one may be stale
        if reason and not self._releasing:
            raise LockLost(
                f"The lock of epoch {record.epoch} is lost: {reason}. Local data are kept and"
                " nothing more is written; see who deployed the folder."
            )

    def age(self) -> float:
        """Return seconds since the last confirmed beat was sent."""
        return self._clock.boottime() - self._confirmed

    def may_write(self) -> bool:
        """Whether the last confirmed beat is young enough, and the claim not at its end."""
        return not self._releasing and self.age() < self.times.suspend

    def release(self, checkpoint: str | None, how: str = "undeployed") -> None:
        """End the claim and remove the lock file. Raises LockLost when it is not ours.

        May be done again after an error, whatever the first try did.
        """
        record = self._held()
        self.check()
        # The lock file first: as long as the claim is open nobody else can have put his there. A
        # try that failed may have ended it.
        is_open, self._releasing = not self._releasing, True
        self._remove_lock(record.epoch, record.deployment_id, may_be_torn=is_open)
        self._end(record.epoch, how, checkpoint)
        self.is_released = True

    def release_earlier(self, checkpoint: str | None) -> None:
        """End the claim that an earlier life of ours left; nothing to end is success.

        Raises Halted where the claim of that epoch is another deployment's: of another folder.
        """
        remembered = self._remembered
        for claim in self._claims():
            if remembered is not None and claim.epoch == remembered.epoch:
                self._refuse_another(claim, remembered)
                # While the claim is open nobody else's can stand there, whatever it has lost.
                is_open = claim.ended is None
                self._remove_lock(claim.epoch, remembered.deployment_id, may_be_torn=is_open)
                if is_open:
                    self._end(claim.epoch, "undeployed", checkpoint)

    def _refuse_another(self, claim: Claim, remembered: Remembered) -> None:
        if claim.record is None or claim.record.deployment_id == remembered.deployment_id:
            return
        raise Halted(
            f"Epoch {claim.epoch} of the folder is another deployment's than the one that this node"
            f" remembers, so another folder stands at {self._claimant.replica_dir}; nothing was"
            " changed in OneData. Mount the right one, then start again."
        )

    def unlock(self, epoch: int) -> list[str]:
        """End a dead claim, after watching it for life; returns what was removed.

        Raises DeployedElsewhere when it lives, Halted when there is no such open claim.
        """
        claim = next((c for c in self._claims() if c.epoch == epoch and c.ended is None), None)
        if claim is None:
            raise Halted(f"There is no open claim with epoch {epoch}; nothing was changed.")
        newest = self._newest_beat(epoch)
        if self._lives(epoch, newest, self.times_beside(epoch).dead):
            raise DeployedElsewhere(
                f"Epoch {epoch} is alive: it beat just now. Nothing was changed."
            )
        return self._unlock(epoch, newest)

    def _unlock(self, epoch: int, newest: int) -> list[str]:
        """End a claim that seemed dead, unless it wakes up right now.

        An owner looks for the next epoch after each beat, and we look for its beat after the next
        epoch was made: one of us sees the other. A name that appears is never hidden by a cache; a
        lock file that is gone can be.
        """
        ours = True
        try:
            self._replica.make_directory(self._place(epoch + 1))
        except FileExistsError:
            ours = False
        woke_up = self._newest_beat(epoch) > newest
        removed = False
        if not woke_up:
            self._end(epoch, "unlocked", None)
        if ours:
            # As long as the next epoch is ours and open, the lock file cannot be a successor's.
            removed = not woke_up and self._remove_lock(epoch, None)
            self._end(epoch + 1, WITHDRAWN, None)
        if woke_up:
            raise DeployedElsewhere(
                f"Epoch {epoch} came to life at the very end of the watch. It ends by itself now,"
                " with its local data kept: start it again on its node."
            )
        return [f"the claim of epoch {epoch}", *(["the lock file"] if removed else [])]

    def _held(self) -> Record:
        if self._record is None:
            raise LockLost("The lock was never taken; nothing was changed.")
        return self._record

    def _begin(self, act: Callable[..., T], *arguments: object) -> Callable[[], T]:
        return begin(self._workers, act, *arguments)

    def _prepare(self) -> None:
        if self._stands(EPOCHS):
            return
        for path in (STATUS_FOLDER, EPOCHS):
            with suppress(FileExistsError):
                self._replica.make_directory(path)

    def _probe(self) -> None:
        """Raise MountNotThere where the mount gives nothing back."""
        if not any(self._is_given_back() for _ in range(_PROBES)):
            raise MountNotThere(
                "The mount does not give back what was written; nothing was changed."
            )

    def _judge(self) -> Free | Ours | Held:
        docker = self._begin(self._docker_lock)
        claims = self._claims()
        # The lock after the claims: it stands before the record does, and goes before the end.
        return judge(claims, self._foreign_lock(), docker(), self._remembered)

    def _foreign_lock(self) -> dict[str, str] | None:
        """Return the fields of the lock file, unless it is the one that is adopted."""
        fields = self._lock_fields()
        return None if fields == self._adopted else fields

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

    def _remove_probes(self, listed: Set[bytes]) -> None:
        """Remove those of starts that died there."""
        for name in listed:
            if name.startswith(_PROBE):
                self._replica.remove(join(EPOCHS, name))

    def _try(self, probed: Callable[[], None]) -> int | Held:
        try:
            lists = self._lists()
            verdict = self._judge()
            if (twin := self._twin_in(lists())) is not None:
                raise Halted(_second_provider(twin))
        finally:
            probed()
        if isinstance(verdict, Held):
            return verdict
        newest = self._watch_own(verdict) if isinstance(verdict, Ours) else 0
        return newest if isinstance(newest, Held) else self._claim(verdict, newest)

    def _watch_own(self, ours: Ours) -> int | Held:
        """After a reboot or in a clone: is the claim that we remember really dead?

        Returns its newest beat from before the watch: none may come until we hold the folder.
        """
        epoch, record, remembered = ours.claim.epoch, ours.claim.record, self._remembered
        assert remembered is not None
        newest = self._newest_beat(epoch)
        if record is not None and epoch == remembered.epoch and newest > remembered.beat:
            return Held(f"epoch {epoch} is ours by name but has gone on without this node", epoch)
        if record is not None and record.boot_id == self._claimant.boot_id:
            return newest  # our own flock on the state directory tells that it is dead
        # As long as its last confirmed beat lets it write: or a clone and its original both would.
        if self._lives(epoch, newest, self.times_beside(epoch).watch):
            return Held(f"epoch {epoch} is ours by name but another machine keeps it alive", epoch)
        if self._judge() != ours:
            return Held(f"epoch {epoch} changed while it was watched for life", epoch)
        return newest

    def _claim(self, verdict: Free | Ours, newest: int) -> int | Held:
        epoch = verdict.next_epoch
        deployment = uuid.uuid4().hex
        if isinstance(verdict, Ours) and self._remembered is not None:
            deployment = self._remembered.deployment_id
        self._remember(Remembered(deployment, epoch, 0, self.folder_id))
        try:
            self._replica.make_directory(self._place(epoch))
        except FileExistsError:
            self._remember_earlier()
            return Held(f"another node claimed epoch {epoch} at the same moment", epoch)
        try:
            self._pause(self.times.settle)
        except BaseException:
            self._withdraw(epoch)
            raise
        return self._settled(verdict, epoch, deployment, newest)

    def _withdraw(self, epoch: int) -> None:
        """End a claim that was tried for in vain: the one before it is ours as it was."""
        self._end(epoch, WITHDRAWN, None)
        self._remember_earlier()

    def _remember_earlier(self) -> None:
        if self._remembered is not None:
            self._remember(self._remembered)

    def _settled(
        self, verdict: Free | Ours, epoch: int, deployment: str, newest: int
    ) -> int | Held:
        """After the settling: is the claim the only one still?"""
        following = self._begin(self._stands, self._place(epoch + 1))
        beat = self._newest_beat(verdict.claim.epoch) if isinstance(verdict, Ours) else 0
        lists = self._lists()()
        if (twin := self._twin_in(lists)) is not None:
            self._withdraw(epoch)
            raise Halted(_second_provider(twin))
        if isinstance(verdict, Ours) and beat > newest:
            self._withdraw(epoch)
            return Held(f"epoch {verdict.claim.epoch} came to life again", verdict.claim.epoch)
        if following() or _highest_in(lists[EPOCHS]) > epoch:
            self._withdraw(epoch)
            return Held(f"a claim newer than ours ({epoch}) stands there", self._highest())
        self._remove_probes(lists[EPOCHS])
        try:
            self._take(verdict, epoch, deployment)
        except LockLost as error:
            self._record = None
            return Held(str(error), epoch)
        return epoch

    def _take(self, verdict: Free | Ours, epoch: int, deployment: str) -> None:
        me = self._claimant
        parent = verdict.claim.epoch if isinstance(verdict, Ours) else None
        record = self._record = Record(
            deployment, epoch, me.host, me.boot_id, me.machine_id, me.user, me.working_dir,
            me.replica_dir, self._now(), me.version, parent,
        )  # fmt: skip
        # The lock file before the record: a record without a lock file then always means that a
        # person deleted it, which frees the folder.
        content = lock_text(record, 0, self._now())
        try:
            self._replica.write_new(LOCK, content)
        except FileExistsError:
            self._replica.overwrite(LOCK, content)
        self._replica.write_new(join(self._place(epoch), b"record.json"), encode_record(record))
        sent = self._send(record, None)
        self.check()
        self._confirmed = sent
        # From the oldest on, for what lies below one that was ended is not looked for again.
        for earlier in verdict.unended:
            self._end(earlier, "superseded", None)

    def _send(self, record: Record, checkpoint: str | None) -> float:
        """Create the next beat's name; returns when it was sent, once it stands for certain."""
        unknown = self._sent
        if unknown is not None and (arrived := self._arrived(record)) is not None:
            # Others must see it too: what was not flushed for certain may stand in a buffer alone.
            path = join(self._place(record.epoch), beat_name(self._beat))
            self._replica.overwrite(path, unknown[1])
            return arrived
        sent = self._clock.boottime()
        number = self._beat + 1
        mine = Remembered(record.deployment_id, record.epoch, number, self.folder_id)
        self._remember(mine)
        suspend, dead = self.times.suspend, self.times.dead
        content = encode_record(Beat(self._now(), checkpoint, uuid.uuid4().hex, suspend, dead))
        self._sent = sent, content
        path = join(self._place(record.epoch), beat_name(number))
        with suppress(FileExistsError):  # whose it is shows below
            self._replica.write_new(path, content)
        if self._arrived(record) is None:
            raise OSError(errno.EIO, "the beat that was sent is not there")
        return sent

    def _arrived(self, record: Record) -> float | None:
        """Look for the beat that was sent last; returns when it was sent, if it came just now."""
        if self._sent is None:
            return None
        number = self._beat + 1
        sent, content = self._sent
        try:
            found = self._replica.read(join(self._place(record.epoch), beat_name(number)))
        except FileNotFoundError:
            return None
        if not _is_left_of(found, content):
            raise LockLost(
                f"Beat {number} of epoch {record.epoch} was written by somebody else, so this"
                " node does not hold the lock any more; local data are kept."
            )
        self._beat, self._sent = number, None
        return sent if found == content else None

    def _show(self, record: Record) -> None:
        """Say in the lock file, for people, that the beat was confirmed."""
        self._replica.overwrite(LOCK, lock_text(record, self._beat, self._now()))
        if self._beat > _KEPT_BEATS:
            old = beat_name(self._beat - _KEPT_BEATS)
            self._replica.remove(join(self._place(record.epoch), old))

    def _lost(self) -> str | None:
        record = self._held()
        following = self._begin(self._stands, self._place(record.epoch + 1))
        lists = self._lists()
        fields = self._lock_fields()
        if fields is None:
            return "the lock file was removed"
        mine = (record.deployment_id, str(record.epoch))
        # We write it anew where it names nobody, for OneData lost what was written, and where it
        # has an older epoch's text, a late call of one who lost the folder to us.
        stale = not fields or (epoch_of(fields) or record.epoch) < record.epoch
        if (fields.get("DEPLOYMENT"), fields.get("EPOCH")) != mine and not stale:
            return f"the lock file names {printable(fields.get('HOST', 'somebody else'))} now"
        if following():
            return f"epoch {record.epoch + 1} was claimed, or this one unlocked"
        twin = self._twin_in(lists())
        return None if twin is None else f"a second OneData provider serves the folder ({twin!r})"

    def _lists(self) -> Callable[[], dict[bytes, Set[bytes]]]:
        """Begin to list where a second provider shows; returns what waits for the names."""
        folders = (*_TWINS, EPOCHS)
        lists = [self._begin(self._replica.names, folder) for folder in folders]
        return lambda: {folder: names() for folder, names in zip(folders, lists, strict=True)}

    def _twin_in(self, lists: Mapping[bytes, Set[bytes]]) -> bytes | None:
        """Return a name that a second provider shows beside ours; no look at ours shows it."""
        for folder, names in lists.items():
            for name in names:
                stem, at, _ = name.partition(b"@")
                if at and _is_ours(folder, stem) and self._stands(join(folder, name)):
                    return join(folder, name)
        return None

    def _stands(self, path: bytes) -> bool:
        """Whether a name that a listing showed is there still."""
        return self._replica.look(path) is not None

    def _highest(self) -> int:
        """Return the highest epoch; one that a stale listing hides is found by its name."""
        highest = _highest_in(self._replica.names(EPOCHS))
        while self._replica.look(self._place(highest + 1)) is not None:
            highest += 1
        return highest

    def _claims(self) -> list[Claim]:
        """Return the claims from the highest down to one that was not withdrawn and ended."""
        listed = _highest_in(self._replica.names(EPOCHS))
        following = self._begin(self._stands, self._place(listed + 1))
        newest = self._read_claim(listed) if listed else None
        found = []
        for epoch in range(self._highest() if following() else listed, 0, -1):
            claim = newest if epoch == listed else self._read_claim(epoch)
            if claim is not None:
                found.append(claim)
                if claim.ended not in (None, WITHDRAWN):
                    break
        return found

    def _read_claim(self, epoch: int) -> Claim | None:
        place = self._place(epoch)
        with suppress(FileNotFoundError):
            return Claim(epoch, None, how_it_ended(self._replica.read(join(place, b"end.json"))))
        try:
            record = decode_record(self._replica.read(join(place, b"record.json")))
        except FileNotFoundError:
            there = self._replica.look(place) is not None
            return Claim(epoch, None, None) if there else None
        except NewerRecord as error:
            raise Halted(
                f"A newer onesync holds the folder as epoch {epoch} ({error}); nothing was"
                " changed. Undeploy it there, or install the newer onesync."
            ) from error
        except BadRecord:
            return Claim(epoch, None, None, torn=True)
        return Claim(epoch, record, None)

    def _lock_fields(self) -> dict[str, str] | None:
        try:
            return parse_lock(self._replica.read(LOCK))
        except FileNotFoundError:
            return None

    def _remove_lock(self, epoch: int, deployment: str | None, *, may_be_torn: bool = True) -> bool:
        """Remove the lock file if it is that epoch's, or torn; returns whether it was.

        With ``deployment`` it must not be another one's either.
        """
        fields = self._lock_fields()
        epochs = (epoch, None) if may_be_torn else (epoch,)
        if fields is None or is_old_scripts(fields) or epoch_of(fields) not in epochs:
            return False
        if deployment is not None and fields.get("DEPLOYMENT", deployment) != deployment:
            return False
        self._replica.remove(LOCK)
        return True

    def _docker_lock(self) -> str | None:
        try:
            return self._replica.read(DOCKER_LOCK).decode("utf-8", "replace")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise

    def _newest_beat(self, epoch: int) -> int:
        place = self._place(epoch)
        numbers = [parse_beat(name) or 0 for name in self._replica.names(place)]
        newest = max(numbers, default=0)
        while self._replica.look(join(place, beat_name(newest + 1))) is not None:
            newest += 1
        return newest

    def _lives(self, epoch: int, newest: int, seconds: float) -> bool:
        """Watch for beats after ``newest``, for ``seconds`` of our own clock between good looks."""
        start = self._clock.boottime()
        while (left := seconds - (self._clock.boottime() - start)) > 0:
            self._pause(min(self.times.call, left))
            if self._newest_beat(epoch) > newest:
                return True
        return False

    def _end(self, epoch: int, how: str, checkpoint: str | None) -> None:
        path = join(self._place(epoch), b"end.json")
        with suppress(FileExistsError):  # an earlier try already wrote it
            self._replica.write_new(path, encode_record(End(how, self._now(), checkpoint)))

    def _place(self, epoch: int) -> bytes:
        return join(EPOCHS, epoch_name(epoch))

    def _now(self) -> str:
        wall = self._clock.wall_ns() / 1e9
        return datetime.datetime.fromtimestamp(wall, datetime.UTC).isoformat(timespec="seconds")


def _is_ours(folder: bytes, name: bytes) -> bool:
    return parse_epoch(name) is not None if folder == EPOCHS else name in _TWINS[folder]


def _highest_in(listed: Set[bytes]) -> int:
    return max((parse_epoch(name) or 0 for name in listed), default=0)


def _is_left_of(found: bytes, content: bytes) -> bool:
    """Whether ``found`` is ``content``, or what a storage that loses its bytes has left of it."""
    whole = len(found) <= len(content)
    return whole and all(one in (0, other) for one, other in zip(found, content, strict=False))


def _way_out(held: Held) -> str:
    if held.epoch is None:
        return "remove that lock file"
    return f"run 'onesync unlock --epoch {held.epoch}'"


def _second_provider(twin: bytes) -> str:
    return (
        f"A second OneData provider serves this folder ({twin!r}); nothing was changed. Mount it"
        " through one provider only, keep what you need of the other's and remove that name."
    )
