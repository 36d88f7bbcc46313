"""The Debian package on a node of its own: from its installation to its purge."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from onesync.journal import EVENTS
from tests.systemd.nspawn import REPOSITORY, UNIT
from tests.systemd.packaged import CONFIGURATION, Node, bare, changed, package, publish, root

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

STATUS = os.fsdecode(STATUS_FOLDER)
NEWER = "99~test"
MB = 1 << 20


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as made:
        made.install(package())
        yield made


def locked(node: Node) -> bool:
    return (node.project / STATUS / "lock").exists()


def version(node: Node) -> str:
    return node.run("onesync", "--version").stdout.strip()


def deployments(node: Node) -> list[str]:
    return node.run("onesync", "deployments", check=True).stdout.split()


def events(node: Node, name: str) -> int:
    """Return how often the unit told of an event."""
    return len(node.journal(UNIT, "-o", "cat", f"MESSAGE_ID={EVENTS[name]}").splitlines())


def claims(node: Node) -> list[dict[str, str]]:
    """Return the records of all claims, oldest first."""
    places = sorted((node.project / STATUS / "epochs").iterdir())
    return [json.loads((place / "record.json").read_text()) for place in places]


def contents(top: Path) -> dict[str, bytes]:
    files = (path for path in top.rglob("*") if path.is_file() and STATUS not in path.parts)
    return {str(path.relative_to(top)): path.read_bytes() for path in files}


# What is typed into a shell of its own; it waits for what must then stand there.
_ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'autoload -Uz compinit; compinit -u; PS1=ready'
zpty -r -m shell said '*ready*ready'
zpty -w -n shell $'onesync status --instance \t'
zpty -r -m shell said '*--instance*p *'
zpty -w -n shell $'\x15onesync ha\t'
zpty -r -m shell said '*handover*'
print done
"""
_LOOKS = f"#!/bin/sh\nsystemctl show --value -p ActiveState {UNIT} > /run/seen\n"


def upgrade(node: Node, preinst: str = _LOOKS) -> tuple[int, str]:
    """Return apt's exit code and what it said; while files change nothing may run or wait to."""
    newer = changed(package(), node.packages / "newer.deb", NEWER, preinst=preinst)
    done = node.apt("install", f"/srv/packages/{newer.name}")
    if done.returncode == 0:
        assert node.run("cat", "/run/seen").stdout == "inactive\n"
    return done.returncode, done.stdout + done.stderr


