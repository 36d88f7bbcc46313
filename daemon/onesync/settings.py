"""What can be configured, and what of it fits together; ``configuration`` reads it.

That is apart for the memory of the daemon, which holds settings and lets ``reader`` have them read.
"""

from __future__ import annotations

import json
import os
import pwd
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pathspec import PathSpec

from onesync import instance as units
from onesync.core.claims import LockTimes
from onesync.core.duration import seconds_of
from onesync.core.ordering import SCIPION_ORDER, SCIPION_SCRATCH, SCIPION_UNNAMED
from onesync.errors import ConfigurationError

CONFIGURATIONS = Path(units.CONFIGURATIONS)


@dataclass(frozen=True, slots=True)
class _Check:
    """What pydantic calls with a value that was read, also before it makes it what is annotated."""

    act: Callable[[Any], Any]
    is_first: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema  # whoever asks has it

        if self.is_first:
            return core_schema.no_info_before_validator_function(self.act, handler(source))
        return core_schema.no_info_after_validator_function(self.act, handler(source))


@dataclass(frozen=True, slots=True)
class _Size:
    """A number of bytes as people write it: ``10MB``, ``1.5 GiB``."""

    def __get_pydantic_core_schema__(self, _: Any, handler: Any) -> Any:
        from pydantic import ByteSize
        from pydantic_core import core_schema

        made = handler.generate_schema(ByteSize)
        return core_schema.no_info_after_validator_function(int, made)


def _absolute(value: Path) -> Path:
    if not value.is_absolute() or ".." in value.parts:
        raise ValueError("expected an absolute path without '..'")
    return Path("/", *value.parts[1:])  # "//srv" stays so, and is no parent of "/srv"


