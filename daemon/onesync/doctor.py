"""Examines a node and its mount for a person: gathers facts, and has them judged.

Nothing is changed but for the probes, each of which is undone; it may run beside a daemon and while
another node holds the folder. The mount is touched by a disposable child alone, so one that hangs
is told of after ``mount.io_timeout_seconds`` and then left alone.
"""

from __future__ import annotations

import os
import platform
import resource
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from onesync.configuration import load
from onesync.control import NEVER_RAN, NotRunning, StatusFile, ask
from onesync.core.claims import Held
from onesync.core.diagnosis import (
    Check,
    Daemon,
    Place,
    Tree,
    Unit,
    failure,
    judge_clock,
    judge_daemon,
    judge_descriptors,
    judge_folder,
    judge_index,
    judge_instances,
    judge_kernel,
    judge_lock,
    judge_mount_room,
    judge_own_lock,
    judge_place,
    judge_queue,
    judge_reflink,
    judge_room,
    judge_unit,
    judge_watches,
    not_checked,
    ok,
    seconds_of,
    warning,
)
from onesync.core.model import RESERVED_PREFIX, STATUS_FOLDER, Kind, RelPath, join, show
from onesync.core.peculiarities import PROBES, WRITE, Answer, is_disconnected, judge_probe
from onesync.core.trouble import judge
from onesync.errors import (
    ConfigurationError,
    Exit,
    IndexDamaged,
    MountHung,
    MountNotThere,
    OnesyncError,
)
from onesync.index import Index
from onesync.inspect import had_copy
from onesync.machine import (
    MountTable,
    can_clone,
    has_inotify_instance,
    inotify_limit,
    is_clock_synchronised,
    look_at,
    node_mark,
    room_of,
    versions,
)
from onesync.mount import Mount, go_as_owner
from onesync.replica.children import ChildrenReplica
from onesync.service import lock_to_look_at
from onesync.settings import CONFIGURATIONS, Settings, check_directories, check_user
from onesync.systemd import unit_properties

_ANSWER_SECONDS = 2.0
_PLACE = b"doctor-"
"""Not what the lock calls its own probes: whoever takes the lock clears those away."""


def examine(config: Path | None, instance: str | None, *, is_probing: bool) -> Iterator[Check]:
    """Make one check after the other, as far as each can be made for this user."""
    yield from _software()
    try:
        settings = load(config, instance)
        check_user(settings, is_daemon=False)
    except ConfigurationError as error:
        yield failure(
            "configuration", str(error), "Nothing was changed. Mend the file.", error.code
        )
        yield not_checked("mount", "The configuration does not say where it is.")
        return
    go_as_owner(settings.onedata_dir)
    yield ok("configuration", f"{config or instance} can be read and is valid.")
    places = _places(settings)
    if any(place.on_mount for place in places.values()):
        # Whatever else is looked for lies in them, and the mount may hang.
        yield from (judge_place(name, place) for name, place in places.items() if place.on_mount)
        yield not_checked("mount", "First the directories must be local ones.")
        return
    daemon = _daemon(settings)
    yield judge_daemon(daemon)
    yield _unit(config, instance)
    known = _known(settings)
    yield from _directories(settings, places, known)
    yield from _limits(settings, daemon, known)
    yield judge_clock(is_clock_synchronised())
    replica = ChildrenReplica(
        os.fsencode(settings.onedata_dir), 1, 2, settings.mount.io_timeout_seconds
    )
    try:
        yield from _Visit(settings, replica, daemon, is_probing).checks()
    finally:
        replica.close()


def _software() -> Iterator[Check]:
    found = versions()
    told = ", ".join(f"{name} {version}" for name, version in found.items())
    missing = [name for name, version in found.items() if version == "unknown"]
    if missing:
        yield warning(
            "versions",
            f"{told}.",
            f"Nobody knows the version of {', '.join(missing)}. Install onesync anew with pip.",
        )
    else:
        yield ok("versions", f"{told}.")
    yield judge_kernel(platform.release())


def _daemon(settings: Settings) -> Daemon:
    left = StatusFile(settings.state_dir)
    try:
        found = ask(settings.runtime_dir / "control.sock", "status", _ANSWER_SECONDS)
    except (TimeoutError, BlockingIOError):
        return Daemon(left.read() or NEVER_RAN, answers=False)
    except NotRunning:
        return Daemon(left.last_word(), answers=False)
    except OSError as error:
        return Daemon(NEVER_RAN, answers=False, reason=error.strerror or str(error))
    if "phase" not in found:
        return Daemon(NEVER_RAN, answers=False, reason=str(found.get("reason")))
    return Daemon(NEVER_RAN | found, answers=True)


