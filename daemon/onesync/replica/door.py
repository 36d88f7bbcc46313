"""The door to the replica: one protocol, whatever stands behind it.

All paths are ``RelPath`` beneath the replica's root; no call follows a symbolic link. Every call
may block on the mount and raises ``OSError`` with the kernel's errno, or ``MountHung`` where it did
not answer in time (its result is then unknown). What goes wrong with a local file, a copy's source
or destination, is raised as ``LocalError`` instead. Every name is given and told as the working
copy has it, whatever it is called in OneData; where one cannot be kept at all, creating it raises
``NameRefused``. Implementations may be called from several threads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

from onesync.core.blocks import Blocks
from onesync.core.model import Kind, RelPath, Stamp


@dataclass(frozen=True, slots=True)
class Listed:
    """One name in a directory of the replica; ``size`` is 0 for directories.

    ``mtime_ns`` is a file's time as OneData tells it: a reason to ask a person, never evidence.
    """

    name: bytes
    kind: Kind
    size: int
    mtime_ns: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Identity:
    """What stands at the replica's path.

    Attributes:
        mount: the kernel's id of the mount that it lies on; another one after a new mount.
        inode: of the root.
        is_fuse: whether it lies on a FUSE file system.
        is_mount_root: whether it is the top of its mount.
    """

    mount: int
    inode: int
    is_fuse: bool
    is_mount_root: bool


@dataclass(frozen=True, slots=True)
class Copied:
    """A finished copy in either direction.

    Attributes:
        digest: blake3 of the bytes written, hex.
        size: how many they were; fewer than ``before`` says where the time was up, or what came
            next changed faster than it could be read.
        before: the source's stamp when it was opened (None when the source is the replica).
        steady: whether the source had still the same content after the copy.
        prefix: whether the copy is what the source began with at one moment, also when it grew or
            changed meanwhile.
        blocks: digests of the copy's blocks, of a large file.
        whole: how long the source was when it began like this; less than ``size`` is of no account.
    """

    digest: str
    size: int
    before: Stamp | None
    steady: bool
    prefix: bool = True
    blocks: Blocks | None = None
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Compared:
    """How a local file differs from the version whose blocks are known.

    Attributes:
        copied: what a whole copy would give.
        changed: the blocks of the known version whose bytes changed.
        renewed: the blocks that are to be remembered, where the file has outgrown the known ones,
            or an earlier version digested those.
        kept: blocks as they were at the moment of ``copied``: the file has other ones by now.
    """

    copied: Copied
    changed: tuple[int, ...]
    renewed: Blocks | None = None
    kept: Mapping[int, bytes] = field(default_factory=dict)


Ours = Mapping[RelPath, Collection[bytes]]
"""What onesync put into a tree: its directories, by their paths relative to its top (``b""``), with
the names of the files in each. Without any the top is a file."""


class NameRefused(OSError):
    """What stands behind the door takes neither a name nor the one that it is given instead."""


class Replica(Protocol):
    """The replica's calls. Each docstring is a contract that every implementation is tested on."""

    def identify(self) -> Identity:
        """Look at the root with one look-up; all later calls work on this mount alone.

        They raise OSError (ESTALE) where another one was mounted, and ``walk_anew``. Raises
        FileNotFoundError or NotADirectoryError where there is no directory.
        """

    def walk_anew(self) -> None:
        """Let later calls find every directory by its path; makes no call itself.

        One that was opened before may stand elsewhere by now, also outside of the folder.
        """

    def look(self, path: RelPath) -> Listed | None:
        """Look ``path`` up afresh; None when nothing stands there."""

    def look_at(self, paths: Sequence[RelPath]) -> Sequence[Listed | None]:
        """Look ``paths`` up, one after the other: only one process walks to their directory."""

    def list(
        self, path: RelPath, known: Mapping[bytes, Kind] = MappingProxyType({})
    ) -> list[Listed]:
        """List a directory, in no order; special files are left out.

        The names of files and directories in ``known`` need not be looked at: the caller takes them
        for what they are there, of size 0.
        """

    def names(self, path: RelPath) -> Set[bytes]:
        """List the names in a directory and look at none of them; perhaps one is gone by now."""

    def make_directory(self, path: RelPath) -> None:
        """Create a directory. Raises FileExistsError when the name is taken by anything."""

    def put(self, source: bytes, temporary: RelPath, seconds: float | None = None) -> Copied:
        """Copy the local file at absolute path ``source`` to the new file ``temporary``, and fsync.

        After ``seconds`` it ends with as much as was copied, and also where the source changed
        faster than it could be read: without them such a copy is no prefix. ``source`` may be
        ``/proc/PID/fd/N``, a descriptor that the caller holds open.

        Raises FileExistsError when ``temporary`` exists. After any error the temporary is gone or
        worthless; gone after a LocalError. Raises InterruptedError when the source is not a regular
        file any more.
        """

    def fetch(
        self,
        path: RelPath,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        """Copy the replica's file to the new local file at absolute path ``destination``.

        The local file is created exclusively, gets ``mode`` and, unless None, ``mtime_ns``, and is
        flushed to disk. Where it ``goes_on``, a file that stands there is taken for the beginning
        of the copy: nobody compares it, but the digest is of both.
        """

    def append(
        self, source: bytes, path: RelPath, offset: int, digest: str, seconds: float | None = None
    ) -> Copied | None:
        """Write what ``source`` (as in ``put``) holds beyond ``offset`` to the end of ``path``.

        Returns what a whole copy would have given, or None, with nothing written, unless ``source``
        begins with the ``offset`` bytes that have this digest and ``path`` is exactly that long.
        After an error of the mount, or where the result is no ``prefix``, ``path`` must be
        truncated; after a LocalError it has been.

        After ``seconds`` it ends; where the result's size is less than ``offset``, the source is
        still being read and nothing was written. The next call for it goes on from there.
        """

    def compare(
        self,
        source: bytes,
        length: int,
        blocks: Blocks,
        seconds: float | None = None,
        most: int | None = None,
    ) -> Compared:
        """Compare ``source`` (as in ``put``) with a version of ``length`` bytes. Reads only it.

        It ends with the first ``most`` bytes.

        After ``seconds`` it ends with ``copied`` as far as it was read and ``changed`` empty. The
        next call for it goes on from there, unless the source changed: then it begins anew, and a
        result that is again only a part is not ``steady``.
        """

    def write_undo(
        self, path: RelPath, undo: RelPath, length: int, blocks: Blocks, numbers: tuple[int, ...]
    ) -> bool:
        """Save the blocks ``numbers`` of ``path`` in the new file ``undo``, and fsync.

        Returns False, and leaves no ``undo``, unless ``path`` is ``length`` bytes long and these
        blocks are what ``blocks`` says.
        """

    def patch(
        self,
        source: bytes,
        path: RelPath,
        blocks: Blocks,
        numbers: tuple[int, ...],
        end: int,
        kept: Mapping[int, bytes] = MappingProxyType({}),
    ) -> bool:
        """Write the blocks ``numbers`` of ``source``, a file of ``end`` bytes, into ``path``.

        Those that were ``kept`` when it was compared are not read again. Returns False where
        ``source`` is not what ``blocks`` says any more. After that, and after any error, ``path``
        needs ``undo``.
        """

    def undo(self, path: RelPath, undo: RelPath, length: int) -> bool:
        """Bring ``path`` back to what it was before the patch that the file ``undo`` prepared.

        Returns False, with nothing changed, where ``undo`` is torn, for then no patch was begun, or
        tells of a file that had not ``length`` bytes. May be done again. Raises FileNotFoundError
        where either is not there.
        """

    def truncate(self, path: RelPath, length: int) -> None:
        """Cut the file ``path`` off at ``length`` bytes."""

    def digest(self, path: RelPath) -> tuple[str, int]:
        """Read a file to its end; returns its blake3 digest in hex and its length."""

    def arrived(self, paths: Sequence[RelPath]) -> tuple[bool, ...] | None:
        """Return of each file that holds bytes whether OneData has them all.

        None where the mount cannot tell. Two round trips a file. Good only from some seconds after
        the file was closed.
        """

    def rename(self, source: RelPath, target: RelPath, *, is_file: bool = False) -> None:
        """Rename a file or directory to a name where nothing stands.

        ``is_file`` promises that it is no directory: then nobody's descriptors of directories need
        to be opened anew. Raises FileExistsError when something stands at ``target``.
        """

    def remove(self, path: RelPath) -> bool:
        """Remove a file, or a directory with all that is in it; nothing there is success.

        Returns whether a directory was removed.
        """

    def remove_ours(self, path: RelPath, ours: Ours) -> Sequence[RelPath]:
        """Remove what is ``ours`` at ``path`` and beneath, each by what it is: a file, a directory.

        Returns what is left of others, relative to ``path``: a directory that no listing shows
        anything in, and that is not empty all the same, as itself. Nothing there is success.
        """

    def unlink(self, path: RelPath) -> Kind | None:
        """Remove a file; nothing there is success, and so is a directory, which stays.

        Returns what was there: a directory, or a file for all else.
        """

    def read(self, path: RelPath) -> bytes:
        """Return the content of a small file (status folder). Raises FileNotFoundError."""

    def write_new(self, path: RelPath, content: bytes) -> None:
        """Create a small file with ``content`` and fsync it. Raises FileExistsError."""

    def overwrite(self, path: RelPath, content: bytes) -> None:
        """Rewrite a small file in place (same name, no truncation before the write)."""
