"""A node made of the package alone: an image with a TOML file, a token and a 'systemctl enable'."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from onesync.core.model import STATUS_FOLDER
from tests.systemd.container import PYTHON, TOKEN, Container, debian
from tests.systemd.nspawn import REPOSITORY, UNIT
from tests.systemd.packaged import install, package

pytestmark = [pytest.mark.systemd, pytest.mark.node, pytest.mark.timeout(600)]

STATUS = os.fsdecode(STATUS_FOLDER)
PROBE = "/opt/checkout/tests/systemd/probe.py"
FORBIDDEN = {
    "ProtectSystem": "EROFS",
    "ProtectSystem beside the working directory": "EROFS",
    "ProtectHome": "EACCES",
    "PrivateTmp": "ENOENT",
    "PrivateDevices": "ENOENT",
    "ProtectProc": "ENOENT",
    "ProtectControlGroups": "EROFS",
    "ProtectKernelLogs": "EACCES",
    "ProtectKernelModules": "EACCES",
    "ProtectKernelTunables": "EROFS",
    "RestrictAddressFamilies": "EAFNOSUPPORT",
    "MemoryDenyWriteExecute": "EPERM",
    "RestrictRealtime": "EPERM",
    "RestrictSUIDSGID": "EPERM",
    "LockPersonality": "EPERM",
    "SystemCallFilter @system-service": "EPERM",
    "SystemCallFilter @privileged": "EPERM",
    "SystemCallFilter @resources": "EPERM",
    "SystemCallArchitectures": "EPERM",
    "RestrictNamespaces": "EPERM",
}
# A node in a container cannot try these itself: systemd must at least have taken them.
TAKEN = {
    "DevicePolicy": "closed",
    "ProtectClock": "yes",
}
# By tests of their own, or beside those above: what is no attempt that fails.
ELSEWHERE = {
    *("CapabilityBoundingSet", "NoNewPrivileges", "IPAddressDeny", "IPAddressAllow"),
    *("UMask", "PrivateIPC", "ProtectHostname", "SystemCallErrorNumber"),
}
README = (REPOSITORY / "README.md").read_text()
# Its programs take their time to end: what onesync needs at its own end must be there until then.
WORKLOAD = """
trap 'sleep 1; echo late > late; exit 0' TERM
umask 077
cp before copied
while :; do sleep 0.1 & wait $!; done
"""


def configuration(name: str, user: str, more: str = "") -> str:
    """Return an instance's configuration, on a mount of its own."""
    return f"""
user = "{user}"
working_dir = "/srv/work/{name}"
onedata_dir = "/mnt/onedata/{name}/{name}"
[oneclient]
host = "provider.test"
mount_point = "/mnt/onedata/{name}"
options = ["--space", "lab"]
[mount]
io_timeout_seconds = 10
[batch]
settle_seconds = 0.1
min_interval_seconds = 0.1
[lock]
settle_seconds = 0
{more}
"""


def add(node: Container, name: str, user: str, more: str = "") -> Path:
    """Put an instance into the image, as a builder does; returns its folder at the provider."""
    (node.home / "etc" / f"{name}.toml").write_text(configuration(name, user, more))
    node.put_token(TOKEN, name)
    folder = node.backing / name
    folder.mkdir(exist_ok=True)
    os.chown(folder, node.users[user], node.users[user])
    return folder


