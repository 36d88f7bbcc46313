"""What the units are made of beside the daemon: drop-ins, root's part, refusals."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onesync import (
    configuration,
    daemon,
    directories,
    generator,
    instance,
    mount,
    prepare,
    service,
    settings,
    systemd,
)
from onesync.errors import ConfigurationError
from onesync.instance import Instance, Oneclient
from onesync.mounts import Mounted, is_mount_point, mount_of

ROOT = Path(__file__).parents[1]
PLAIN = Instance("p", "scipion", "/srv/work/p", "/mnt/onedata/p/space/p", (), "", 120.0, None)


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "etc"
    place.mkdir()
    for module in (instance, generator):
        monkeypatch.setattr(module, "CONFIGURATIONS", str(place))
    return place


def test_the_drop_in_opens_what_the_configuration_needs_and_no_more(etc: Path) -> None:
    assert generator.onesync_lines(PLAIN) == [
        "[Unit]",
        f"SourcePath={etc}/p.toml",
        'RequiresMountsFor="/srv/work/p"',
        "After=mnt-onedata-p-space-p.mount",
        "After=mnt-onedata-p-space.mount",
        "After=mnt-onedata-p.mount",
        "After=mnt-onedata.mount",
        "After=mnt.mount",
        "[Service]",
        "User=scipion",
        'ReadWritePaths="-/srv/work"',
        'ReadWritePaths="-/mnt"',
    ]
    client = Oneclient("h", "/mnt/onedata/p", ())
    mounted = generator.onesync_lines(replace(PLAIN, oneclient=client))
    assert "Wants=oneclient@p.service" in mounted
    assert 'ReadWritePaths="-/mnt/onedata"' in mounted
    assert 'ReadWritePaths="-/mnt"' not in mounted
    assert not [line for line in mounted if line.startswith("After=")], "the unit's own"
    more = replace(PLAIN, paths=("/var/prom",), working_dir="/home/ada/p", listen="0.0.0.0:1")
    lines = generator.onesync_lines(more)
    assert {'ReadWritePaths="-/var/prom"', "ProtectHome=read-only", "IPAddressAllow=any"} < set(
        lines
    )
    for listen in ("127.0.0.1:9821", "[::1]:9821", "localhost:1"):
        assert "IPAddressAllow=any" not in generator.onesync_lines(replace(PLAIN, listen=listen))
    top = generator.onesync_lines(replace(PLAIN, working_dir="/scratch"))
    assert 'ReadWritePaths="-/scratch"' in top, "never all of the node"


def test_nothing_is_made_or_mounted_before_its_disk_is_there(etc: Path) -> None:
    mounted = replace(PLAIN, oneclient=Oneclient("h", "/data/onedata/p", ()))
    source = f"SourcePath={etc}/p.toml"
    work, above = 'RequiresMountsFor="/srv/work/p"', 'RequiresMountsFor="/data/onedata"'
    assert generator.prepare_lines(mounted) == ["[Unit]", source, work, above, "[Service]"], "root"
    assert generator.prepare_lines(PLAIN) == ["[Unit]", source, work, "[Service]"]
    user = "User=scipion"
    assert generator.oneclient_lines(mounted) == ["[Unit]", source, above, "[Service]", user]


def test_what_the_file_names_is_on_its_disk_before_it_starts_and_until_it_has_ended(
    etc: Path,
) -> None:
    """On a nofail or _netdev disk nothing else orders them, at boot and at shutdown."""
    (etc / "p.toml").write_text(
        'working_dir = "/srv/p"\nonedata_dir = "/mnt/o/p/p"\nstate_dir = "/data/state"\n'
        'runtime_dir = "/run/p"\n[metrics]\ntextfile_dir = "/var/prom"\n'
        '[oneclient]\nhost = "h"\nmount_point = "/mnt/o/p"\n'
    )
    lines = generator.onesync_lines(instance.read("p"))
    needed = [line for line in lines if line.startswith("RequiresMountsFor=")]
    places = ("/srv/p", "/data/state", "/run/p", "/var/prom")
    assert needed == [f'RequiresMountsFor="{place}"' for place in places]


@pytest.mark.parametrize("path", ["/mnt/onedata", "/.x/.y/a-b c/\u00e4%\\", "/a:b_c.d"])
def test_a_mount_has_the_name_that_systemd_gives_it(path: str) -> None:
    words = ["systemd-escape", "--path", "--suffix=mount", path]
    named = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    plain = replace(PLAIN, onedata_dir=path)
    assert f"After={named}" in generator.onesync_lines(plain)


def test_a_path_is_one_word_of_the_unit_file_whatever_is_in_it() -> None:
    assert generator.quoted('/a b/"c"/%d/\\e') == '"/a b/\\"c\\"/%%d/\\\\e"'


def test_one_broken_file_costs_no_other_instance_its_drop_in(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(generator, "tell", lambda unit, text: told.append((unit, text)))
    good = 'working_dir = "/srv/p"\nonedata_dir = "/mnt/p/p"\n'
    (etc / "bad.toml").write_text("user = ")
    (etc / "evil.toml").write_text(good + 'user = "root\\nExecStart=/bin/sh"\n')
    (etc / "worse.toml").write_text('working_dir = "/srv/a\\nUser=root"\nonedata_dir = "/mnt/p"\n')
    (etc / "endless.toml").write_text("a = " + "[" * 5000)
    (etc / "late.toml").write_text(good + f"[mount]\nio_timeout_seconds = 1{'0' * 400}\n")
    (etc / "of people.toml").write_text(good)
    (etc / "good.toml").write_text(good)
    (etc / "onesync.toml.example").write_text(good)
    generator.generate(str(tmp_path / "out"))
    made = sorted(os.listdir(tmp_path / "out"))
    assert made.pop(0) == "multi-user.target.wants"
    units = [f"{unit}@good.service.d" for unit in ("oneclient", "onesync", "onesync-prepare")]
    assert made == sorted(units)
    names = ("bad", "endless", "evil", "late", "worse")
    assert [unit for unit, _ in told] == [f"onesync@{name}.service" for name in names]
    assert "bad.toml is not TOML" in told[0][1]
    text = (tmp_path / "out" / units[1] / "10-instance.conf").read_text()
    assert "User=onesync\n" in text, "the unit's own"
    assert "User=" not in (tmp_path / "out" / units[2] / "10-instance.conf").read_text(), "root's"


def test_a_node_with_an_instance_boots_the_target_and_no_instance_starts_the_others(
    etc: Path, tmp_path: Path
) -> None:
    """As a want of the instance the target would start all that a person has stopped."""
    place = tmp_path / "out"
    generator.generate(str(place))
    assert not place.exists()
    for name in ("p", "q"):
        (etc / f"{name}.toml").write_text('working_dir = "/srv/p"\nonedata_dir = "/mnt/p/p"\n')
    generator.generate(str(place))
    link = place / "multi-user.target.wants" / "onesync.target"
    assert link.readlink().name == "onesync.target"
    unit = (ROOT / "systemd" / "onesync@.service").read_text()
    pulls = [line for line in unit.splitlines() if re.match("Wants|Requires|BindsTo|Upholds", line)]
    assert [line for line in pulls if "onesync.target" in line] == []
    if shutil.which("systemd-analyze") is None:
        return
    # systemd follows it: a target that says something wrong is found by whoever looks at the boot.
    (place / "onesync.target").write_text("[Unit]\nNoSuchKey=1\n")
    (place / "multi-user.target").write_text("[Unit]\nDescription=boot\n")
    found = os.environ | {"SYSTEMD_UNIT_PATH": f"{place}:"}
    words = ["systemd-analyze", "verify", "--man=no", "multi-user.target"]
    told = subprocess.run(words, env=found, capture_output=True, text=True, check=False).stderr
    assert re.search(r"onesync\.target:2: .*NoSuchKey", told), told


def test_a_file_that_others_can_change_is_no_configuration_of_root(
    etc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    for module in (generator, prepare):
        monkeypatch.setattr(module, "tell", lambda _, text: told.append(text))
    monkeypatch.setattr(prepare, "give", lambda path, user: pytest.fail(path))
    file = etc / "p.toml"
    file.write_text('user = "root"\nworking_dir = "/etc/p"\nonedata_dir = "/mnt/p/p"\n')
    file.chmod(0o664)
    generator.generate(str(tmp_path / "out"))
    with pytest.raises(ConfigurationError, match=f"chown root: {file}; chmod go-w {file}"):
        prepare.prepare("p")
    file.chmod(0o644)
    if os.geteuid() == 0:
        os.chown(file, pwd.getpwnam("nobody").pw_uid, -1)
        generator.generate(str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    assert {"can be changed by others than root" in text for text in told} == {True}


@pytest.mark.parametrize(
    ("key", "path", "expected"),
    [
        ("working_dir", "/tmp/work", "one outside of /tmp and /var/tmp, which are emptied"),
        ("onedata_dir", "/var/tmp", "one outside of /tmp"),
        ("working_dir", "//", "a directory further down"),
        ("onedata_dir", "/.", "a directory further down"),
        ("working_dir", "/srv/../etc", "an absolute path without '..'"),
        ("working_dir", "/home", "a directory further down"),
        ("onedata_dir", "/var/lib/", "a directory further down"),
        ("state_dir", "/var/lib", "a directory further down"),
        ("user", "root", "somebody else, for onesync never runs as root"),
    ],
)
def test_what_no_unit_could_serve_is_refused(etc: Path, key: str, path: str, expected: str) -> None:
    places = {"working_dir": "/srv/p", "onedata_dir": "/mnt/p/p", key: path}
    (etc / "p.toml").write_text("".join(f'{name} = "{place}"\n' for name, place in places.items()))
    with pytest.raises(ConfigurationError, match=f"p.toml: {key}: expected {expected}"):
        instance.read("p")


def test_a_path_that_begins_twice_opens_no_more_than_another(etc: Path) -> None:
    (etc / "p.toml").write_text('working_dir = "//srv/work/p"\nonedata_dir = "//mnt/o/p"\n')
    assert generator.writable(instance.read("p")) == ["/srv/work", "/mnt"], "not all of the node"


@pytest.mark.parametrize(
    ("working_dir", "onedata_dir", "opened"),
    [
        ("/srv/work/p", "/home/u/od/p", ["/srv/work", "/home/u"]),
        ("/srv/work/p", "/home/od", ["/srv/work", "/home/od"]),
        ("/srv/work/p", "/var/od/space/p", ["/srv/work", "/var/od"]),
        ("/srv/work/p", "/var/lib/od/p", ["/srv/work", "/var/lib/od"]),
        ("/srv/work/p", "/run/user/1000/od/p", ["/srv/work", "/run/user/1000"]),
        ("/srv/work/p", "/run/media/u/disk/p", ["/srv/work", "/run/media/u"]),
        ("/srv/work/p", "/root/od/p", ["/srv/work", "/root/od"]),
        ("/srv/work/p", "/data/od/p", ["/srv/work", "/data"]),
        ("/var/p", "/mnt/p", ["/var/p", "/mnt"]),
        ("/home/u", "/mnt/p", ["/home/u", "/mnt"]),
        ("/home/u/p", "/mnt/p", ["/home/u", "/mnt"]),
    ],
)
def test_no_directory_of_the_system_and_not_all_homes_are_opened(
    working_dir: str, onedata_dir: str, opened: list[str]
) -> None:
    one = replace(PLAIN, working_dir=working_dir, onedata_dir=onedata_dir)
    assert generator.writable(one) == opened


@pytest.mark.parametrize("point", ["/mnt", "/home/od", "/var/lib/od", "/run/user/od"])
def test_a_mount_point_is_refused_where_what_is_above_must_not_be_opened(
    etc: Path, tmp_path: Path, point: str
) -> None:
    head = f'working_dir = "/srv/p"\nonedata_dir = "{point}/p"\n'
    mounted = f'[oneclient]\nhost = "h"\nmount_point = "{point}"\n'
    (etc / "p.toml").write_text(head + mounted)
    with pytest.raises(ConfigurationError, match="mount_point: expected a directory further down"):
        instance.read("p")
    places = 'state_dir = "/s"\nruntime_dir = "/r"\n'
    (tmp_path / "x.toml").write_text(head + places + mounted)
    with pytest.raises(ConfigurationError, match="mount_point: expected a directory further down"):
        configuration.load(tmp_path / "x.toml", None)


def test_a_unit_that_would_run_as_root_ends_with_78(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no unit, as in a container, whoever runs it decides."""
    monkeypatch.setattr(settings, "CONFIGURATIONS", etc)
    keys = ("working_dir", "onedata_dir", "state_dir", "runtime_dir")
    head = "".join(f'{key} = "/srv/{key}"\n' for key in keys)
    (etc / "p.toml").write_text(f'user = "root"\n{head}')
    monkeypatch.setattr(daemon, "open_log", lambda _: None)
    with pytest.raises(ConfigurationError, match="onesync never runs as root") as refused:
        daemon.run_daemon(lambda: configuration.load(None, "p"), None, "p")
    assert refused.value.code == 78
    assert configuration.load(etc / "p.toml", None).user == "root"


