"""Takes over a folder that West-Life's scripts deployed on this very node, without a new stage-in.

What can refuse comes before anything of theirs is changed: what OneData holds is compared with the
working copy by content, under their own lock, and the result stands in the index. Then the lock is
taken as by any start, and the first checkpoint says what OneData holds. What the working copy has
newer or more is dirty, and pushed by the daemon. What OneData alone has is held, as every absence
that nobody saw happen: after a stage-in of theirs that died it looks the same as a deletion.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from pathspec import PathSpec

from onesync import predecessor
from onesync.beneath import open_beneath
from onesync.core.claims import Held, is_old_scripts, parse_lock
from onesync.core.guard import tops
from onesync.core.legacy import linklist, links_beneath
from onesync.core.model import (
    STATUS_FOLDER,
    Entry,
    Kind,
    RelPath,
    Stamp,
    join,
    lies_in,
    lost_stamp,
    name_of,
    parent_of,
    printable,
    show,
)
from onesync.core.ordering import database_of
from onesync.deploy import ADOPTED, root_values
from onesync.directories import give
from onesync.errors import ConfigurationError, DeployedElsewhere, Halted
from onesync.index import Index, open_index
from onesync.inspect import opened
from onesync.intent import INTENTS
from onesync.local import read_xattrs, stamp_of
from onesync.lock import LOCK
from onesync.rebuild import Rebuilt, rebuild
from onesync.replica.children import ChildrenReplica
from onesync.replica.door import Listed
from onesync.scanner import Scanner
from onesync.service import Service, lock_to_look_at, own_state_dir
from onesync.settings import Settings, check_directories
from onesync.verify import listing
from onesync.working_copy import owned

LINKLIST = join(STATUS_FOLDER, b"linklist")
KEPT = "predecessor"
"""Where in the state directory their status folder of the working copy is kept."""
_NAMED = 5
_Seen = Mapping[RelPath, Stamp]


@dataclass(slots=True)
class Compared:
    """What OneData and the working copy are to each other.

    Attributes:
        rows: of the index: what OneData holds, with the local copy's stamp where that is equal.
        rebuilt: as the comparison found them.
        differing: files that stand on both sides with another content.
        held: the tops of what only OneData has.
        missing: how many files and directories those are.
        restored: links that were missing and are made.
        left_out: lines of the linklist that make no link here.
    """

    rows: dict[RelPath, tuple[Entry, Stamp | None]] = field(default_factory=dict)
    rebuilt: Rebuilt = field(default_factory=Rebuilt)
    differing: list[RelPath] = field(default_factory=list)
    held: set[RelPath] = field(default_factory=set)
    missing: int = 0
    restored: int = 0
    left_out: int = 0


def adopt_folder(
    settings: Settings,
    user: str,
    disable_cron: bool,
    advanced: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> None:
    """Adopt the folder. Raises an OnesyncError.

    May die anywhere and be done again. ``advanced`` is told files read in OneData and in all;
    ``tell`` what was done, a sentence each. Main thread; root goes on as ``user``, or as the state
    directory's owner where that is "".
    """
    _act_as(user, settings.state_dir)
    check_directories(settings, are_ours_made_later=True)
    owner = own_state_dir(settings.state_dir)
    try:
        with owned(os.fsencode(settings.working_dir.resolve())):
            compared = _prepare(settings, disable_cron, advanced, tell)
    finally:
        os.close(owner)
    if (seconds := settings.lock_times().settle) > 0:
        tell(f"Everything is compared; claiming the folder takes {seconds:.0f} s.")
    Service(settings, lambda: settings).adopt()
    for sentence in _told(compared):
        tell(sentence)


def _prepare(
    settings: Settings,
    disable_cron: bool,
    advanced: Callable[[int, int], None],
    tell: Callable[[str], None],
) -> Compared:
    """Do all but the claim."""
    root = os.fsencode(settings.working_dir.resolve())
    with closing(open_index(settings.state_dir / "index.sqlite")) as index:
        _refuse_deployed(index)
        if not set(os.listdir(root)) - {STATUS_FOLDER}:
            raise Halted(
                f"The working directory {settings.working_dir} is empty, so there is nothing to"
                " adopt; nothing was changed. Remove the scripts' lock from the status folder and"
                " start the service: it stages the folder in."
            )
        with opened(settings) as replica:
            theirs = _their_lock(settings, replica, index)
            folders = _folders(settings, theirs)
            _end_cron(settings, folders, disable_cron, tell)
            _refuse_running(folders)
            pushed = _last_push(replica)
            compared = _compare(settings, root, replica, advanced)
            _end_cron(settings, folders, disable_cron, tell)  # Puppet may have made it anew
            _refuse_running(folders)
            if _last_push(replica) != pushed:
                raise Halted(
                    "The predecessors pushed while the folder was compared; OneData is as they left"
                    " it. Nothing of theirs may run meanwhile: adopt again."
                )
            links = _linklist(replica, theirs, compared)
        _restore_links(root, links, compared)
        _record(index, root, theirs, compared)
    _put_away(settings)
    return compared


# -- as whom ---------------------------------------------------------------------------------------


def _act_as(name: str, state_dir: Path) -> None:
    """Let root be whom the daemon runs as, and the state directory his.

    What root makes is not the daemon's to change; and where somebody else may put links and names,
    he could lead root astray.
    """
    is_root = os.geteuid() == 0
    if is_root and name:
        give(str(state_dir), pwd.getpwnam(name), 0o700)
        _be(pwd.getpwnam(name))
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = state_dir.stat().st_uid
    except OSError as error:
        raise ConfigurationError(
            f"state_dir {state_dir} cannot be made ({error.strerror}); nothing was changed. Type:"
            f" install -d -m 700 -o {name or 'USER'} {state_dir}"
        ) from error
    if is_root and not name:
        _be(pwd.getpwuid(owner))
    if owner != os.geteuid():
        raise ConfigurationError(
            f"state_dir {state_dir} is the user {owner}'s, and onesync runs as"
            f" {pwd.getpwuid(os.geteuid()).pw_name}, who could not go on with what is there;"
            ' nothing was changed. Say whose it is, user = "NAME", or type: chown -R NAME:'
            f" {state_dir}"
        )
    if is_root:
        # At a top of another group systemd gives him all that is beneath, what is root's too.
        os.chown(state_dir, -1, os.getegid())


def _be(user: pwd.struct_passwd) -> None:
    os.initgroups(user.pw_name, user.pw_gid)
    os.setegid(user.pw_gid)
    os.seteuid(user.pw_uid)


@contextmanager
def _as_root() -> Iterator[None]:
    """Be root again, where we were: other people's crontabs and processes are nobody else's."""
    user, group = os.geteuid(), os.getegid()
    os.seteuid(os.getuid())
    os.setegid(os.getgid())
    try:
        yield
    finally:
        os.setegid(group)
        os.seteuid(user)


# -- what does not fit -----------------------------------------------------------------------------


def _refuse_deployed(index: Index) -> None:
    staged = index.get("staged")
    others = any(index.get(key) is not None for key in ("undeployed", "staging", "cleaning"))
    if others or staged not in (None, ADOPTED):
        raise Halted(
            "onesync has deployed this working directory already, so there is nothing to adopt;"
            " nothing was changed. Start the service."
        )


def _their_lock(settings: Settings, replica: ChildrenReplica, index: Index) -> dict[str, str]:
    """Return the fields of the scripts' lock. Raises an OnesyncError where it does not fit."""
    lock = lock_to_look_at(settings, replica)
    try:
        fields = parse_lock(replica.read(LOCK))
    except FileNotFoundError:
        fields = {}
    noted = index.get("adopting")
    if is_old_scripts(fields):
        _refuse_another(settings, fields)
        _refuse_unfinished(replica)
        lock.adopt(fields)
    holder = lock.holder()
    if isinstance(holder, Held):
        raise DeployedElsewhere(
            f"The folder is deployed by somebody else: {holder.story}. Nothing was changed."
            " Undeploy it there."
        )
    if is_old_scripts(fields):
        return fields
    if noted is not None:
        return dict(json.loads(noted))  # an earlier try took the lock
    raise Halted(
        "No lock of the predecessors stands in the folder, so they did not deploy it; nothing was"
        " changed. If they did, put it back from their status folder in the working directory; else"
        " move away what is there and start the service: it stages the folder in."
    )