@pytest.fixture(scope="module")
def installed() -> Iterator[Path]:
    """Return a Debian with the package and the workload's user, and nothing more of ours."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as home:  # too large for what pytest keeps
        place = Path(home, "root")
        subprocess.run(["cp", "-a", debian(), place], check=True)
        install(place)
        subprocess.run(["useradd", "--root", place, "--create-home", "scipion"], check=True)
        yield place


def image(home: Path, installed: Path, provider: Path | None = None) -> Container:
    """Return a node that deploys p by itself, for scipion; nothing is made but its two files."""
    node = Container(home, user="scipion", provider=provider, image=installed)
    os.chown(node.work, 0, 0)  # as /srv/work is where somebody makes it
    add(node, "p", "scipion")
    (node.home / "etc" / "workload").write_text(WORKLOAD)
    examples = installed / "usr/share/doc/onesync/examples"
    text = (examples / "scipion.service.example").read_text()
    text = text.replace("onesync@project", "onesync@p").replace("/work/project", "/work/p")
    text = re.sub("ExecStart=.*", "ExecStart=/bin/sh /etc/onesync/workload", text)
    (node.units / "scipion.service").write_text(text)
    place = node.units / "onesync@p.service.d"
    place.mkdir()
    shutil.copy(examples / "workload.conf.example", place / "workload.conf")
    return node


def state(node: Container, unit: str = "onesync@p.service") -> str:
    return node.show("ActiveState", unit)


def as_user(node: Container, user: str, *command: str) -> subprocess.CompletedProcess[str]:
    words = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
    return node.run(*words, *command)


def write(node: Container, name: str, place: str = "/srv/work/p", user: str = "scipion") -> None:
    """Let the workload write a file."""
    assert as_user(node, user, "sh", "-c", f"echo 1 > {place}/{name}").returncode == 0


def client(node: Container) -> str:
    """Return the process of oneclient itself."""
    main = node.show("MainPID", "oneclient@p.service")
    return node.run("cat", f"/proc/{main}/task/{main}/children").stdout.strip()


def processes(node: Container) -> list[str]:
    """Return the processes of onesync@p: the daemon and who talks to the mount."""
    control = node.show("ControlGroup")
    found = node.run("cat", f"/sys/fs/cgroup/systemd{control}/cgroup.procs").stdout.split()
    assert len(found) >= 2
    return found


def group_of(node: Container, unit: str = UNIT) -> str:
    """Return where the kernel shows the unit's control group."""
    groups = "/sys/fs/cgroup/unified", "/sys/fs/cgroup"
    root = next(
        path for path in groups if node.run("test", "-e", f"{path}/cgroup.procs").returncode == 0
    )
    return root + node.show("ControlGroup", unit)


def reached(node: Container, unit: str) -> list[str]:
    """Return which addresses a process of the unit reaches."""
    script = "/opt/checkout/tests/systemd/reach.py"
    done = node.run(PYTHON, script, group_of(node, unit), check=True)
    return [address for address, is_reached in json.loads(done.stdout).items() if is_reached]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, installed: Path) -> Iterator[Container]:
    """One that runs two instances, p for scipion and q for the unit's own user."""
    made = image(tmp_path_factory.mktemp("node") / "node", installed)
    (made.backing / "p" / "before").write_text("0")
    (made.home / "etc" / "broken.toml").write_text("user = ")
    add(made, "q", "onesync", '[metrics]\nlisten = "127.0.0.1:9822"\n')
    made.enable("onesync@p.service", "onesync@q.service", "scipion.service")
    with made:
        for unit in ("onesync@p.service", "onesync@q.service", "scipion.service"):
            made.wait_for(lambda unit=unit: state(made, unit) == "active", unit)
        yield made


def test_a_file_and_an_enable_deploy_at_boot_before_the_workload(node: Container) -> None:
    folder = node.backing / "p"
    node.wait_for((folder / "copied").exists, "what the workload made of what it found")
    assert (folder / "copied").read_text() == "0"
    owner = (node.work / "p").stat()
    assert (owner.st_uid, owner.st_mode & 0o777) == (node.users["scipion"], 0o755)
    assert (node.work / "p" / "before").stat().st_uid == node.users["scipion"]
    assert (node.work / "p" / "copied").stat().st_mode & 0o777 == 0o600
    assert node.show("NRestarts") == "0"
    node.wait_for(lambda: state(node, "onesync.target") == "active", "what stands for all of them")
    program = node.run("cat", f"/proc/{node.show('MainPID')}/cmdline").stdout
    assert program.startswith("/usr/lib/onesync/bin/python3\0-I\0/usr/bin/onesync"), "the package's"
    # Of the broken one beside them the generator told before there was a log, and made none.
    assert node.run("test", "-e", "/dev/kmsg").returncode == 1


def test_two_instances_keep_to_themselves(node: Container) -> None:
    write(node, "of-p")
    write(node, "of-q", "/srv/work/q", "onesync")
    for name, other in (("p", "q"), ("q", "p")):
        node.wait_for((node.backing / name / f"of-{name}").exists, name)
        assert not (node.backing / other / f"of-{name}").exists()
        assert as_user(node, "onesync", "ls", "/mnt/onedata/q").returncode == 0
    assert as_user(node, "onesync", "ls", "/mnt/onedata/p").returncode != 0, "FUSE's own rule"
    assert "onesync_folder_info" in node.fetch("http://127.0.0.1:9821/metrics")
    assert "onesync_folder_info" in node.fetch("http://127.0.0.1:9822/metrics")


