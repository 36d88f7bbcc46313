"""What the stand-in makes of names, as its control socket sets it; at first it takes all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Refusals:
    """The switches.

    Attributes:
        undecodable: errno of every call with a name that is not UTF-8; 0 takes them.
        pattern: names that are refused with ``number``; empty refuses none.
        number: errno of names that match ``pattern``.
        only_new: whether the pattern's names are refused only where something gets them.
        suffixes: whether what follows the last "@" is taken for a provider's id, and matches.
    """

    undecodable: int = 0
    pattern: str = ""
    number: int = 0
    only_new: bool = False
    suffixes: bool = False

    def set(self, **switches: Any) -> None:
        """Set some of the switches."""
        for name, value in switches.items():
            setattr(self, name, value)

    def judge(self, path: str, *, is_new: bool = False) -> str:
        """Return the path that is really meant; raises OSError where a name is refused."""
        name = path.rpartition("/")[2]
        if self.undecodable and _is_undecodable(name):
            raise OSError(self.undecodable, os.strerror(self.undecodable))
        matters = is_new or not self.only_new
        if self.pattern and matters and re.search(self.pattern, name):
            raise OSError(self.number, os.strerror(self.number))
        if self.suffixes and "@" in name and not is_new:
            return path.rpartition("@")[0]
        return path


def _is_undecodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return True
    return False


def judged(at: Callable[[Any, str], bytes]) -> Callable[..., bytes]:
    """Let the refusals judge a path before the stand-in finds it."""

    def found(self: Any, path: str, *, is_new: bool = False) -> bytes:
        return at(self, self.refusals.judge(path, is_new=is_new))

    return found