def _refuse_another(settings: Settings, fields: Mapping[str, str]) -> None:
    host, directory = fields.get("HOST", ""), fields.get("DIR", "")
    if host not in (names := predecessor.names_of_this_node()):
        raise DeployedElsewhere(
            f"The scripts' lock names the node {printable(host)!r}, and this one is"
            f" {' or '.join(sorted(names))}; nothing was changed. Adopt the folder there."
        )
    if Path(directory).resolve() != settings.working_dir.resolve():
        raise ConfigurationError(
            f"The scripts' lock names the working directory {printable(directory)}, the"
            f" configuration {settings.working_dir}; nothing was changed. Make working_dir theirs."
        )
    kept = settings.working_dir / os.fsdecode(LOCK)
    if kept.is_file() and parse_lock(kept.read_bytes()) != fields:
        raise DeployedElsewhere(
            f"{kept} is of another deployment than the scripts' lock in OneData: the folder was"
            " deployed anew since, on a node of the same name, or a stage-in of theirs died over an"
            " older copy; nothing was changed. Adopt the folder where it was deployed last, or, if"
            f" that is here and this copy counts, remove {kept} and adopt again."
        )


def _refuse_unfinished(replica: ChildrenReplica) -> None:
    """Refuse what a batch of onesync's left half done before the scripts deployed the folder.

    It would be settled over what they have pushed since, after that was compared.
    """
    try:
        intents = replica.names(INTENTS)
    except FileNotFoundError:
        return
    if intents:
        place = show(INTENTS)
        raise Halted(
            "An earlier deployment of the folder by onesync died within a batch, and the scripts"
            f" went on without it; nothing was changed. Remove what stands in {place} in OneData,"
            " and in the working directory where it is there, too; then adopt again."
        )