def _unit(config: Path | None, instance: str | None) -> Check:
    if instance is None and config is not None and config.parent == CONFIGURATIONS:
        instance = config.stem
    if instance is None:
        return not_checked("systemd", "Its unit is known with --instance alone.")
    name = f"onesync@{instance}.service"
    found = unit_properties(name, "ActiveState", "TimeoutStopUSec", "WatchdogUSec")
    if not found:
        return not_checked("systemd", f"It does not tell of {name}.")
    stop, dog = (
        seconds_of(found.get("TimeoutStopUSec", "")),
        seconds_of(found.get("WatchdogUSec", "")),
    )
    return judge_unit(Unit(name, found.get("ActiveState", "unknown"), stop, dog))


# -- this node's directories and limits ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Known:
    """What the index knows; ``tree`` is None where there is none, or none that can be read."""

    tree: Tree | None
    is_deployed: bool = False
    error: OSError | OnesyncError | None = None


def _known(settings: Settings) -> _Known:
    path = settings.state_dir / "index.sqlite"
    try:
        if not path.exists():
            return _Known(None)
        is_deployed = had_copy(settings)
        with closing(Index(path, readonly=True)) as index:
            return _Known(Tree(*index.extent()), is_deployed)
    except (OSError, OnesyncError) as error:
        return _Known(None, error=error)


def _places(settings: Settings) -> dict[str, Place]:
    table = MountTable()
    names = ("working_dir", "state_dir", "runtime_dir")
    return {name: look_at(getattr(settings, name), settings.onedata_dir, table) for name in names}


def _directories(settings: Settings, places: Mapping[str, Place], known: _Known) -> Iterator[Check]:
    work = places["working_dir"]
    is_lost = known.is_deployed and (bool(work.reason) or not work.is_directory)
    for name, place in places.items():
        yield judge_place(name, place, copy_is_lost=is_lost and name == "working_dir")
    if all(_is_good(place) for place in places.values()):
        yield _together(settings)
    if known.error is not None:
        yield judge_index(str(known.error), isinstance(known.error, IndexDamaged))
    needed = None if known.is_deployed else known.tree
    if _is_good(work):
        yield _room("space.working_dir", settings.working_dir, needed)
    if _is_good(places["state_dir"]):
        yield _room("space.state_dir", settings.state_dir)
    if _is_good(work) and _is_good(places["state_dir"]):
        yield _reflink(settings)


def _is_good(place: Place) -> bool:
    return not place.reason and place.is_directory


def _together(settings: Settings) -> Check:
    try:
        check_directories(settings)
    except ConfigurationError as error:
        return failure("directories", str(error), code=error.code)
    return ok("directories", "None lies inside another one that it must not lie in.")


def _room(name: str, path: Path, needed: Tree | None = None) -> Check:
    return judge_room(name, str(path), room_of(os.statvfs(path)), needed)


def _reflink(settings: Settings) -> Check:
    state, work = settings.state_dir, settings.working_dir
    if os.stat(state).st_dev != os.stat(work).st_dev:
        return judge_reflink(False, None)
    return judge_reflink(True, can_clone(state))


