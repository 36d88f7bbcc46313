"""What ``onesync doctor`` makes of what it found: facts in, a verdict and a sentence out. Pure.

A failure is what stops a deployment or loses what it should keep; a warning costs time, or will
become one. A check's text may hold anything: whoever shows it escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from onesync.core.claims import Free, Held, LockTimes, Ours
from onesync.core.model import printable
from onesync.core.view import age_text, size_text
from onesync.errors import Exit

FORMAT = 1
"""Of the document, which ``config/doctor.schema.json`` describes."""


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: a short stable word.
        verdict: how it ended.
        found: what was found.
        remedy: what is safe and what to do; empty where nothing must be done.
        code: the exit code of a failure.
    """

    name: str
    verdict: Verdict
    found: str
    remedy: str = ""
    code: Exit = Exit.CLEAN


def ok(name: str, found: str) -> Check:
    """Return a check that is well."""
    return Check(name, Verdict.OK, found)


def warning(name: str, found: str, remedy: str) -> Check:
    """Return a check that somebody should look at."""
    return Check(name, Verdict.WARNING, found, remedy)


def failure(name: str, found: str, remedy: str = "", code: Exit = Exit.UNEXPECTED) -> Check:
    """Return a check that failed; ``code`` is what ``onesync run`` would end with."""
    return Check(name, Verdict.FAILURE, found, remedy, code)


def not_checked(name: str, reason: str) -> Check:
    """Return a check that could not be made."""
    return Check(name, Verdict.NOT_CHECKED, reason)


def exit_code(checks: Iterable[Check]) -> Exit:
    """Return the code of the first failure; clean where there is none."""
    failed = (check.code for check in checks if check.verdict is Verdict.FAILURE)
    return next(failed, Exit.CLEAN)


def document(checks: Sequence[Check]) -> dict[str, Any]:
    """Return what ``onesync doctor --json`` prints."""
    told = [
        {
            "name": check.name,
            "verdict": check.verdict.value,
            "found": printable(check.found),
            "remedy": printable(check.remedy),
        }
        for check in checks
    ]
    return {"format": FORMAT, "exit_code": int(exit_code(checks)), "checks": told}


def summary(checks: Sequence[Check]) -> str:
    """Return how it all went, in a sentence."""
    bad, doubtful, unknown = (
        sum(check.verdict is verdict for check in checks)
        for verdict in (Verdict.FAILURE, Verdict.WARNING, Verdict.NOT_CHECKED)
    )
    if not bad and not doubtful:
        return f"Nothing to mend ({unknown} not checked)."
    counts = ((bad, "failure"), (doubtful, "warning"))
    told = [f"{count} {word}{'s' * (count > 1)}" for count, word in counts if count]
    return f"To mend: {', '.join(told)} ({unknown} not checked)."


# -- this node -------------------------------------------------------------------------------------

_STATX_SINCE = (4, 11)
_OPENAT2_SINCE = (5, 6)


def judge_kernel(release: str) -> Check:
    """Judge the kernel by its release."""
    major, _, rest = release.partition(".")
    minor = "".join(c if c.isdigit() else " " for c in rest).split(" ")[0]
    if not (major.isdigit() and minor.isdigit()):
        return not_checked("kernel", f"The kernel calls itself {release}, which tells no version.")
    version = int(major), int(minor)
    if version < _STATX_SINCE:
        return failure(
            "kernel",
            f"Linux {release} is older than 4.11 and lacks statx(2).",
            "Nothing was changed. Install a newer kernel.",
        )
    if version < _OPENAT2_SINCE:
        return ok("kernel", f"Linux {release}; paths are opened part by part (no openat2).")
    return ok("kernel", f"Linux {release}.")


@dataclass(frozen=True, slots=True)
class Place:
    """A local directory.

    Attributes:
        path: where it is.
        reason: why it cannot be looked at; empty where it was.
        is_directory: whether it is one.
        owner: the name of its owner.
        mode: permission bits.
        user: who looks.
        is_usable: whether that user may list and write it.
        file_system: its type.
        on_mount: whether it lies on the same mount as the OneData folder; then it was not looked
            at.
    """

    path: str
    reason: str = ""
    is_directory: bool = True
    owner: str = ""
    mode: int = 0o700
    user: str = ""
    is_usable: bool = True
    file_system: str = ""
    on_mount: bool = False


