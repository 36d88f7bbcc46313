"""``onesync doctor`` on real parts: what it finds, and that it leaves nothing behind."""

from __future__ import annotations

import datetime
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from onesync.core.peculiarities import PROBES
from onesync.machine import MountTable
from onesync.systemd import unit_properties
from tests.machine import lacks
from tests.node import SOON, Node, picture
from tests.standin.mounted import Mounted
from tests.terminal import Terminal
from tests.test_status import until

SCHEMA = json.loads((Path(__file__).parents[1] / "config" / "doctor.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
STATUS_FOLDER = ".deployment_status_do_not_delete"


class Report:
    """What a doctor printed as JSON."""

    def __init__(self, code: int, printed: str, error: str) -> None:
        assert printed, error
        assert "Traceback" not in error, error
        document = json.loads(printed)
        VALIDATOR.validate(document)
        assert document["exit_code"] == code
        self.code = code
        self.checks: dict[str, dict[str, str]] = {c["name"]: c for c in document["checks"]}
        assert len(self.checks) == len(document["checks"]), "each name comes once"

    def verdict(self, name: str) -> str:
        return self.checks[name]["verdict"]

    def text(self, name: str) -> str:
        return f"{self.checks[name]['found']} {self.checks[name]['remedy']}"

    def of(self, verdict: str) -> set[str]:
        return {name for name, check in self.checks.items() if check["verdict"] == verdict}


def examined(node: Node, *words: str) -> Report:
    ran = node.command("doctor", "--json", *words)
    return Report(ran.returncode, ran.stdout, ran.stderr)


def names(root: Path) -> set[str]:
    """All that stands in a folder, but for beats, which come by themselves."""
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    return {name for name in found if "/beat-" not in name}


@pytest.fixture
def on_fuse(tmp_path: Path, mounted: Mounted) -> Iterator[Node]:
    node = Node(tmp_path / "node", mounted.path / "project")
    node.configure(mount__require_fuse=True)
    yield node
    if node.running():
        node.end(signal.SIGKILL)


# -- with plain folders ----------------------------------------------------------------------------


def test_a_node_that_never_deployed_is_examined_and_nothing_is_left(nodes: list[Node]) -> None:
    one, _ = nodes
    before = picture(one.home), picture(one.store)
    report = examined(one)
    assert (report.code, report.of("failure")) == (0, set()), report.checks
    assert set(PROBES) <= report.checks.keys()
    assert "never deployed" not in report.text("folder")
    assert "Nobody holds" in report.text("lock")
    after = picture(one.home), picture(one.store)
    assert [set(part) for part in after] == [set(part) for part in before]


def test_beside_a_running_daemon_nothing_is_disturbed(nodes: list[Node]) -> None:
    one, _ = nodes
    (one.store / "old").write_bytes(b"old")
    one.deploy()
    (one.work / "new").write_bytes(b"new")
    assert one.flush() == 0, one.log()
    before, work = names(one.store), picture(one.work)
    checkpoint = one.status()["last_checkpoint"]
    report = examined(one)
    assert (report.code, report.of("failure")) == (0, set()), report.checks
    assert report.text("daemon").startswith("It runs, phase syncing.")
    assert report.text("lock").startswith("This node's: epoch 1, beat ")
    assert "has this node's epoch 1" in report.text("folder")
    assert "Needed: 1, one for each directory" in report.text("limits.watches")
    assert set(PROBES) <= report.checks.keys()
    assert one.flush() == 0, one.log()
    assert (names(one.store), picture(one.work)) == (before, work)
    assert one.status()["last_checkpoint"] == checkpoint, "nothing was dirty"
    assert one.end() == 0, one.log()


def test_another_nodes_lock_is_told_and_left_alone(nodes: list[Node]) -> None:
    one, two = nodes
    one.deploy()
    before = names(one.store)
    report = examined(two)
    assert report.code == 11
    assert report.of("failure") == {"lock"}
    assert "onesync unlock --epoch 1" in report.text("lock")
    assert "seems dead" not in report.text("lock")
    assert report.verdict("probe.write") == "ok"
    assert names(one.store) == before
    assert one.status()["phase"] == "syncing"
    assert one.end() == 0, one.log()


def test_an_owner_who_was_silent_for_long_seems_dead(nodes: list[Node]) -> None:
    """For long by its own times, where these are longer than those of the node that looks."""
    one, two = nodes
    one.configure(mount__io_timeout_seconds=300)
    one.deploy()
    assert one.end(signal.SIGKILL) < 0
    lock = one.store / STATUS_FOLDER / "lock"
    text = lock.read_text()
    beat = next(line for line in text.splitlines() if line.startswith("BEAT: "))
    for seconds, seems_dead in ((1000, False), (4000, True)):
        then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
        lock.write_text(text.replace(beat, f"BEAT: 3 {then.isoformat(timespec='seconds')}"))
        report = examined(two)
        assert report.code == 11
        assert ("it seems dead" in report.text("lock")) is seems_dead


@pytest.mark.parametrize("place", [f"{STATUS_FOLDER}/lock", "scipion-docker/project.lock"])
def test_a_predecessors_lock_is_told(nodes: list[Node], place: str) -> None:
    one, _ = nodes
    lock = one.store / place
    lock.parent.mkdir()
    lock.write_text("HOST: old\nMOUNT: /m\nDIR: /d\nUSER: u\nDATE: d\n")
    before = names(one.store)
    report = examined(one)
    assert (report.code, report.of("failure")) == (11, {"lock"})
    assert "remove that lock file" in report.text("lock")
    assert names(one.store) == before


def test_a_daemon_that_died_keeps_its_lock(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    assert one.end(signal.SIGKILL) < 0
    report = examined(one)
    assert (report.code, report.verdict("daemon")) == (0, "warning")
    assert "Start it again" in report.text("daemon")
    assert "This node's, epoch 1, kept" in report.text("lock")


def test_a_daemon_that_stands_still_is_told(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    one.pause()
    report = examined(one)
    assert (report.code, report.of("failure")) == (1, {"daemon"})
    assert "This node's, epoch 1" in report.text("lock"), "OneData is asked instead"
    one.go_on()
    assert one.end() == 0, one.log()


def test_another_folder_is_not_probed(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    assert one.end(signal.SIGKILL) < 0
    shutil.move(one.store, one.store.with_name("right"))
    one.store.mkdir()
    report = examined(one)
    assert report.code == 14
    assert report.of("failure") == {"folder"}
    assert {"mount.space", "lock", "probes"} <= report.of("not checked")
    assert not names(one.store)


def test_a_working_copy_that_is_gone_is_told(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    assert one.end(signal.SIGKILL) < 0
    shutil.rmtree(one.work)
    report = examined(one)
    assert (report.code, report.of("failure")) == (13, {"working_dir"})


def test_what_other_nodes_make_meanwhile_is_theirs(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    theirs = [f"{STATUS_FOLDER}/doctor-00000000-1", f"{STATUS_FOLDER}/epochs/probe-1"]
    for place in theirs:
        (one.store / place).mkdir()
    examined(one)
    assert set(theirs) <= names(one.store)
    assert one.end() == 0, one.log()


def test_nothing_is_made_where_nothing_may_be_made(nodes: list[Node]) -> None:
    one, _ = nodes
    one.store.chmod(0o755)
    before = one.store.stat()
    report = examined(one, "--no-probe")
    assert report.verdict("probes") == "not checked"
    assert not report.checks.keys() & set(PROBES)
    after = one.store.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_a_bad_configuration_is_told_with_what_can_be_checked_without(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(nonsense=3)
    report = examined(one)
    assert report.code == 78
    assert "nonsense is not a key" in report.text("configuration")
    assert report.verdict("kernel") == "ok"
    one.config.unlink()
    assert "cannot be read" in examined(one).text("configuration")


def test_a_damaged_index_is_told_and_left_as_it_is(nodes: list[Node]) -> None:
    one, _ = nodes
    index = one.home / "state" / "index.sqlite"
    index.write_bytes(b"no database" * 1000)
    report = examined(one)
    assert (report.code, report.verdict("index")) == (0, "warning")
    assert "makes it anew" in report.text("index")
    assert index.read_bytes() == b"no database" * 1000
    assert not list(index.parent.glob("*.damaged*"))


def test_directories_that_lie_in_one_another_are_told(nodes: list[Node]) -> None:
    one, _ = nodes
    inside = one.work / "state"
    inside.mkdir()
    one.configure(state_dir=inside)
    report = examined(one)
    assert (report.code, report.of("failure")) == (78, {"directories"})
    assert "lies inside the working directory" in report.text("directories")


def test_who_is_not_the_daemons_user_is_told_so(nodes: list[Node]) -> None:
    if os.geteuid() or not shutil.which("setpriv"):
        lacks("needs root and setpriv")
    one, _ = nodes
    one.deploy()
    for path in (one.home / "state", one.home / "run"):
        path.chmod(0o700)
        os.chown(path, 4321, 4321)
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", sys.executable, "-m"]
    command += ["onesync.program", "doctor", "--json", "--config", str(one.config)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    report = Report(ran.returncode, ran.stdout, ran.stderr)
    assert report.code == 78
    assert "chown root" in report.text("state_dir")
    assert report.verdict("runtime_dir") == "failure"
    assert report.verdict("daemon") == "not checked"
    assert report.verdict("index") == "warning"
    for path in (one.home / "state", one.home / "run"):
        os.chown(path, 0, 0)
    assert one.end() == 0, one.log()


@pytest.mark.parametrize(
    ("printed", "found"),
    [
        ("LoadState=loaded\nWatchdogUSec=2min\n", {"LoadState": "loaded", "WatchdogUSec": "2min"}),
        ("LoadState=not-found\nWatchdogUSec=0\n", {}),
        ("", {}),
    ],
)
def test_what_systemd_says_of_a_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: str, found: dict[str, str]
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n[ \"$1\" = show ] && printf '%s' '{printed}'\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert unit_properties("onesync@x.service", "WatchdogUSec") == {}, "there is no such program"
    program.chmod(0o755)
    assert unit_properties("onesync@x.service", "WatchdogUSec") == found


def test_people_get_plain_lines_and_no_name_is_obeyed(tmp_path: Path) -> None:
    store = tmp_path / "[red]evil \x1b]0;x\x07"
    store.mkdir()
    node = Node(tmp_path / "node", store)
    ran = node.command("doctor")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "[red]evil \\x1b]0;x\\x07 answers" in ran.stdout
    assert "\x1b" not in ran.stdout
    lines = ran.stdout.splitlines()
    assert any(line.startswith("ok          probe.write        What is") for line in lines)
    assert "checked)." in lines[-1]


def test_a_terminal_gets_colours(nodes: list[Node]) -> None:
    one, _ = nodes
    with Terminal(one, "doctor") as terminal:
        assert terminal.wait() == 0, terminal.raw()
    assert "\x1b[32mok" in terminal.raw()
    assert "probe.write" in terminal.text()


# -- with the stand-in for OneData -----------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.parametrize("profile", ["plain", "18.02", "21.02"])
def test_a_healthy_mount(on_fuse: Node, mounted: Mounted, profile: str) -> None:
    mounted.remount(profile)
    report = examined(on_fuse)
    assert (report.code, report.of("failure")) == (0, set()), report.checks
    assert "is on a FUSE mount" in report.text("mount")
    assert set(PROBES) <= report.checks.keys()
    can_tell = "OneData tells whether bytes arrived" in report.text("probe.attributes")
    assert can_tell == (profile != "plain")
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_a_deployed_folder_is_probed_inside_the_status_folder(
    on_fuse: Node, mounted: Mounted
) -> None:
    on_fuse.deploy()
    before = names(mounted.backing)
    mounted.start_log()
    report = examined(on_fuse)
    assert (report.code, report.of("failure")) == (0, set()), report.checks
    made = [call.path for call in mounted.log() if call.operation in ("create", "mkdir")]
    place = f"/project/{STATUS_FOLDER}/doctor-"
    assert made
    assert all(path.startswith(place) or "/beat-" in path for path in made), made
    assert names(mounted.backing) == before
    assert on_fuse.end() == 0, on_fuse.log()


@pytest.mark.fuse
def test_a_mount_that_hangs_is_told_and_left_alone(on_fuse: Node, mounted: Mounted) -> None:
    on_fuse.configure(mount__require_fuse=True, mount__io_timeout_seconds=1)
    mounted.hang()
    report = examined(on_fuse)
    mounted.release()
    assert (report.code, report.of("failure")) == (14, {"mount"})
    assert "does not answer" in report.text("mount")
    assert {"folder", "mount.space", "lock", "probes"} <= report.of("not checked")
    assert report.verdict("working_dir") == "ok"
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_the_mount_table_tells_what_shares_a_mount_without_touching_it(
    tmp_path: Path, mounted: Mounted
) -> None:
    mounted.hang()
    table = MountTable()
    onedata = mounted.path / "project"
    assert table.share_fuse(mounted.path / "no" / "such", onedata)
    assert table.share_fuse(mounted.path, onedata)
    assert not table.share_fuse(tmp_path / "work", onedata)
    assert not table.share_fuse(tmp_path / "work", tmp_path / "store")
    assert table.type_of(onedata).startswith("fuse")
    mounted.release()


@pytest.mark.fuse
def test_directories_on_the_mount_are_told_though_it_hangs(on_fuse: Node, mounted: Mounted) -> None:
    on_fuse.configure(mount__require_fuse=True, state_dir=mounted.path / "state")
    mounted.hang()
    report = examined(on_fuse)
    mounted.release()
    assert (report.code, report.of("failure")) == (78, {"state_dir"})
    assert "lies on the mount" in report.text("state_dir")


@pytest.mark.fuse
def test_a_probe_that_hangs_leaves_nothing_where_the_mount_answers_again(
    on_fuse: Node, mounted: Mounted
) -> None:
    on_fuse.configure(mount__require_fuse=True, mount__io_timeout_seconds=5)
    mounted.hang_at("chmod", times=-1)
    command = [sys.executable, "-m", "onesync.program", "doctor", "--json"]
    command += ["--config", str(on_fuse.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        children: set[str] = set()
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def clears_away() -> bool:
            """The first child hangs, so the second one is there to clear away."""
            children.update(listed.read_text().split())
            return len(children) > 1

        until(clears_away, mounted.counts)
        mounted.release()
        printed, _ = process.communicate(timeout=SOON)
    report = Report(process.returncode, printed, "")
    assert report.code == 14
    assert report.verdict("probe.rename") == "ok"
    assert report.of("failure") == {"probe.mode"}
    assert report.verdict("probe.listing") == "not checked"
    assert "probe.removal" not in report.checks
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_what_a_hanging_mount_keeps_is_named_and_removed_by_the_next_one(
    on_fuse: Node, mounted: Mounted
) -> None:
    on_fuse.configure(mount__require_fuse=True, mount__io_timeout_seconds=5)
    mounted.hang_at("rename", times=-1)
    report = examined(on_fuse)
    left = names(mounted.backing) - {"project"}
    mounted.release()
    assert report.code == 14
    assert report.verdict("probe.rename") == "failure", report.checks
    assert left
    assert min(left).removeprefix("project/") in report.text("probe.removal")
    on_fuse.configure(mount__require_fuse=True)
    again = examined(on_fuse)
    assert (again.code, again.of("failure")) == (0, set()), again.checks
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_a_mount_that_cannot_be_written(on_fuse: Node, mounted: Mounted) -> None:
    mounted.read_only()
    report = examined(on_fuse)
    assert (report.code, report.of("failure")) == (14, {"probe.write"})
    assert "Make it writable" in report.text("probe.write")
    assert report.verdict("probe.rename") == "not checked"
    mounted.read_only(False)
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
@pytest.mark.parametrize(
    ("operation", "number", "name", "verdict"),
    [
        ("fsync", errno.ENOSPC, "probe.write", "failure"),
        ("create", errno.EDQUOT, "probe.write", "failure"),
        ("rename", errno.EPERM, "probe.rename", "failure"),
        ("symlink", errno.ENOSYS, "probe.symlink", "ok"),
        ("chmod", errno.EPERM, "probe.mode", "ok"),
        ("utimens", errno.EPERM, "probe.times", "ok"),
    ],
)
def test_whatever_fails_nothing_is_left(
    on_fuse: Node, mounted: Mounted, operation: str, number: int, name: str, verdict: str
) -> None:
    mounted.fail(operation, number, times=-1)
    report = examined(on_fuse)
    assert report.verdict(name) == verdict, report.checks
    assert report.code == (14 if verdict == "failure" else 0)
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_what_one_removal_leaves_the_other_takes(on_fuse: Node, mounted: Mounted) -> None:
    mounted.fail("unlink", errno.EAGAIN, times=3)
    examined(on_fuse)
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_what_cannot_be_removed_is_named(on_fuse: Node, mounted: Mounted) -> None:
    mounted.fail("rmdir", errno.EPERM, times=-1)
    report = examined(on_fuse)
    (left,) = names(mounted.backing) - {"project"}
    assert left.removeprefix("project/") in report.text("probe.removal")
    mounted.clear()
    examined(on_fuse)
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_a_mount_that_refuses_names(on_fuse: Node, mounted: Mounted) -> None:
    long = r"^.{200,}$"
    mounted.names(undecodable=errno.EILSEQ, pattern=long, number=errno.ENAMETOOLONG, suffixes=True)
    report = examined(on_fuse)
    assert report.text("probe.odd_names").startswith("Not kept: '@', not UTF-8;")
    assert report.verdict("probe.long_names") == "warning"
    assert report.code == 0
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
def test_listings_that_are_late(on_fuse: Node, mounted: Mounted) -> None:
    mounted.hide(r"/probe-[0-9a-f]{32}$")
    report = examined(on_fuse)
    mounted.show()
    assert report.verdict("probe.listing") == "warning"
    assert "new files late" in report.text("probe.listing")


@pytest.mark.fuse
def test_a_client_that_died(on_fuse: Node, mounted: Mounted) -> None:
    mounted.kill()
    report = examined(on_fuse)
    assert (report.code, report.of("failure")) == (14, {"mount"})


@pytest.mark.fuse
def test_a_client_that_dies_in_mid_probe(on_fuse: Node, mounted: Mounted) -> None:
    mounted.kill_at("chmod")
    report = examined(on_fuse)
    assert report.verdict("probe.rename") == "ok"
    assert report.verdict("probe.listing") == "not checked"
    assert report.verdict("probe.removal") == "warning"
    mounted.remount()
    examined(on_fuse)
    assert names(mounted.backing) == {"project"}


def test_what_is_no_mount_is_not_probed(nodes: list[Node]) -> None:
    one, _ = nodes
    one.configure(mount__require_fuse=True)
    report = examined(one)
    assert (report.code, report.of("failure")) == (14, {"mount"})
    assert "is not on a FUSE mount" in report.text("mount")
    assert not names(one.store)


@pytest.mark.fuse
def test_the_top_of_the_mount_is_refused(on_fuse: Node, mounted: Mounted) -> None:
    on_fuse.configure(mount__require_fuse=True, onedata_dir=mounted.path)
    report = examined(on_fuse)
    assert (report.code, report.of("failure")) == (78, {"mount"})
    assert names(mounted.backing) == {"project"}


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_is_terminated_leaves_nothing(
    on_fuse: Node, mounted: Mounted, number: int
) -> None:
    mounted.hang_at("chmod", times=-1)
    command = [sys.executable, "-m", "onesync.program", "doctor", "--config", str(on_fuse.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        mounted.start_log()
        until(lambda: any(call.operation == "chmod" for call in mounted.log()), mounted.log)
        process.send_signal(number)
        mounted.release()
        assert process.wait(SOON) != 0
    assert names(mounted.backing) == {"project"}


def test_a_daemon_that_lost_its_folder_says_so(nodes: list[Node]) -> None:
    one, _ = nodes
    one.deploy()
    right = one.store.with_name("right")
    one.store.rename(right)
    one.store.mkdir()
    (one.work / "file").write_bytes(b"new")
    until(lambda: not one.status()["mount"]["up"], one.log)
    report = examined(one)
    assert (report.code, report.verdict("daemon")) == (14, "warning")
    assert report.text("folder").startswith("The daemon says that what stands there is not")
    assert report.verdict("probes") == "not checked"
    assert not names(one.store)
    one.store.rmdir()
    right.rename(one.store)
    assert one.end() == 0, one.log()
