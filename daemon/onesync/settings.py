"""The configuration: a TOML file, ``ONESYNC_…`` environment variables over it, nothing unknown."""

from __future__ import annotations

import os
import pwd
import tomllib
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pathspec import PathSpec
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from onesync import instance as units
from onesync.core.claims import LockTimes
from onesync.core.duration import seconds_of
from onesync.core.model import printable
from onesync.core.ordering import SCIPION_ORDER, SCIPION_SCRATCH, SCIPION_UNNAMED
from onesync.errors import ConfigurationError

CONFIGURATIONS = Path(units.CONFIGURATIONS)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MountSettings(_Section):
    """``[mount]``."""

    require_fuse: bool = True
    io_timeout_seconds: float = Field(default=120.0, gt=0)


class OneclientSettings(_Section):
    """``[oneclient]``, which ``instance`` reads for the units; no host: somebody else mounts."""

    host: str = ""
    mount_point: Path | None = None
    options: tuple[str, ...] = ()

    @field_validator("mount_point")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else _absolute(value)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if bool(self.host) != (self.mount_point is not None):
            raise ValueError("host and mount_point are only good together")
        if self.mount_point is not None and str(self.mount_point.parent) in units.SHARED:
            raise ValueError("mount_point: expected a directory further down, such as /mnt/onedata")
        return self


class BatchSettings(_Section):
    """``[batch]``."""

    settle_seconds: float = Field(default=2.0, ge=0)
    max_delay_seconds: float = Field(default=30.0, gt=0)
    min_interval_seconds: float = Field(default=1.0, ge=0)
    rescan_seconds: float = Field(default=900.0, gt=0)


class GuardSettings(_Section):
    """``[guards]``."""

    unexplained_deletions: int = Field(default=1000, ge=0)
    unexplained_percent: float = Field(default=25.0, ge=0, le=100)


class PushSettings(_Section):
    """``[push]``."""

    workers: int = Field(default=64, ge=1, le=256)
    bandwidth_limit: ByteSize = ByteSize(0)
    round_seconds: float = Field(default=5.0, gt=0)
    exclude: tuple[str, ...] = ()
    publish_order: tuple[str, ...] = SCIPION_ORDER
    scratch: tuple[str, ...] = SCIPION_SCRATCH
    unnamed: tuple[str, ...] = SCIPION_UNNAMED

    @field_validator("exclude", "publish_order", "scratch", "unnamed")
    @classmethod
    def _are_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                PathSpec.from_lines("gitignore", [pattern])
            except ValueError as error:
                raise ValueError(f"expected patterns as in .gitignore: {error}") from error
        return value


class VerifySettings(_Section):
    """``[verify]``."""

    content: Literal["none", "databases", "all"] = "databases"


class LockSettings(_Section):
    """``[lock]``; every time is in seconds and follows from ``mount.io_timeout_seconds``."""

    settle_seconds: float | None = Field(default=None, ge=0)
    wait_seconds: float = Field(default=0.0, ge=0)
    beat_seconds: float | None = Field(default=None, gt=0)
    warn_seconds: float | None = Field(default=None, gt=0)
    suspend_seconds: float | None = Field(default=None, gt=0)
    dead_seconds: float | None = Field(default=None, gt=0)


class DeploymentSettings(_Section):
    """``[deployment]``; durations are seconds, or texts such as ``3d 12h``."""

    until: AwareDatetime | None = None
    duration: Annotated[float, BeforeValidator(seconds_of), Field(gt=0)] | None = None
    warn: Annotated[float, BeforeValidator(seconds_of), Field(ge=0)] = 3600.0

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if self.until is not None and self.duration is not None:
            raise ValueError("until and duration are two ends; give one of them")
        return self

    def until_seconds(self) -> float | None:
        """Return ``until`` in seconds since 1970."""
        return None if self.until is None else self.until.timestamp()


class StageInSettings(_Section):
    """``[stagein]``."""

    relocate_links: bool = True
    lost_copy: Literal["refuse", "restage"] = "refuse"


