"""The table of errors and events, and that the documentation shows it as it is."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from onesync.core.trouble import (
    EVENTS,
    LOCAL,
    MOUNT,
    SOURCE,
    Reaction,
    judge,
    pause_seconds,
)
from onesync.errors import LocalError, LockLost, MountHung, NotArrived, OnesyncError, Suspended

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"


@pytest.mark.parametrize(
    ("error", "kind", "reaction"),
    [
        (OSError(errno.EAGAIN, "x"), "EAGAIN", Reaction.AGAIN),
        (OSError(errno.ETIMEDOUT, "x"), "ETIMEDOUT", Reaction.SUSPECT),
        (OSError(errno.ENOTCONN, "x"), "ENOTCONN", Reaction.WAIT),
        (OSError(errno.ENOSPC, "x"), "ENOSPC", Reaction.PERSON),
        (OSError(errno.EL2HLT, "x"), "EL2HLT", Reaction.SUSPECT),
        (LocalError(errno.ENOSPC, "x"), "local_ENOSPC", Reaction.PERSON),
        (LocalError(errno.EIO, "x"), "local_EIO", Reaction.PERSON),
        (LocalError(errno.ENOENT, "x"), "local_ENOENT", Reaction.AGAIN),
        (Suspended("x"), "Suspended", Reaction.WAIT),
        (MountHung("x"), "MountHung", Reaction.WAIT),
        (NotArrived("x"), "NotArrived", Reaction.SUSPECT),
        (LockLost("x"), "LockLost", Reaction.HALT),
        (OnesyncError("x"), "OnesyncError", Reaction.LATER),
    ],
)
def test_each_error_is_judged(error: Exception, kind: str, reaction: Reaction) -> None:
    trouble = judge(error)
    assert (trouble.kind, trouble.reaction) == (kind, reaction)
    assert trouble.text


def test_the_disk_of_this_node_is_never_taken_for_the_mount() -> None:
    assert not any(judge(LocalError(number, "x")).is_suspicious for number in errno.errorcode)


def test_every_sentence_ends_and_says_what_is_safe() -> None:
    for row in [*MOUNT.values(), *LOCAL.values(), *SOURCE.values()]:
        assert row.told.endswith(".")
        assert not row.remedy.endswith(".")
        assert re.search(r"nothing is lost|safe|stays|is pushed|looked at again", row.told), row


@pytest.mark.parametrize("error", [LocalError(errno.ENOSPC, "full"), OSError(errno.EROFS, "x")])
def test_what_follows_the_remedy_is_said_once(error: OSError) -> None:
    trouble = judge(error)
    assert trouble.text.count("by itself") == 1
    at_start = trouble.text_with("then start again")
    assert at_start.count("start again") == 1
    assert "by itself" not in at_start
    assert at_start.endswith(f"({error.strerror})")


def test_pauses_rise_and_busy_is_tried_at_once() -> None:
    assert pause_seconds(Reaction.AGAIN, 1) < 1
    for reaction in Reaction:
        pauses = [pause_seconds(reaction, failures) for failures in range(1, 20)]
        assert pauses == sorted(pauses)
        assert pauses[-1] <= 60


def documented(heading: str) -> dict[str, str]:
    """The reactions that ARCHITECTURE's table gives, by the code in its first column."""
    _, _, rest = ARCHITECTURE.read_text().partition(heading)
    rows = re.findall(r"^\| (.+?) \| (\w+) \|", rest.partition("\n## ")[0], re.M)
    return {code: reaction for codes, reaction in rows for code in re.findall(r"`(.+?)`", codes)}


def test_the_documentation_shows_the_table() -> None:
    shown = documented("## Errors")
    table = {errno.errorcode[number]: row.reaction for number, row in MOUNT.items()}
    table |= {"local " + errno.errorcode[n]: row.reaction for n, row in LOCAL.items()}
    table |= {"file " + errno.errorcode[n]: row.reaction for n, row in SOURCE.items()}
    table |= {kind.__name__: row.reaction for kind, row in EVENTS.items()}
    aliases = {"Exception": "anything else", "EOPNOTSUPP": "ENOTSUP"}
    assert shown == {aliases.get(code, code): str(reaction) for code, reaction in table.items()}