def _folders(settings: Settings, theirs: Mapping[str, str]) -> set[Path]:
    """Return both folders under all the names that a command of theirs may have for them."""
    ours = (settings.working_dir, settings.working_dir.resolve(), settings.onedata_dir)
    named = (Path(theirs.get(key, "")) for key in ("DIR", "MOUNT"))
    return {*ours, *(path for path in named if len(path.parts) > 1 and path.is_absolute())}


def _end_cron(
    settings: Settings, folders: Collection[Path], disable_cron: bool, tell: Callable[[str], None]
) -> None:
    with _as_root():
        found = predecessor.jobs(folders)
        if found and not disable_cron:
            lines = "; ".join(job.told() for job in found)
            raise Halted(
                f"The predecessors' cron job is still active ({lines}); nothing was changed. Remove"
                " the line, or let 'onesync adopt --disable-cron' comment it out."
            )
        for sentence in predecessor.disable(found, settings.state_dir):
            tell(sentence)


def _refuse_running(folders: Collection[Path]) -> None:
    with _as_root():
        found = predecessor.running(folders)
    if found:
        raise Halted(
            f"A copy of the predecessors is running as {', '.join(found)}; OneData is as they left"
            " it. Wait until it has ended, then adopt again."
        )


# -- comparing -------------------------------------------------------------------------------------


def _compare(
    settings: Settings,
    root: bytes,
    replica: ChildrenReplica,
    advanced: Callable[[int, int], None],
) -> Compared:
    """Compare the working copy with OneData, by content. Raises Halted where OneData is newer."""
    excluded = PathSpec.from_lines("gitignore", settings.push.exclude)
    with (
        TemporaryDirectory() as place,
        closing(Index(Path(place) / "empty.sqlite")) as empty,
        ThreadPoolExecutor(settings.push.workers) as pool,
    ):
        scanner = Scanner(root, empty, lambda path: excluded.match_file(os.fsdecode(path)))
        seen = {p: d.seen for p, d in scanner.scan((), [b""]).items() if p and d.seen is not None}
        there = {
            path: item
            for path, item in listing(replica, pool)
            if item.kind is not Kind.LINK and not excluded.match_file(os.fsdecode(path))
        }
        there = {p: item for p, item in there.items() if not _is_sidecar(p, there, seen)}
        held = _entries(replica, pool, there, advanced)
        tree = {path: _as_here(root, path, entry, seen) for path, entry in held.items()}
        rebuilt = rebuild(root, scanner, tree, pool, lambda *_: None)
    compared = _sort(rebuilt, held, seen)
    _refuse_newer(compared, there, seen)
    links = {p: (_link(it), it) for p, it in seen.items() if it.kind is Kind.LINK}
    compared.rows = links | compared.rows
    return compared


