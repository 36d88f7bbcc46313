"""The unit under a real systemd, from boot to poweroff."""

from __future__ import annotations

import itertools
import json
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from onesync.journal import EVENTS
from tests.systemd.container import TOKEN, Container
from tests.systemd.nspawn import REPOSITORY

pytestmark = [pytest.mark.systemd, pytest.mark.node, pytest.mark.timeout(600)]

UNIT = "onesync@p.service"
STATUS = os.fsdecode(STATUS_FOLDER)
ELSEWHERE = "HOST: elsewhere\nMOUNT: /m\nDIR: /d\nUSER: ada\nDATE: today\n"
"""The lock of another node."""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Container]:
    with Container(tmp_path / "node") as container:
        yield container


def locked(node: Container) -> bool:
    return (node.backing / "project" / STATUS / "lock").exists()


def journal(node: Container, event: str) -> list[dict[str, str]]:
    """Return what the unit's journal has of an event."""
    words = ["-u", UNIT, "-o", "json", f"MESSAGE_ID={EVENTS[event]}"]
    lines = node.run("journalctl", "--no-pager", *words).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_start_sync_stop_and_restart(node: Container) -> None:
    project = node.backing / "project"
    (project / "before").write_bytes(b"1")
    node.systemctl("start", "oneclient@p.service")
    node.systemctl("start", UNIT)
    assert (node.work / "before").read_bytes() == b"1", "active means deployed"
    assert node.show("StatusText") == "syncing"
    (node.work / "live").write_bytes(b"2")
    node.wait_for((project / "live").exists, "a file to be pushed")
    (node.work / "link").symlink_to("live")
    node.systemctl("restart", UNIT)
    assert (node.work / "live").read_bytes() == b"2"
    assert (node.work / "link").is_symlink()
    (node.work / "last").write_bytes(b"3")
    node.systemctl("stop", UNIT)
    assert (project / "last").read_bytes() == b"3"
    assert not locked(node)
    assert node.show("ActiveState") == "inactive"
    assert node.show("Result") == "success"
    pushed = [int(told["ONESYNC_FILES"]) for told in journal(node, "batch")]
    assert sum(pushed) == 2
    _, undeployed = journal(node, "undeployed")  # the restart was one, too
    assert undeployed["ONESYNC_FOLDER"] == "p"
    assert undeployed["ONESYNC_CHECKPOINT"].startswith("E000002-")
    assert undeployed["PRIORITY"] == "6"


def test_a_daemon_that_died_is_started_again_and_goes_on(node: Container) -> None:
    node.systemctl("start", "oneclient@p.service")
    node.drop_in("[Service]\nRestartSec=0.1\n")
    node.systemctl("daemon-reload")
    node.systemctl("start", UNIT)
    (node.work / "file").write_bytes(b"1")
    node.systemctl("kill", "--kill-whom=main", "--signal=SIGKILL", UNIT)
    node.wait_for(lambda: node.show("NRestarts") == "1", "the restart")
    node.wait_for(lambda: node.show("ActiveState") == "active", "the deployment to go on")
    node.wait_for((node.backing / "project" / "file").exists, "the file to be pushed")
    node.systemctl("stop", UNIT)
    assert not locked(node)


def test_the_restart_policy_follows_the_exit_code(node: Container) -> None:
    node.drop_in("[Service]\nRestartSec=0.1\n")
    node.systemctl("daemon-reload")
    node.put_token("another")
    node.run("systemctl", "start", "--no-block", UNIT)
    node.wait_for(lambda: int(node.show("NRestarts") or 0) > 2, "tries without the mount")
    node.put_token(TOKEN)
    node.systemctl("restart", "oneclient@p.service")
    node.wait_for(lambda: node.show("ActiveState") == "active", "the mount to be found")
    node.systemctl("stop", UNIT)
    (node.backing / "project" / STATUS / "lock").write_text(ELSEWHERE)
    assert node.run("systemctl", "start", UNIT).returncode != 0
    assert node.show("ExecMainStatus") == "11"
    assert node.show("ActiveState") == "failed"
    assert "elsewhere" in node.journal()


