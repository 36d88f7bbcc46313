"""What ``onesync doctor`` makes of its probes of the mount: an answer in, a check out. Pure.

Most of what a mount does otherwise than a disk is no fault: onesync keeps it in the manifest. So it
is told, and only what stops a deployment is a failure.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

from onesync.core.diagnosis import Check, failure, not_checked, ok, warning
from onesync.core.trouble import of_mount
from onesync.core.view import age_text
from onesync.errors import Exit

Answer = object
"""What a probe found, as its function in ``replica.probes`` says; an OSError: it was refused."""

WRITE = "probe.write"
ROUND_TRIP = "probe.round_trip"
_LARGEST_SKEW = 60.0
_CALLS_A_FILE = 8


def judge_probe(name: str, answer: Answer, workers: int) -> Check:
    """Judge what one probe found; ``workers`` is how many calls are made at once."""
    if isinstance(answer, FileNotFoundError):
        return not_checked(
            name, "What the probe had made was gone: another doctor of this node cleared it away."
        )
    if name == ROUND_TRIP and isinstance(answer, float):
        return _judge_round_trip(answer, workers)
    return _JUDGES[name](name, answer)


def _judge_write(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError):
        row = of_mount(answer.errno)
        return failure(
            name,
            f"The folder cannot be written ({answer.strerror}). {row.told}",
            f"{row.remedy}." if row.remedy else "",
            Exit.MOUNT_NOT_THERE,
        )
    if not answer:
        return failure(
            name,
            "The mount does not give back what was written.",
            "Local data are kept, but do not deploy here: the mount's client is broken. Mount it"
            " anew.",
            Exit.MOUNT_NOT_THERE,
        )
    return ok(name, "What is created, written and flushed is given back.")


def _judge_rename(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError) or not answer:
        reason = answer.strerror if isinstance(answer, OSError) else "the name did not change"
        return failure(
            name,
            f"A file cannot be renamed ({reason}).",
            "Nothing is lost, but nothing can be published. Look at the rights and the token of the"
            " mount.",
            Exit.MOUNT_NOT_THERE,
        )
    return ok(name, "Files are renamed.")


def _judge_replacing(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError) or answer is None:
        return ok(name, "Cannot be refused by the mount, so onesync looks before it renames.")
    if not answer:
        return warning(
            name,
            "A rename that must not replace anything replaced a file.",
            "onesync never renames to a name that it knows to be taken; let nobody else write the"
            " folder while it is deployed.",
        )
    return ok(name, "A rename onto a name that is taken is refused.")


def _judge_links(what: str) -> Callable[[str, Answer], Check]:
    def judge(name: str, answer: Answer) -> Check:
        if isinstance(answer, OSError):
            return ok(name, f"{what} are refused ({answer.strerror}); the manifest keeps them.")
        return ok(name, f"{what} are taken; the manifest keeps them all the same.")

    return judge


def _judge_attributes(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError) or not answer:
        reason = answer.strerror if isinstance(answer, OSError) else "there is none"
        return ok(
            name,
            f"OneData's word whether bytes arrived cannot be had ({reason}): databases are read"
            " back, other files are believed after one more look.",
        )
    return ok(name, f"OneData tells whether bytes arrived ({answer} of the probe).")


def _judge_mode(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError):
        return ok(name, f"Modes are refused ({answer.strerror}); the manifest keeps them.")
    return ok(name, f"Modes are {'kept' if answer else 'not kept; the manifest keeps them'}.")


def _judge_times(name: str, answer: Answer) -> Check:
    """Judge by how many nanoseconds a time came back different."""
    if isinstance(answer, OSError) or not isinstance(answer, int):
        return ok(name, "Times cannot be set; the manifest keeps them.")
    if not answer:
        return ok(name, "Times are kept to the nanosecond.")
    if abs(answer) < 10**9:
        return ok(name, "Times are kept coarsely; the manifest keeps them to the nanosecond.")
    return ok(name, "Times are not kept; the manifest keeps them.")


def _judge_skew(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError) or not isinstance(answer, float):
        return not_checked(name, "The mount tells no time of a new file.")
    direction = "ahead of" if answer > 0 else "behind"
    if abs(answer) > _LARGEST_SKEW:
        return warning(
            name,
            f"The mount's clock is {age_text(abs(answer))} {direction} this node's.",
            "No decision follows either, but people compare them. Synchronise both clocks.",
        )
    if abs(answer) <= 1:
        return ok(name, "The mount's times agree with this node's clock.")
    return ok(name, f"The mount's times are {age_text(abs(answer))} {direction} this node's.")


def _judge_long_names(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError) or not answer:
        reason = answer.strerror if isinstance(answer, OSError) else "it is not listed"
        return warning(
            name,
            f"A name of 255 bytes is not taken ({reason}).",
            "A file that has one stays here and is told as a problem; everything else is pushed.",
        )
    return ok(name, "Names of 255 bytes are taken.")


def _judge_odd_names(name: str, answer: Answer) -> Check:
    if not isinstance(answer, tuple):
        return not_checked(name, f"It failed: {answer}.")
    if answer:
        return ok(name, f"Not kept: {', '.join(answer)}; onesync keeps such names escaped.")
    return ok(name, "All are kept; onesync escapes those that other mounts refuse all the same.")


def _judge_case(name: str, answer: Answer) -> Check:
    if isinstance(answer, OSError):
        return not_checked(name, f"It failed: {answer.strerror}.")
    if not answer:
        return warning(
            name,
            "The mount takes names that differ in case for the same.",
            "Of two files that differ so one stays here and is told as a problem.",
        )
    return ok(name, "Names that differ in case differ.")


def _judge_listing(name: str, answer: Answer) -> Check:
    if not isinstance(answer, tuple):
        return not_checked(name, f"It failed: {answer}.")
    seen, gone = answer
    if seen and gone:
        return ok(name, "New files are listed at once, deleted ones are gone at once.")
    late = " and ".join(
        text for text, well in (("new files", seen), ("deletions", gone)) if not well
    )
    return warning(
        name,
        f"Listings show {late} late.",
        "Nothing is lost: onesync looks names up before it believes a listing.",
    )


def _judge_round_trip(seconds: float, workers: int) -> Check:
    each = max(seconds, 1e-6) * _CALLS_A_FILE
    one, many = 1 / each, workers / each
    return ok(
        ROUND_TRIP,
        f"One call takes {seconds * 1000:.1f} ms: about {one:,.0f} new small files a second where"
        f" they come one by one, as in one directory, up to {many:,.0f} with {workers} calls at"
        " once.",
    )


_JUDGES: Mapping[str, Callable[[str, Answer], Check]] = {
    WRITE: _judge_write,
    "probe.rename": _judge_rename,
    "probe.rename_onto": _judge_replacing,
    "probe.symlink": _judge_links("Symbolic links"),
    "probe.hard_link": _judge_links("Hard links"),
    "probe.attributes": _judge_attributes,
    "probe.mode": _judge_mode,
    "probe.times": _judge_times,
    "probe.clock": _judge_skew,
    "probe.long_names": _judge_long_names,
    "probe.odd_names": _judge_odd_names,
    "probe.case": _judge_case,
    "probe.listing": _judge_listing,
    ROUND_TRIP: lambda name, answer: not_checked(name, f"It failed: {answer}."),
}

PROBES: tuple[str, ...] = tuple(_JUDGES)
"""The probes' names, in the order in which they are made: writing first."""


def is_disconnected(error: OSError) -> bool:
    """Whether no further probe can tell anything: the mount went."""
    return error.errno in (errno.ENOTCONN, errno.ESTALE, errno.ENODEV)