def _listed(value: object) -> object:
    """Return the list that a variable of the environment holds as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("expected a list") from None


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in value:
        try:
            PathSpec.from_lines("gitignore", [pattern])
        except ValueError as error:
            raise ValueError(f"expected patterns as in .gitignore: {error}") from error
    return value


def _with_zone(value: datetime) -> datetime:
    offset = value.utcoffset()
    if offset is None:
        raise ValueError("expected a time with its zone, such as 2026-12-24T18:00+01:00")
    return value.replace(tzinfo=timezone(offset))  # not pydantic's, or it would be loaded for that


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError("expected HOST:PORT, such as 127.0.0.1:9821")
    return value


def _printable_name(value: str) -> str:
    if "/" in value or not value.isprintable():
        raise ValueError("expected a name without '/' that can be printed")
    return value


def _user_name(value: str) -> str:
    if value and not units.is_user_name(value):
        raise ValueError("expected the name of a user")
    return value


_Positive = Annotated[float, Gt(0)]
_NotNegative = Annotated[float, Ge(0)]
_Duration = Annotated[float, _Check(seconds_of, is_first=True)]
_AbsolutePath = Annotated[Path, _Check(_absolute)]
_List = Annotated[tuple[str, ...], _Check(_listed, is_first=True)]
_Patterns = Annotated[_List, _Check(_patterns)]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSettings:
    """``[mount]``."""

    require_fuse: bool = True
    io_timeout_seconds: _Positive = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OneclientSettings:
    """``[oneclient]``, which ``instance`` reads for the units; no host: somebody else mounts."""

    host: str = ""
    mount_point: _AbsolutePath | None = None
    options: _List = ()

    def __post_init__(self) -> None:
        if bool(self.host) != (self.mount_point is not None):
            raise ValueError("host and mount_point are only good together")
        if self.mount_point is not None and str(self.mount_point.parent) in units.SHARED:
            raise ValueError("mount_point: expected a directory further down, such as /mnt/onedata")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """``[batch]``."""

    settle_seconds: _NotNegative = 2.0
    max_delay_seconds: _Positive = 30.0
    min_interval_seconds: _NotNegative = 1.0
    rescan_seconds: _Positive = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """``[guards]``."""

    unexplained_deletions: Annotated[int, Ge(0)] = 1000
    unexplained_percent: Annotated[float, Ge(0), Le(100)] = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PushSettings:
    """``[push]``."""

    workers: Annotated[int, Ge(1), Le(256)] = 64
    bandwidth_limit: Annotated[int, _Size()] = 0
    round_seconds: _Positive = 5.0
    exclude: _Patterns = ()
    publish_order: _Patterns = SCIPION_ORDER
    scratch: _Patterns = SCIPION_SCRATCH
    unnamed: _Patterns = SCIPION_UNNAMED


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifySettings:
    """``[verify]``."""

    content: Literal["none", "databases", "all"] = "databases"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockSettings:
    """``[lock]``; every time is in seconds and follows from ``mount.io_timeout_seconds``."""

    settle_seconds: _NotNegative | None = None
    wait_seconds: _NotNegative = 0.0
    beat_seconds: _Positive | None = None
    warn_seconds: _Positive | None = None
    suspend_seconds: _Positive | None = None
    dead_seconds: _Positive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentSettings:
    """``[deployment]``; durations are seconds, or texts such as ``3d 12h``."""

    until: Annotated[datetime, _Check(_with_zone)] | None = None
    duration: Annotated[_Duration, Gt(0)] | None = None
    warn: Annotated[_Duration, Ge(0)] = 3600.0

    def __post_init__(self) -> None:
        if self.until is not None and self.duration is not None:
            raise ValueError("until and duration are two ends; give one of them")

    def until_seconds(self) -> float | None:
        """Return ``until`` in seconds since 1970."""
        return None if self.until is None else self.until.timestamp()


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInSettings:
    """``[stagein]``."""

    relocate_links: bool = True
    lost_copy: Literal["refuse", "restage"] = "refuse"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSettings:
    """``[metrics]``."""

    listen: Annotated[str, _Check(_address)] = "127.0.0.1:9821"
    folder: Annotated[str, _Check(_printable_name)] = ""
    tls_certificate: _AbsolutePath | None = None
    tls_key: _AbsolutePath | None = None
    tls_client_authorities: _AbsolutePath | None = None
    textfile_dir: _AbsolutePath | None = None

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are only good together")
        if self.tls_client_authorities is not None and self.tls_certificate is None:
            raise ValueError("tls_client_authorities needs tls_certificate and tls_key")


@dataclass(frozen=True, slots=True, kw_only=True)
class UndeploySettings:
    """``[undeploy]``."""

    clean_working_dir: bool = False
    flush_retry_seconds: _Positive = 480.0
    on_reboot: Literal["keep", "undeploy"] = "keep"
    on_poweroff: Literal["keep", "undeploy"] = "undeploy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration; every key is documented in ``config/onesync.toml``.

    Annotations are checked where it is read; what is made in place is taken as it is, but for what
    must fit together.
    """

    user: Annotated[str, _Check(_user_name)] = ""
    working_dir: _AbsolutePath
    onedata_dir: _AbsolutePath
    state_dir: _AbsolutePath = field(
        default_factory=lambda: _from_systemd("STATE_DIRECTORY", "state_dir")
    )
    runtime_dir: _AbsolutePath = field(
        default_factory=lambda: _from_systemd("RUNTIME_DIRECTORY", "runtime_dir")
    )
    oneclient: OneclientSettings = OneclientSettings()
    mount: MountSettings = MountSettings()
    batch: BatchSettings = BatchSettings()
    guards: GuardSettings = GuardSettings()
    push: PushSettings = PushSettings()
    verify: VerifySettings = VerifySettings()
    lock: LockSettings = LockSettings()
    stagein: StageInSettings = StageInSettings()
    metrics: MetricsSettings = MetricsSettings()
    deployment: DeploymentSettings = DeploymentSettings()
    undeploy: UndeploySettings = UndeploySettings()

    def __post_init__(self) -> None:
        point = self.oneclient.mount_point
        if point is not None and point not in self.onedata_dir.parents:
            raise ValueError(f"onedata_dir lies outside oneclient.mount_point {point}")
        try:
            self.lock_times()
        except ValueError as error:
            raise ValueError(f"lock: {error}") from error

    def lock_times(self) -> LockTimes:
        """Return the lock's times. Raises ValueError where their order is broken."""
        lock = self.lock
        return LockTimes.from_timeout(
            self.mount.io_timeout_seconds,
            lock.settle_seconds,
            beat=lock.beat_seconds,
            warn=lock.warn_seconds,
            suspend=lock.suspend_seconds,
            dead=lock.dead_seconds,
        )