_REMOTE = ("nfs", "cifs", "smb", "lustre", "ceph", "gluster", "beegfs", "9p", "fuse", "afs", "gpfs")
_FLEETING = ("tmpfs", "ramfs")
_OTHERS_WRITE = 0o022
_LONGEST_SOCKET = 107
_SOCKET = "/control.sock"


def judge_place(name: str, place: Place, *, copy_is_lost: bool = False) -> Check:
    """Judge the directory that the configuration has as ``name``.

    ``copy_is_lost`` where a working copy was deployed in it and no directory stands there.
    """
    path = place.path
    if place.on_mount:
        return failure(
            name,
            f"{path} lies on the mount of OneData.",
            f"Nothing was changed. Set {name} to a local directory.",
            Exit.CONFIGURATION,
        )
    if copy_is_lost:
        return failure(
            name,
            f"{path}, which was deployed, is gone ({place.reason or 'it is no directory'}).",
            "OneData keeps all that was pushed. Bring it back, or let it be staged in anew with"
            ' [stagein] lost_copy = "restage".',
            Exit.HALTED,
        )
    if place.reason or not place.is_directory:
        return failure(
            name,
            f"{path} cannot be used: {place.reason or 'it is no directory'}.",
            f"Nothing was changed. Make it: install -d -m 0700 {path}",
            Exit.CONFIGURATION,
        )
    if not place.is_usable:
        return failure(
            name,
            f"{place.user} may not write {path} (owner {place.owner}, mode {place.mode:04o}).",
            f"Nothing was changed. Run onesync as {place.owner}, or: chown {place.user} {path}",
            Exit.CONFIGURATION,
        )
    return _judge_usable(name, place)


def _judge_usable(name: str, place: Place) -> Check:
    path, kind = place.path, place.file_system
    told = f"{path} ({kind or 'unknown'}, owner {place.owner}, mode {place.mode:04o})"
    if name == "runtime_dir" and len(path.encode("utf-8", "surrogateescape")) > (
        _LONGEST_SOCKET - len(_SOCKET)
    ):
        return failure(
            name,
            f"{path} is too long: the control socket in it would have no valid address.",
            "Nothing was changed. Set runtime_dir to a path of at most"
            f" {_LONGEST_SOCKET - len(_SOCKET)} bytes.",
            Exit.CONFIGURATION,
        )
    if name == "working_dir":
        if kind.startswith(_REMOTE):
            return warning(
                name,
                f"{told} is not a local disk: the kernel tells of no change that others make.",
                "No change is lost: it is looked for every few seconds, which costs time. A local"
                " disk is better.",
            )
    elif place.mode & _OTHERS_WRITE:
        return warning(
            name,
            f"{told} can be written by others.",
            f"Who writes there can stop onesync. Type: chmod go-w {path}",
        )
    if name == "state_dir" and kind.startswith(_REMOTE):
        return warning(
            name,
            f"{told} is not a local disk.",
            "What was pushed is safe, but the index may not survive a crash there. Set state_dir to"
            " a local directory while nothing is deployed.",
        )
    if name != "runtime_dir" and kind in _FLEETING:
        return warning(
            name,
            f"{told} is gone after a reboot, with all that OneData does not have yet.",
            f"Set {name} to a directory on a disk while nothing is deployed.",
        )
    return ok(name, f"{told}.")


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left; ``inodes`` in all is 0 where it does not count them."""

    free: int
    total: int
    free_inodes: int = 0
    inodes: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """How much is known of the folder: by the index, where there is one."""

    directories: int
    entries: int
    size: int


_LEAST_ROOM = 1 << 30
_LEAST_INODES = 10_000


def judge_room(name: str, path: str, room: Room, needed: Tree | None = None) -> Check:
    """Judge a local file system's room; ``needed`` is what has yet to be staged in."""
    told = f"{path} has {size_text(room.free)} of {size_text(room.total)} free"
    if room.inodes:
        told += f", {room.free_inodes:,} of {room.inodes:,} inodes"
    least = needed.size if needed else 0
    least_inodes = needed.entries if needed else 0
    if room.free < least or (room.inodes and room.free_inodes < least_inodes):
        return warning(
            name,
            f"{told}; the folder had {size_text(least)} in {least_inodes:,} files when it was last"
            " deployed here.",
            "Nothing is lost, but the stage-in would not fit. Make room first.",
        )
    if room.free < _LEAST_ROOM or (room.inodes and room.free_inodes < _LEAST_INODES):
        return warning(
            name,
            f"{told}.",
            "Nothing is lost: a full disk holds everything back until there is room. Make some.",
        )
    return ok(name, f"{told}.")