def test_the_units_are_in_order_and_the_sandbox_scores(node: Container) -> None:
    units = ["onesync@p.service", "oneclient@p.service", "onesync-prepare@p.service"]
    units += ["onesync.target", "scipion.service"]
    checked = node.run("systemd-analyze", "verify", "--man=no", *units)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    for unit in ("onesync@p.service", "onesync@q.service"):
        scored = node.run("systemd-analyze", "security", "--threshold=15", "--no-pager", unit)
        assert scored.returncode == 0, scored.stdout
    assert node.show("OOMPolicy") == node.show("OOMPolicy", units[1]) == "continue"
    assert node.show("TimeoutStartUSec", units[2]) == "2min", "what a oneshot has none of"


def test_every_process_of_the_daemon_is_stripped(node: Container) -> None:
    for process in processes(node):
        lines = node.run("cat", f"/proc/{process}/status").stdout.splitlines()
        told = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        assert told["Uid"] == [str(node.users["scipion"])] * 4
        assert told["Groups"] in ([], [str(node.users["scipion"])])
        assert all(int(told[key][0], 16) == 0 for key in ("CapEff", "CapPrm", "CapBnd", "CapAmb"))
        assert (told["NoNewPrivs"], told["Seccomp"]) == (["1"], ["2"])


def test_the_workload_comes_first(node: Container) -> None:
    for process in processes(node):
        fields = node.run("cat", f"/proc/{process}/stat").stdout.rpartition(")")[2].split()
        assert (int(fields[16]), int(fields[38])) == (10, os.SCHED_BATCH)
        assert node.run("ionice", "-p", process).stdout.strip() == "best-effort: prio 7"
    assert (node.show("CPUWeight"), node.show("IOWeight")) == ("10", "10")


def test_what_is_forbidden_fails_in_the_sandbox_and_nowhere_else(node: Container) -> None:
    node.run("install", "-d", "-o", "scipion", "/home/scipion", check=True)
    node.run("touch", "/tmp/of-the-node", check=True)
    node.run("mkdir", "-p", "/usr/lib/modules", check=True)
    words = (PYTHON, PROBE, "/srv/work/p", group_of(node))
    node.drop_in(f"[Service]\nExecReload=\nExecReload={' '.join(words)}\n")
    node.systemctl("daemon-reload")
    node.systemctl("reload", "onesync@p.service")
    (line,) = [line for line in node.journal().splitlines() if '"ProtectSystem"' in line]
    inside = json.loads(line[line.index("{") :])
    outside = [
        json.loads(done.stdout) for done in (node.run(*words), as_user(node, "scipion", *words))
    ]
    assert inside.pop("the working directory") == "done"
    assert inside.pop("umask") == "0o77"
    for space in ("ipc", "uts"):
        assert inside.pop(space) not in [found[space] for found in outside]
    if (
        inside["MemoryDenyWriteExecute"] == "EACCES"
    ):  # the kernel's own, which Debian 13 asks for it
        inside["MemoryDenyWriteExecute"] = "EPERM"
    assert inside == FORBIDDEN
    assert {name: node.show(name) for name in TAKEN} == TAKEN
    unit = node.run("cat", node.show("FragmentPath"), check=True).stdout
    lines = unit.partition("# What it may do")[2].partition("[Install]")[0].splitlines()
    names = {line.partition("=")[0] for line in lines[1:] if line[:1] not in ("#", "")}
    tried = {name.partition(" ")[0] for name in FORBIDDEN} | set(TAKEN) | ELSEWHERE
    assert names == tried, "each line is known to work"
    free = {name for name in FORBIDDEN if "done" in [found[name] for found in outside]}
    assert free == set(FORBIDDEN), "what fails everywhere proves nothing"


def test_the_daemon_reaches_the_loopback_alone(node: Container) -> None:
    assert reached(node, "oneclient@p.service") == ["127.0.0.1", "10.1.1.1"], "who must"
    assert reached(node, "onesync@p.service") == ["127.0.0.1"]