_LIVE = {
    "batch": BatchSettings,
    "guards": GuardSettings,
    "verify": VerifySettings,
    "deployment": DeploymentSettings,
    "undeploy": UndeploySettings,
}
"""The sections that a running daemon follows as a whole."""
_LIVE_KEYS = {"push.round_seconds"}


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a running daemon makes of a configuration that changed.

    Attributes:
        settings: those that count from now on.
        applied: the keys that changed and are followed.
        restart: the keys that changed and are followed after a restart.
    """

    settings: Settings
    applied: tuple[str, ...]
    restart: tuple[str, ...]


def reloaded(old: Settings, new: Settings) -> Reloaded:
    """Return what changes at once, and what after a restart."""
    before, after = _flat(old), _flat(new)
    changed = sorted(key for key in before if before[key] != after[key])
    applied = [key for key in changed if key in _LIVE_KEYS or key.partition(".")[0] in _LIVE]
    sections: dict[str, Any] = {name: getattr(new, name) for name in _LIVE}
    push = replace(old.push, round_seconds=new.push.round_seconds)
    settings = replace(old, **sections, push=push)
    return Reloaded(settings, tuple(applied), tuple(key for key in changed if key not in applied))


def _flat(settings: Settings) -> dict[str, Any]:
    """Return the values by their keys, those of sections as ``section.key``."""
    found: dict[str, Any] = {}
    for name, value in _values(settings).items():
        if is_dataclass(value):
            found |= {f"{name}.{key}": inner for key, inner in _values(value).items()}
        else:
            found[name] = value
    return found


def _values(settings: Any) -> dict[str, Any]:
    return {key.name: getattr(settings, key.name) for key in fields(settings)}


def _from_systemd(variable: str, key: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        raise ConfigurationError(
            f"{key} is not set and {variable} is not given by systemd; set {key} to a local"
            " directory."
        )
    return Path(value.split(":")[0])


_UNIT = {
    "state_dir": ("STATE_DIRECTORY", Path("/var/lib/onesync")),
    "runtime_dir": ("RUNTIME_DIRECTORY", Path("/run/onesync")),
}
"""Where systemd makes an instance's directories, and how it tells the daemon."""


_ELSEWHERE = "elsewhere"
"""In the directory that systemd makes, a link to the one that is named in its place."""


def state_dirs() -> dict[str, list[Path]]:
    """Return where each instance of this node may keep its state, also without a configuration.

    What is wrong with a configuration is told where it is used: here it only names no place more.
    """
    _, usual = _UNIT["state_dir"]
    found = {path.name: [path, *_elsewhere(path)] for path in usual.glob("*") if path.is_dir()}
    for config in CONFIGURATIONS.glob("*.toml"):
        try:
            place = tomllib.loads(config.read_text()).get("state_dir")
        except (OSError, ValueError):
            place = None
        if isinstance(place, str) and Path(place) not in found.get(config.stem, ()):
            found.setdefault(config.stem, []).append(Path(place))
    return dict(sorted(found.items()))


def note_state_dir(state_dir: Path) -> None:
    """Leave word of a state directory that is not the one that systemd made for this daemon.

    It is looked for when the program is to be removed, which may be without the configuration.
    """
    variable, _ = _UNIT["state_dir"]
    made = os.environ.get(variable, "").partition(":")[0]
    if not made or state_dir in (Path(made), *_elsewhere(Path(made))):
        return
    link = Path(made, _ELSEWHERE)
    link.unlink(missing_ok=True)
    link.symlink_to(state_dir)