def test_the_watchdog_is_fed_by_a_daemon_that_lives_and_ends_one_that_does_not(
    node: Container,
) -> None:
    node.drop_in("[Service]\nWatchdogSec=2\nRestartSec=0.1\n")
    node.systemctl("daemon-reload")
    node.systemctl("start", "oneclient@p.service")
    node.systemctl("start", UNIT)
    first = int(node.show("WatchdogTimestampMonotonic"))
    node.wait_for(
        lambda: int(node.show("WatchdogTimestampMonotonic")) > first + 5_000_000,
        "more than two watchdog periods",
    )
    assert node.show("ActiveState") == "active"
    project = node.backing / "project"
    node.slow_down(0.03)
    for number in range(100):
        (node.work / f"{number}").write_bytes(b"precious")
    node.wait_for((project / "10").exists, "the push to begin")
    node.run("kill", "-STOP", node.show("MainPID"))
    assert not all((project / f"{number}").exists() for number in range(100)), "a backlog"
    node.wait_for(lambda: node.show("NRestarts") == "1", "the watchdog to bite")
    assert "Failed with result 'watchdog'" in node.journal()
    node.slow_down(0)
    node.wait_for(lambda: node.show("ActiveState") == "active", "the deployment to go on")
    node.systemctl("stop", UNIT)
    assert all((project / f"{number}").read_bytes() == b"precious" for number in range(100))
    assert not list(project.rglob(".onesync~*"))
    assert not locked(node)


def test_systemd_is_patient_while_work_advances(node: Container) -> None:
    project = node.backing / "project"
    for number in range(40):
        (project / f"{number}").write_bytes(b"x")
    node.drop_in("[Service]\nTimeoutStartSec=2\nTimeoutStopSec=2\nRestart=no\n")
    node.systemctl("daemon-reload")
    node.systemctl("start", "oneclient@p.service")
    node.slow_down(0.02)
    before = time.monotonic()
    node.systemctl("start", UNIT)
    assert time.monotonic() - before > 3, "the deployment was too quick to mean anything"
    node.slow_down(0.03)
    for number in range(40):
        (node.work / f"new{number}").write_bytes(b"x")
    before = time.monotonic()
    node.systemctl("stop", UNIT)
    assert time.monotonic() - before > 3, node.journal()
    assert node.show("Result") == "success"
    assert all((project / f"new{number}").exists() for number in range(40))
    assert not locked(node)


def test_the_mount_may_be_restarted_in_mid_push(node: Container) -> None:
    project = node.backing / "project"
    node.systemctl("start", "oneclient@p.service")
    node.systemctl("start", UNIT)
    main = node.show("MainPID")
    node.slow_down(0.03)
    for number in range(100):
        (node.work / f"{number}").write_bytes(b"precious")
    node.wait_for((project / "10").exists, "the push to begin")
    node.systemctl("restart", "oneclient@p.service")
    node.wait_for(
        lambda: all((project / f"{number}").exists() for number in range(100)),
        "everything to be pushed",
    )
    assert node.show("MainPID") == main, "the daemon lived on"
    node.systemctl("stop", UNIT)
    node.systemctl("stop", "oneclient@p.service")
    assert node.run("ls", "-A", "/mnt/onedata").stdout == "", "nothing where no mount was"
    assert all((project / f"{number}").read_bytes() == b"precious" for number in range(100))
    assert not list(project.rglob(".onesync~*"))
    assert not locked(node)


