"""Every verdict of the doctor, both ways."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from onesync.control import NEVER_RAN
from onesync.core.claims import Claim, Free, Held, LockTimes, Ours
from onesync.core.diagnosis import (
    Check,
    Daemon,
    Place,
    Room,
    Tree,
    Unit,
    Verdict,
    document,
    exit_code,
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
    summary,
    warning,
)
from onesync.core.peculiarities import PROBES, ROUND_TRIP, is_disconnected, judge_probe
from onesync.errors import Exit
from onesync.replica import probes

GOOD, BAD = Verdict.OK, Verdict.FAILURE
DOUBTFUL, UNKNOWN = Verdict.WARNING, Verdict.NOT_CHECKED
TIMES = LockTimes.from_timeout(10)
GB = 1 << 30


def refused(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def is_told(check: Check, verdict: Verdict, *words: str) -> None:
    assert check.verdict is verdict, check
    assert all(word in f"{check.found} {check.remedy}" for word in words), check
    assert check.found, check
    if verdict in (DOUBTFUL, BAD):
        assert check.remedy, check
    assert (check.code is Exit.CLEAN) == (verdict is not BAD), check


# -- all together ----------------------------------------------------------------------------------


def test_the_first_failure_gives_the_code() -> None:
    fine = [ok("a", "x"), warning("b", "x", "y"), not_checked("c", "x")]
    assert exit_code(fine) is Exit.CLEAN
    bad = [failure("d", "x", "y", Exit.HALTED), failure("e", "x", "y", Exit.CONFIGURATION)]
    assert exit_code(fine + bad) is Exit.HALTED


def test_the_document_is_escaped() -> None:
    found = document([failure("mount", "/mnt/\x1b]0;evil\x07", "type: x\n", Exit.MOUNT_NOT_THERE)])
    assert found["format"] == 1
    assert found["exit_code"] == 14
    told = found["checks"][0]
    assert (told["name"], told["verdict"]) == ("mount", "failure")
    assert (told["found"], told["remedy"]) == ("/mnt/\\x1b]0;evil\\x07", "type: x\\n")


def test_the_summary_counts() -> None:
    fine = [ok("a", "x"), not_checked("c", "x")]
    assert summary(fine) == "Nothing to mend (1 not checked)."
    found = [*fine, failure("d", "x"), warning("b", "x", "y"), warning("b", "x", "y")]
    assert summary(found) == "To mend: 1 failure, 2 warnings (1 not checked)."


# -- this node -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "verdict"),
    [
        ("6.1.0-13-amd64", GOOD),
        ("5.6", GOOD),
        ("5.4.0-100-generic", GOOD),
        ("4.18.0-553.el8", GOOD),
        ("4.11-rc1", GOOD),
        ("4.4.302", BAD),
        ("3.10.0-1160.el7", BAD),
        ("of my own", UNKNOWN),
    ],
)
def test_kernels(release: str, verdict: Verdict) -> None:
    is_told(judge_kernel(release), verdict, release)


FINE = Place("/srv/it", owner="sync", mode=0o700, user="sync", file_system="ext4")


def other(**keys: Any) -> Place:
    kept = {name: getattr(FINE, name) for name in Place.__slots__}
    return Place(**kept | keys)


@pytest.mark.parametrize("name", ["working_dir", "state_dir", "runtime_dir"])
@pytest.mark.parametrize(
    ("place", "verdict", "word"),
    [
        (FINE, GOOD, "owner sync, mode 0700"),
        (other(reason="No such file or directory"), BAD, "install -d"),
        (other(is_directory=False), BAD, "it is no directory"),
        (other(is_usable=False, owner="root", mode=0o755), BAD, "chown sync /srv/it"),
        (other(on_mount=True), BAD, "local directory"),
    ],
)
def test_directories(name: str, place: Place, verdict: Verdict, word: str) -> None:
    check = judge_place(name, place)
    is_told(check, verdict, word)
    assert verdict is GOOD or check.code is Exit.CONFIGURATION


@pytest.mark.parametrize(
    ("name", "place", "verdict"),
    [
        ("working_dir", other(mode=0o775), GOOD),
        ("state_dir", other(mode=0o775), DOUBTFUL),
        ("runtime_dir", other(mode=0o707), DOUBTFUL),
        ("state_dir", other(mode=0o755), GOOD),
        ("state_dir", other(file_system="nfs4"), DOUBTFUL),
        ("working_dir", other(file_system="nfs4"), DOUBTFUL),
        ("working_dir", other(file_system="fuse.sshfs"), DOUBTFUL),
        ("state_dir", other(file_system="tmpfs"), DOUBTFUL),
        ("working_dir", other(file_system="tmpfs"), DOUBTFUL),
        ("runtime_dir", other(file_system="tmpfs"), GOOD),
        ("runtime_dir", other(path="/" + "r" * 93), GOOD),
        ("runtime_dir", other(path="/" + "r" * 94), BAD),
    ],
)
def test_what_lies_on_which_file_system(name: str, place: Place, verdict: Verdict) -> None:
    is_told(judge_place(name, place), verdict)


def test_a_working_copy_that_is_gone_is_a_persons() -> None:
    check = judge_place("working_dir", other(reason="No such file"), copy_is_lost=True)
    is_told(check, BAD, "which was deployed", "lost_copy")
    assert check.code is Exit.HALTED


@pytest.mark.parametrize(
    ("room", "needed", "verdict"),
    [
        (Room(5 * GB, 9 * GB, 20_000, 30_000), None, GOOD),
        (Room(5 * GB, 9 * GB), None, GOOD),
        (Room(GB // 2, 9 * GB, 20_000, 30_000), None, DOUBTFUL),
        (Room(5 * GB, 9 * GB, 500, 30_000), None, DOUBTFUL),
        (Room(5 * GB, 9 * GB, 20_000, 30_000), Tree(2, 100, 4 * GB), GOOD),
        (Room(5 * GB, 9 * GB, 20_000, 30_000), Tree(2, 100, 6 * GB), DOUBTFUL),
        (Room(5 * GB, 9 * GB, 20_000, 30_000), Tree(2, 25_000, 4 * GB), DOUBTFUL),
        (Room(5 * GB, 9 * GB), Tree(2, 25_000, 4 * GB), GOOD),
    ],
)
def test_room(room: Room, needed: Tree | None, verdict: Verdict) -> None:
    is_told(judge_room("space.working_dir", "/srv", room, needed), verdict)


def test_an_index_that_cannot_be_read() -> None:
    is_told(judge_index("Permission denied", False), DOUBTFUL, "as the user")
    is_told(judge_index("torn", True), DOUBTFUL, "makes it anew")


def test_reflinks_are_told_and_no_fault() -> None:
    is_told(judge_reflink(False, None), GOOD, "lie apart")
    is_told(judge_reflink(True, True), GOOD, "Yes")
    is_told(judge_reflink(True, False), GOOD, "No:")
    is_told(judge_reflink(True, None), UNKNOWN)


@pytest.mark.parametrize(
    ("limit", "needed", "polled", "verdict", "word"),
    [
        (None, 1, None, UNKNOWN, ""),
        (8192, None, None, GOOD, "8,192"),
        (8192, 100, None, GOOD, "Needed: 100"),
        (8192, 100, 0, GOOD, ""),
        (8192, 8000, None, DOUBTFUL, "sysctl -w fs.inotify.max_user_watches=524288"),
        (8192, 400_000, None, DOUBTFUL, "max_user_watches=800000"),
        (8192, None, 5, DOUBTFUL, "max_user_watches=524288"),
    ],
)
def test_watches(
    limit: int | None, needed: int | None, polled: int | None, verdict: Verdict, word: str
) -> None:
    is_told(judge_watches(limit, needed, polled), verdict, word)


def test_the_other_limits() -> None:
    is_told(judge_instances(128, False), GOOD)
    is_told(judge_instances(128, True), DOUBTFUL, "sysctl -w fs.inotify.max_user_instances=1024")
    is_told(judge_instances(None, False), UNKNOWN)
    is_told(judge_queue(16_384), GOOD)
    is_told(
        judge_queue(1_000),
        DOUBTFUL,
        "fs.inotify.max_queued_events=16384 >> /etc/sysctl.d/60-onesync.conf",
    )
    is_told(judge_queue(None), UNKNOWN)
    is_told(judge_descriptors(4_096, 32), GOOD)
    is_told(judge_descriptors(1_024, 32), DOUBTFUL, "LimitNOFILE=65536")
    is_told(judge_descriptors(4_096, 4_000), DOUBTFUL, "LimitNOFILE=96000")


def test_clocks() -> None:
    is_told(judge_clock(True), GOOD)
    is_told(judge_clock(False), DOUBTFUL, "timedatectl set-ntp true")
    is_told(judge_clock(None), UNKNOWN)


@pytest.mark.parametrize(
    ("span", "seconds"),
    [
        ("10min", 600.0),
        ("1min 30s", 90.0),
        ("2h 1.5s", 7201.5),
        ("1d", 86_400.0),
        ("500ms", 0.5),
        ("infinity", None),
        ("0", None),
        ("", None),
        ("ages", None),
        ("5fortnights", None),
    ],
)
def test_spans_of_systemd(span: str, seconds: float | None) -> None:
    assert seconds_of(span) == seconds


def test_units() -> None:
    is_told(judge_unit(Unit("u", "active", 600, 120)), GOOD, "10 min 0 s", "2 min 0 s")
    is_told(judge_unit(Unit("u", "active", None, 120)), GOOD, "for ever")
    is_told(judge_unit(Unit("u", "active", 10, 120)), DOUBTFUL, "TimeoutStopSec=10min")
    is_told(judge_unit(Unit("u", "inactive", 600, None)), DOUBTFUL, "WatchdogSec=2min")


# -- the daemon ------------------------------------------------------------------------------------


def said(answers: bool = True, reason: str = "", **keys: Any) -> Daemon:
    return Daemon(NEVER_RAN | keys, answers, reason)


def problem(kind: str) -> dict[str, str]:
    return {"path": "", "kind": kind, "text": "It is so."}


@pytest.mark.parametrize(
    ("daemon", "verdict", "code"),
    [
        (said(phase="syncing"), GOOD, 0),
        (said(phase="staging_in"), GOOD, 0),
        (said(phase="backing_off"), DOUBTFUL, 0),
        (said(phase="suspended"), DOUBTFUL, 0),
        (said(phase="paused"), DOUBTFUL, 0),
        (said(phase="syncing", problems=[problem("newcomer")]), DOUBTFUL, 0),
        (said(answers=False, reason="Permission denied"), UNKNOWN, 0),
        (said(answers=False), GOOD, 0),
        (said(answers=False, phase="syncing"), BAD, 1),
        (said(answers=False, phase="fenced"), BAD, 12),
        (said(answers=False, phase="halted", problems=[problem("MountNotThere")]), DOUBTFUL, 0),
    ],
)
def test_daemons(daemon: Daemon, verdict: Verdict, code: int) -> None:
    check = judge_daemon(daemon)
    is_told(check, verdict)
    assert check.code == code


def test_a_daemon_that_died_or_halted_brings_its_own_sentence() -> None:
    died = judge_daemon(said(answers=False, problems=[problem("died")]))
    assert (died.verdict, died.found) == (DOUBTFUL, "It is so.")
    halted = judge_daemon(said(answers=False, phase="halted", problems=[problem("Halted")]))
    assert (halted.verdict, halted.code) == (BAD, Exit.HALTED)
    assert "It is so." in halted.found


# -- the mount and the lock ------------------------------------------------------------------------


def test_folders() -> None:
    is_told(judge_folder(None, None, False), GOOD, "not deployed it yet")
    is_told(judge_folder("abc", None, False), GOOD, "abc")
    is_told(judge_folder("abc", 7, True), GOOD, "epoch 7")
    another = judge_folder("def", 7, False)
    is_told(another, BAD, "another folder is mounted", "local data are kept")
    assert another.code is Exit.MOUNT_NOT_THERE


def test_what_statfs_says_of_the_mount() -> None:
    is_told(judge_mount_room("/m", Room(0, 0), False), GOOD, "does not tell")
    is_told(judge_mount_room("/m", Room(5 * GB, 9 * GB), False), GOOD, "5.4 GB of 9.7 GB")
    is_told(judge_mount_room("/m", Room(5, 9 * GB), False), DOUBTFUL, "quota")
    assert judge_mount_room("/m", Room(5 * GB, 9 * GB), True).code is Exit.MOUNT_NOT_THERE


def test_this_nodes_own_lock() -> None:
    lock = {"beat": 9, "confirmed_at": 1000.0, "released": False}
    status = NEVER_RAN | {"phase": "syncing", "epoch": 3, "lock": lock}
    is_told(judge_own_lock(status, 1004.0, TIMES), GOOD, "epoch 3, beat 9, confirmed 4 s ago")
    is_told(judge_own_lock(status, 1061.0, TIMES), DOUBTFUL, "confirmed 1 min 1 s ago")
    released = status | {"lock": lock | {"released": True}}
    is_told(judge_own_lock(released, 9999.0, TIMES), GOOD, "released epoch 3")


def test_locks() -> None:
    is_told(judge_lock(Free(1), None, TIMES), GOOD, "Nobody")
    is_told(judge_lock(Ours(Claim(4, None, None), 5), 9.0, TIMES), GOOD, "epoch 4")
    old = judge_lock(Held("an old script's lock stands there (HOST x)"), None, TIMES)
    is_told(old, BAD, "An old script's lock", "remove that lock file")
    held = Held("u on h holds it, last beat 7", 7)
    lives = judge_lock(held, 30.0, TIMES)
    is_told(lives, BAD, "U on h holds it", "unlock --epoch 7", "Undeploy it there")
    assert "seems dead" not in lives.found
    assert (old.code, lives.code) == (Exit.DEPLOYED_ELSEWHERE,) * 2
    is_told(judge_lock(held, 7200.0, TIMES), BAD, "2 h 0 min ago", "unlock --epoch 7", "seems dead")
    is_told(judge_lock(held, None, TIMES), BAD, "unlock --epoch 7")


# -- the peculiarities of the mount ----------------------------------------------------------------


def test_there_is_a_judge_for_every_probe() -> None:
    assert set(PROBES) == set(probes.PROBES)
    assert PROBES[0] == "probe.write", "where nothing can be written no other one makes sense"


@pytest.mark.parametrize(
    ("name", "answer", "verdict", "word"),
    [
        ("write", True, GOOD, ""),
        ("write", False, BAD, "does not give back"),
        ("write", refused(errno.EROFS), BAD, "Make it writable"),
        ("write", refused(errno.ENOSPC), BAD, "quota"),
        ("write", refused(errno.EACCES), BAD, "token"),
        ("rename", True, GOOD, ""),
        ("rename", False, BAD, "the name did not change"),
        ("rename", refused(errno.EPERM), BAD, "token"),
        ("rename_onto", True, GOOD, "refused"),
        ("rename_onto", None, GOOD, "looks before"),
        ("rename_onto", refused(errno.EIO), GOOD, "looks before"),
        ("rename_onto", False, DOUBTFUL, "replaced a file"),
        ("symlink", True, GOOD, "Symbolic links are taken"),
        ("symlink", refused(errno.ENOSYS), GOOD, "Function not implemented"),
        ("hard_link", True, GOOD, "Hard links are taken"),
        ("hard_link", refused(errno.EPERM), GOOD, "Hard links are refused"),
        ("attributes", "100%", GOOD, "100%"),
        ("attributes", "", GOOD, "there is none"),
        ("attributes", refused(errno.ENOTSUP), GOOD, "read back"),
        ("mode", True, GOOD, "kept"),
        ("mode", False, GOOD, "not kept"),
        ("mode", refused(errno.EPERM), GOOD, "refused"),
        ("times", 0, GOOD, "to the nanosecond"),
        ("times", -123_456_789, GOOD, "coarsely"),
        ("times", 10**15, GOOD, "not kept"),
        ("times", refused(errno.EPERM), GOOD, "cannot be set"),
        ("clock", 0.0, GOOD, "agree"),
        ("clock", -0.9, GOOD, "agree"),
        ("clock", 5.0, GOOD, "5 s ahead of"),
        ("clock", -3600.0, DOUBTFUL, "1 h 0 min behind"),
        ("clock", refused(errno.EIO), UNKNOWN, ""),
        ("long_names", True, GOOD, ""),
        ("long_names", False, DOUBTFUL, "not listed"),
        ("long_names", refused(errno.ENAMETOOLONG), DOUBTFUL, "too long"),
        ("odd_names", (), GOOD, "All are kept"),
        ("odd_names", ("'@'", "not UTF-8"), GOOD, "Not kept: '@', not UTF-8"),
        ("odd_names", refused(errno.EIO), UNKNOWN, ""),
        ("case", True, GOOD, ""),
        ("case", False, DOUBTFUL, ""),
        ("case", refused(errno.EIO), UNKNOWN, ""),
        ("listing", (True, True), GOOD, ""),
        ("listing", (False, True), DOUBTFUL, "show new files late"),
        ("listing", (True, False), DOUBTFUL, "show deletions late"),
        ("listing", (False, False), DOUBTFUL, "new files and deletions"),
        ("listing", refused(errno.EIO), UNKNOWN, ""),
        ("round_trip", 0.01, GOOD, "10.0 ms: about 12 new small files a second"),
        ("round_trip", 0.0, GOOD, "0.0 ms"),
        ("round_trip", refused(errno.EIO), UNKNOWN, ""),
    ],
)
def test_probes(name: str, answer: object, verdict: Verdict, word: str) -> None:
    check = judge_probe(f"probe.{name}", answer, 32)
    is_told(check, verdict, word)
    assert check.name == f"probe.{name}"


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_whose_place_went_says_nothing_of_the_mount(name: str) -> None:
    is_told(judge_probe(name, refused(errno.ENOENT), 32), UNKNOWN, "another doctor")


def test_calls_at_once_are_counted() -> None:
    assert "up to 400 with 32 calls" in judge_probe(ROUND_TRIP, 0.01, 32).found


def test_a_mount_that_went_ends_the_probes() -> None:
    assert is_disconnected(refused(errno.ENOTCONN))
    assert not is_disconnected(refused(errno.EPERM))