def _limits(settings: Settings, daemon: Daemon, known: _Known) -> Iterator[Check]:
    polled = daemon.status["watches"]["polled"] if daemon.answers else None
    needed = None if known.tree is None else known.tree.directories + 1
    yield judge_watches(inotify_limit("max_user_watches"), needed, polled)
    limit = inotify_limit("max_user_instances")
    yield judge_instances(limit, not has_inotify_instance())
    yield judge_queue(inotify_limit("max_queued_events"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judge_descriptors(most, settings.push.workers)


# -- the mount -------------------------------------------------------------------------------------


class _Visit:
    """One visit to the mount, which ends where it does not answer."""

    def __init__(
        self, settings: Settings, replica: ChildrenReplica, daemon: Daemon, is_probing: bool
    ) -> None:
        self._settings = settings
        self._replica = replica
        self._daemon = daemon
        self._is_probing = is_probing
        self._mount = Mount(
            replica, settings.onedata_dir, settings.mount.require_fuse, time.monotonic
        )

    def checks(self) -> Iterator[Check]:
        looks: dict[str, Callable[[], Check]] = {
            "mount": self._mounted,
            "folder": self._folder,
            "mount.space": self._space,
            "lock": self._lock,
        }
        lost = False
        for name, look in looks.items():
            if lost:
                yield not_checked(name, "The mount cannot be used.")
                continue
            check, is_reached = _asked(name, look)
            yield check
            lost = not is_reached
        if lost:
            yield not_checked("probes", "The mount cannot be used.")
        elif not self._is_probing:
            yield not_checked("probes", "--no-probe was given.")
        else:
            yield from self._probes()

    def _mounted(self) -> Check:
        found = self._mount.look()
        path = self._settings.onedata_dir
        if not found.is_fuse:
            return ok("mount", f"{path} answers; it is not FUSE, which the configuration allows.")
        return ok("mount", f"{path} is on a FUSE mount and answers.")

    def _folder(self) -> Check:
        status = self._daemon.status
        if (
            self._daemon.answers
            and status["mount"]
            and status["lock"]
            and not status["mount"]["up"]
        ):
            raise MountNotThere(
                "The daemon says that what stands there is not the folder that it deployed, or that"
                " it does not answer; local data are safe. 'onesync status' tells more."
            )
        lock = lock_to_look_at(self._settings, self._replica)
        claimed = lock.claimed_epoch()
        is_there = claimed is not None and lock.has_claim(claimed)
        check = judge_folder(self._mount.read_id(), claimed, is_there)
        if check.code is Exit.MOUNT_NOT_THERE:
            raise MountNotThere(f"{check.found} {check.remedy}")
        return check

    def _space(self) -> Check:
        found = self._replica.space()
        is_read_only = bool(found.f_flag & os.ST_RDONLY)
        return judge_mount_room(str(self._settings.onedata_dir), room_of(found), is_read_only)

    def _lock(self) -> Check:
        times = self._settings.lock_times()
        if self._daemon.answers and self._daemon.status["lock"]:
            return judge_own_lock(self._daemon.status, time.time(), times)
        lock = lock_to_look_at(self._settings, self._replica)
        holder, beat = lock.holder(), lock.last_beat()
        age = None if beat is None else time.time() - beat.timestamp()
        if isinstance(holder, Held) and holder.epoch is not None:
            times = lock.times_beside(holder.epoch)
        return judge_lock(holder, age, times)

    # -- probes --------------------------------------------------------------------------------

    def _probes(self) -> Iterator[Check]:
        """Make the probes in a directory of their own; it is removed before any is told of."""
        answers: dict[str, Answer] = {}
        try:
            place = self._clean_place()
        except (OSError, OnesyncError) as error:
            yield _failed(WRITE, error)
            return
        try:
            self._answer_all(place, answers)
        finally:
            left = self._remove(place)
        for name in PROBES:
            yield self._told(name, answers)
        if not left and isinstance(answers.get(WRITE), MountHung):
            left = "a call that hung may still be carried out"
        if left:
            yield warning(
                "probe.removal",
                f"What was made for the probes, {show(place)}, may remain in the folder ({left}).",
                "It holds nothing of yours, and nobody minds it. The next 'onesync doctor' on this"
                " node removes it.",
            )

    def _clean_place(self) -> RelPath:
        """Return where the probes go, in the status folder if there is one.

        What earlier probes of this node could not remove goes first.
        """
        above, start = self._above()
        for name in self._replica.names(above):
            if name.startswith(start):
                self._replica.remove(join(above, name))
        return join(above, start + uuid.uuid4().hex.encode())

    def _above(self) -> tuple[RelPath, bytes]:
        """Return the directory for the probes, and what their place's name begins with."""
        start = _PLACE + node_mark().encode() + b"-"
        found = self._replica.look(STATUS_FOLDER)
        if found is not None and found.kind is Kind.DIRECTORY:
            return STATUS_FOLDER, start
        return b"", RESERVED_PREFIX + start

    def _answer_all(self, place: RelPath, answers: dict[str, Answer]) -> None:
        """Probe until the mount goes, or cannot be written."""
        try:
            self._replica.make_directory(place)
        except (OSError, OnesyncError) as error:
            answers[WRITE] = error
            return
        for name in PROBES:
            try:
                answers[name] = self._replica.probe(place, name)
            except OSError as error:
                answers[name] = error
                if name == WRITE or is_disconnected(error):
                    return
            except OnesyncError as error:
                answers[name] = error
                return

    def _remove(self, place: RelPath) -> str:
        """Remove what the probes left; returns why it could not be, if so."""
        try:
            self._replica.remove(place)
            return "" if self._replica.look(place) is None else "it is still there"
        except OSError as error:
            return error.strerror or str(error)
        except OnesyncError:
            return "the mount does not answer"

    def _told(self, name: str, answers: Mapping[str, Answer]) -> Check:
        if name not in answers:
            return not_checked(name, "A probe before it failed.")
        answer = answers[name]
        if isinstance(answer, OnesyncError):
            return _failed(name, answer)
        return judge_probe(name, answer, self._settings.push.workers)


def _asked(name: str, look: Callable[[], Check]) -> tuple[Check, bool]:
    """Return what a look found, and whether the mount can be asked anything more."""
    try:
        return look(), True
    except OnesyncError as error:
        return _failed(name, error), not isinstance(error, MountNotThere | ConfigurationError)
    except OSError as error:
        return _failed(name, error), False


def _failed(name: str, error: OSError | OnesyncError) -> Check:
    if isinstance(error, MountHung):
        return failure(
            name,
            "The mount does not answer.",
            "Local data are safe. Look whether the provider is up and the client's token is valid;"
            " if it stays so, mount it anew.",
            error.code,
        )
    if isinstance(error, OnesyncError):
        return failure(name, str(error), code=error.code)
    return failure(name, judge(error).text, code=Exit.MOUNT_NOT_THERE)