def test_a_stop_on_a_hung_mount_ends_with_the_lock_kept(node: Container) -> None:
    node.configure("[undeploy]\nflush_retry_seconds = 3\n")
    node.configure_timeout(1)
    node.systemctl("start", "oneclient@p.service")
    node.systemctl("start", UNIT)
    node.weather("hang")
    (node.work / "late").write_bytes(b"precious")
    node.run("systemctl", "stop", UNIT)
    assert node.show("ActiveState") == "failed"
    assert (node.show("Result"), node.show("ExecMainStatus")) == ("exit-code", "10")
    assert "lock and all local data are kept" in node.journal()
    node.weather("release")
    assert locked(node)
    node.systemctl("start", UNIT)
    node.wait_for((node.backing / "project" / "late").exists, "what was not flushed")
    node.systemctl("stop", UNIT)
    assert not locked(node)


def test_a_power_off_flushes_before_the_mount_goes(node: Container) -> None:
    node.systemctl("start", "oneclient@p.service")
    node.systemctl("start", UNIT)
    node.slow_down(0.02)
    for number in range(200):
        (node.work / f"{number}").write_bytes(b"precious")
    node.run("systemctl", "poweroff")
    node.wait_for_power_off()
    project = node.backing / "project"
    assert all((project / f"{number}").read_bytes() == b"precious" for number in range(200))
    assert not locked(node)


def drop_in_of_readme(about: str) -> str:
    """Return the drop-in that README gives for something."""
    text = (REPOSITORY / "README.md").read_text().partition(about)[2].partition("\n\n")[2]
    lines = itertools.takewhile(
        lambda line: not line or line.startswith("      "), text.split("\n")
    )
    return textwrap.dedent("\n".join(lines))


class Booting(Container):
    """A node that is looked at while it boots."""

    def state(self) -> str:
        found = super().state()
        return "running" if found == "starting" else found


@pytest.mark.parametrize("waits", [True, False])
def test_a_boot_waits_for_the_stage_in_unless_a_drop_in_says_otherwise(
    tmp_path: Path, waits: bool
) -> None:
    node = Booting(tmp_path / "node")
    node.enable()
    node.configure("wait_seconds = 300\n")  # in [lock], which is the last
    lock = node.backing / "project" / STATUS / "lock"
    lock.parent.mkdir()
    lock.write_text(ELSEWHERE)
    for path in (lock.parent, lock):
        node.give(path)
    if not waits:
        node.drop_in(drop_in_of_readme("**A boot that does not wait"))
    with node:
        node.wait_for(lambda: "locking" in node.journal(), "the deployment to begin")
        node.wait_for(
            lambda: node.show("ActiveState", "basic.target") == "active", "the boot to go on"
        )
        if waits:
            time.sleep(2)
            assert node.show("ActiveState", "multi-user.target") == "inactive"
        else:
            node.wait_for(
                lambda: node.show("ActiveState", "multi-user.target") == "active", "the boot"
            )
        assert node.show("ActiveState") == "activating"
        lock.unlink()
        node.wait_for(lambda: node.show("ActiveState") == "active", "the deployment")
        (node.work / "last").write_bytes(b"1")
        node.run("systemctl", "poweroff")
        node.wait_for_power_off()
        assert (node.backing / "project" / "last").read_bytes() == b"1"
        assert not locked(node)


def test_a_reboot_keeps_the_deployment_and_resumes_it(tmp_path: Path) -> None:
    home = tmp_path / "node"
    node = Container(home)
    node.enable()
    node.configure_timeout(0.5)
    with node:
        node.wait_for(lambda: node.show("ActiveState") == "active", "the deployment")
        (node.work / "file").write_bytes(b"1")
        node.run("systemctl", "reboot")
        node.wait_for_reboot()
        assert (node.backing / "project" / "file").read_bytes() == b"1"
        assert locked(node)
        node.wait_for(lambda: node.show("ActiveState") == "active", "the deployment to go on")
        epochs = node.backing / "project" / STATUS / "epochs"
        assert sorted(os.listdir(epochs)) == ["000001", "000002"], "resumed with a new claim"
        node.systemctl("stop", UNIT)
        assert not locked(node)