def test_the_token_is_nowhere_but_with_oneclient(node: Container) -> None:
    shown = node.run("systemctl", "show", "oneclient@p.service", "onesync@p.service").stdout
    environment = f"/proc/{client(node)}/environ"
    assert TOKEN in node.run("cat", environment).stdout, "where it must be"
    places = {
        "ps": node.run("ps", "axww").stdout,
        "systemctl": shown,
        "journal": node.run("journalctl", "--no-pager", "-o", "export").stdout,
        "argv": node.run("sh", "-c", "cat /proc/[0-9]*/cmdline").stdout,
        "the daemon": node.run("cat", f"/proc/{node.show('MainPID')}/environ").stdout,
        "the launcher": node.run(
            "cat", f"/proc/{node.show('MainPID', 'oneclient@p.service')}/environ"
        ).stdout,
    }
    assert all(places.values()), places.keys()
    assert [place for place, text in places.items() if TOKEN in text] == []
    credential = "/run/credentials/oneclient@p.service/token"
    for path in (environment, credential, "/etc/onesync/p.token"):
        assert TOKEN not in as_user(node, "onesync", "cat", path).stdout, path
    assert TOKEN in as_user(node, "scipion", "cat", credential).stdout
    inside = ("nsenter", "-t", node.show("MainPID"), "-m", "cat", credential)
    assert TOKEN not in node.run(*inside).stdout


def test_root_and_the_user_may_ask_and_nobody_else(node: Container) -> None:
    words = ("onesync", "status", "--instance", "p", "--json")
    assert json.loads(node.run(*words).stdout)["phase"] == "syncing"
    assert json.loads(as_user(node, "scipion", *words).stdout)["phase"] == "syncing"
    assert "syncing" not in as_user(node, "nobody", *words).stdout
    # Root, whom the mount lets in no more than others, looks as its user.
    examined = node.run("onesync", "doctor", "--instance", "p", "--json")
    checks = {check["name"]: check for check in json.loads(examined.stdout)["checks"]}
    assert checks["mount"]["verdict"] == checks["probe.write"]["verdict"] == "ok", checks
    verified = node.run("onesync", "verify", "--instance", "p")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_oneclient_that_died_comes_back_under_a_running_onesync(node: Container) -> None:
    daemon, died = node.show("MainPID"), client(node)
    node.run("kill", "-KILL", died, check=True)
    write(node, "while-it-was-dead")
    node.wait_for((node.backing / "p" / "while-it-was-dead").exists, "the mount")
    assert client(node) != died
    assert (node.show("MainPID"), node.show("NRestarts")) == (daemon, "0")
    assert "oneclient ended by signal 9" in node.journal("oneclient@p.service")


def test_a_daemon_that_dies_leaves_the_workload_alone(node: Container) -> None:
    put_drop_in(node, UNIT, "[Service]\nRestartSec=0.1\n")
    daemon, workload = node.show("MainPID"), node.show("MainPID", "scipion.service")
    node.run("kill", "-KILL", daemon, check=True)
    write(node, "while-it-was-down")
    node.wait_for((node.backing / "p" / "while-it-was-down").exists, "the next life")
    node.wait_for(lambda: state(node) == "active", "the deployment to go on")
    assert node.show("MainPID") != daemon
    assert node.show("MainPID", "scipion.service") == workload != "0"
    put_drop_in(node, UNIT, "")
    node.systemctl("reset-failed", UNIT)  # what counts its restarts


def test_an_upgrade_leaves_oneclient_and_the_workload_alone(node: Container) -> None:
    shutil.copy(package(), node.home / "etc" / "onesync.deb")
    stay = client(node), node.show("MainPID", "scipion.service")
    daemons = [node.show("MainPID", f"onesync@{name}.service") for name in ("p", "q")]
    write(node, "before-the-upgrade")
    # What is mounted at /etc/onesync here cannot be written: dpkg sees a copy.
    steps = (
        "cp -r /etc/onesync /run/etc; mount --bind /run/etc /etc/onesync; dpkg -i /run/etc/*.deb"
    )
    node.run("unshare", "--mount", "sh", "-ec", steps, check=True)
    write(node, "after-the-upgrade")
    for name, daemon in zip(("p", "q"), daemons, strict=True):
        unit = f"onesync@{name}.service"
        node.wait_for(lambda unit=unit: state(node, unit) == "active", "the new program")
        assert node.show("MainPID", unit) != daemon
    assert (client(node), node.show("MainPID", "scipion.service")) == stay
    node.wait_for((node.backing / "p" / "after-the-upgrade").exists, "the push")
    assert (node.backing / "p" / "before-the-upgrade").exists()


