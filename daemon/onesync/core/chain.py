"""The manifest: codec of checkpoint files, the fold, and the search for the head.

A file is gzip of JSON lines: a header, one line per change, a trailer with the digest of all
before. The chain of files, folded, is the whole tree. Bytes that are not UTF-8 travel as lone
surrogates, which JSON escapes without loss.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import Any, Protocol

from blake3 import blake3

from onesync.core.model import (
    RESERVED_PREFIX,
    STATUS_FOLDER,
    Entry,
    Kind,
    Problem,
    RelPath,
    is_beneath,
    is_user_path,
    printable,
)
from onesync.core.tree import Fold, PlainFile, Tree, path_of

FORMAT = 1
_LEVEL = 3
"""Of compression: digests do not pack, and the highest level takes thrice as long for 7 %."""
_LINES = 1000
_CHUNK = 1 << 16
_MOST_BYTES = 4 << 30
_LONGEST_GAP = 3
"""Positions are left out where writing failed; so many are looked for by name."""

_LOOKED_INTO = 2
"""Of so many of the highest epochs successors are looked for that a listing may hide."""

_MOST_PER_BYTE = 200
_ALWAYS_ALLOWED = 64 << 20
"""JSON lines with digests pack to a tenth; gzip's worst is a thousand times its size: a bomb."""
_MOST_NUMBER = (1 << 63) - 1
_MOST_GROUP = (1 << 64) - 1


class Damaged(Exception):
    """A checkpoint file is torn, foreign or forged; the text says how."""


class Torn(Damaged):
    """A checkpoint file ends early or holds nothing but zeros: its writer died, or still writes."""


class NewerFormat(Exception):
    """A checkpoint file was written by a newer onesync."""


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where in the chain a checkpoint stands; sequences start at 1 in every epoch."""

    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Set:
    """The path is this entry now."""

    path: RelPath
    entry: Entry


@dataclass(frozen=True, slots=True)
class Gone:
    """The path and all beneath it are gone."""

    path: RelPath


@dataclass(frozen=True, slots=True)
class Renamed:
    """``source`` and all beneath it are at ``target`` now."""

    source: RelPath
    target: RelPath


@dataclass(frozen=True, slots=True)
class Noted:
    """What was left out, held back or damaged, and why."""

    problem: Problem


Change = Set | Gone | Renamed | Noted


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a checkpoint file.

    Attributes:
        folder_id: which folder it belongs to.
        position: epoch and sequence.
        previous: name and digest of the file it continues; None for the first of a folder.
        writer: program and host, for people.
        time: ISO 8601, for people.
        why: ``incremental``, ``base`` or ``final``.
        working_dirs: the writer's working directory, as configured and as resolved: absolute links
            into it follow the project to its next working directory.
    """

    folder_id: str
    position: Position
    previous: tuple[str, str] | None
    writer: str
    time: str
    why: str
    working_dirs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A decoded file of ``size`` bytes; ``digest`` is what a successor names."""

    header: Header
    changes: tuple[Change, ...]
    digest: str
    size: int


class Packed(Protocol):
    """The bytes of a checkpoint file, in memory or not: they are taken a piece at a time."""

    def __len__(self) -> int:
        """Return how many they are."""

    def __getitem__(self, part: slice, /) -> bytes:
        """Return a part of them."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file that is whole, still packed: ``count`` lines of changes, not looked at yet."""

    header: Header
    data: Packed
    digest: str
    count: int
    most_bytes: int

    @property
    def size(self) -> int:
        """Return its bytes."""
        return len(self.data)

    def changes(self) -> Iterator[Change]:
        """Yield its changes. Raises Damaged where one is none that onesync writes."""
        return map(_change_of, self.lines())

    def lines(self) -> Iterator[re.Match[str]]:
        """Yield the line of each change, as ``_LINE`` matches it."""
        texts = (block.decode("latin-1") for block in _unpacked(self.data, self.most_bytes))
        lines = chain.from_iterable(map(_LINE.finditer, texts))
        return islice(lines, 1, 1 + self.count)


