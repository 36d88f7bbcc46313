"""A folder of West-Life's scripts on a node with real cron and rsync, on a mount of its user's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.systemd.nspawn import UNIT
from tests.systemd.packaged import CONFIGURATION, Node, package

pytestmark = [pytest.mark.node, pytest.mark.timeout(400)]

STATUS = os.fsdecode(STATUS_FOLDER)
# Nobody else may enter it, root neither.
MOUNT = """
[Service]
User=scipion
ExecStart=/usr/local/bin/passthrough /srv/backing /srv/control /mnt/onedata -f
ExecStartPost=/bin/sh -c 'until mountpoint -q /mnt/onedata; do sleep 0.05; done'
"""
# Both as theirs do it, without their checks.
STAGE_IN = f"""#!/bin/sh -e
cd /mnt/onedata/project
mkdir -p {STATUS}
cat > {STATUS}/lock <<END
HOST:$(hostname)
MOUNT:/mnt/onedata
DIR:/srv/work
USER:scipion
DATE:2026-11-01
END
rsync --recursive --perms --times ./ /srv/work/
"""
PUSH = f"""#!/bin/sh
[ -n "$ONEDATA_NOT_BROKEN_ANYMORE" ] || exit 0
find /srv/work -type l -printf '"%h" "%f" "%l"\\n' > /srv/work/{STATUS}/linklist
rsync --recursive --perms --times --delete /srv/work/ /mnt/onedata/project/
echo pushed >> /tmp/pushes
"""
CRONTAB = """ONEDATA_NOT_BROKEN_ANYMORE=yes
*/30 * * * * /opt/onedata/working-to-onedata >/dev/null 2>&1
@reboot /opt/onedata/working-to-onedata >/dev/null 2>&1
@reboot echo ran >> /tmp/cron
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path) as made:
        # A container's own, which a unit with a /proc of its own does not see: as on another boot.
        made.run("umount", "/proc/sys/kernel/random/boot_id", check=True)
        made.install(package())
        yield made


def as_user(node: Node, *command: str) -> str:
    words = ("setpriv", "--reuid=scipion", "--regid=scipion", "--clear-groups")
    return node.run(*words, *command, check=True).stdout


def count(node: Node, path: str) -> int:
    return len(node.run("cat", path).stdout.splitlines())


def start_cron(node: Node) -> None:
    """Let cron read its crontabs and run what it runs at a boot, and wait for its last line."""
    before = count(node, "/tmp/cron")
    node.run("rm", "-f", "/run/crond.reboot", check=True)
    node.run("systemctl", "restart", "cron.service", check=True)
    node.wait_for(lambda: count(node, "/tmp/cron") > before, "cron")


def deploy_by_scripts(node: Node) -> None:
    """Mount OneData, stage the folder in, and let cron push it."""
    for name, text in (("onedata-to-working", STAGE_IN), ("working-to-onedata", PUSH)):
        node.run("install", "-D", "-m", "755", "/dev/stdin", f"/opt/onedata/{name}", text=text)
    node.run("useradd", "--create-home", "scipion", check=True)
    node.run("install", "-d", "-o", "scipion", "/mnt/onedata", check=True)
    node.run("chown", "-R", "scipion:", "/srv/backing", "/srv/work", check=True)
    node.run("chmod", "666", "/srv/control", check=True)
    node.write("/etc/systemd/system/onedata.service", MOUNT)
    node.write("/etc/onesync/p.toml", f'user = "scipion"\n{CONFIGURATION}')
    node.run("systemctl", "daemon-reload", check=True)
    started = node.run("systemctl", "start", "onedata.service")
    assert started.returncode == 0, node.run("journalctl", "-u", "onedata").stdout
    as_user(node, "/opt/onedata/onedata-to-working")
    as_user(node, "sh", "-c", "mkdir /srv/work/Runs; ln -s ../before '/srv/work/Runs/a link'")
    as_user(node, "sh", "-c", "for n in $(seq 40); do echo $n > /srv/work/Runs/$n; done")
    node.run("crontab", "-u", "scipion", "-", text=CRONTAB, check=True)


def test_it_is_adopted_and_cron_pushes_no_more(node: Node) -> None:
    (node.project / "before").write_bytes(b"1")
    deploy_by_scripts(node)
    start_cron(node)
    node.wait_for(lambda: count(node, "/tmp/pushes") == 1, "their push")
    assert (node.project / "Runs" / "40").read_bytes() == b"40\n"
    adopt = ("onesync", "adopt", "--instance", "p")
    refused = node.run(*adopt)
    assert (refused.returncode, refused.stdout) == (13, "")
    assert "working-to-onedata" in refused.stderr
    # Their next push begins just before their job is taken away, and is not over yet.
    as_user(node, "sh", "-c", "for n in $(seq 40); do echo x$n > /srv/work/Runs/$n; done")
    node.slow_down(0.01)
    start_cron(node)
    refused = node.run(*adopt, "--disable-cron")
    assert refused.returncode == 13
    assert "A copy of the predecessors is running as" in refused.stderr
    node.slow_down(0)
    node.wait_for(lambda: count(node, "/tmp/pushes") == 2, "the end of their push")
    as_user(node, "sh", "-c", "echo newer > /srv/work/Runs/1; rm /srv/work/Runs/2")
    adopted = node.run(*adopt)
    assert adopted.returncode == 0, adopted.stderr
    assert "1 files differ and are sent: Runs/1." in adopted.stdout
    assert "1 files and directories are in OneData alone and kept there" in adopted.stdout
    of_root = ("find", "/var/lib/onesync/p", "-user", "root", "-printf", "%f\n")
    assert node.run(*of_root).stdout == "crontab-scipion\n"
    crontab = node.run("crontab", "-u", "scipion", "-l", check=True).stdout
    assert crontab.count("# put out of action by onesync adopt: ") == 2
    inode = (node.work / "Runs" / "40").stat().st_ino
    started = node.run("systemctl", "start", UNIT)
    assert started.returncode == 0, node.journal()
    assert node.run(*of_root).stdout == "crontab-scipion\n", "as StateDirectory= found it"
    start_cron(node)
    assert node.run("onesync", "flush", "--instance", "p").returncode == 3, node.journal()
    assert count(node, "/tmp/pushes") == 2
    assert (node.project / "Runs" / "1").read_bytes() == b"newer\n"
    assert (node.project / "Runs" / "2").read_bytes() == b"x2\n"
    assert (node.project / STATUS / "epochs").exists()
    links = as_user(node, "onesync", "manifest", "links", "--instance", "p")
    assert links == "Runs/a link -> ../before\n"
    assert (node.work / "Runs" / "40").stat().st_ino == inode, "nothing was staged in"
    node.run("systemctl", "stop", UNIT, check=True)
    assert not (node.project / STATUS / "lock").exists()