def _elsewhere(made: Path) -> list[Path]:
    link = made / _ELSEWHERE
    return [link.readlink()] if link.is_symlink() else []


def of_instance(instance: str | None) -> tuple[Path, dict[str, str]]:
    """Return the configuration of an instance, and where its unit keeps its directories."""
    if instance is None:
        raise ConfigurationError("Name a configuration: --config FILE or --instance NAME.")
    if "/" in instance:
        raise ConfigurationError(f"The instance {instance!r} is a path; give a plain name.")
    places = {
        key: str(place / instance)
        for key, (variable, place) in _UNIT.items()
        if not os.environ.get(variable)  # a person types the command
    }
    return CONFIGURATIONS / f"{instance}.toml", places


def check_user(settings: Settings, *, is_daemon: bool) -> None:
    """Refuse a ``user`` who does not exist; for the daemon also one whom it does not run as."""
    if not settings.user:
        return
    try:
        wanted = pwd.getpwnam(settings.user).pw_uid
    except KeyError:
        raise ConfigurationError(
            f"The user {settings.user} does not exist; nothing was changed. Make him (adduser"
            f' {settings.user}), or name another one: user = "NAME".'
        ) from None
    if is_daemon and os.geteuid() != wanted:
        raise ConfigurationError(
            f"The configuration says that onesync runs as {settings.user}, but it runs as"
            f" {_own_name()}; nothing was changed. Type 'systemctl daemon-reload', which tells"
            " systemd, and start it again."
        )


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def check_directories(
    settings: Settings, *, copy_may_be_gone: bool = False, are_ours_made_later: bool = False
) -> None:
    """Refuse directories that cannot work together; looks at local directories only.

    ``copy_may_be_gone`` where there was a working copy, whose loss has a sentence of its own;
    ``are_ours_made_later`` where systemd makes state_dir and runtime_dir before the start.
    """
    work, data = settings.working_dir, settings.onedata_dir
    if not work.is_dir() and not copy_may_be_gone:
        raise ConfigurationError(f"working_dir {work} is not a directory; make it first.")
    if work.is_dir() and not os.access(work, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigurationError(
            f"working_dir {work} cannot be read and written by {_own_name()}, as whom onesync runs;"
            ' nothing was changed. Say whose it is, user = "NAME", and type \'systemctl'
            f" daemon-reload'; or let him in: chown {_own_name()} {work}"
        )
    real = work.resolve()
    for one, other in ((real, data), (data, real)):
        if one == other or other in one.parents:
            raise ConfigurationError(
                f"working_dir {work} and onedata_dir {data} are the same or one lies inside the"
                " other; nothing was changed. Name two separate directories."
            )
    ours = {"state_dir": settings.state_dir, "runtime_dir": settings.runtime_dir}
    if settings.metrics.textfile_dir is not None:
        ours["metrics.textfile_dir"] = settings.metrics.textfile_dir
    for key, path in ours.items():
        is_made_later = are_ours_made_later and key in _UNIT and not path.exists()
        if is_made_later:
            continue
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            raise ConfigurationError(f"{key} {path} is not a directory that onesync can write.")
        if path.resolve() == real or real in path.resolve().parents:
            raise ConfigurationError(
                f"{key} {path} lies inside the working directory; move it out."
            )
    _refuse_inside_ours(settings)


def _refuse_inside_ours(settings: Settings) -> None:
    """Refuse the user's in what goes with us; by name, for one may be on a mount that hangs."""
    for key, place in product(_UNIT, (settings.working_dir, settings.onedata_dir)):
        ours = getattr(settings, key)
        if ours in place.parents:
            raise ConfigurationError(
                f"{place} lies inside {key} {ours}, which is onesync's own and goes with it;"
                " nothing was changed. Move it out."
            )