def test_a_restart_ends_the_workload_before_the_flush(node: Container) -> None:
    node.systemctl("restart", UNIT)
    assert (node.work / "p" / "late").read_text() == "late\n"
    assert (node.backing / "p" / "late").exists(), "flushed after the workload's end"
    node.wait_for(lambda: state(node, "scipion.service") == "active", "the workload's next start")
    node.systemctl("stop", UNIT)
    assert state(node, "scipion.service") == "inactive"
    node.run("systemctl", "mask", "--runtime", UNIT, check=True)
    node.systemctl("start", "scipion.service")
    assert state(node, "scipion.service") == "inactive", "nothing is deployed"
    node.systemctl("unmask", "--runtime", UNIT)
    node.systemctl("start", UNIT, "scipion.service")


def test_what_is_made_lies_on_the_disk_of_the_working_copy(node: Container) -> None:
    folder = add(node, "d", "scipion", '[metrics]\nlisten = "127.0.0.1:9824"\n')
    place = node.home / "etc" / "d.toml"
    place.write_text(place.read_text().replace("/srv/work/d", "/srv/disk/work/d"))
    late = "[Service]\nType=oneshot\nExecStart=/bin/sleep 2\n"
    (node.units / "late.service").write_text(late)
    disk = "[Unit]\nRequires=late.service\nAfter=late.service\n"
    disk += "[Mount]\nWhat=tmpfs\nWhere=/srv/disk\nType=tmpfs\nOptions=mode=755\n"
    (node.units / "srv-disk.mount").write_text(disk)
    node.systemctl("daemon-reload")
    unit = "onesync@d.service"
    node.systemctl("start", unit)
    write(node, "on-the-disk", "/srv/disk/work/d")
    node.wait_for((folder / "on-the-disk").exists, "the push")
    node.systemctl("stop", unit, "oneclient@d.service")


def drop_in(about: str) -> str:
    """Return what the README puts into a drop-in for ``about``."""
    found = re.search(r"(?:^ {6}\S.*\n)+", README[README.index(f"**{about}") :], re.MULTILINE)
    assert found is not None
    return dedent(found[0])


def put_drop_in(node: Container, unit: str, text: str) -> None:
    """Change a unit as 'systemctl edit' does, until the next boot."""
    node.run("mkdir", "-p", f"/run/systemd/system/{unit}.d", check=True)
    node.run("tee", f"/run/systemd/system/{unit}.d/edited.conf", text=text, check=True)
    node.systemctl("daemon-reload")


def test_the_drop_ins_of_the_readme_do_what_it_says(node: Container) -> None:
    longer = drop_in("A flush at shutdown that takes longer")
    for target in ("poweroff.target", "reboot.target"):
        assert node.show("JobTimeoutUSec", target) == "30min"
        put_drop_in(node, target, longer)
        assert node.show("JobTimeoutUSec", target) == "6h"
    put_drop_in(node, "scipion.service", drop_in("A workload that is to start again"))
    first = node.show("MainPID", "scipion.service")
    node.run("kill", "-KILL", first, check=True)
    node.wait_for(lambda: node.show("MainPID", "scipion.service") not in ("0", first), "the next")
    put_drop_in(node, "scipion.service", "")


def test_a_token_is_changed_under_a_running_onesync(node: Container) -> None:
    daemon = node.show("MainPID")
    (node.provider / "token").write_text("renewed")
    assert node.run("systemctl", "restart", "oneclient@p.service").returncode != 0
    write(node, "while-the-token-was-wrong")
    told = node.journal("oneclient@p.service")
    assert "authentication error: invalid token" in told
    assert "A token that is wrong or has expired is mended in /etc/onesync/p.token" in told
    assert node.show("RestartUSec", "oneclient@p.service") == "10s", "the provider is not stormed"
    assert state(node) == "active"
    node.put_token("renewed")
    node.wait_for((node.backing / "p" / "while-the-token-was-wrong").exists, "the next try")
    (node.provider / "token").write_text(TOKEN)
    node.put_token(TOKEN)
    node.systemctl("restart", "oneclient@p.service")
    write(node, "after")
    node.wait_for((node.backing / "p" / "after").exists, "the push over the new mount")
    assert (node.show("MainPID"), node.show("NRestarts")) == (daemon, "0")
    assert "lazy unmount" not in node.journal("oneclient@p.service"), "SIGTERM is not oneclient's"


