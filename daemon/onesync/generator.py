"""systemd's generator: what each instance's configuration means for its units, as drop-ins.

So the file is the one place that says who runs onesync, and the sandbox has no hole that the file
does not need. It runs at boot and with each 'systemctl daemon-reload', and touches nothing but
``/etc/onesync``: a mount that hangs would stop systemd itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress

from onesync.errors import ConfigurationError
from onesync.instance import CONFIGURATIONS, SHARED, Instance, file_of, is_beneath, read
from onesync.systemd import tell

_DROP_IN = "10-instance.conf"
"""Before those of an operator, whose names sort later: they stand over it."""
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+")
_HOMES = ("/home", "/root", "/run/user")
_ODD = re.compile(r"\A\.|[^A-Za-z0-9:_./]")


def generate(target: str) -> None:
    """Write what all instances need into the directory ``target``; one that is broken gets none."""
    for name in instances():
        try:
            instance = read(name, for_root=True)
        except ConfigurationError as error:
            tell(f"onesync@{name}.service", str(error))
            continue
        for unit, lines in (
            ("onesync", onesync_lines(instance)),
            ("oneclient", oneclient_lines(instance)),
            ("onesync-prepare", prepare_lines(instance)),
        ):
            _write(target, f"{unit}@{name}.service", lines)
        _boot_target(target)


def instances() -> list[str]:
    """Return the names of the instances that are configured."""
    try:
        files = sorted(os.listdir(CONFIGURATIONS))
    except FileNotFoundError:
        return []
    names = (name.removesuffix(".toml") for name in files if name.endswith(".toml"))
    return [name for name in names if _NAME.fullmatch(name)]


def onesync_lines(instance: Instance) -> list[str]:
    """Return the drop-in of ``onesync@``."""
    places = writable(instance)
    unit = [_on_its_disk(place) for place in (instance.working_dir, *instance.paths)]
    # Not Requires=: restarting oneclient would undeploy, and a start that failed stay failed.
    if instance.oneclient is not None:
        unit.append(f"Wants=oneclient@{instance.name}.service")
    else:
        # The flush before somebody else's mount goes, wherever on the way to the folder it is.
        unit += [f"After={_mount_unit(path)}" for path in _way_to(instance.onedata_dir)]
    service = [f"ReadWritePaths={quoted('-' + place)}" for place in places]
    if any(_is_home(place) for place in places):
        service.append("ProtectHome=read-only")
    if not _is_loopback(instance.listen.rpartition(":")[0]):
        service.append("IPAddressAllow=any")
    return _drop_in(instance, unit, [_user(instance), *service])


def oneclient_lines(instance: Instance) -> list[str]:
    """Return the drop-in of ``oneclient@``."""
    client = instance.oneclient
    unit = [] if client is None else [_on_its_disk(os.path.dirname(client.mount_point))]
    return _drop_in(instance, unit, [_user(instance)])


def prepare_lines(instance: Instance) -> list[str]:
    """Return the drop-in of ``onesync-prepare@``: what it makes must not be hidden by a mount."""
    places = [instance.working_dir]
    if instance.oneclient is not None:
        places.append(os.path.dirname(instance.oneclient.mount_point))
    return _drop_in(instance, map(_on_its_disk, places), ())


def writable(instance: Instance) -> list[str]:
    """Return the directories that onesync must be able to write.

    Parents, for what is mounted, renamed or made anew at a path that is itself part of the sandbox
    is never seen there: the sandbox goes on showing what stood there when it was made.
    """
    found = [_parent(instance.working_dir), _parent_of_mount(instance), *instance.paths]
    return list(dict.fromkeys(found))


def _parent_of_mount(instance: Instance) -> str:
    if instance.oneclient is not None:
        return _parent(instance.oneclient.mount_point)
    # Nobody says where on the way to the folder the mount point is: as high as may be.
    way = reversed(_way_to(instance.onedata_dir))
    return next(path for path in way if path not in SHARED)


def _parent(path: str) -> str:
    above = os.path.dirname(path)
    return path if above in SHARED else above


def _is_home(path: str) -> bool:
    return any(is_beneath(path, home) for home in _HOMES)


def _is_loopback(host: str) -> bool:
    return host in ("", "localhost", "::1", "[::1]") or host.startswith("127.")


def _drop_in(instance: Instance, unit: Iterable[str], service: Iterable[str]) -> list[str]:
    # SourcePath= lets 'systemctl status' say that the file is newer than its drop-in.
    source = f"SourcePath={file_of(instance.name).replace('%', '%%')}"
    return ["[Unit]", source, *unit, "[Service]", *service]


def _user(instance: Instance) -> str:
    return f"User={instance.user}"


def _on_its_disk(path: str) -> str:
    return f"RequiresMountsFor={quoted(path)}"


def _way_to(path: str) -> list[str]:
    """Return ``path`` and the directories above it, but for the root."""
    return [] if path == "/" else [path, *_way_to(os.path.dirname(path))]


def _mount_unit(path: str) -> str:
    """Return how systemd names what is mounted at ``path``, as 'systemd-escape --path' does."""
    name = _ODD.sub(lambda odd: "".join(f"\\x{b:02x}" for b in odd[0].encode()), path.strip("/"))
    return name.replace("/", "-") + ".mount"


def quoted(path: str) -> str:
    """Return a path as one word of a unit file."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _boot_target(target: str) -> None:
    """Let the boot bring up onesync.target.

    An instance that wanted it would, with it, start those that a person has stopped; 'systemctl
    disable' of one would, by Also=, take it from all.
    """
    place = f"{target}/multi-user.target.wants"
    os.makedirs(place, exist_ok=True)
    with suppress(FileExistsError):
        os.symlink("/usr/lib/systemd/system/onesync.target", f"{place}/onesync.target")


def _write(target: str, unit: str, lines: Iterable[str]) -> None:
    place = f"{target}/{unit}.d"
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/{_DROP_IN}", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