@dataclass(slots=True)
class Head:
    """The newest state of the folder.

    Attributes:
        position: of the newest checkpoint.
        name: its file's name.
        digest: its file's digest.
        folder_id: of the folder.
        tree: every entry by path.
        problems: what the checkpoints noted, until the path was written anew; see ``apply``.
        ignored: a sentence for every file that is torn, foreign or late.
        working_dirs: of the writer of the newest checkpoint.
        base_size: bytes of the base that the fold began with.
        since_base: bytes of the checkpoints after it.
    """

    position: Position
    name: str
    digest: str
    folder_id: str
    tree: Fold
    problems: dict[RelPath, Problem] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    working_dirs: tuple[bytes, ...] = ()
    base_size: int = 0
    since_base: int = 0


def checkpoint_name(position: Position) -> str:
    """Return the file name of an incremental checkpoint."""
    return f"E{position.epoch:06d}-{position.sequence:06d}.jsonl.gz"


def base_name(position: Position) -> str:
    """Return the file name of a base."""
    return f"E{position.epoch:06d}-{position.sequence:06d}.base.jsonl.gz"


def parse_name(name: str) -> tuple[Position, bool] | None:
    """Return position and whether it is a base; None for any other name."""
    stem = name.removesuffix(".jsonl.gz")
    is_base = stem.endswith(".base")
    epoch, dash, sequence = stem.removesuffix(".base").removeprefix("E").partition("-")
    if not dash or not (epoch.isdecimal() and sequence.isdecimal() and epoch.isascii()):
        return None
    position = Position(int(epoch), int(sequence))
    fits = name == (base_name(position) if is_base else checkpoint_name(position))
    return (position, is_base) if fits else None


def file_digest(data: Packed) -> str:
    """Return the digest by which a successor names the file ``data``."""
    hasher = blake3()
    for piece in _pieces(data):
        hasher.update(piece)
    return hasher.hexdigest()


def encode(header: Header, changes: Iterable[Change]) -> bytes:
    """Return the file's bytes; the same input gives the same bytes."""
    return b"".join(encoded(header, changes))


def encoded(header: Header, changes: Iterable[Change]) -> Iterator[bytes]:
    """Yield the file's bytes in pieces, taking changes as they come."""
    engine = zlib.compressobj(_LEVEL, wbits=31)
    hasher = blake3()
    count = -1
    lines = chain([_line(_header_fields(header))], map(_change_line, changes))
    while some := list(islice(lines, _LINES)):
        count += len(some)
        body = b"".join(some)
        hasher.update(body)
        yield engine.compress(body)
    trailer = _line({"end": count, "digest": hasher.hexdigest()})
    yield engine.compress(trailer) + engine.flush()


def decode(data: Packed, most_bytes: int = _MOST_BYTES) -> Checkpoint:
    """Read a file. Raises Damaged for anything but a whole one, NewerFormat for a newer one."""
    sealed = unseal(data, most_bytes)
    return Checkpoint(sealed.header, tuple(sealed.changes()), sealed.digest, sealed.size)


def unseal(data: Packed, most_bytes: int = _MOST_BYTES) -> Sealed:
    """Make sure that a file is whole, without keeping what it unpacks to.

    Raises Damaged for anything but a whole one, NewerFormat for a newer one.
    """
    hasher = blake3()
    count = 0
    first = last = b""
    for lines in _unpacked(data, most_bytes):
        first = first or lines[: lines.find(b"\n") + 1]
        end = lines.rfind(b"\n", 0, -1) + 1
        hasher.update(last)
        hasher.update(lines[:end])
        last = lines[end:]
        count += lines.count(b"\n")
    if not last.endswith(b"\n"):
        raise Damaged("it ends in the middle of a line")
    if count < 2:
        raise Damaged("it has no header")
    header = _read_header(_parse(first))
    trailer = _parse(last)
    if trailer.get("digest") != hasher.hexdigest():
        raise Damaged("its digest does not match")
    if trailer.get("end") != count - 2:
        raise Damaged("its trailer counts other lines")
    return Sealed(header, data, file_digest(data), count - 2, most_bytes)