def test_where_no_log_is_there_whoever_started_us_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("JOURNAL", "KERNEL_LOG"):
        monkeypatch.setattr(systemd, name, str(tmp_path / name))
    systemd.tell("onesync@p.service", "a sentence")
    assert capsys.readouterr().err == "<3>onesync: onesync@p.service: a sentence\n"
    assert list(tmp_path.iterdir()) == [], "a file at /dev/kmsg would take all that follows"
    (tmp_path / "KERNEL_LOG").touch()
    systemd.tell("onesync@p.service", "a sentence")
    assert "a sentence" in (tmp_path / "KERNEL_LOG").read_text()


@pytest.mark.parametrize(
    ("jobs", "kind"),
    [
        ("1 reboot.target start waiting\n2 onesync@p.service stop running", "reboot"),
        ("1 kexec.target start waiting", "reboot"),
        ("1 soft-reboot.target start waiting", "reboot"),
        ("1 poweroff.target start waiting", "poweroff"),
        ("1 halt.target start waiting", "poweroff"),
        ("1 onesync@reboot.service stop running", None),
        ("No jobs running.", None),
    ],
)
def test_the_jobs_tell_what_the_machine_is_about_to_do(jobs: str, kind: str | None) -> None:
    assert systemd.kind_of_shutdown(jobs.split()) == kind


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a script stand for systemctl, on a machine that systemd booted."""
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def stand_in(script: str) -> None:
        place = tmp_path / "systemctl"
        place.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        place.chmod(0o755)

    return stand_in


def test_a_loaded_systemd_is_asked_again_what_the_machine_is_about_to_do(
    systemctl: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_JOBS_PAUSE_SECONDS", 0.01)
    systemctl(
        "echo >> asked; [ $(wc -l < asked) -ge 3 ] || exit 1; echo 1 reboot.target start waiting"
    )
    assert systemd.shutdown_job() == "reboot"
    assert (tmp_path / "asked").read_text() == "\n" * 3


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60"])
def test_a_systemd_that_does_not_answer_is_not_taken_for_one_that_has_no_job(
    systemctl: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(systemd, "_JOBS_SECONDS", 0.3)
    systemctl(script)
    with pytest.raises(TimeoutError):
        systemd.shutdown_job()


def test_where_systemd_did_not_boot_the_machine_it_is_not_asked(
    systemctl: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl("echo 1 reboot.target start waiting")
    monkeypatch.setattr(systemd, "BOOTED", str(tmp_path / "nowhere"))
    assert systemd.shutdown_job() is None


@pytest.mark.parametrize(
    ("job", "on_reboot", "on_poweroff", "keeps"),
    [
        ("reboot", "keep", "undeploy", True),
        ("reboot", "undeploy", "keep", False),
        ("poweroff", "keep", "undeploy", False),
        ("poweroff", "undeploy", "keep", True),
        (None, "keep", "keep", False),
        (TimeoutError(), "keep", "keep", False),
    ],
)
def test_what_becomes_of_a_deployment_when_its_unit_stops(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: str | TimeoutError | None,
    on_reboot: str,
    on_poweroff: str,
    keeps: bool,
) -> None:
    def shutdown_job() -> str | None:
        if isinstance(job, TimeoutError):
            raise job
        return job

    monkeypatch.setattr(service, "shutdown_job", shutdown_job)
    config = tmp_path / "p.toml"
    places = ("working_dir", "onedata_dir", "state_dir", "runtime_dir")
    head = "".join(f'{key} = "{tmp_path}"\n' for key in places)
    config.write_text(
        f'{head}[undeploy]\non_reboot = "{on_reboot}"\non_poweroff = "{on_poweroff}"\n'
    )
    known = configuration.load(config, None)
    assert service.Service(known, lambda: known).keeps_at_shutdown() is keeps


_SYSTEMCTL = """
echo "systemctl $*" >> calls
case $1 in
list-units) echo onesync@p.service loaded active running ;;
show)
    read -r state pid < looks
    [ "$(wc -l < looks)" = 1 ] || sed -i 1d looks
    case $* in *MainPID*--value*|*--value*MainPID*) echo "$pid" ;; *--value*) echo "$state" ;;
    *) printf 'MainPID=%s\\nActiveState=%s\\n' "$pid" "$state" ;; esac ;;