def _is_sidecar(path: RelPath, there: Mapping[RelPath, Listed], seen: _Seen) -> bool:
    """Whether it is a journal that was copied beside its database: it must never meet another."""
    base = database_of(path)
    return base is not None and (base in there or base in seen)


def _entries(
    replica: ChildrenReplica,
    pool: ThreadPoolExecutor,
    there: Mapping[RelPath, Listed],
    advanced: Callable[[int, int], None],
) -> dict[RelPath, Entry]:
    """Return what OneData holds; every file is read, or damage would be taken for the content."""
    entries = {
        p: Entry(Kind.DIRECTORY, mode=0o755) for p, it in there.items() if it.kind is Kind.DIRECTORY
    }
    files = [path for path, item in there.items() if item.kind is Kind.FILE]
    for number, (path, (digest, size)) in enumerate(
        zip(files, pool.map(replica.digest, files), strict=True), 1
    ):
        entries[path] = Entry(Kind.FILE, size, there[path].mtime_ns, 0o644, digest)
        advanced(number, len(files))
    return entries


def _as_here(root: bytes, path: RelPath, entry: Entry, seen: _Seen) -> Entry:
    """Return the entry with what OneData cannot keep, from the local copy."""
    here = seen.get(path)
    if here is None or here.kind is not entry.kind:
        return entry
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = open_beneath(top, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return entry  # it differs then, and the push meets it again
    finally:
        os.close(top)
    try:
        group = here.inode if here.linked else 0
        return replace(
            entry, mtime_ns=here.mtime_ns, mode=here.mode, group=group, xattrs=read_xattrs(fd)
        )
    finally:
        os.close(fd)


def _sort(rebuilt: Rebuilt, held: Mapping[RelPath, Entry], seen: _Seen) -> Compared:
    """Tell what is equal, what differs and what only OneData has."""
    compared = Compared(rebuilt=rebuilt)
    absent: set[RelPath] = set()
    for path, entry, stamp in rebuilt.rows:
        here = seen.get(path)
        lost = lost_stamp(entry.kind)
        if here is None or (entry.kind is Kind.DIRECTORY and here.kind is not Kind.DIRECTORY):
            absent.add(path)
        elif entry.kind is Kind.FILE and stamp == lost:
            compared.differing.append(path)
        equal = stamp is not None and stamp != lost
        compared.rows[path] = (entry, stamp) if equal else (held[path], lost)
    compared.held, compared.missing = tops(absent), len(absent)
    return compared


def _refuse_newer(compared: Compared, there: Mapping[RelPath, Listed], seen: _Seen) -> None:
    """Refuse where OneData's version may be the newer one: a stage-in of theirs died half way."""
    second = 10**9  # OneData may keep no more of a time
    newer = sorted(
        path
        for path in compared.differing
        if there[path].mtime_ns // second > seen[path].mtime_ns // second
    )
    if newer:
        raise Halted(
            f"{len(newer)} files have another content in OneData, and a newer time than here"
            f" ({_some(newer)}); nothing was changed. 'touch' those whose version here counts, copy"
            " the others here from OneData, then adopt again."
        )


def _link(seen: Stamp) -> Entry:
    return Entry(Kind.LINK, target=seen.target)


# -- taking over -----------------------------------------------------------------------------------


def _last_push(replica: ChildrenReplica) -> tuple[int, int] | None:
    """Return what differs after each push of theirs, which writes the list anew."""
    found = replica.look(LINKLIST)
    return None if found is None else (found.size, found.mtime_ns)


def _linklist(
    replica: ChildrenReplica, theirs: Mapping[str, str], compared: Compared
) -> list[tuple[RelPath, bytes]]:
    """Return the links of their list, also one of a working directory before this one.

    Such a list stands there until their first push: its directories are found as at a stage-in.
    """
    try:
        content = replica.read(LINKLIST)
    except FileNotFoundError:
        return []
    links = list(links_beneath(content, os.fsencode(theirs.get("DIR", ""))))
    if not links:
        rows = compared.rows.items()
        directories = {b"", *(path for path, (it, _) in rows if it.kind is Kind.DIRECTORY)}
        links = list(linklist(content, directories))
    compared.left_out = sum(map(bool, content.splitlines())) - len(links)
    return links


def _restore_links(root: bytes, links: Sequence[tuple[RelPath, bytes]], compared: Compared) -> None:
    """Make the links of their list that are missing, where their directory is here.

    Those of a directory that is held are held with it.
    """
    top = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        for path, target in links:
            if path in compared.rows:
                continue
            entry = Entry(Kind.LINK, target=target)
            if lies_in(path, compared.held):
                compared.rows[path] = (entry, lost_stamp(Kind.LINK))
            elif (stamp := _make_link(top, path, target)) is not None:
                compared.rows[path] = (entry, stamp)
                compared.restored += 1
            else:
                compared.left_out += 1
    finally:
        os.close(top)


def _make_link(top: int, path: RelPath, target: bytes) -> Stamp | None:
    """Make a link and return its stamp; None where something stands there, or no directory."""
    try:
        parent = open_beneath(top, parent_of(path), os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        os.symlink(target, name_of(path), dir_fd=parent)
        status = os.stat(name_of(path), dir_fd=parent, follow_symlinks=False)
        return stamp_of(status, Kind.LINK, target)
    except FileExistsError:
        return None
    finally:
        os.close(parent)


def _record(index: Index, root: bytes, theirs: Mapping[str, str], compared: Compared) -> None:
    """Make the index: it counts when ``staged`` says so, which comes last."""
    index.set(adopting=json.dumps(dict(theirs)))
    rows = ((path, entry, stamp) for path, (entry, stamp) in compared.rows.items())
    index.replace(rows, staged=None)
    index.remember_blocks(compared.rebuilt.blocks)
    index.hold(compared.held, ())
    index.set(staged=ADOPTED, folder_id=None, **root_values(root))


def _put_away(settings: Settings) -> None:
    """Keep their status folder of the working copy elsewhere: there the name is onesync's own."""
    theirs = settings.working_dir / os.fsdecode(STATUS_FOLDER)
    if theirs.is_symlink() or not theirs.is_dir():
        return
    kept = settings.state_dir / KEPT
    try:
        if not kept.exists():
            begun = settings.state_dir / f"{KEPT}.new"
            shutil.rmtree(begun, ignore_errors=True)
            shutil.copytree(theirs, begun, symlinks=True)
            begun.rename(kept)
        shutil.rmtree(theirs)
    except OSError as error:  # shutil.Error is one, too
        raise Halted(
            f"{theirs} cannot be put away ({printable(str(error))}); nothing else is missing. Move"
            " it out of the working directory, then adopt again."
        ) from error


def _told(compared: Compared) -> list[str]:
    equal = sum(stamp != lost_stamp(entry.kind) for entry, stamp in compared.rows.values())
    told = [f"Adopted: {equal} files, directories and links are here as OneData has them."]
    if compared.differing:
        told.append(
            f"{len(compared.differing)} files differ and are sent: {_some(compared.differing)}."
        )
    if compared.restored:
        told.append(f"{compared.restored} links of the linklist were missing and are made.")
    if compared.left_out:
        told.append(
            f"{compared.left_out} lines of the linklist are left out: they are damaged, or name"
            " another directory."
        )
    if compared.held:
        told.append(
            f"{compared.missing} files and directories are in OneData alone and kept there"
            f" ({_some(compared.held)}): 'onesync resume' lists them, and says how to let them go."
            " They come here with the next deployment."
        )
    told.append("Start the service: it goes on without a stage-in, and sends what is newer here.")
    return told


def _some(paths: Sequence[RelPath] | set[RelPath]) -> str:
    more = ", …" if len(paths) > _NAMED else ""
    return ", ".join(show(path) for path in sorted(paths)[:_NAMED]) + more