def apply(
    tree: Fold, changes: Iterable[Change], problems: dict[RelPath, Problem] | None = None
) -> None:
    """Fold a checkpoint's ``changes`` into ``tree``, and the problems noted into ``problems``.

    One of no path, such as what was held at the end of a deployment, is its checkpoint's alone.
    """
    noted = {} if problems is None else problems
    noted.pop(b"", None)
    for change in changes:
        _apply(tree, change, noted)


def _apply(tree: Fold, change: Change, noted: dict[RelPath, Problem]) -> None:
    follow(noted, change)
    if isinstance(change, Set):
        tree.put(change.path, change.entry)
    elif isinstance(change, Gone):
        tree.remove(change.path)
    elif isinstance(change, Renamed):
        tree.rename(change.source, change.target)


def follow(problems: dict[RelPath, Problem], change: Change) -> None:
    """Change ``problems`` as ``change`` does: they last until their path is written anew."""
    if isinstance(change, Noted):
        # For a person's terminal, from a folder that others may write to.
        kind, text = printable(change.problem.kind), printable(change.problem.text)
        problems[change.problem.path] = Problem(change.problem.path, kind, text)
    elif isinstance(change, Set):
        problems.pop(change.path, None)
    else:
        top = change.path if isinstance(change, Gone) else change.source
        for path in [path for path in problems if is_beneath(path, top)]:
            problem = problems.pop(path)
            if isinstance(change, Renamed):
                target = change.target + path[len(top) :]
                problems[target] = replace(problem, path=target)


def find_head(
    names: Iterable[str],
    read: Callable[[str], Packed],
    told: Iterable[str] = (),
    folder_id: str | None = None,
    make_tree: Callable[[], Fold] = Tree,
) -> Head | None:
    """Find the newest valid checkpoint of the highest epoch that has one, and fold up to it.

    An owner that lost the folder can write late. Its files have a lower epoch, and nobody of a
    higher one continues them: they lie beside the chain and are told of.

    Args:
        names: a listing, which may be stale; names without a file do no harm.
        read: returns a file's bytes. Raises FileNotFoundError where it is not there; what else it
            raises is passed on, for an unreadable file may be the head.
        told: names that beats and ends told of: where one is missing, that is told.
        folder_id: of the folder; what was written for another one is foreign, unless all is.
        make_tree: makes the empty tree that is folded into.

    Returns:
        None where there is no checkpoint at all, or none but torn beginnings: nothing continued
        them, and the tree that they told of is that of the folder's own files.

    Raises:
        OSError: ``read`` failed; that says nothing about the file, so no older head is taken.
        Damaged: there are checkpoints and none is whole down to a base.
        NewerFormat: a newer onesync wrote them.
    """
    search = _Search(read, folder_id, make_tree)
    told = {name for name in told if parse_name(name)}
    known = {name for name in names if parse_name(name)} | told
    known |= search.hidden(known, told)
    for name in sorted(known, key=_newest_first):
        head = search.head_at(name)
        if head is not None:
            head.ignored = search.report(known, told, head)
            return head
    if search.all_foreign:
        return find_head(known, read, told, make_tree=make_tree)
    if not all(name in search.torn and _is_beginning(name) for name in search.reasons):
        raise Damaged("; ".join(search.reasons.values()))
    return None


def asked_for(
    listed: Iterable[str], hidden: Iterable[str] = (), told: Iterable[str] = ()
) -> list[str]:
    """Return what ``find_head`` asks for, as far as names tell: for whoever reads ahead.

    That is what leads from the newest one to a base, and what may stand though nothing lists it:
    ``hidden``, first ones of epochs, and what may follow the newest ones.
    """
    told = {name for name in told if parse_name(name)}
    known = sorted({name for name in listed if parse_name(name)} | told, key=_newest_first)
    found = dict.fromkeys(hidden)
    every = sorted([*known, *found], key=_newest_first, reverse=True)
    newest = {_position_of(name).epoch: name for name in every}
    for name in known:
        found[name] = None
        if _is_base(name):
            break
    left = _LOOKED_INTO
    for _, name in sorted(newest.items(), reverse=True):
        found.update(dict.fromkeys([name, *_following(name)]))
        left -= name in known
        if not left:
            break
    for name in told:
        found.update(dict.fromkeys(_following(name)))
    return list(found)