stop) echo inactive 0 > looks ;;
esac
"""


@pytest.mark.parametrize(
    ("looks", "handovers", "code", "asked"),
    [
        ("active 7", "0", 0, ["onesync handover"]),
        ("deactivating 7", "0", 0, ["systemctl stop onesync@p.service"]),
        ("activating 0", "0", 0, ["systemctl stop --job-mode=ignore-dependencies"]),
        # It fell, and was started again between two looks.
        ("active 7, active 0, deactivating 0, active 8", "0", 0, ["onesync handover"]),
        # It has only just been started, and does not listen yet.
        ("activating 7", "1 0", 0, ["onesync handover"] * 2),
        ("active 7", "1", 1, ["onesync handover"] * 3),
    ],
)
def test_an_upgrade_asks_whatever_runs_to_leave_and_waits_for_nobody_else(
    systemctl: Callable[[str], None],
    tmp_path: Path,
    looks: str,
    handovers: str,
    code: int,
    asked: list[str],
) -> None:
    systemctl(_SYSTEMCTL)
    (tmp_path / "looks").write_text(looks.replace(", ", "\n") + "\n")
    (tmp_path / "answers").write_text(handovers.replace(" ", "\n") + "\n")
    stand_in = tmp_path / "onesync"
    stand_in.write_text(
        f'#!/bin/sh\ncd {tmp_path}; echo "onesync $*" >> calls; read -r code < answers\n'
        '[ "$(wc -l < answers)" = 1 ] || sed -i 1d answers\n'
        '[ "$code" != 0 ] || echo inactive 0 > looks\nexit "$code"\n'
    )
    stand_in.chmod(0o755)
    done = subprocess.run(
        ["sh", scriptlet("prerm", tmp_path), "upgrade"], capture_output=True, text=True, timeout=15
    )
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    changing = [call for call in calls if call.split()[1] in ("stop", "handover")]
    assert len(changing) == len(asked), changing
    assert all(call.startswith(start) for call, start in zip(changing, asked, strict=True)), calls


def test_a_purge_takes_no_more_than_what_onesync_alone_put_there(
    systemctl: Callable[[str], None], tmp_path: Path
) -> None:
    systemctl("")
    (tmp_path / "onesync").symlink_to("systemctl")
    removal, purge = scriptlet("prerm", tmp_path), scriptlet("postrm", tmp_path)
    state = tmp_path / "var" / "lib" / "onesync"
    for path in (
        "state/owner",
        "state/index.sqlite",
        "of two names/owner",
        "of two names/index.sqlite",
        "copy/owner",
        "with crontab/owner",
        "with crontab/index.sqlite",
        "with crontab/crontab-ada",
        "adopted/owner",
        "adopted/index.sqlite",
        "adopted/predecessor/linklist",
    ):
        (state / path).parent.mkdir(parents=True, exist_ok=True)
        (state / path).touch()
    for script, word in ((removal, "remove"), (purge, "purge")):
        subprocess.run(["sh", script, word], check=True, capture_output=True, timeout=15)
    assert sorted(os.listdir(state)) == ["adopted", "copy", "with crontab"]
    assert len(list((state / "with crontab").iterdir())) == 3, "whole, or not at all"


@pytest.mark.parametrize("theirs", ["50-site.conf", "60-onesync.conf", "99-sysctl.conf"])
def test_the_administrators_limits_of_the_kernel_stand_over_ours(
    tmp_path: Path, theirs: str
) -> None:
    """Where their files have the names that sysctl.d(5) gives them; the last one counts."""
    key = "fs.inotify.max_user_watches"
    rules = (ROOT / "packaging" / "debian" / "rules").read_text()
    spec = (ROOT / "packaging" / "rpm" / "onesync.spec").read_text()
    names = set(re.findall(r"/usr/lib/sysctl\.d/(\S+)", rules + spec))
    assert len(names) == 1
    ours = tmp_path / "usr" / "lib" / "sysctl.d" / names.pop()
    mine = tmp_path / "etc" / "sysctl.d" / theirs
    for place, text in (
        (ours, (ROOT / "packaging" / "debian" / "sysctl.conf").read_text()),
        (mine, f"{key} = 2097152\n"),
    ):
        place.parent.mkdir(parents=True)
        place.write_text(text)
    words = ["systemd-analyze", f"--root={tmp_path}", "cat-config", "sysctl.d"]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert [line for line in told.splitlines() if key in line][-1] == f"{key} = 2097152"


def scriptlet(name: str, root: Path) -> Path:
    """Return a script of the package for which ``root`` is the node's."""
    text = (ROOT / "packaging" / "debian" / f"onesync.{name}").read_text()
    for place in ("/run/", "/var/lib/onesync", "/usr/lib/onesync", "/etc/"):
        (root / place[1:]).mkdir(parents=True, exist_ok=True)
        text = text.replace(place, f"{root}{place}")
    (root / "run" / "systemd" / "system").mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
    return root / name