def judge_index(reason: str, is_damaged: bool) -> Check:
    """Judge an index that could not be read."""
    remedy = "Run 'onesync doctor' as the user that onesync runs as, or as root."
    if is_damaged:
        remedy = "Nothing is lost: the next start makes it anew by comparing contents."
    return warning("index", f"It cannot be read: {reason}", remedy)


def judge_reflink(same_file_system: bool, can_clone: bool | None) -> Check:
    """Tell what a snapshot of a database costs; None where it was not tried."""
    name = "reflink"
    if not same_file_system:
        return ok(name, "No: working_dir and state_dir lie apart, so databases are copied.")
    if can_clone is None:
        return not_checked(name, "state_dir cannot be written by this user.")
    if can_clone:
        return ok(name, "Yes: snapshots of databases share their content with them.")
    return ok(name, "No: the file system of state_dir cannot, so databases are copied.")


# -- limits ----------------------------------------------------------------------------------------

_USUAL_WATCHES = 524_288
_USUAL_QUEUE = 16_384
_LEAST_DESCRIPTORS = 4_096


def _sysctl(key: str, value: int) -> str:
    line = f"fs.inotify.{key}={value}"
    return f"Type: sysctl -w {line} (and to keep it: echo {line} >> /etc/sysctl.d/60-onesync.conf)"


def judge_watches(limit: int | None, needed: int | None, polled: int | None) -> Check:
    """Judge fs.inotify.max_user_watches.

    Args:
        limit: of each user; None where it cannot be read.
        needed: directories of the working copy; None where nobody knows.
        polled: directories that a running daemon could not watch; None without one.
    """
    name = "limits.watches"
    wanted = max(_USUAL_WATCHES, 2 * (needed or 0))
    if limit is None:
        return not_checked(name, "The kernel does not tell fs.inotify.max_user_watches.")
    if polled:
        return warning(
            name,
            f"The kernel watches no more than {limit:,}; directories that are polled: {polled:,}.",
            "No change is lost, it is only seen later. " + _sysctl("max_user_watches", wanted),
        )
    if needed is None:
        return ok(name, f"The limit is {limit:,}; nobody knows yet how many are needed.")
    told = f"Needed: {needed:,}, one for each directory; the limit is {limit:,}"
    if needed > 0.9 * limit:
        return warning(
            name,
            f"{told}, which all programs of this user share.",
            "No change would be lost, only seen later. " + _sysctl("max_user_watches", wanted),
        )
    return ok(name, f"{told}.")


def judge_instances(limit: int | None, is_exhausted: bool) -> Check:
    """Judge fs.inotify.max_user_instances; ``is_exhausted`` where this user gets no more."""
    name = "limits.instances"
    if limit is None:
        return not_checked(name, "The kernel does not tell fs.inotify.max_user_instances.")
    if is_exhausted:
        return warning(
            name,
            f"This user has all {limit:,} inotify instances in use.",
            "No change would be lost: a new daemon would poll. "
            + _sysctl("max_user_instances", max(1_024, 2 * limit)),
        )
    return ok(name, f"The limit is {limit:,}, and there is one to be had.")


def judge_queue(limit: int | None) -> Check:
    """Judge fs.inotify.max_queued_events."""
    name = "limits.queue"
    if limit is None:
        return not_checked(name, "The kernel does not tell fs.inotify.max_queued_events.")
    if limit < _USUAL_QUEUE:
        return warning(
            name,
            f"The kernel keeps {limit:,} events and drops what comes then.",
            "No change is lost: all is scanned anew, which costs time. "
            + _sysctl("max_queued_events", _USUAL_QUEUE),
        )
    return ok(name, f"The kernel keeps {limit:,} events.")


