"""systemd's generator: what each instance's configuration means for its units, as drop-ins.

So the file is the one place that says who runs onesync, and the sandbox has no hole that the file
does not need. It runs at boot and with each 'systemctl daemon-reload', and touches nothing but
``/etc/onesync``: a mount that hangs would stop systemd itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from onesync.errors import ConfigurationError
from onesync.instance import CONFIGURATIONS, Instance, file_of, read
from onesync.systemd import tell

_DROP_IN = "10-instance.conf"
"""Before those of an operator, whose names sort later: they stand over it."""
_NAME = re.compile(r"[A-Za-z0-9:_.\\-]+")
_HOMES = ("/home", "/root", "/run/user")


def generate(target: str) -> None:
    """Write the drop-ins of all instances into ``target``; one that is broken gets none."""
    for name in instances():
        try:
            instance = read(name)
        except ConfigurationError as error:
            tell(f"onesync@{name}.service", str(error))
            continue
        _write(target, f"onesync@{name}.service", onesync_lines(instance))
        _write(target, f"oneclient@{name}.service", _drop_in(instance, (), ()))


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
    unit = [f"RequiresMountsFor={quoted(instance.working_dir)}"]
    if instance.oneclient is not None:
        # Not Requires=: restarting oneclient would undeploy, and a start that failed stay failed.
        unit.append(f"Wants=oneclient@{instance.name}.service")
    service = [f"ReadWritePaths={quoted('-' + place)}" for place in places]
    if any(_is_home(place) for place in places):
        service.append("ProtectHome=read-only")
    if not _is_loopback(instance.listen.rpartition(":")[0]):
        service.append("IPAddressAllow=any")
    return _drop_in(instance, unit, service)


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
    # Nobody says where on the way to the folder the mount point is.
    return "/" + instance.onedata_dir.split("/")[1]


def _parent(path: str) -> str:
    above = os.path.dirname(path)
    return path if above == "/" else above


def _is_home(path: str) -> bool:
    return any(path == home or path.startswith(home + "/") for home in _HOMES)


def _is_loopback(host: str) -> bool:
    return host in ("", "localhost", "::1", "[::1]") or host.startswith("127.")


def _drop_in(instance: Instance, unit: Iterable[str], service: Iterable[str]) -> list[str]:
    # SourcePath= lets 'systemctl status' say that the file is newer than its drop-in.
    source = f"SourcePath={file_of(instance.name).replace('%', '%%')}"
    return ["[Unit]", source, *unit, "[Service]", f"User={instance.user}", *service]


def quoted(path: str) -> str:
    """Return a path as one word of a unit file."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _write(target: str, unit: str, lines: Iterable[str]) -> None:
    place = f"{target}/{unit}.d"
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/{_DROP_IN}", "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
