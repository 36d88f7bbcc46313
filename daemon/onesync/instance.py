"""What an instance's units need of its configuration, read with Python's own modules alone.

The generator runs at every boot before anything else, and the process that keeps oneclient lives as
long as the mount: neither can afford ``settings``, which knows and checks the whole file.
"""

from __future__ import annotations

import math
import os
import re
import tomllib
from dataclasses import dataclass
from typing import Any

from onesync.errors import ConfigurationError

CONFIGURATIONS = "/etc/onesync"
DEFAULT_USER = "onesync"
"""As whom the unit runs where the configuration does not say; the package makes him."""
SHARED = frozenset(
    (
        *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib32", "/lib64", "/opt"),
        *("/proc", "/root", "/run", "/run/media", "/run/user", "/sbin", "/sys"),
        *("/usr", "/usr/lib", "/usr/local", "/usr/share"),
        *("/var", "/var/cache", "/var/lib", "/var/log", "/var/opt", "/var/run", "/var/spool"),
    )
)
"""The system's own directories, and that of all homes: no instance may write one as a whole."""
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}")
_PATIENCE = 120.0
_EMPTIED = ("/tmp", "/var/tmp")
"""Old files go there, which OneData would lose, too; and the service has its own (PrivateTmp=)."""


@dataclass(frozen=True, slots=True)
class Oneclient:
    """``[oneclient]``: the provider's host, where to mount, more words for the command line."""

    host: str
    mount_point: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """One ``/etc/onesync/NAME.toml``.

    Attributes:
        paths: state_dir, runtime_dir and metrics.textfile_dir, where the file names them.
        listen: metrics.listen, or "" where it is the default.
        patience: mount.io_timeout_seconds.
        oneclient: None where somebody else mounts OneData.
    """

    name: str
    user: str
    working_dir: str
    onedata_dir: str
    paths: tuple[str, ...]
    listen: str
    patience: float
    oneclient: Oneclient | None


def is_user_name(text: str) -> bool:
    """Whether systemd takes ``text`` for a user's name."""
    return _USER.fullmatch(text) is not None


def is_beneath(path: str, place: str) -> bool:
    """Whether ``path`` is ``place`` or lies in it, as far as its words say."""
    return path == place or path.startswith(place + "/")


def file_of(name: str, kind: str = "toml") -> str:
    """Return the path of an instance's configuration, or of its ``token``."""
    return f"{CONFIGURATIONS}/{name}.{kind}"


def read(name: str, *, for_root: bool = False) -> Instance:
    """Read an instance's configuration. Raises ConfigurationError with what is wrong in it.

    ``for_root``: root obeys what it says, so nobody else may be able to change it.
    """
    path = file_of(name)
    try:
        with open(path, "rb") as file:
            if for_root:
                _refuse_writable(path, os.fstat(file.fileno()))
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}.") from error
    return _Values(path, values).instance(name)


def _refuse_writable(path: str, found: os.stat_result) -> None:
    """Refuse a file of somebody else; ours, where we are not root, changes nothing for others."""
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise ConfigurationError(
            f"{path} can be changed by others than root, who would decide as whom the units run;"
            f" nothing was changed. Type: chown root: {path}; chmod go-w {path}"
        )


class _Values:
    """The values of a file, each of the type that it must have."""

    def __init__(self, path: str, values: dict[str, Any]) -> None:
        self._path = path
        self._values = values

    def instance(self, name: str) -> Instance:
        user = self._text("", "user") or DEFAULT_USER
        if not is_user_name(user):
            raise self._wrong("user", "the name of a user")
        if user == "root":
            raise self._wrong("user", "somebody else, for onesync never runs as root")
        kept = (("", "state_dir"), ("", "runtime_dir"), ("metrics", "textfile_dir"))
        return Instance(
            name,
            user,
            self._directory("", "working_dir", is_needed=True),
            self._directory("", "onedata_dir", is_needed=True),
            tuple(found for key in kept if (found := self._directory(*key))),
            self._text("metrics", "listen"),
            self._patience(),
            self._oneclient(),
        )

    def _patience(self) -> float:
        found = self._get("mount", "io_timeout_seconds", int | float) or _PATIENCE
        if not 0 < found < math.inf or found > 1e9:
            raise self._wrong("mount.io_timeout_seconds", "a number of seconds")
        return float(found)

    def _oneclient(self) -> Oneclient | None:
        host = self._text("oneclient", "host")
        if not host:
            return None
        options = self._get("oneclient", "options", list) or []
        if not all(isinstance(word, str) for word in options):
            raise self._wrong("oneclient.options", "a list of texts")
        point = self._directory("oneclient", "mount_point", is_needed=True)
        if os.path.dirname(point) in SHARED:
            raise self._wrong("oneclient.mount_point", "a directory further down")
        return Oneclient(host, point, tuple(options))

    def _directory(self, section: str, key: str, *, is_needed: bool = False) -> str:
        found = self._text(section, key)
        if not found and not is_needed:
            return ""
        name = f"{section}.{key}".lstrip(".")
        if not found.startswith("/") or ".." in found.split("/") or not found.isprintable():
            raise self._wrong(name, "an absolute path without '..'")
        path = os.path.normpath("/" + found.lstrip("/"))
        if path in SHARED:
            raise self._wrong(name, "a directory further down")
        if any(is_beneath(path, place) for place in _EMPTIED):
            raise self._wrong(name, f"one outside of {' and '.join(_EMPTIED)}, which are emptied")
        return path

    def _text(self, section: str, key: str) -> str:
        return str(self._get(section, key, str) or "")

    def _get(self, section: str, key: str, kind: Any) -> Any:
        values = self._values.get(section, {}) if section else self._values
        if not isinstance(values, dict):
            raise self._wrong(section, "a section")
        found = values.get(key)
        if found is not None and not isinstance(found, kind):
            raise self._wrong(f"{section}.{key}".lstrip("."), "another kind of value")
        return found

    def _wrong(self, key: str, expected: str) -> ConfigurationError:
        return ConfigurationError(f"{self._path}: {key}: expected {expected}.")