@pytest.mark.parametrize(
    ("machine", "debian", "is_built"),
    [
        ("x86_64", "amd64", True),
        ("aarch64", "arm64", True),
        ("riscv64", "riscv64", False),
    ],
)
def test_a_package_is_built_where_all_that_it_bundles_is_made_for(
    tmp_path: Path, machine: str, debian: str, is_built: bool
) -> None:
    control = (ROOT / "packaging" / "debian" / "control").read_text()
    spec = (ROOT / "packaging" / "rpm" / "onesync.spec").read_text()
    (debians,) = re.findall(r"^Architecture: (.*)$", control, re.MULTILINE)
    (rpms,) = re.findall(r"^ExclusiveArch: (.*)$", spec, re.MULTILINE)
    assert (debian in debians.split()) is (machine in rpms.split()) is is_built
    (tmp_path / "lock").touch()
    script = f"uname() {{ echo {machine}; }}; pip() {{ :; }}; PIP=pip; mv() {{ :; }}; set -e"
    script += f"; . {ROOT}/packaging/build-common; cd {tmp_path}; fetch_wheels lock 3.11"
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) is is_built, done.stderr
    assert ("nothing was built" in done.stderr) is not is_built


def test_an_instance_is_disabled_without_the_others(tmp_path: Path) -> None:
    units = tmp_path / "etc" / "systemd" / "system"
    shutil.copytree(ROOT / "systemd", units)
    wants = units / "multi-user.target.wants"
    for verb, names in (("enable", ("p", "q")), ("disable", ("p",))):
        words = [f"--root={tmp_path}", verb, *(f"onesync@{name}.service" for name in names)]
        subprocess.run(["systemctl", "--quiet", *words], check=True)
    assert os.listdir(wants) == ["onesync@q.service"], "as onesync.target.wants alone is no boot"
    assert os.listdir(units / "onesync.target.wants") == ["onesync@q.service"]