class MetricsSettings(_Section):
    """``[metrics]``."""

    listen: str = "127.0.0.1:9821"
    folder: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_authorities: Path | None = None
    textfile_dir: Path | None = None

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("expected HOST:PORT, such as 127.0.0.1:9821")
        return value

    @field_validator("folder")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if "/" in value or not value.isprintable():
            raise ValueError("expected a name without '/' that can be printed")
        return value

    @field_validator("tls_certificate", "tls_key", "tls_client_authorities", "textfile_dir")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else _absolute(value)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are only good together")
        if self.tls_client_authorities is not None and self.tls_certificate is None:
            raise ValueError("tls_client_authorities needs tls_certificate and tls_key")
        return self


class UndeploySettings(_Section):
    """``[undeploy]``."""

    clean_working_dir: bool = False
    flush_retry_seconds: float = Field(default=480.0, gt=0)
    on_reboot: Literal["keep", "undeploy"] = "keep"
    on_poweroff: Literal["keep", "undeploy"] = "undeploy"


class Settings(BaseSettings):
    """The whole configuration; every key is documented in ``config/onesync.toml``."""

    model_config = SettingsConfigDict(
        env_prefix="ONESYNC_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    user: str = ""
    working_dir: Path
    onedata_dir: Path
    state_dir: Path = Field(default_factory=lambda: _from_systemd("STATE_DIRECTORY", "state_dir"))
    runtime_dir: Path = Field(
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

    @field_validator("working_dir", "onedata_dir", "state_dir", "runtime_dir")
    @classmethod
    def _is_absolute(cls, value: Path) -> Path:
        return _absolute(value)

    @field_validator("user")
    @classmethod
    def _is_user(cls, value: str) -> str:
        if value and not units.is_user_name(value):
            raise ValueError("expected the name of a user")
        return value

    @model_validator(mode="after")
    def _lies_on_the_mount(self) -> Self:
        point = self.oneclient.mount_point
        if point is not None and point not in self.onedata_dir.parents:
            raise ValueError(f"onedata_dir lies outside oneclient.mount_point {point}")
        return self

    @model_validator(mode="after")
    def _times_rise(self) -> Self:
        try:
            self.lock_times()
        except ValueError as error:
            raise ValueError(f"lock: {error}") from error
        return self

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

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the environment over the file, whose values come as arguments."""
        return env_settings, init_settings


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
    push = old.push.model_copy(update={"round_seconds": new.push.round_seconds})
    settings = old.model_copy(update={**sections, "push": push})
    return Reloaded(settings, tuple(applied), tuple(key for key in changed if key not in applied))


def _flat(settings: Settings) -> dict[str, Any]:
    """Return the values by their keys, those of sections as ``section.key``."""
    found: dict[str, Any] = {}
    for name, value in settings:
        if isinstance(value, _Section):
            found |= {f"{name}.{key}": inner for key, inner in value}
        else:
            found[name] = value
    return found


def _absolute(value: Path) -> Path:
    if not value.is_absolute() or ".." in value.parts:
        raise ValueError("expected an absolute path without '..'")
    return Path("/", *value.parts[1:])  # "//srv" stays so, and is no parent of "/srv"


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


def load(config: Path | None, instance: str | None) -> Settings:
    """Read the configuration. Raises ConfigurationError naming file, key and what is expected."""
    places: dict[str, str] = {}
    if config is None:
        config, places = _of_instance(instance)
    try:
        values: dict[str, Any] = tomllib.loads(config.read_text())
    except OSError as error:
        raise ConfigurationError(f"{config} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{config} is not TOML: {error}.") from error
    values = places | values
    if isinstance(section := values.setdefault("metrics", {}), dict):
        section.setdefault("folder", printable(config.stem))
    try:
        return Settings(**values)
    except ValidationError as error:
        wrong = "; ".join(_told(item) for item in error.errors())
        raise ConfigurationError(f"{config}: {wrong}.") from error


def _of_instance(instance: str | None) -> tuple[Path, dict[str, str]]:
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


def _told(item: ErrorDetails) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{key} is not a key that onesync knows"
    if item["type"] == "missing":
        return f"{key} is missing"
    text = item["msg"].removeprefix("Value error, ")
    return f"{key}: {text}" if key else text


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