def refused(node: Container, name: str, code: str = "78") -> str:
    """Start an instance that must not start; returns what its unit's journal says."""
    unit = f"onesync@{name}.service"
    assert node.run("systemctl", "start", unit).returncode != 0
    assert node.show("ExecMainStatus", unit) == code, node.journal(unit)
    told = node.journal(unit)
    node.run("systemctl", "stop", unit, f"oneclient@{name}.service")
    return told


def test_a_user_that_does_not_fit_is_refused_with_a_sentence(node: Container) -> None:
    mounted = '[oneclient]\nhost = "provider.test"\nmount_point = "/mnt/onedata/r"'
    bare = (
        configuration("r", "onesync")
        .replace(mounted, "")
        .replace('options = ["--space", "lab"]', "")
    )
    place = node.home / "etc" / "r.toml"
    node.run("install", "-d", "-o", "onesync", "/srv/work/r", check=True)

    def told(text: str, *, code: str = "78", is_reloaded: bool = True) -> str:
        place.write_text(text)
        if is_reloaded:
            node.systemctl("daemon-reload")
        return refused(node, "r", code)

    assert "the user ghost does not exist; nothing was changed. Make him" in told(
        bare.replace('"onesync"', '"ghost"'), code="217"
    )
    assert "the user ghost does not exist" in node.run(
        "onesync", "check", "--instance", "r"
    ).stderr.replace("The", "the")
    place.write_text(bare)
    node.systemctl("daemon-reload")
    assert "says that onesync runs as scipion, but it runs as onesync" in told(
        bare.replace('user = "onesync"', 'user = "scipion"'), is_reloaded=False
    )
    assert "cannot be read and written by onesync, as whom onesync runs" in told(
        bare.replace("/srv/work/r", "/srv/work/p")
    )
    scipion, onesync = node.users["scipion"], node.users["onesync"]
    assert f"is the user {scipion}'s and lets nobody else in, also not {onesync}" in told(
        bare.replace("/mnt/onedata/r/r", "/mnt/onedata/p/p")
    )
    assert "/etc/onesync/r.toml is not TOML" in told("user = ")
    place.unlink()
    node.systemctl("daemon-reload")


def test_systemd_says_that_a_configuration_is_newer_than_what_it_knows(node: Container) -> None:
    assert node.show("NeedDaemonReload") == "no"
    (node.home / "etc" / "p.toml").touch()
    assert node.show("NeedDaemonReload") == "yes"
    node.systemctl("daemon-reload")
    assert node.show("NeedDaemonReload") == "no"


def test_a_working_copy_at_home_and_metrics_for_others_open_just_that(node: Container) -> None:
    node.run("install", "-d", "-o", "scipion", "/home/scipion", "/home/scipion/h", check=True)
    node.run("install", "-d", "-m", "777", "/home/other", check=True)
    folder = add(node, "h", "scipion", '[metrics]\nlisten = "0.0.0.0:9823"\n')
    place = node.home / "etc" / "h.toml"
    place.write_text(place.read_text().replace("/srv/work/h", "/home/scipion/h"))
    node.systemctl("daemon-reload")
    unit = "onesync@h.service"
    node.systemctl("start", unit)
    write(node, "at-home", "/home/scipion/h")
    node.wait_for((folder / "at-home").exists, "the push")
    tried = node.run("nsenter", "-t", node.show("MainPID", unit), "-m", "touch", "/home/other/x")
    assert "Read-only file system" in tried.stderr
    assert reached(node, unit) == ["127.0.0.1", "10.1.1.1"]
    assert node.show("ProtectHome", unit) == "read-only"
    assert node.run("systemd-analyze", "security", "--threshold=15", unit).returncode == 0
    node.systemctl("stop", unit, "oneclient@h.service")
    assert not (folder / STATUS / "lock").exists()
    assert "h" not in os.listdir(node.backing / "h")