def _following(name: str) -> list[str]:
    """Return the names that may follow a checkpoint's in its epoch."""
    return [n for place in _following_places(_position_of(name)) for n in _names_at(place)]


def _following_places(last: Position) -> list[Position]:
    return [Position(last.epoch, last.sequence + i + 1) for i in range(_LONGEST_GAP)]


def _names_at(place: Position) -> tuple[str, str]:
    return checkpoint_name(place), base_name(place)


class _Search:
    """Reads every file at most once."""

    def __init__(
        self,
        read: Callable[[str], Packed],
        folder_id: str | None,
        make_tree: Callable[[], Fold],
    ) -> None:
        self._read = read
        self._folder_id = folder_id
        self._make_tree = make_tree
        self._found: dict[str, Sealed | None] = {}
        self._foreign: set[str] = set()
        self._chain: list[str] = []
        self.reasons: dict[str, str] = {}
        self.torn: set[str] = set()

    @property
    def all_foreign(self) -> bool:
        """Whether every whole file is of another folder: then it is this one's id that was lost."""
        return bool(self._foreign) and not any(self._found.values())

    def get(self, name: str) -> Sealed | None:
        if name not in self._found:
            self._found[name] = self._load(name)
        return self._found[name]

    def _load(self, name: str) -> Sealed | None:
        try:
            checkpoint = unseal(self._read(name))
        except FileNotFoundError:
            return None
        except Damaged as error:
            self.reasons[name] = f"{name}: {error}"
            if isinstance(error, Torn):
                self.torn.add(name)
            return None
        parsed = parse_name(name)
        if parsed is None or checkpoint.header.position != parsed[0]:
            self.reasons[name] = f"{name}: it was written for another place"
            return None
        if self._folder_id not in (None, checkpoint.header.folder_id):
            self._foreign.add(name)
            self.reasons[name] = f"{name}: it was written for another folder"
            return None
        return checkpoint

    def hidden(self, names: set[str], told: set[str]) -> set[str]:
        """Return what a stale listing hides behind the newest of the highest epochs that stand."""
        newest = {_position_of(n).epoch: n for n in sorted(names, key=_newest_first, reverse=True)}
        found: set[str] = set()
        left = _LOOKED_INTO
        for _, name in sorted(newest.items(), reverse=True):
            found |= self.successors(name)
            left -= self._stands(name)
            if not left:
                break
        for name in sorted(told):
            found |= self.successors(name)
        return found

    def successors(self, name: str) -> set[str]:
        """Look up by name what follows ``name`` in its epoch."""
        parsed = parse_name(name)
        found: set[str] = set()
        last = parsed[0] if parsed is not None else None
        while last is not None:
            places, last = _following_places(last), None
            for place in places:
                names = {n for n in _names_at(place) if self._stands(n)}
                if names:
                    found |= names
                    last = place
                    break
        return found

    def _stands(self, name: str) -> bool:
        return self.get(name) is not None or name in self.reasons

    def head_at(self, name: str) -> Head | None:
        """Return the folded head at ``name`` when its links reach a base."""
        links: list[Sealed] = []
        self._chain = []
        current = self.get(name)
        place = name
        while current is not None:
            links.append(current)
            self._chain.append(place)
            if current.header.why == "base":
                return self._fold(name, links)
            previous = current.header.previous
            if previous is None:
                break
            place = previous[0]
            current = self.get(place)
            if current is not None and current.digest != previous[1]:
                self.reasons[place] = f"{place}: it is not the file that its successor names"
                current = None
        if name not in self.reasons and links:
            self.reasons[name] = f"{name}: its chain does not reach a base"
        return None

    def _fold(self, name: str, links: list[Sealed]) -> Head | None:
        """Return the folded head; None where one of the files holds what onesync never writes."""
        tree = self._make_tree()
        problems: dict[RelPath, Problem] = {}
        for place, checkpoint in zip(reversed(self._chain), reversed(links), strict=True):
            try:
                _fold(tree, checkpoint, problems)
            except Damaged as error:
                self.reasons[place] = f"{place}: {error}"
                self._found[place] = None
                self.reasons.setdefault(name, f"{name}: its chain does not reach a base")
                return None
        newest = self.get(name)
        assert newest is not None
        header = newest.header
        return Head(
            header.position,
            name,
            newest.digest,
            header.folder_id,
            tree,
            problems,
            working_dirs=header.working_dirs,
            base_size=links[-1].size,
            since_base=sum(checkpoint.size for checkpoint in links[:-1]),
        )

    def report(self, names: set[str], told: set[str], head: Head) -> list[str]:
        """Return a sentence for every file that could not be used or is not on the head's chain."""
        base = _position_of(self._chain[-1])
        beside = {n for n in names - set(self._chain) if _position_of(n) > base}
        beside |= self._passed_over(names, base)
        found = {
            n: self.reasons.get(n) or self._place_of(n, head)
            for n in sorted(beside)
            if self._stands(n)
        }
        missing = {
            name: f"{name}: its owner told of it, and it is not there"
            for name in sorted(told)
            if _position_of(name) > head.position and not self._stands(name)
        }
        unusable = {n: text for n, text in self.reasons.items() if _position_of(n) > base}
        return list({**unusable, **found, **missing}.values())

    def _passed_over(self, names: set[str], base: Position) -> set[str]:
        """Return the whole ones of older epochs that came after what the base's epoch continued.

        The base may have been written before they were, or before anybody was told of them.
        """
        older = {name for name in names if _position_of(name).epoch < base.epoch}
        if not older:
            return set()
        same = {n for n in names if _position_of(n).epoch == base.epoch} | {self._chain[-1]}
        first = next(found for found in map(self.get, sorted(same, key=_position_of)) if found)
        if first.header.previous is None:
            return set()
        continued = _position_of(first.header.previous[0])
        return {n for n in older if _position_of(n) > continued and self.get(n) is not None}

    def _place_of(self, name: str, head: Head) -> str:
        if _position_of(name) > head.position:
            return f"{name}: it is newer than the head but not on its chain"
        return f"{name}: it lies beside the chain, written late by one who had lost the folder"


