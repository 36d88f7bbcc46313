"""The RPM package on a node of its own, by Debian's rpm: its scriptlets, and what they leave.

What it requires bears other names there, so nobody looks at that.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.systemd.nspawn import REPOSITORY, UNIT, suite
from tests.systemd.packaged import CONFIGURATION, Node, root
from tests.systemd.test_package import events

pytestmark = [
    pytest.mark.node,
    pytest.mark.timeout(400),
    pytest.mark.skipif(suite() != "bookworm", reason="the package is for Python 3.11"),
]

LOCK = Path(os.fsdecode(STATUS_FOLDER)) / "lock"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return two releases of the package."""
    place = tmp_path_factory.mktemp("rpm")
    for release in ("1", "2"):
        subprocess.run(
            [REPOSITORY / "packaging" / "build-rpm", place],
            check=True,
            env={**os.environ, "RELEASE": release},
        )
    return sorted(path for path in place.glob("*.rpm") if ".src." not in path.name)


@pytest.fixture
def node(tmp_path: Path, packages: list[Path]) -> Iterator[Node]:
    with Node(tmp_path, image=root("rpm")) as made:
        for path in packages:
            shutil.copy(path, made.packages)
        assert rpm(made, "-i", first(packages)).returncode == 0
        yield made


def first(packages: list[Path]) -> str:
    return f"/srv/packages/{packages[0].name}"


def second(packages: list[Path]) -> str:
    return f"/srv/packages/{packages[1].name}"


def rpm(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    """Run rpm; Debian wants to be told that this is meant."""
    return node.run("rpm", "--force-debian", "--nodeps", *words)


def release(node: Node) -> str:
    return node.run("rpm", "-q", "--qf", "%{RELEASE}\n", "onesync").stdout.strip()


def test_what_is_installed_is_whole(node: Node) -> None:
    assert node.run("onesync", "--version").stdout.startswith("onesync ")
    assert node.run("rpm", "-V", "--nodeps", "onesync").stdout == ""
    assert node.run("id", "-u", "onesync").returncode == 0
    assert node.run("man", "5", "onesync.toml").returncode == 0
    assert node.run("stat", "-c", "%U %a", "/var/lib/onesync").stdout == "root 755\n"
    assert node.run("sysctl", "-n", "fs.inotify.max_user_watches").returncode == 0
    kept = node.run("rpm", "-q", "--configfiles", "onesync").stdout
    assert kept == "/etc/onesync/onesync.toml.example\n"
    for name in ("onesync@p.service", "oneclient@p.service", "onesync-prepare@p.service"):
        verified = node.run("systemd-analyze", "verify", name)
        assert (verified.returncode, verified.stderr) == (0, ""), name
    # Nothing is made by the program where it lies, which would be left behind.
    node.run("onesync", "--help", check=True)
    owned = set(node.run("rpm", "-ql", "onesync", check=True).stdout.splitlines())
    found = node.run("find", "/usr/lib/onesync", check=True).stdout.splitlines()
    assert set(found) <= owned
    documents = node.run("rpm", "-qd", "onesync", check=True).stdout
    for example in ("scipion.service", "workload.conf"):
        assert f"/{example}.example\n" in documents, "the one refers to the other"


def test_an_upgrade_and_a_reinstallation_keep_the_deployment(
    node: Node, packages: list[Path]
) -> None:
    (node.project / "large").write_bytes(bytes(8 << 20))
    node.write("/etc/onesync/onesync.toml.example", "# mine\n")
    node.deploy()
    large = (node.work / "large").stat().st_ino
    (node.work / "file").write_bytes(b"1")
    for number, words in enumerate((("-U",), ("-U", "--replacepkgs")), 1):
        done = rpm(node, *words, second(packages))
        assert done.returncode == 0, done.stdout + done.stderr
        node.wait_for(lambda: node.is_active(), "the deployment to go on")
        assert (events(node, "left with the lock kept"), events(node, "undeployed")) == (number, 0)
    assert release(node) == "2"
    assert (node.project / "file").read_bytes() == b"1"
    assert (node.project / LOCK).exists()
    assert (node.work / "large").stat().st_ino == large, "staged in again"
    assert node.run("cat", "/etc/onesync/onesync.toml.example").stdout == "# mine\n"


def test_an_upgrade_stops_where_a_daemon_cannot_be_handed_over(
    node: Node, packages: list[Path]
) -> None:
    node.deploy()
    daemon = node.show("MainPID")
    node.write("/etc/onesync/p.toml", "this is no configuration")
    done = rpm(node, "-U", second(packages))
    assert done.returncode != 0
    assert f"{UNIT} was not handed over" in done.stderr
    assert (release(node), node.show("MainPID")) == ("1", daemon)
    assert node.run("test", "-e", "/run/onesync.handed-over").returncode == 1
    node.write("/etc/onesync/p.toml", CONFIGURATION)
    assert rpm(node, "-U", second(packages)).returncode == 0
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    assert (release(node), events(node, "undeployed")) == ("2", 0)


def test_an_erasure_undeploys_and_keeps_what_is_the_users(node: Node) -> None:
    node.deploy()
    (node.work / "last").write_bytes(b"1")
    done = rpm(node, "-e", "onesync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (node.project / LOCK).exists()
    assert (node.project / "last").read_bytes() == b"1"
    assert node.run("sh", "-c", "find /usr/lib/onesync /usr/bin/onesync").stdout == ""
    assert node.run("test", "-e", "/var/lib/onesync/p/index.sqlite").returncode == 0
    assert node.run("find", "/etc/onesync", "-type", "f").stdout == "/etc/onesync/p.toml\n"
    assert node.show("LoadState") == "not-found"


def test_an_erasure_is_refused_where_the_flush_does_not_end(node: Node) -> None:
    impatient = "[undeploy]\nflush_retry_seconds = 2\n"
    node.deploy(CONFIGURATION.replace("= 10", "= 1") + impatient)
    node.hang()
    (node.work / "late").write_bytes(b"precious")
    done = rpm(node, "-e", "onesync")
    assert done.returncode != 0
    assert "onesync: p is still deployed" in done.stderr
    assert release(node) == "1"
    node.release()
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    node.wait_for((node.project / "late").exists, "what was not flushed")
    assert rpm(node, "-e", "onesync").returncode == 0
    assert not (node.project / LOCK).exists()
