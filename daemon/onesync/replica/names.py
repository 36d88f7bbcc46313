"""A folder whose storage refuses, hides or confuses some names (see ``core.names``).

A plain name is never asked about. One that OneData cannot be trusted with is kept under its escaped
name, unless it stands under its own since before there were any. Any other one is kept under its
own, or under the escaped one where the mount refused it. What was found is remembered.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import NoReturn, TypeVar

from onesync.core.blocks import Blocks
from onesync.core.model import (
    STATUS_FOLDER,
    Kind,
    RelPath,
    is_beneath,
    is_reserved,
    join,
    name_of,
    parent_of,
)
from onesync.core.names import (
    LONGEST_NAME,
    NOTES,
    escape,
    is_ambiguous,
    is_hidden,
    is_plain,
    must_be_escaped,
    note_of,
    read_note,
    unescape,
    write_note,
)
from onesync.errors import LocalError
from onesync.replica.door import Compared, Copied, Identity, Listed, NameRefused, Ours
from onesync.replica.folder import FolderReplica

T = TypeVar("T")

_REMEMBERED = 10_000


class EscapedNames:
    """See the module. Safe in several threads."""

    def __init__(self, folder: FolderReplica) -> None:
        """Stand before ``folder``; nothing is touched."""
        self._folder = folder
        self._names: dict[RelPath, bytes] = {}
        self._own: dict[bytes, bytes] = {}
        self._outdated: dict[RelPath, frozenset[bytes]] = {}
        self._are_plain_ones_escaped = False
        self._expected: int | None = None
        self._guard = threading.Lock()

    def forget(self, top: RelPath = b"") -> None:
        """Let go of what is known of ``top`` and all beneath: paths may mean something else."""
        self._drop(top)
        known = is_plain(top) and not self._are_plain_ones_escaped
        self._folder.forget(top if known else b"")

    def expect(self, mount: int | None) -> None:
        """Work on the mount of this id alone (None: on any)."""
        if mount != self._expected:
            self._expected = mount
            self._drop(b"")
            self._folder.expect(mount)

    def walk_anew(self) -> None:
        self._folder.walk_anew()

    def identify(self) -> Identity:
        return self._folder.identify()

    def space(self) -> os.statvfs_result:
        """See the folder's."""
        return self._folder.space()

    def probe(self, place: RelPath, name: str) -> object:
        """See the folder's: the mount itself is asked, whatever names are escaped."""
        return self._folder.probe(place, name)

    def look(self, path: RelPath) -> Listed | None:
        return self._look(path, self._folder.look)

    def look_at(self, paths: Sequence[RelPath]) -> Sequence[Listed | None]:
        return [self._look(path, lambda place: self._folder.look_at([place])[0]) for path in paths]

    def _look(self, path: RelPath, look: Callable[[RelPath], Listed | None]) -> Listed | None:
        try:
            found = self._at(path, look)
        except NameRefused:
            return None
        return None if found is None else replace(found, name=name_of(path))

    def list(
        self, path: RelPath, known: Mapping[bytes, Kind] = MappingProxyType({})
    ) -> list[Listed]:
        plain = {name: kind for name, kind in known.items() if is_plain(name)}
        items = self._at(path, lambda place: self._folder.list(place, plain))
        stored = {item.name: item for item in items}
        return [replace(stored[n], name=own) for own, n in self._stored_names(stored).items()]

    def names(self, path: RelPath) -> Set[bytes]:
        return frozenset(map(self._own_name, self._at(path, self._folder.names)))

    def make_directory(self, path: RelPath) -> None:
        self._create(path, self._folder.make_directory)

    def put(self, source: bytes, temporary: RelPath, seconds: float | None = None) -> Copied:
        return self._create(temporary, lambda place: self._folder.put(source, place, seconds))

    def fetch(
        self,
        path: RelPath,
        destination: bytes,
        mode: int,
        mtime_ns: int | None,
        goes_on: bool = False,
    ) -> Copied:
        return self._at(
            path, lambda place: self._folder.fetch(place, destination, mode, mtime_ns, goes_on)
        )

    def append(
        self, source: bytes, path: RelPath, offset: int, digest: str, seconds: float | None = None
    ) -> Copied | None:
        return self._at(
            path, lambda place: self._folder.append(source, place, offset, digest, seconds)
        )

    def compare(
        self,
        source: bytes,
        length: int,
        blocks: Blocks,
        seconds: float | None = None,
        most: int | None = None,
    ) -> Compared:
        return self._folder.compare(source, length, blocks, seconds, most)

    def write_undo(
        self, path: RelPath, undo: RelPath, length: int, blocks: Blocks, numbers: tuple[int, ...]
    ) -> bool:
        def write(place: RelPath) -> bool:
            return self._create(
                undo, lambda beside: self._folder.write_undo(place, beside, length, blocks, numbers)
            )

        return self._at(path, write)

    def patch(
        self,
        source: bytes,
        path: RelPath,
        blocks: Blocks,
        numbers: tuple[int, ...],
        end: int,
        kept: Mapping[int, bytes] = MappingProxyType({}),
    ) -> bool:
        return self._at(
            path, lambda place: self._folder.patch(source, place, blocks, numbers, end, kept)
        )

    def undo(self, path: RelPath, undo: RelPath, length: int) -> bool:
        return self._at(
            path,
            lambda place: self._at(undo, lambda beside: self._folder.undo(place, beside, length)),
        )

    def truncate(self, path: RelPath, length: int) -> None:
        self._at(path, lambda place: self._folder.truncate(place, length))

    def digest(self, path: RelPath) -> tuple[str, int]:
        return self._at(path, self._folder.digest)

    def arrived(self, paths: Sequence[RelPath]) -> tuple[bool, ...] | None:
        found: list[bool] = []
        for path in paths:
            one = self._at(path, lambda place: self._folder.arrived([place]))
            if one is None:
                return None
            found += one
        return tuple(found)

    def rename(self, source: RelPath, target: RelPath, *, is_file: bool = False) -> None:
        def rename(origin: RelPath) -> None:
            self._create(target, lambda place: self._folder.rename(origin, place, is_file=is_file))

        try:
            self._at(source, rename)
        finally:
            # What only went aside, another version takes its name: it need not be asked for again.
            if not (is_file and is_reserved(target)):
                self._drop(source, is_file=is_file)

    def rename_file(self, source: RelPath, target: RelPath) -> None:
        """Rename what is no directory."""
        self.rename(source, target, is_file=True)

    def remove(self, path: RelPath) -> bool:
        was_directory = True  # unless the folder says otherwise
        try:
            was_directory = self._at(path, self._folder.remove)
        except NameRefused:
            return False
        finally:
            self._drop(path, is_file=not was_directory)
        return was_directory

    def remove_ours(self, path: RelPath, ours: Ours) -> Sequence[RelPath]:
        try:
            return self._at(
                path, lambda place: self._folder.remove_ours(place, ours, self._stored_names)
            )
        finally:
            self._drop(path)

    def unlink(self, path: RelPath) -> Kind | None:
        try:
            with suppress(NameRefused):
                return self._at(path, self._folder.unlink)
            return None
        finally:
            self._drop(path, is_file=True)

    def read(self, path: RelPath) -> bytes:
        return self._at(path, self._folder.read)

    def write_new(self, path: RelPath, content: bytes) -> None:
        self._create(path, lambda place: self._folder.write_new(place, content))

    def overwrite(self, path: RelPath, content: bytes) -> None:
        self._at(path, lambda place: self._folder.overwrite(place, content))

    # -- where a path is kept ------------------------------------------------------------------

    def _at(self, path: RelPath, act: Callable[[RelPath], T]) -> T:
        """Do something where ``path`` is kept."""
        place = self._place(path)
        try:
            return act(place)
        except OSError as error:
            doubted = self._in_doubt(path, error)
            if doubted == place:
                _raise_refused(error, path, _is_escaped(place, path))
        try:
            return act(doubted)
        except OSError as error:
            _raise_refused(error, path, _is_refusal(error))

    def _create(self, path: RelPath, act: Callable[[RelPath], T]) -> T:
        """Create what ``path`` is to be, under its escaped name where its own one is refused."""
        place = self._free_place(path)
        try:
            return self._create_at(path, place, act)
        except OSError as error:
            doubted, refusal = self._in_doubt(path, error), error
        for choice in _choices(path, place, doubted):
            try:
                return self._create_at(path, choice, act)
            except OSError as error:
                if not _is_refusal(error):
                    raise
        raise NameRefused(refusal.errno, refusal.strerror, path) from refusal

    def _create_at(self, path: RelPath, place: RelPath, act: Callable[[RelPath], T]) -> T:
        if _is_escaped(place, path):
            self._note(name_of(place), name_of(path))
        done = act(place)
        if _is_escaped(place, path) or not is_plain(name_of(path)):
            self._remember(path, name_of(place))
        return done

    def _in_doubt(self, path: RelPath, error: OSError) -> RelPath:
        """Return where ``path`` is kept if plain names may be refused too.

        Raises ``error`` where it is not about a name. In the status folder no plain one is refused:
        nothing there must be taken for missing.
        """
        ours = is_beneath(path, STATUS_FOLDER) and is_plain(path)
        if ours or not _is_refusal(error):
            raise error
        return self._place(path, in_doubt=True)

    def _free_place(self, path: RelPath) -> RelPath:
        """Return where something new is created; never anew where OneData cannot be trusted."""
        place = self._place(path)
        if must_be_escaped(name_of(path)) and not _is_escaped(place, path):
            self._drop(path, is_file=True)
            place = self._place(path)  # what stood there may be gone by now
            if not _is_escaped(place, path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return place

    def _place(self, path: RelPath, *, in_doubt: bool = False) -> RelPath:
        """Return the path under which ``path`` is kept, or would be."""
        parts = path.split(b"/")
        if (is_plain(path) and not in_doubt) or not all(parts) or b".." in parts:
            return path  # the folder refuses what leaves it
        place = own = b""
        for name in parts:
            own = join(own, name)
            asked = in_doubt or not is_plain(name)
            place = join(place, self._name_in(place, own, name) if asked else name)
        return place

    def _name_in(self, directory: RelPath, path: RelPath, name: bytes) -> bytes:
        """Return what ``path`` is called in ``directory``, where that above it is kept."""
        if len(name) > LONGEST_NAME:
            raise NameRefused(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        with self._guard:
            known = self._names.get(path)
        if known is not None:
            return known
        escaped = escape(name)
        if must_be_escaped(name):
            if self._stands(directory, escaped):
                return self._remember(path, escaped)
            return name if self._is_outdated(directory, path) else escaped
        stands = self._stands(directory, name)
        if stands:
            return self._remember(path, name)
        if self._stands(directory, escaped):
            return self._remember(path, escaped)
        return name if stands is False else escaped

    def _stands(self, directory: RelPath, name: bytes) -> bool | None:
        """Whether anything has this name there; None where the mount refuses to look."""
        try:
            return self._folder.look(join(directory, name)) is not None
        except OSError as error:
            if not _is_refusal(error):
                raise
            return None

    def _is_outdated(self, directory: RelPath, path: RelPath) -> bool:
        """Whether ``path`` stands under its own name, though that would be escaped now.

        Listings are asked: a look at such a name might find another file.
        """
        name = name_of(path)
        if is_hidden(name):
            return not is_ambiguous(name) and bool(self._stands(directory, name))
        above = parent_of(path)
        with self._guard:
            found = self._outdated.get(above)
        if found is None:
            found = frozenset(
                item
                for item in self._names_in(directory)
                if must_be_escaped(item) and self._own_name(item) == item
            )
            with self._guard:
                self._outdated[above] = found
        return name in found

    def _names_in(self, directory: RelPath) -> Set[bytes]:
        try:
            return self._folder.names(directory)
        except (FileNotFoundError, NotADirectoryError):
            return frozenset()

    # -- what is remembered --------------------------------------------------------------------

    def _remember(self, path: RelPath, name: bytes) -> bytes:
        with self._guard:
            if len(self._names) >= _REMEMBERED:
                self._names.clear()
            self._names[path] = name
            self._are_plain_ones_escaped |= is_plain(name_of(path)) and name != name_of(path)
        return name

    def _drop(self, top: RelPath, *, is_file: bool = False) -> None:
        with self._guard:
            self._names.pop(top, None)
            if must_be_escaped(name_of(top)):
                self._outdated.pop(parent_of(top), None)
            if is_file:
                return
            for known in (self._names, self._outdated):
                for path in [path for path in known if is_beneath(path, top)]:
                    del known[path]

    # -- what escaped names stand for ----------------------------------------------------------

    def _note(self, stored: bytes, name: bytes) -> None:
        """Keep what ``stored`` stands for, if it does not tell, before its first use."""
        note = note_of(stored)
        if note is None or self._own.get(stored) == name:
            return
        content = write_note(name)
        try:
            self._write_note(note, content)
        except FileNotFoundError:
            for directory in (STATUS_FOLDER, NOTES):
                with suppress(FileExistsError):
                    self._folder.make_directory(directory)
            self._write_note(note, content)
        self._own[stored] = name

    def _write_note(self, note: RelPath, content: bytes) -> None:
        try:
            self._folder.write_new(note, content)
        except FileExistsError:
            if self._folder.read(note) != content:
                self._folder.overwrite(note, content)  # torn when its writer died

    def _stored_names(self, names: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the ``names`` of a listing by those that they stand for."""
        found: dict[bytes, bytes] = {}
        for stored in names:
            own = self._own_name(stored)
            # Where both stand, the one that a look finds.
            if own not in found or (own != stored) == must_be_escaped(own):
                found[own] = stored
        return found

    def _own_name(self, stored: bytes) -> bytes:
        """Return the name that ``stored`` stands for; itself where that is nothing else."""
        note = note_of(stored)
        if note is None:
            return unescape(stored) or stored
        own = self._own.get(stored)
        if own is None:
            with suppress(FileNotFoundError):
                own = read_note(self._folder.read(note), stored)
        if own is None:
            return stored
        self._own[stored] = own
        return own


def _is_escaped(place: RelPath, path: RelPath) -> bool:
    return name_of(place) != name_of(path)


def _is_refusal(error: OSError) -> bool:
    """Whether a name may be the reason: a write that is refused names none."""
    if isinstance(error, LocalError):
        return False
    if error.errno == errno.EINVAL:
        return error.filename is not None
    return error.errno in (errno.EILSEQ, errno.ENAMETOOLONG)


def _choices(path: RelPath, refused: RelPath, doubted: RelPath) -> list[RelPath]:
    """Return where else ``path`` may be created, the better place first."""
    # A plain name is looked for as itself alone, unless a look is refused too: then it is doubted.
    others = [] if is_plain(name_of(path)) else [join(parent_of(doubted), escape(name_of(path)))]
    return [place for place in dict.fromkeys([doubted, *others]) if place != refused]


def _raise_refused(error: OSError, path: RelPath, is_refused: bool) -> NoReturn:
    """Raise that ``path`` is refused for good; else ``error``, and what tells of another path."""
    if not is_refused or isinstance(error, NameRefused):
        raise error
    raise NameRefused(error.errno, error.strerror, path) from error