def _position_of(name: str) -> Position:
    parsed = parse_name(name)
    assert parsed is not None
    return parsed[0]


def _is_base(name: str) -> bool:
    return name == base_name(_position_of(name))


def _is_beginning(name: str) -> bool:
    """Whether ``name`` is that of a base that continues nothing: an epoch's first checkpoint."""
    parsed = parse_name(name)
    return parsed is not None and parsed[0].sequence == 1 and parsed[1]


def _newest_first(name: str) -> tuple[int, int, bool]:
    place = _position_of(name)
    return (-place.epoch, -place.sequence, name == base_name(place))


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _header_fields(header: Header) -> dict[str, Any]:
    place = header.position
    return {
        "onesync": "checkpoint",
        "format": FORMAT,
        "folder": header.folder_id,
        "epoch": place.epoch,
        "sequence": place.sequence,
        "previous": list(header.previous) if header.previous else None,
        "writer": header.writer,
        "time": header.time,
        "why": header.why,
        "working_dirs": [_text(path) for path in header.working_dirs],
    }


def _change_fields(change: Change) -> dict[str, Any]:
    if isinstance(change, Gone):
        return {"gone": _text(change.path)}
    if isinstance(change, Renamed):
        return {"renamed": _text(change.source), "to": _text(change.target)}
    if isinstance(change, Noted):
        problem = change.problem
        return {"problem": problem.kind, "path": _text(problem.path), "text": problem.text}
    entry = change.entry
    fields: dict[str, Any] = {"path": _text(change.path), "kind": entry.kind.value}
    if entry.kind is Kind.LINK:
        return {**fields, "target": _text(entry.target)}
    fields |= {"mtime_ns": entry.mtime_ns, "mode": entry.mode}
    if entry.kind is Kind.FILE:
        fields |= {"size": entry.size, "digest": entry.digest}
    if entry.group:
        fields["group"] = entry.group
    if entry.xattrs:
        fields["xattrs"] = {_text(name): _text(value) for name, value in entry.xattrs}
    return fields


def _pieces(data: Packed) -> Iterator[bytes]:
    return (data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK))