def _processor_seconds(words: list[str]) -> float:
    """What a command takes of a processor, which other tests beside it do not change much."""
    process = subprocess.Popen(words)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def test_the_generator_is_quick_and_silent_without_a_configuration(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "onesync.program", "generator", *[str(tmp_path)] * 3]
    done = subprocess.run(words, check=True, capture_output=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    times = [_processor_seconds(words) for _ in range(5)]
    bare = [_processor_seconds([sys.executable, "-c", "pass"]) for _ in range(5)]
    assert min(times) - min(bare) < 0.1, "it holds up every boot"


def test_instance_and_settings_read_the_same_of_the_shipped_file(etc: Path, tmp_path: Path) -> None:
    text = (ROOT / "config" / "onesync.toml").read_text()
    text = re.sub(r"^# (user|host|mount_point) = ", r"\1 = ", text, flags=re.MULTILINE)
    (etc / "p.toml").write_text(text)
    found = instance.read("p")
    (tmp_path / "x.toml").write_text('state_dir = "/s"\nruntime_dir = "/r"\n' + text)
    known = configuration.load(tmp_path / "x.toml", None)
    assert found.user == known.user == "scipion"
    assert (found.working_dir, found.onedata_dir) == (
        str(known.working_dir),
        str(known.onedata_dir),
    )
    assert found.listen == known.metrics.listen
    assert found.patience == known.mount.io_timeout_seconds
    assert found.oneclient is not None
    assert (found.oneclient.host, found.oneclient.mount_point, found.oneclient.options) == (
        known.oneclient.host,
        str(known.oneclient.mount_point),
        known.oneclient.options,
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[oneclient]\nhost = "h"\n', "host and mount_point are only good together"),
        (
            '[oneclient]\nhost = "h"\nmount_point = "/else/where"\n',
            "onedata_dir lies outside oneclient.mount_point /else/where",
        ),
        (
            '[oneclient]\nhost = "h"\nmount_point = "/onedata"\n',
            "expected a directory further down",
        ),
        ('user = "a b"\n', "user: expected the name of a user"),
    ],
)
def test_what_the_units_could_not_use_is_refused(tmp_path: Path, text: str, told: str) -> None:
    place = tmp_path / "p.toml"
    keys = ("working_dir", "onedata_dir", "state_dir", "runtime_dir")
    head = "".join(f'{key} = "/srv/{key}"\n' for key in keys)
    place.write_text(text + head if text.startswith("user") else head + text)
    with pytest.raises(ConfigurationError, match=told):
        configuration.load(place, None)