def judge_descriptors(limit: int, workers: int) -> Check:
    """Judge the hard limit of open files, up to which the daemon goes."""
    name = "limits.descriptors"
    if limit < max(_LEAST_DESCRIPTORS, 12 * workers):
        return warning(
            name,
            f"{limit:,} files may be open (RLIMIT_NOFILE of this shell; a unit has its own).",
            "Nothing is lost: fewer files are held open and fewer calls made at once. Set"
            f" LimitNOFILE={max(65_536, 24 * workers)} in the unit.",
        )
    return ok(name, f"{limit:,} files may be open.")


def judge_clock(is_synchronised: bool | None) -> Check:
    """Judge whether the kernel's clock follows another one."""
    name = "clock"
    if is_synchronised is None:
        return not_checked(name, "The kernel does not tell whether its clock is synchronised.")
    if not is_synchronised:
        return warning(
            name,
            "The kernel says that its clock is not synchronised.",
            "No decision follows it, but people read times in records and logs. Type: timedatectl"
            " set-ntp true",
        )
    return ok(name, "It is synchronised.")


# -- the daemon ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Daemon:
    """The daemon of this configuration on this node.

    Attributes:
        status: its status document, or the last one that it left.
        answers: whether it answered.
        reason: why it cannot be asked; empty where it can.
    """

    status: Mapping[str, Any]
    answers: bool
    reason: str = ""


_NOT_PUSHING = ("backing_off", "suspended", "paused")


def judge_daemon(daemon: Daemon) -> Check:
    """Judge what the daemon says of itself."""
    name, phase = "daemon", daemon.status["phase"]
    if daemon.reason:
        return not_checked(name, f"It cannot be asked: {daemon.reason}.")
    if not daemon.answers:
        return _judge_absent(daemon.status)
    problems = len(daemon.status["problems"])
    if phase in _NOT_PUSHING or problems:
        return warning(
            name,
            f"It runs, phase {phase.replace('_', ' ')}; problems: {problems:,}.",
            "Local data are kept. 'onesync status' says what to do about each.",
        )
    return ok(name, f"It runs, phase {phase.replace('_', ' ')}.")


_FOR_A_PERSON = ("Halted", "WorkingCopyLost")


def _judge_absent(status: Mapping[str, Any]) -> Check:
    name, phase, problems = "daemon", status["phase"], status["problems"]
    why = problems[0]["text"] if problems else ""
    kind = problems[0]["kind"] if problems else ""
    if kind == "died":
        return warning(name, why, "")
    if phase == "fenced":
        remedy = "Local data are kept. 'onesync log' tells who deployed the folder."
        return failure(name, f"It ended, for the lock was lost. {why}", remedy, Exit.LOCK_LOST)
    if phase == "halted" and kind in _FOR_A_PERSON:
        return failure(name, f"It stopped itself. {why}", code=Exit.HALTED)
    if phase == "halted":
        remedy = "Local data are kept. When the reason is gone, start it again."
        return warning(name, f"It stopped itself. {why}", remedy)
    if phase != "stopped":
        return failure(
            name,
            f"It does not answer; it wrote last that its phase is {phase.replace('_', ' ')}.",
            "Local data are kept. Its watchdog ends it, if it has one; otherwise restart it: the"
            " next start goes on.",
        )
    return ok(name, "It does not run.")


@dataclass(frozen=True, slots=True)
class Unit:
    """What systemd says of the unit; times in seconds, None: for ever, or none."""

    name: str
    state: str
    stop_seconds: float | None
    watchdog_seconds: float | None


_LEAST_STOP_SECONDS = 30.0
_SPANS = {
    "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0,
}  # fmt: skip


def seconds_of(span: str) -> float | None:
    """Return the seconds of a time span as systemd prints it; None: infinite, none, or unknown."""
    found = 0.0
    for part in span.split():
        number = part.rstrip("abcdefghijklmnopqrstuvwxyz")
        unit = part[len(number) :]
        if unit not in _SPANS or not number.replace(".", "", 1).isdecimal():
            return None
        found += float(number) * _SPANS[unit]
    return found or None


def judge_unit(unit: Unit) -> Check:
    """Judge the unit's times."""
    name = "systemd"
    stop = "for ever" if unit.stop_seconds is None else age_text(unit.stop_seconds)
    dog = "none" if unit.watchdog_seconds is None else age_text(unit.watchdog_seconds)
    told = f"{unit.name} is {unit.state}; patience at stop: {stop}, watchdog: {dog}"
    if unit.stop_seconds is not None and unit.stop_seconds < _LEAST_STOP_SECONDS:
        return warning(
            name,
            f"{told}.",
            "Local data are kept, but systemd may kill onesync before it can ask for patience. Set"
            " TimeoutStopSec=10min in the unit.",
        )
    if unit.watchdog_seconds is None:
        return warning(
            name,
            f"{told}.",
            "Local data are kept, but nobody restarts a daemon that is stuck. Set WatchdogSec=2min"
            " in the unit.",
        )
    return ok(name, f"{told}.")