def _unpacked(data: Packed, most_bytes: int) -> Iterator[bytes]:
    """Yield what a file unpacks to, whole lines at a time. Raises Damaged at its end, or before."""
    most = min(most_bytes, max(_ALWAYS_ALLOWED, _MOST_PER_BYTE * len(data)))
    begun: list[bytes] = []
    for block in _inflated(data, most):
        end = block.rfind(b"\n") + 1
        if end:
            yield b"".join([*begun, block[:end]])
            begun = []
        if block[end:]:
            begun.append(block[end:])
    if begun:
        raise Damaged("it ends in the middle of a line")


def _inflated(data: Packed, most: int) -> Iterator[bytes]:
    engine = zlib.decompressobj(wbits=31)
    total = taken = 0
    for piece in _pieces(data):
        if engine.eof:
            break
        taken += len(piece)
        try:
            block = engine.decompress(piece)
        except zlib.error as error:
            if not any(map(any, _pieces(data))):
                raise Torn("it holds nothing but zeros") from error
            raise Damaged(f"it cannot be unpacked ({error})") from error
        total += len(block)
        if total > most:
            raise Damaged("it is too large")
        yield block
    if not engine.eof:
        raise Torn("it is cut short")
    if engine.unused_data or taken < len(data):
        raise Damaged("something follows its end")


def _parse(line: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"a line is not JSON ({error})") from error
    if not isinstance(fields, dict):
        raise Damaged("a line is not an object")
    return fields


def _read_header(fields: dict[str, Any]) -> Header:
    if fields.get("onesync") != "checkpoint":
        raise Damaged("it is not a checkpoint")
    version = _number(fields, "format")
    if version > FORMAT:
        raise NewerFormat(f"format {version}")
    previous = fields.get("previous")
    if previous is not None and not (
        isinstance(previous, list)
        and len(previous) == 2
        and all(isinstance(x, str) for x in previous)
    ):
        raise Damaged("its link to the previous file is malformed")
    why = _string(fields, "why")
    if why not in ("incremental", "base", "final"):
        raise Damaged("it does not say why it was written")
    return Header(
        _string(fields, "folder"),
        Position(_number(fields, "epoch"), _number(fields, "sequence")),
        (previous[0], previous[1]) if previous else None,
        _string(fields, "writer"),
        _string(fields, "time"),
        why,
        _read_working_dirs(fields.get("working_dirs", [])),
    )


def _read_working_dirs(found: object) -> tuple[bytes, ...]:
    if not isinstance(found, list) or not all(isinstance(path, str) for path in found):
        raise Damaged("its working directories are malformed")
    return tuple(_raw(path) for path in found)


_OURS = "|".join(re.escape(name.decode()) for name in (RESERVED_PREFIX, STATUS_FOLDER))
_NAME = rf'(?!\.\.?[/"]|{_OURS})[ !#-.0-Z\[\]-~]{{1,255}}'
_INTEGER = r"(?:[1-8][0-9]{18}|[1-9][0-9]{0,17}|0)"
_MODE = r"(?:[1-4][0-9][0-9]|[1-9]?[0-9]|50[0-9]|51[01])"
_LINE = re.compile(
    rf'\{{"path":"({_NAME}(?:/{_NAME}){{0,15}})","kind":"file","mtime_ns":(-?{_INTEGER})'
    rf',"mode":({_MODE}),"size":({_INTEGER}),"digest":"([0-9a-f]*)"\}}\n|(?P<other>.*\n)'
)
"""A file that may be restored, as nearly all lines are, or any other line, which is read as JSON.

A file means what it means as JSON, and is none that would be refused. Few of those that may be
restored are left to JSON: of names that begin as ours do, deeper than 15 directories (sixteen names
of 255 bytes are the longest path), and of numbers next to the greatest.
"""


def _plain_file(line: re.Match[str]) -> PlainFile:
    path, mtime_ns, mode, size, digest, _ = line.groups()
    directory, _, name = path.rpartition("/")
    return directory, name, int(size), int(mtime_ns), int(mode), digest


def _change_of(line: re.Match[str]) -> Change:
    if line.lastgroup:
        return _read_change(_parse(line[0][:-1].encode("latin-1")))
    file = _plain_file(line)
    return Set(path_of(file), Entry(Kind.FILE, *file[2:]))