def test_a_token_that_comes_after_the_boot_is_waited_for(tmp_path: Path, installed: Path) -> None:
    node = image(tmp_path / "node", installed)
    (node.backing / "p" / "before").write_text("0")
    (node.home / "etc" / "p.token").unlink()  # an image has none
    node.enable("onesync@p.service", "scipion.service")
    with node:
        tried = "onesync@p.service: Failed with result"
        node.wait_for(lambda: tried in node.journal(), "a try without the token")
        assert "/etc/onesync/p.token is not there, so OneData cannot be mounted" in node.journal()
        node.wait_for(lambda: node.show("NRestarts") not in ("0", "1"), "two tries more")
        assert state(node, "scipion.service") == "inactive", "nothing is deployed yet"
        assert not os.listdir(node.work / "p")
        node.put_token(TOKEN)
        node.wait_for((node.backing / "p" / "copied").exists, "the workload's first file")
        assert state(node) == "active"


def test_a_stop_gives_another_node_everything(tmp_path: Path, installed: Path) -> None:
    first = image(tmp_path / "first", installed)
    (first.backing / "p" / "before").write_text("0")
    first.enable("onesync@p.service", "scipion.service")
    with first:
        first.wait_for(lambda: state(first, "scipion.service") == "active", "the workload")
        as_user(first, "scipion", "ln", "-s", "before", "/srv/work/p/link")
        write(first, "precious")
        first.systemctl("stop", "onesync@p.service")
        assert (first.show("Result"), state(first, "scipion.service")) == ("success", "inactive")
        second = image(tmp_path / "second", installed, first.provider)
        second.enable("onesync@p.service")
        with second:
            second.wait_for(lambda: state(second) == "active", "the other node's deployment")
            work = second.work / "p"
            assert {path.name: path.read_text() for path in work.iterdir()} == {
                "before": "0",
                "copied": "0",
                "link": "0",
                "late": "late\n",
                "precious": "1\n",
            }
            assert os.readlink(work / "link") == "before"
            copied = (work / "copied").stat()
            assert (copied.st_mode & 0o777, copied.st_uid) == (0o600, second.users["scipion"])
            assert first.run("systemctl", "start", "onesync@p.service").returncode != 0
            assert first.show("ExecMainStatus") == "11", "it is the other node's"
            second.systemctl("stop", "onesync.target")
            for unit in ("onesync@p.service", "oneclient@p.service", "onesync.target"):
                second.wait_for(lambda unit=unit: state(second, unit) == "inactive", unit)
            assert not (second.backing / "p" / STATUS / "lock").exists()
            assert second.run("ls", "-A", "/mnt/onedata/p").stdout == "", "unmounted"


def test_a_reboot_keeps_what_a_power_off_undeploys_and_all_goes_in_order(
    tmp_path: Path, installed: Path
) -> None:
    node = image(tmp_path / "node", installed)
    folder = node.backing / "p"
    (folder / "before").write_text("0")
    place = node.home / "etc" / "p.toml"
    text = place.read_text().replace("io_timeout_seconds = 10", "io_timeout_seconds = 1")
    place.write_text(text + "[undeploy]\nflush_retry_seconds = 2\n")
    node.enable("onesync@p.service", "scipion.service")
    with node:
        node.wait_for((folder / "copied").exists, "the workload's first file")
        node.weather("read_only", mount="p", on=True)
        write(node, "backlog")
        node.run("systemctl", "reboot")
        node.wait_for_reboot()
        assert any("The final flush could not finish" in line for line in node.last_journal())
        assert (folder / STATUS / "lock").exists(), "kept"
        node.wait_for((folder / "backlog").exists, "the backlog")
        assert sorted(os.listdir(folder / STATUS / "epochs")) == ["000001", "000002"], "resumed"
        node.wait_for(lambda: state(node, "scipion.service") == "active", "the workload")
        write(node, "last")
        node.run("systemctl", "poweroff")
        node.wait_for_power_off()
    assert {"last", "late"} <= set(os.listdir(folder))
    assert not (folder / STATUS / "lock").exists()
    told = node.last_journal()
    order = [
        "Stopped scipion.service",
        "undeployed",
        "Stopped onesync@p.service",
        "Stopping oneclient@p.service",
        "Stopped oneclient@p.service",
        "Stopped target network-online.target",
    ]
    places = [last_of(told, start) for start in order]
    assert places == sorted(places)


def last_of(lines: list[str], start: str) -> int:
    """Return where the last line is that starts so."""
    return max(number for number, line in enumerate(lines) if line.startswith(start))