def test_a_user_must_exist_and_be_who_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "p.toml"
    keys = ("working_dir", "onedata_dir", "state_dir", "runtime_dir")
    head = "".join(f'{key} = "/srv/{key}"\n' for key in keys)

    def check(user: str, *, is_daemon: bool = True) -> None:
        place.write_text(f'user = "{user}"\n{head}')
        settings.check_user(configuration.load(place, None), is_daemon=is_daemon)

    with pytest.raises(ConfigurationError, match="The user nobody-of-this-name does not exist"):
        check("nobody-of-this-name")
    own = pwd.getpwuid(os.geteuid()).pw_name
    check(own)
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(ConfigurationError, match=r"runs as \w+, but it runs as 4711.*daemon-rel"):
        check(own)
    check(own, is_daemon=False)


def test_a_mount_of_somebody_else_is_refused_unless_it_lets_others_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table: dict[str, str] = {"user_id": "4711"}
    monkeypatch.setattr(mount, "mount_of", lambda _: Mounted("/mnt/o", "fuse.oneclient", table))
    with pytest.raises(ConfigurationError, match="is the user 4711's and lets nobody else in"):
        mount.refuse_private(Path("/mnt/o/p"))
    table["allow_other"] = ""
    mount.refuse_private(Path("/mnt/o/p"))
    del table["allow_other"]
    table["user_id"] = str(os.geteuid())
    mount.refuse_private(Path("/mnt/o/p"))
    monkeypatch.setattr(mount, "mount_of", lambda _: Mounted("/", "ext4", {}))
    mount.refuse_private(Path("/mnt/o/p"))