def _fold(tree: Fold, sealed: Sealed, problems: dict[RelPath, Problem]) -> None:
    """Do what ``apply`` does with the changes of ``sealed``; makes no entry of a plain file."""
    problems.pop(b"", None)
    for other, lines in groupby(sealed.lines(), attrgetter("lastgroup")):
        if other:
            for line in lines:
                _apply(tree, _change_of(line), problems)
        else:
            tree.put_files(_plain_files(lines, problems))


def _plain_files(
    lines: Iterable[re.Match[str]], problems: dict[RelPath, Problem]
) -> Iterator[PlainFile]:
    for file in map(_plain_file, lines):
        if problems:
            problems.pop(path_of(file), None)
        yield file


_plain = re.compile(rb"[ !#-\[\]-~]+").fullmatch


def _change_line(change: Change) -> bytes:
    """Return the line of ``change``: the same bytes for a plain file, sooner than through JSON."""
    if isinstance(change, Set) and change.entry.kind is Kind.FILE and _plain(change.path):
        entry = change.entry
        if not entry.group and not entry.xattrs and entry.digest.isalnum():
            return (
                b'{"path":"%b","kind":"file","mtime_ns":%d,"mode":%d,"size":%d,"digest":"%b"}\n'
                % (change.path, entry.mtime_ns, entry.mode, entry.size, entry.digest.encode())
            )
    return _line(_change_fields(change))


def _read_change(fields: dict[str, Any]) -> Change:
    if "gone" in fields:
        return Gone(_path(fields, "gone"))
    if "renamed" in fields:
        return Renamed(_path(fields, "renamed"), _path(fields, "to"))
    if "problem" in fields:
        path = _raw(_string(fields, "path"))
        return Noted(Problem(path, _string(fields, "problem"), _string(fields, "text")))
    return Set(_path(fields, "path"), _read_entry(fields))


def _read_entry(fields: dict[str, Any]) -> Entry:
    try:
        kind = Kind(_string(fields, "kind"))
    except ValueError as error:
        raise Damaged("an entry has an unknown kind") from error
    if kind is Kind.LINK:
        target = _raw(_string(fields, "target"))
        if not target or b"\0" in target:
            raise Damaged("a link has no possible target")
        return Entry(kind, target=target)
    mode = _number(fields, "mode")
    if mode > 0o777:
        raise Damaged("an entry has a mode that is never restored")
    mtime_ns = fields.get("mtime_ns")
    if type(mtime_ns) is not int or abs(mtime_ns) > _MOST_NUMBER:
        raise Damaged("an entry has no time")
    xattrs = _xattrs(fields)
    if kind is Kind.DIRECTORY:
        return Entry(kind, mtime_ns=mtime_ns, mode=mode, xattrs=xattrs)
    size, digest = _number(fields, "size"), _string(fields, "digest")
    if not digest.isascii():
        raise Damaged("an entry has a digest that is none")
    group = _number(fields, "group", _MOST_GROUP) if "group" in fields else 0
    return Entry(kind, size, mtime_ns, mode, digest, group=group, xattrs=xattrs)


def _xattrs(fields: dict[str, Any]) -> tuple[tuple[bytes, bytes], ...]:
    found = fields.get("xattrs", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise Damaged("an entry has no such attributes")
    xattrs = tuple(sorted((_raw(name), _raw(value)) for name, value in found.items()))
    if not all(name.startswith(b"user.") and b"\0" not in name for name, _ in xattrs):
        raise Damaged("an attribute is one that is never restored")
    return xattrs


def _path(fields: dict[str, Any], key: str) -> RelPath:
    path = _raw(_string(fields, key))
    if any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise Damaged("a path does not lie beneath the folder")
    if not is_user_path(path):
        raise Damaged("a path is one that no user file can have")
    return path


def _raw(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise Damaged("a name cannot be turned back into bytes") from error


def _string(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str):
        raise Damaged(f"{key} is missing")
    return value


def _number(fields: dict[str, Any], key: str, most: int = _MOST_NUMBER) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= most:
        raise Damaged(f"{key} is missing")
    return value
