"""Reads the configuration: a TOML file, ``ONESYNC_…`` variables over it, nothing unknown."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError, create_model
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from onesync.core.model import printable
from onesync.errors import ConfigurationError
from onesync.settings import Settings, of_instance


class _Sources(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="ONESYNC_", env_nested_delimiter="__", extra="forbid"
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


def _keys() -> dict[str, Any]:
    """Return the keys of ``Settings``, each with its type and default."""
    hints = get_type_hints(Settings, include_extras=True)
    found: dict[str, Any] = {}
    for key in fields(Settings):
        default = ... if key.default is MISSING else key.default
        if key.default_factory is not MISSING:
            default = Field(default_factory=key.default_factory)
        found[key.name] = hints[key.name], default
    return found


_Checked = create_model("_Checked", __base__=_Sources, **_keys())


def load(config: Path | None, instance: str | None) -> Settings:
    """Read the configuration. Raises ConfigurationError naming file, key and what is expected."""
    places: dict[str, str] = {}
    if config is None:
        config, places = of_instance(instance)
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
        return Settings(**dict(_Checked(**values)))
    except ValidationError as error:
        wrong = "; ".join(_told(item) for item in error.errors())
        raise ConfigurationError(f"{config}: {wrong}.") from error
    except ValueError as error:
        raise ConfigurationError(f"{config}: {error}.") from error


def shown(settings: Settings) -> str:
    """Return settings as JSON, for a person."""
    return TypeAdapter(Settings).dump_json(settings, indent=2).decode()


def _told(item: ErrorDetails) -> str:
    key = ".".join(map(str, item["loc"]))
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is not a key that onesync knows"
    if item["type"] == "missing":
        return f"{key} is missing"
    text = item["msg"].removeprefix("Value error, ")
    return f"{key}: {text}" if key else text