class Writer:
    """A program that writes new files, appends to one and removes old ones, all the time."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self.written = 0

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _write(self) -> None:
        (self._work / "load").mkdir()
        while not self._end.wait(0.01):
            self.written += 1
            (self._work / "load" / f"{self.written}").write_bytes(b"%d" % self.written)
            with (self._work / "load" / "log").open("ab") as log:
                log.write(b"%d\n" % self.written)
            if self.written % 3 == 0:
                (self._work / "load" / f"{self.written - 1}").unlink()


def test_what_is_installed_is_whole(node: Node) -> None:
    assert version(node).startswith("onesync ")
    modules = ("sh", "-c", "ls /usr/lib/onesync/lib/python3*/site-packages/onesync/__pycache__")
    assert "program.cpython" in node.run(*modules).stdout, "nobody else may write it there"
    for page in ("onesync.1", "onesync.toml.5"):
        name, _, section = page.rpartition(".")
        assert name.upper() in node.run("man", section, name, check=True).stdout
    by_bash = node.run(
        "bash",
        "-ec",
        "touch /etc/onesync/p.toml; . /usr/share/bash-completion/completions/onesync;"
        " COMP_WORDS=(onesync status --instance ''); COMP_CWORD=3; _onesync;"
        ' echo "${COMPREPLY[@]}"; COMP_WORDS=(onesync ha); COMP_CWORD=1; _onesync;'
        ' echo "${COMPREPLY[@]}"; rm /etc/onesync/p.toml',
        check=True,
    )
    assert by_bash.stdout == "p\nhandover\n"
    node.write("/etc/onesync/p.toml", CONFIGURATION)
    for typed, offered in (
        ("status --instance ", "p"),
        ("ha", "handover"),
        ("manifest l", "links"),
    ):
        found = node.run("fish", "-c", f"complete -C 'onesync {typed}'", check=True).stdout
        assert offered in found.split(), (typed, found)
    assert node.run("zsh", "-f", "-c", _ZSH).stdout == "done\n"
    node.run("rm", "/etc/onesync/p.toml", check=True)
    for file in ("prometheus/onesync.rules.yml", "grafana/node.json", "status.schema.json"):
        assert (node.run("cat", f"/usr/share/onesync/{file}", check=True)).stdout
    assert node.run("id", "-u", "onesync").returncode == 0
    node.run("sysctl", "--dry-run", "--system", check=True)
    example = node.run("dpkg-query", "-W", "-f", "${Conffiles}", "onesync").stdout
    assert "/etc/onesync/onesync.toml.example" in example
    units = node.run("sh", "-c", "dpkg -L onesync | grep '/systemd/system/.*@'").stdout.split()
    assert f"/usr/lib/systemd/system/{UNIT.replace('p.', '.')}" in units
    for unit in units:
        name = Path(unit).name.replace("@.", "@p.")
        verified = node.run("systemd-analyze", "verify", name)
        assert (verified.returncode, verified.stderr) == (0, ""), name


def test_a_second_node_has_what_the_first_one_did(tmp_path: Path) -> None:
    """The smallest whole life, for a Debian that nothing else is tried on."""
    first, second = Node(tmp_path / "first"), Node(tmp_path / "second")
    (first.project / "before").write_bytes(b"1")
    with first:
        first.install(package())
        first.deploy()
        assert (first.work / "before").read_bytes() == b"1"
        (first.work / "after").write_bytes(b"2")
        (first.work / "link").symlink_to("after")
        stopped = first.run("systemctl", "stop", UNIT)
        assert stopped.returncode == 0, stopped.stderr + first.journal()
        assert not locked(first)
    shutil.rmtree(second.home / "backing")
    shutil.copytree(first.home / "backing", second.home / "backing")
    with second:
        second.install(package())
        second.deploy()
        assert contents(second.work) == {"before": b"1", "after": b"2", "link": b"2"}
        assert (second.work / "link").readlink() == Path("after")


def test_an_upgrade_under_load_keeps_the_deployment(node: Node) -> None:
    (node.project / "large").write_bytes(os.urandom(32 * MB))
    node.deploy()
    large = (node.work / "large").stat().st_ino
    read = node.bytes_read()
    assert read >= 32 * MB, "it was staged in"
    with Writer(node.work) as writer:
        node.wait_for(lambda: writer.written > 100, "the writer")
        code, said = upgrade(node)
        assert code == 0, said
        node.wait_for(lambda: node.is_active(), "the deployment to go on")
        more = writer.written + 100
        node.wait_for(lambda: writer.written > more, "the writer")
    assert node.run("onesync", "flush", "--instance", "p").returncode == 0, node.journal()
    assert contents(node.work) == contents(node.project)
    assert (node.work / "large").stat().st_ino == large
    assert node.bytes_read() - read < 32 * MB, "staged in again"
    assert (events(node, "left with the lock kept"), events(node, "undeployed")) == (1, 0)
    before, after = claims(node)
    assert before["deployment_id"] == after["deployment_id"]
    assert after["version"] == NEWER, "the new program runs"
    assert locked(node)


def test_a_reinstallation_keeps_the_deployment(node: Node) -> None:
    node.deploy()
    (node.work / "file").write_bytes(b"1")
    assert "mnt-onedata.mount" in node.show("After").split(), "flushed before the mount goes"
    # As in the middle of the upgrade to the next Debian, where another Python is the default.
    node.run("ln", "-sf", "false", "/usr/bin/python3", check=True)
    node.install(package())
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    # From a shell that is set up for another Python program; the children, too.
    node.run("mkdir", "/run/other", check=True)
    for module in ("typer", "socket"):
        node.write(f"/run/other/{module}.py", "raise SystemExit(1)")
    words = ("onesync", "verify", "--instance", "p")
    node.run(*words, environment={"PYTHONPATH": "/run/other"}, check=True)
    assert (node.project / "file").read_bytes() == b"1"
    assert (events(node, "left with the lock kept"), events(node, "undeployed")) == (1, 0)


def test_other_ways_of_dpkg_keep_the_deployment_too(node: Node) -> None:
    node.deploy()
    other(node.packages / "other.deb")
    node.run("dpkg", "--auto-deconfigure", "--unpack", "/srv/packages/other.deb", check=True)
    status = node.run("dpkg-query", "-Wf", "${Status}", "onesync").stdout
    assert status == "install ok half-configured"
    assert (node.show("ActiveState"), locked(node)) == ("inactive", True)
    node.run("dpkg", "--remove", "other", check=True)
    node.run("dpkg", "--configure", "onesync", check=True)
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    # Where it cannot be started again that is told, and no failure of the package's.
    code, said = upgrade(node, preinst=f"{_LOOKS}systemctl mask --runtime {UNIT}\n")
    assert code == 0, said
    assert f"{UNIT} is not started again, as told above" in said
    node.systemctl("unmask", "--runtime", UNIT)
    node.systemctl("start", UNIT)
    assert (events(node, "left with the lock kept"), events(node, "undeployed")) == (2, 0)
    # One that is being stopped is waited for, and comes back where that was asked for.
    changed(package(), node.packages / "newer.deb", NEWER, preinst=_LOOKS)
    for verb, state in (("restart", "active"), ("stop", "inactive")):
        node.slow_down(0.1)
        for number in range(50):
            (node.work / f"{verb}-{number}").write_bytes(b"1")
        node.systemctl(verb, "--no-block", UNIT)
        done = node.run("dpkg", "--install", "/srv/packages/newer.deb", check=True)
        assert f"waiting for {UNIT}, which is being stopped" in done.stderr
        assert node.run("cat", "/run/seen").stdout == "inactive\n"
        node.slow_down(0)
        node.wait_for(lambda state=state: node.show("ActiveState") == state, state)
    assert events(node, "undeployed") == 2
    assert not locked(node)


def other(file: Path) -> None:
    """Make a package that cannot stand beside onesync."""
    tree = file.with_suffix("")
    (tree / "DEBIAN").mkdir(parents=True)
    fields = [
        *("Package: other", "Version: 1", "Architecture: all", "Breaks: onesync"),
        *("Maintainer: nobody <nobody@onesync.localhost>", "Description: another one"),
    ]
    (tree / "DEBIAN" / "control").write_text("\n".join(fields) + "\n")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", tree, file], check=True)


def test_an_upgrade_that_fails_goes_on_with_the_old_version(node: Node) -> None:
    old = version(node)
    node.deploy()
    code, said = upgrade(node, preinst="#!/bin/sh\nexit 1\n")
    assert code != 0, said
    node.wait_for(lambda: node.is_active() and len(claims(node)) == 2, "the deployment to go on")
    assert version(node) == old
    assert events(node, "undeployed") == 0


def test_an_upgrade_stops_where_a_daemon_cannot_be_handed_over(node: Node) -> None:
    old = version(node)
    node.deploy()
    daemon = node.show("MainPID")
    node.write("/etc/onesync/p.toml", "this is no configuration")
    code, said = upgrade(node)
    assert code != 0
    assert f"{UNIT} was not handed over" in said
    assert (version(node), node.show("MainPID")) == (old, daemon)
    node.write("/etc/onesync/p.toml", CONFIGURATION)
    code, said = upgrade(node)
    assert code == 0, said
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    assert events(node, "undeployed") == 0


def test_an_upgrade_goes_on_where_the_mount_hangs(node: Node) -> None:
    node.deploy(CONFIGURATION.replace("io_timeout_seconds = 10", "io_timeout_seconds = 1"))
    node.hang()
    (node.work / "late").write_bytes(b"precious")
    code, said = upgrade(node)
    assert code == 0, said
    node.release()
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    node.wait_for((node.project / "late").exists, "what was not flushed")
    before, after = claims(node)
    assert before["deployment_id"] == after["deployment_id"]


def test_an_upgrade_in_the_middle_of_stage_in_begins_it_anew(node: Node) -> None:
    for number in range(100):
        (node.project / f"{number}").write_bytes(b"1")
    node.mount()
    node.slow_down(0.05)
    node.run("systemctl", "start", "--no-block", UNIT, check=True)
    node.wait_for(lambda: "staging_in" in node.journal(), "the stage-in")
    code, said = upgrade(node)
    assert code == 0, said
    assert not node.is_active(), "it was too quick to mean anything"
    node.slow_down(0)
    node.wait_for(lambda: node.is_active(), "the deployment")
    assert contents(node.work) == contents(node.project)
    assert len(contents(node.work)) == 100
    assert claims(node)[-1]["version"] == NEWER


def test_a_daemon_that_waits_for_its_mount_is_upgraded_too(node: Node) -> None:
    node.deploy()
    (node.work / "file").write_bytes(b"1")
    node.run("systemctl", "kill", "--kill-whom=main", "--signal=SIGKILL", UNIT, check=True)
    node.run("umount", "-l", "/mnt/onedata", check=True)
    node.wait_for(lambda: node.show("ExecMainStatus") == "14", "a try without the mount")
    code, said = upgrade(node)
    assert code == 0, said
    node.run("systemctl", "restart", "onedata.service", check=True)
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    node.wait_for((node.project / "file").exists, "the file to be pushed")
    assert claims(node)[-1]["version"] == NEWER


def test_needrestart_leaves_the_deployment_alone(node: Node) -> None:
    node.deploy()
    others = ("other.service", "oneclient@p.service")
    for unit in others:
        node.write(
            f"/etc/systemd/system/{unit}",
            '[Service]\nExecStart=/usr/bin/python3 -c "import sqlite3, time; time.sleep(9999)"\n',
        )
    node.run("systemctl", "daemon-reload", check=True)
    node.run("systemctl", "start", *others, check=True)
    processes = [node.show("MainPID", unit) for unit in (*others, UNIT)]
    maps = "/proc/{}/maps"
    node.wait_for(
        lambda: all("libsqlite3" in node.run("cat", maps.format(pid)).stdout for pid in processes),
        "both to have the library",
    )
    node.run(
        "sh",
        "-ec",
        "for l in /usr/lib/*/libsqlite3.so.0.*; do cp -p $l $l.new; mv $l.new $l; done",
        check=True,
    )
    told = node.run("needrestart", "-r", "a", "-l", check=True)
    node.wait_for(
        lambda: node.show("MainPID", "other.service") not in ("0", processes[0]),
        f"needrestart to restart the other one ({told.stdout}{told.stderr})",
    )
    assert [node.show("MainPID", unit) for unit in (others[1], UNIT)] == processes[1:]
    assert events(node, "undeployed") == 0


def test_unattended_upgrades_keep_the_deployment(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    place.mkdir()
    image = root("unattended-upgrades")
    with Node(tmp_path / "node", image=image, binds={"/srv/repository": place}) as node:
        node.install(package())
        node.deploy()
        changed(package(), place / "onesync.deb", NEWER, preinst=_LOOKS)
        publish(place)
        bare(node)
        source = "deb [trusted=yes] copy:/srv/repository ./\n"
        node.write("/etc/apt/sources.list.d/onesync.list", source)
        allowed = 'Unattended-Upgrade::Origins-Pattern { "site="; };\n'
        node.write("/etc/apt/apt.conf.d/60allowed", allowed)
        assert node.apt("update").returncode == 0
        done = node.run("unattended-upgrade", "--debug", check=True)
        node.wait_for(lambda: claims(node)[-1]["version"] == NEWER, done.stdout + done.stderr)
        node.wait_for(lambda: node.is_active(), "the deployment to go on")
        assert (events(node, "left with the lock kept"), events(node, "undeployed")) == (1, 0)


def test_a_removal_undeploys_and_a_purge_keeps_what_is_the_users(node: Node) -> None:
    node.deploy()
    node.write("/etc/onesync/p.token", "secret")
    node.systemctl("enable", UNIT)
    (node.work / "last").write_bytes(b"1")
    node.run("install", "-D", "/etc/hostname", "/var/lib/onesync/mine/file", check=True)
    done = node.apt("remove", "onesync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not locked(node)
    assert (node.project / "last").read_bytes() == b"1"
    assert node.run("test", "-e", "/var/lib/onesync/p/index.sqlite").returncode == 0
    left = node.run("sh", "-c", "find /usr/lib/onesync /usr/bin/onesync").stdout
    assert left == "", "nothing of the program is left"
    assert node.show("LoadState") == "not-found", "systemd knows it"
    done = node.apt("purge", "onesync")
    assert done.returncode == 0, done.stdout + done.stderr
    left = node.run("find", "/var/lib/onesync", "-type", "f").stdout
    assert left == "/var/lib/onesync/mine/file\n", "no state, and what is not onesync's"
    assert node.run("find", "/etc/systemd", "-name", "onesync*").stdout == ""
    kept = node.run("find", "/etc/onesync", "-type", "f").stdout.split()
    assert set(kept) == {"/etc/onesync/p.toml", "/etc/onesync/p.token"}
    assert (node.work / "last").read_bytes() == b"1"
    assert (node.project / "last").read_bytes() == b"1"


def test_a_removal_is_refused_where_the_flush_does_not_end(node: Node) -> None:
    impatient = "[undeploy]\nflush_retry_seconds = 2\n"
    node.deploy(CONFIGURATION.replace("= 10", "= 1") + impatient)
    node.hang()
    (node.work / "late").write_bytes(b"precious")
    done = node.apt("remove", "onesync")
    assert done.returncode != 0
    assert re.search(r"onesync: p is still deployed .* ONESYNC_ABANDON=1", done.stderr), done.stderr
    node.release()
    node.wait_for(lambda: node.is_active(), "the deployment to go on")
    node.wait_for((node.project / "late").exists, "what was not flushed")
    done = node.apt("remove", "onesync")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not locked(node)


def test_a_deployment_of_a_daemon_that_is_down_is_given_up_by_order_alone(node: Node) -> None:
    node.deploy()
    (node.work / "late").write_bytes(b"precious")
    node.run("onesync", "handover", "--instance", "p", check=True)
    node.wait_for(lambda: node.show("ActiveState") == "inactive", "the daemon to leave")
    assert deployments(node) == ["p"]
    done = node.apt("purge", "onesync")
    assert done.returncode != 0
    assert "onesync: p is still deployed on this node" in done.stderr
    done = node.apt("purge", "onesync", ONESYNC_ABANDON="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert node.run("test", "-e", "/var/lib/onesync/p/index.sqlite").returncode == 0
    assert locked(node)
    node.install(package())
    node.run("systemctl", "start", UNIT, check=True)
    node.run("systemctl", "stop", UNIT, check=True)
    assert (node.project / "late").read_bytes() == b"precious"
    assert deployments(node) == []
    assert not locked(node)


def test_every_bundled_package_is_in_the_copyright_file() -> None:
    place = REPOSITORY / "packaging" / "debian"
    told = (place / "copyright").read_text()
    named = {
        word for line in re.findall(r"^Files: (.*(?:\n .*)*)", told, re.M) for word in line.split()
    }
    bundled = {
        line.partition("==")[0]
        for lock in place.glob("requirements-*.txt")
        for line in lock.read_text().splitlines()
        if "==" in line
    }
    assert named - {"*"} == bundled