def test_the_table_of_mounts_tells_what_a_path_lies_on(tmp_path: Path) -> None:
    assert is_mount_point("/")
    assert is_mount_point("/proc")
    assert not is_mount_point("/proc/self")
    assert not is_mount_point("/pro")
    (tmp_path / "link").symlink_to("/")
    (tmp_path / "loop").symlink_to("loop")
    assert is_mount_point(f"{tmp_path}/link/proc")
    assert is_mount_point(f"{tmp_path}/link")
    assert not is_mount_point(f"{tmp_path}/loop")
    assert mount_of(f"{tmp_path}/link/proc/self/status").type == "proc"
    assert mount_of("/proc/self/status").type == "proc"
    assert mount_of("/nowhere/at/all").point == "/"


def test_a_token_that_is_missing_or_that_others_can_read_is_told_of(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    monkeypatch.setattr(prepare, "tell", lambda unit, text: told.append((unit, text)))
    monkeypatch.setattr(prepare, "give", lambda path, user: None)
    head = 'working_dir = "/srv/p"\nonedata_dir = "/mnt/o/p/p"\n'
    (etc / "p.toml").write_text(
        f'user = "nobody"\n{head}[oneclient]\nhost = "h"\nmount_point = "/mnt/o/p"\n'
    )
    token = etc / "p.token"
    with pytest.raises(ConfigurationError, match=r"p\.token is not there"):
        prepare.prepare("p")
    token.write_text("t")
    token.chmod(0o640)
    with pytest.raises(ConfigurationError, match=rf"can be read by others.*chmod 600 {token}"):
        prepare.prepare("p")
    token.chmod(0o600)
    prepare.prepare("p")
    assert [unit for unit, _ in told] == ["onesync@p.service"] * 2
    (etc / "p.toml").write_text(f'user = "ghost"\n{head}')
    with pytest.raises(ConfigurationError, match="the user ghost does not exist"):
        prepare.prepare("p")
    (etc / "p.toml").write_text(f'user = "nobody"\n{head}')
    token.unlink()
    prepare.prepare("p")


@pytest.mark.skipif(os.geteuid() != 0, reason="root's part")
def test_root_makes_directories_only_where_nobody_else_could_put_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    user = pwd.getpwnam("nobody")
    home = Path("/var/lib/onesync-test-of-prepare")
    home.mkdir()
    try:
        directories.give(str(home / "a" / "b"), user)
        assert (home / "a").stat().st_uid == 0
        assert (home / "a" / "b").stat().st_uid == user.pw_uid
        (home / "empty").mkdir()
        directories.give(str(home / "empty"), user)
        assert (home / "empty").stat().st_uid == user.pw_uid
        (home / "a" / "full").mkdir()
        (home / "a" / "full" / "file").touch()
        directories.give(str(home / "a" / "full"), user)
        assert (home / "a" / "full").stat().st_uid == 0, "somebody's files"
        (home / "taken").touch()
        directories.give(str(home / "taken"), user)
        assert (home / "taken").is_file(), "onesync says that it is no directory"
        directories.give(str(home / "a" / "b" / "c"), user)
        assert not (home / "a" / "b" / "c").exists(), "the user could put a link there"
        (home / "a" / "b" / "link").symlink_to("/etc")
        directories.give(str(home / "a" / "b" / "link" / "c"), user)
        assert not Path("/etc/c").exists()
    finally:
        subprocess.run(["rm", "-r", str(home)], check=True)