# -- the mount and the lock ------------------------------------------------------------------------


def judge_folder(folder_id: str | None, claimed: int | None, is_there: bool) -> Check:
    """Judge whether it is the folder that we mean.

    Args:
        folder_id: what folder.json says; None where there is none.
        claimed: the epoch that this node remembers to have claimed; None: it never did.
        is_there: whether the folder has that epoch.
    """
    name = "folder"
    if claimed is not None and not is_there:
        return failure(
            name,
            f"It does not have epoch {claimed}, which this node claimed: another folder is mounted,"
            " or its status folder was taken away.",
            "Nothing was changed, local data are kept. Mount the right one.",
            Exit.MOUNT_NOT_THERE,
        )
    if folder_id is None:
        return ok(name, "onesync has not deployed it yet.")
    known = "" if claimed is None else f", and has this node's epoch {claimed}"
    return ok(name, f"It is folder {folder_id}{known}.")


def judge_mount_room(path: str, room: Room, is_read_only: bool) -> Check:
    """Judge what statfs says of the mount."""
    name = "mount.space"
    if is_read_only:
        return failure(
            name,
            f"{path} is mounted read-only.",
            "Nothing was changed. Mount it anew for writing.",
            Exit.MOUNT_NOT_THERE,
        )
    if not room.total:
        return ok(name, "The mount does not tell its space or quota.")
    told = f"{path} has {size_text(room.free)} of {size_text(room.total)} free"
    if room.free < _LEAST_ROOM:
        return warning(
            name,
            f"{told}.",
            "Nothing is lost: what does not fit waits here. Raise the quota, or delete something.",
        )
    return ok(name, f"{told}.")


def judge_own_lock(status: Mapping[str, Any], now: float, times: LockTimes) -> Check:
    """Judge the lock by the status of the daemon that took it; ``now`` is wall time."""
    name, lock = "lock", status["lock"]
    if lock["released"]:
        return ok(name, f"Nobody holds the folder; the daemon released epoch {status['epoch']}.")
    age = now - lock["confirmed_at"]
    told = (
        f"This node's: epoch {status['epoch']}, beat {lock['beat']}, confirmed {age_text(age)} ago"
    )
    if age > times.warn:
        return warning(
            name,
            f"{told}.",
            f"Local data are kept; after {age_text(times.suspend)} nothing is written until the"
            " mount answers again. Look whether it does.",
        )
    return ok(name, f"{told}.")


def judge_lock(holder: Free | Ours | Held, age: float | None, times: LockTimes) -> Check:
    """Judge who holds the folder where no daemon of this node does.

    ``age`` is that of the holder's last beat in seconds, by his clock and ours; None: unknown.
    """
    name = "lock"
    if isinstance(holder, Free):
        return ok(name, "Nobody holds the folder.")
    if isinstance(holder, Ours):
        return ok(
            name, f"This node's, epoch {holder.claim.epoch}, kept: the next start here goes on."
        )
    if holder.epoch is None:
        return failure(
            name,
            f"{_sentence(holder.story)}.",
            "Nothing was changed. Undeploy the folder with what deployed it, or remove that lock"
            " file if it is left over.",
            Exit.DEPLOYED_ELSEWHERE,
        )
    way_out = f"run 'onesync unlock --epoch {holder.epoch}', which watches it for life first"
    told, remedy = f"{_sentence(holder.story)}.", "Nothing was changed. Undeploy it there"
    if age is not None and age > times.dead:
        # Dead is never read off a clock in a file: it only seems so.
        told = f"{_sentence(holder.story)}, which is {age_text(age)} ago: it seems dead."
        remedy = "Nothing was changed. Start onesync there"
    return failure(
        name, told, f"{remedy}, or, if that node is dead for good, {way_out}.",
        Exit.DEPLOYED_ELSEWHERE,
    )  # fmt: skip


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
