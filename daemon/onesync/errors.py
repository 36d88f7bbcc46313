"""Every way onesync can fail as a whole, each with its exit code.

OnesyncError (1 unexpected)
├── ConfigurationError (78)       refused at the door
├── MountNotThere (14)            the replica is not reachable; systemd tries again
│   ├── MountHung                 a call on the mount did not answer in time
│   └── Suspended                 no heartbeat was confirmed for too long: nothing is written
├── DeployedElsewhere (11)        somebody else holds the folder
├── LockLost (12)                 we held it and do not any more
├── NotArrived                    what was written reads back short or different
├── FlushNotFinished (10)         the final flush ended early; lock and local data kept
├── StateDirFailed (1)            state_dir is full or fails; goes on when it can be written
├── IndexDamaged (1)              the next start makes the index anew
└── Halted (13)                   a person must decide
    └── WorkingCopyLost           what was deployed is gone, or another one stands in its place

A LocalError is an OSError of this machine's own disks; every other OSError that reaches the engine
is the mount's. ``core.trouble`` says what is done about each.

What is wrong with one path is not an error but a ``core.model.Problem``.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the program; documented in README."""

    CLEAN = 0
    UNEXPECTED = 1
    FLUSH_NOT_FINISHED = 10
    DEPLOYED_ELSEWHERE = 11
    LOCK_LOST = 12
    HALTED = 13
    MOUNT_NOT_THERE = 14
    CONFIGURATION = 78


MEANINGS = {
    Exit.CLEAN: "undeployed clean, or handed over",
    Exit.UNEXPECTED: "anything unexpected, also a full or damaged `state_dir`, which the sentence"
    " says; systemd tries again",
    Exit.FLUSH_NOT_FINISHED: "final flush not finished; lock and local data kept, start again on"
    " this node",
    Exit.DEPLOYED_ELSEWHERE: "the folder is deployed elsewhere",
    Exit.LOCK_LOST: "the lock was lost; nothing more is written, local data kept",
    Exit.HALTED: "halted, a person must decide; the sentence says what",
    Exit.MOUNT_NOT_THERE: "the mount is not there; systemd tries again, without a limit",
    Exit.CONFIGURATION: "bad configuration, nothing was changed",
}
"""What people are told of each, in README and manual page."""


class OnesyncError(Exception):
    """A failure that a person reads: what happened, what is safe, what to do."""

    code = Exit.UNEXPECTED


class ConfigurationError(OnesyncError):
    """The configuration or the two directories do not fit; nothing was changed."""

    code = Exit.CONFIGURATION


class MountNotThere(OnesyncError):
    """The replica cannot be reached, or what stands there is not it."""

    code = Exit.MOUNT_NOT_THERE


class MountHung(MountNotThere):
    """A call on the mount did not answer within the configured time."""


class Suspended(MountNotThere):
    """No beat of the lock was confirmed for too long; goes on when the mount answers again."""


class DeployedElsewhere(OnesyncError):
    """The folder is deployed by somebody else."""

    code = Exit.DEPLOYED_ELSEWHERE


class LockLost(OnesyncError):
    """The lock was ours and is not any more: no writes from here on."""

    code = Exit.LOCK_LOST


class NotArrived(OnesyncError):
    """What was written to OneData reads back short or different; it is written again."""


class FlushNotFinished(OnesyncError):
    """The final flush could not finish; lock and local data are kept."""

    code = Exit.FLUSH_NOT_FINISHED


class Halted(OnesyncError):
    """A person must decide before anything more is written."""

    code = Exit.HALTED


class WorkingCopyLost(Halted):
    """The working copy is gone, or another directory stands in its place."""


class StateDirFailed(OnesyncError):
    """The state directory is full or fails: nothing is committed, nothing is lost."""


class IndexDamaged(OnesyncError):
    """The index cannot be read; the next start makes it anew by comparing contents."""


class StopRequested(Exception):
    """A stop was asked for before the folder was deployed: not a failure."""


class LocalError(OSError):
    """A file system of this machine failed: the working copy's or the state directory's.

    It has the kernel's errno, but none of the classes that Python has for some of them.
    """
