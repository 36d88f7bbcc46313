"""The end of a deployment that has one: it is told ahead, and put off where somebody asks."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from onesync.core.clock import Clock
from onesync.core.model import Problem
from onesync.errors import ConfigurationError
from onesync.index import Index
from onesync.settings import DeploymentSettings

log = logging.getLogger(__name__)

EXPIRING = "expiring"
_LATEST = datetime(9000, 1, 1, tzinfo=UTC).timestamp()


class Expiry:
    """When a deployment ends by itself, by this node's wall clock. Used by the engine's thread.

    Whoever else asks for ``at`` gets one that was true a moment ago.
    """

    def __init__(self, settings: DeploymentSettings, index: Index, clock: Clock) -> None:
        """Know what is configured; what was put off is kept in the index."""
        self._settings = settings
        self._index = index
        self._clock = clock
        self._kept: dict[str, Any] = {}
        self._is_told = False
        self.at: float | None = settings.until_seconds()

    def refuse_past(self) -> None:
        """Raise ConfigurationError where a deployment would end before it begins."""
        if self.is_over():
            raise ConfigurationError(
                f"The time of this deployment was over at {_told(self.at)}; nothing was deployed."
                " Set a later [deployment] until."
            )

    def begin(self, deployment_id: str) -> None:
        """Take up the deployment: its time counts from its first beginning."""
        found = json.loads(self._index.get("expiry") or "{}")
        if found.get("deployment") != deployment_id:
            found = {"deployment": deployment_id, "began": self._now(), "extended": None}
            self._index.set(expiry=json.dumps(found))
        self._kept = found
        self._take()

    def reconfigure(self, settings: DeploymentSettings) -> None:
        """Follow a configuration that changed: another end in it counts, not what was put off."""
        self._settings = settings
        self._take()

    def extend(self, until: float | None, seconds: float) -> float:
        """Put the end off to ``until``, or by ``seconds``; returns it. Durable.

        Raises ConfigurationError where there is no end to put off, or it would be over already.
        """
        if until is None:
            if self.at is None:
                raise ConfigurationError(
                    "This deployment has no end that could be put off; nothing was changed."
                )
            until = max(self.at, self._now()) + seconds
        if until <= self._now():
            raise ConfigurationError(f"{_told(until)} is over already; nothing was changed.")
        if until > _LATEST:
            raise ConfigurationError("The end would be after the year 9000; nothing was changed.")
        self._kept |= {"extended": until, "configured": self._configured()}
        self._index.set(expiry=json.dumps(self._kept))
        self._take()
        log.info("deployment extended", extra={"until": _told(until)})
        return until

    def is_over(self) -> bool:
        """Return whether the deployment is to end now."""
        return self.at is not None and self._now() >= self.at

    def is_near(self) -> bool:
        """Return whether people are to be told."""
        return self.at is not None and self._now() >= self.at - self._settings.warn

    def next_due(self) -> float | None:
        """Return the seconds until something is to be done about it; None: never."""
        if self.at is None:
            return None
        due = self.at if self.is_near() else self.at - self._settings.warn
        return max(0.0, due - self._now())

    def warn(self) -> None:
        """Tell once that the end is near."""
        if self.is_near() and not self._is_told:
            self._is_told = True
            log.warning("the deployment ends soon", extra={"until": _told(self.at)})

    def problem(self) -> Problem | None:
        """Return what people are told while the end is near. Any thread."""
        if not self.is_near():
            return None
        text = (
            f"This deployment ends at {_told(self.at)}: it is then flushed and undeployed as by"
            " 'systemctl stop'. 'onesync extend 24h' gives it a day more."
        )
        return Problem(b"", EXPIRING, text)

    def _take(self) -> None:
        self._is_told = False
        end = self._settings.until_seconds()
        if self._settings.duration is not None and self._kept:
            end = float(self._kept["began"]) + self._settings.duration
        extended = self._kept.get("extended")
        # A configuration that was changed since says what its author wants now.
        if extended is not None and self._kept.get("configured") == self._configured():
            end = float(extended)
        self.at = end

    def _configured(self) -> list[float | None]:
        return [self._settings.until_seconds(), self._settings.duration]

    def _now(self) -> float:
        return self._clock.wall_ns() / 1e9


def _told(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(" ", "minutes")
