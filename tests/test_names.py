"""Names that OneData refuses, hides or takes for others: never lost, never another's."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onesync.core.model import STATUS_FOLDER, Kind
from onesync.core.names import NOTES, escape, must_be_escaped, note_of
from onesync.replica.children import ChildrenReplica
from onesync.replica.door import Listed, NameRefused, Replica
from onesync.replica.folder import FolderReplica
from onesync.replica.names import EscapedNames
from tests.node import Node, picture
from tests.standin.mounted import Mounted
from tests.test_program import names_of_ours
from tests.workload.names import ODD_NAMES

pytestmark = pytest.mark.fuse

LONG = b"\xff" * 255
HIDDEN = [b".__onedata__x", b"a####TO_DELETEb", b".__onedata__file_id__00"]
DISGUISED = [escape(b"\xff"), escape(LONG), escape(b"plain"), b"onesync=1=..", b"onesync=1=%zz"]
AMBIGUOUS = [b"x@", b"x@ab", b"x@y.mrc"]
NAMES = [*ODD_NAMES, *HIDDEN, *DISGUISED, *AMBIGUOUS, b"x", b"plain", LONG, b"\xff" * 254, b"%40"]
HARD = [*HIDDEN, *DISGUISED, *AMBIGUOUS, b"\xff", b"\xc3", b"@x", LONG, "ü".encode()]
SPECIAL = r"/\.__onedata__|####TO_DELETE"

Fresh = Callable[[], Replica]


@pytest.fixture
def store(mounted: Mounted) -> Path:
    return mounted.path / "project"


@pytest.fixture(params=[errno.EAGAIN, errno.EINVAL])
def refusing(request: pytest.FixtureRequest, mounted: Mounted) -> Mounted:
    hard_on_names(mounted, request.param)
    return mounted


@pytest.fixture
def fresh(store: Path) -> Iterator[Fresh]:
    """Make doors that remember nothing of each other, as of another node."""
    made: list[ChildrenReplica] = []

    def make() -> Replica:
        made.append(ChildrenReplica(os.fsencode(store), processes=1, threads=4, patience=20))
        return made[-1]

    yield make
    for replica in made:
        replica.close()


def hard_on_names(mounted: Mounted, number: int) -> None:
    """Let the mount be as OneData is at its worst."""
    mounted.names(undecodable=number, suffixes=True)
    mounted.hide(SPECIAL)


def project(mounted: Mounted) -> bytes:
    return os.fsencode(mounted.backing / "project")


# -- the door ------------------------------------------------------------------------------------


def test_every_name_is_told_to_another_node(refusing: Mounted, fresh: Fresh) -> None:
    one = fresh()
    for name in NAMES:
        one.make_directory(name)
        one.write_new(name + b"/" + name, name)
    two = fresh()
    assert sorted(item.name for item in two.list(b"") if item.name != STATUS_FOLDER) == sorted(
        NAMES
    )
    for name in NAMES:
        assert two.list(name) == [Listed(name, Kind.FILE, len(name))]
        assert two.read(name + b"/" + name) == name
        two.remove(name)
    assert [item.name for item in fresh().list(b"")] == [STATUS_FOLDER]


def test_a_directory_is_renamed_with_what_it_holds(refusing: Mounted, fresh: Fresh) -> None:
    one = fresh()
    for above in (b"\xff", b"\xff/\xfe", b"\xff/\xfe/@"):
        one.make_directory(above)
    one.write_new(b"\xff/\xfe/@/" + LONG, b"1")
    one.rename(b"\xff", b"@")
    one.make_directory(b"\xff")
    one.write_new(b"\xff/\xfe", b"another")
    two = fresh()
    for replica in (one, two):
        assert replica.read(b"@/\xfe/@/" + LONG) == b"1"
        assert replica.read(b"\xff/\xfe") == b"another"
        assert replica.look(b"@/\xfe/@/gone") is None


def test_what_follows_an_at_never_opens_another_file(refusing: Mounted, fresh: Fresh) -> None:
    replica = fresh()
    replica.write_new(b"x", b"precious")
    for name in AMBIGUOUS:
        assert replica.look(name) is None
        with pytest.raises(FileNotFoundError):
            replica.overwrite(name, b"CLOBBER!")
        replica.remove(name)
        replica.write_new(name, b"own")
        assert replica.read(name) == b"own"
    assert replica.read(b"x") == b"precious"


def test_names_that_only_look_escaped_are_left_alone(mounted: Mounted, fresh: Fresh) -> None:
    for name in (b"onesync=1=..", b"onesync=1=%zz", escape(LONG)):
        Path(os.fsdecode(project(mounted) + b"/" + name)).write_bytes(b"put there by hand")
    replica = fresh()
    for item in replica.list(b""):
        assert replica.read(item.name) == b"put there by hand"
    # A note makes the last one the name of something else.
    with pytest.raises(FileExistsError):
        replica.write_new(LONG, b"new")
    assert replica.look(LONG) is not None


def test_what_stands_under_its_own_name_stays_there(mounted: Mounted, fresh: Fresh) -> None:
    names = [n for n in NAMES if n not in DISGUISED and n != HIDDEN[2]]
    before = FolderReplica(project(mounted))
    for name in names:
        before.make_directory(name)
        before.write_new(name + b"/" + name, name)
    mounted.hide(SPECIAL)
    replica = fresh()
    shown = sorted(set(names) - set(HIDDEN))
    assert sorted(item.name for item in replica.list(b"")) == shown
    for name in names:
        path = name + b"/" + name
        assert replica.read(path) == name
        with pytest.raises(FileExistsError):
            replica.write_new(path, b"new")
        replica.rename(path, name + b"/aside", is_file=True)
        replica.write_new(path, b"new")
        assert replica.read(path) == b"new"
        assert before.look(path) is None or not must_be_escaped(name)
        assert fresh().read(path) == b"new" if name in HIDDEN else True


@pytest.mark.parametrize("name", [b"cursed", b"c\xc3\xbcrsed", b"cursed" * 40])
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG])
def test_a_refusal_that_nobody_foresaw(
    mounted: Mounted, fresh: Fresh, name: bytes, number: int
) -> None:
    mounted.names(pattern="^c.?.?rsed", number=number)
    one = fresh()
    one.make_directory(name)
    one.make_directory(name + b"/" + name)
    one.write_new(name + b"/" + name + b"/plain", b"1")
    one.write_new(b"good", b"2")
    one.rename(b"good", name + b"/good", is_file=True)
    two = fresh()
    assert [i.name for i in two.list(b"") if i.name != STATUS_FOLDER] == [name]
    assert {item.name for item in two.list(name)} == {name, b"good"}
    for replica in (one, two):
        assert replica.read(name + b"/" + name + b"/plain") == b"1"
        assert replica.read(name + b"/good") == b"2"
    two.rename(name, b"lifted")
    assert two.read(b"lifted/" + name + b"/plain") == b"1"
    assert one.look(name) is None


def test_a_refusal_of_new_names_alone(mounted: Mounted, fresh: Fresh) -> None:
    mounted.names(pattern="^c.?.?rsed", number=errno.EINVAL, only_new=True)
    odd, plain = "cürsed".encode(), b"cursed"
    replica = fresh()
    replica.write_new(odd, b"1")
    assert fresh().read(odd) == b"1"
    # It would never be found again: a plain name costs no second look.
    with pytest.raises(NameRefused):
        replica.write_new(plain, b"1")
    assert replica.look(plain) is None


def test_what_is_refused_under_both_names_is_told(mounted: Mounted, fresh: Fresh) -> None:
    replica = fresh()
    mounted.names(pattern="cursed|FF", number=errno.EINVAL)
    for name in (b"cursed", b"x\xc3\xbccursed", b"\xff"):
        acts: list[Callable[[], object]] = [
            lambda name=name: replica.write_new(name, b"1"),  # type: ignore[misc]
            lambda name=name: replica.make_directory(name),  # type: ignore[misc]
            lambda name=name: replica.read(name),  # type: ignore[misc]
        ]
        for act in acts:
            with pytest.raises(NameRefused) as caught:
                act()
            assert caught.value.filename == name
        assert replica.look(name) is None
        assert replica.remove(name) is False
    assert os.listdir(project(mounted)) == []


def test_what_is_not_about_a_name_is_no_refusal(
    mounted: Mounted, fresh: Fresh, tmp_path: Path
) -> None:
    (tmp_path / "source").write_bytes(b"1")
    mounted.fail("write", errno.EINVAL, times=-1)
    for name in (b"plain", "ü".encode(), b"\xff"):
        with pytest.raises(OSError, match="Invalid argument") as caught:
            fresh().put(os.fsencode(tmp_path / "source"), name)
        assert not isinstance(caught.value, NameRefused)
    assert os.listdir(project(mounted)) == []
    (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER)).mkdir()
    mounted.fail("getattr", errno.EINVAL, times=-1, pattern="lock$")
    with pytest.raises(OSError, match="Invalid argument"):
        fresh().look(STATUS_FOLDER + b"/lock")


def test_a_torn_note_is_written_anew(refusing: Mounted, fresh: Fresh) -> None:
    note = note_of(escape(LONG))
    assert note is not None
    (refusing.backing / "project" / os.fsdecode(NOTES)).mkdir(parents=True)
    place = Path(os.fsdecode(project(refusing) + b"/" + note))
    place.write_bytes(b'{"onesync"')
    fresh().write_new(LONG, b"1")
    assert fresh().read(LONG) == b"1"
    assert LONG in {item.name for item in fresh().list(b"")}


def test_what_calls_cost(mounted: Mounted, store: Path) -> None:
    """A plain name costs nothing more, an odd one two looks once, others a look or a listing."""

    def calls(replica: Replica, name: bytes) -> int:
        mounted.reset()
        replica.write_new(name, b"1")
        replica.look(name)
        replica.rename(name, name + b"2", is_file=True)
        replica.read(name + b"2")
        replica.remove(name + b"2")
        replica.remove(name)
        return sum(count for what, count in mounted.counts().items() if what != "bytes_written")

    bare = FolderReplica(os.fsencode(store))
    escaped = EscapedNames(FolderReplica(os.fsencode(store)))
    for replica in (bare, escaped):
        replica.look(b"the directory is held from here on")
    mounted.reset()
    bare.look(b"nothing")
    look = sum(mounted.counts().values())
    mounted.reset()
    bare.names(b"")
    listing = sum(mounted.counts().values())
    assert calls(escaped, b"plain name.mrc") == calls(bare, b"plain name.mrc")
    odd = "ü".encode()
    # Two looks at each of the two new names, and two at what is gone at the end.
    assert calls(escaped, odd) <= calls(bare, odd) + 6 * look
    assert calls(escaped, b"@") <= calls(bare, odd) + 3 * look + 3 * listing


def test_an_odd_name_is_replaced_at_the_cost_of_a_plain_one(mounted: Mounted, store: Path) -> None:
    """Its old version goes aside and the new one comes: nobody asks in between where it is kept."""

    def calls(name: bytes) -> int:
        replica = EscapedNames(FolderReplica(os.fsencode(store)))
        replica.write_new(name, b"1")
        replica.write_new(b".onesync~new", b"2")
        replica.look(name)
        mounted.reset()
        replica.rename(name, b".onesync~old", is_file=True)
        replica.rename(b".onesync~new", name, is_file=True)
        counts = mounted.counts()
        assert replica.read(name) == b"2"
        replica.remove(b".onesync~old")
        return sum(counts.values())

    assert calls("ü".encode()) == calls(b"plain name.mrc")


def test_paths_that_get_longer_than_any_here(tmp_path: Path) -> None:
    replica = EscapedNames(FolderReplica(os.fsencode(tmp_path)))
    path = b""
    for number in range(60):
        path = (path + b"/" if path else b"") + b"\xff" * 35 + b"%02d" % number
        replica.make_directory(path)
    replica.write_new(path + b"/x", b"1")
    again = EscapedNames(FolderReplica(os.fsencode(tmp_path)))
    assert again.read(path + b"/x") == b"1"
    assert [item.name for item in again.list(path)] == [b"x"]
    replica.remove(path.partition(b"/")[0])
    shutil.rmtree(tmp_path / os.fsdecode(STATUS_FOLDER), ignore_errors=True)
    assert os.listdir(tmp_path) == []


# -- the program -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _strict(request: pytest.FixtureRequest) -> None:
    if "nodes" in request.fixturenames:
        for node in request.getfixturevalue("nodes"):
            node.configure(mount__require_fuse=True, mount__io_timeout_seconds=5)


def fill(work: Path) -> None:
    """Odd names as files, directories, links, deep in each other."""
    top = os.fsencode(work)
    os.mkdir(os.path.join(top, b"files"))
    for name in NAMES:
        Path(os.fsdecode(os.path.join(top, b"files", name))).write_bytes(name)
    for number, name in enumerate(HARD):
        inner = os.path.join(top, b"directories", name, HARD[number - 1])
        os.makedirs(inner)
        Path(os.fsdecode(os.path.join(inner, name))).write_bytes(name)
        os.symlink(name, os.path.join(top, b"directories", name, b"link \xff@"))
    stack = Path(os.fsdecode(os.path.join(top, b"files", b"stack \xff.mrcs")))
    stack.write_bytes(os.urandom(2_000_000))


def killed(node: Node, mounted: Mounted) -> None:
    node.end(signal.SIGKILL)
    (mounted.backing / "project" / os.fsdecode(STATUS_FOLDER) / "lock").unlink()


def test_a_tree_of_odd_names_is_restored_after_a_death(nodes: list[Node], mounted: Mounted) -> None:
    hard_on_names(mounted, errno.EAGAIN)
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0, one.log()
    change(one.work)
    assert one.flush() == 0, one.log()
    assert one.command("verify", "--content").stdout == "No differences.\n"
    expected = picture(one.work)
    killed(one, mounted)
    two.deploy()
    assert picture(two.work) == expected
    assert two.status()["problems"] == []
    assert two.end() == 0, two.log()
    assert names_of_ours(mounted.backing) == []


def change(work: Path) -> None:
    """Replace, append, rename and remove what has odd names."""
    top = os.fsencode(work)

    def at(*parts: bytes) -> bytes:
        return os.path.join(top, *parts)

    for name in (b"\xff", b"@x", HIDDEN[0], LONG, DISGUISED[0]):
        Path(os.fsdecode(at(b"files", name))).write_bytes(b"replaced")
    with open(at(b"files", b"stack \xff.mrcs"), "r+b") as stack:
        stack.write(b"patched")
        stack.seek(0, os.SEEK_END)
        stack.write(b"and grown" * 1000)
    os.rename(at(b"directories", b"\xff"), at(b"directories", b"\xff renamed@"))
    os.rename(at(b"files", b"\xe9"), at(b"files", b"\xe9@"))
    shutil.rmtree(at(b"directories", b"\xc3"))
    os.unlink(at(b"files", HIDDEN[1]))


@pytest.mark.parametrize("checkpoint", ["stands", "does not"])
def test_a_batch_of_odd_names_that_dies_is_settled(
    nodes: list[Node], mounted: Mounted, checkpoint: str
) -> None:
    hard_on_names(mounted, errno.EAGAIN)
    one, two = nodes
    one.deploy()
    fill(one.work)
    assert one.flush() == 0, one.log()
    expected = picture(one.work)
    at = "unlink" if checkpoint == "stands" else "create"
    pattern = "intent/" if checkpoint == "stands" else "manifest/"
    mounted.fail(at, errno.EIO, times=-1, pattern=pattern)
    change(one.work)
    Path(os.fsdecode(os.path.join(os.fsencode(one.work), b"files", b"\xff new"))).write_bytes(
        b"new"
    )
    one.wait_for_phase("backing_off")
    killed(one, mounted)
    mounted.clear()
    two.deploy()
    assert two.end() == 0, two.log()
    restored = picture(two.work)
    files = {path: what for path, what in restored.items() if path.startswith(b"files/")}
    new = files.pop(b"files/\xff new", None)
    assert new is None or new[1] == b"new"
    if checkpoint == "does not":
        assert files == {p: what for p, what in expected.items() if p.startswith(b"files/")}
    else:
        assert files[b"files/\xff"][1] == b"replaced"
    assert names_of_ours(mounted.backing) == []


def test_a_name_that_is_refused_for_good_is_one_problem(
    nodes: list[Node], mounted: Mounted
) -> None:
    mounted.names(pattern="cursed", number=errno.EINVAL)
    one, two = nodes
    one.deploy()
    (one.work / "good").write_bytes(b"1")
    (one.work / "cursed").write_bytes(b"2")
    (one.work / "cursed directory" / "inner").mkdir(parents=True)
    (one.work / "cursed directory" / "inner" / "file").write_bytes(b"3")
    (one.work / "cursed directory" / "link").symlink_to("inner")
    (one.work / "cursed.mrcs").write_bytes(os.urandom(2_000_000))
    assert one.flush() == 3, one.log()
    told = {(p["path"], p["kind"]) for p in one.status()["problems"]}
    refused = {"cursed", "cursed directory", "cursed.mrcs"}
    assert told == {(path, "name_refused") for path in refused}
    assert (mounted.backing / "project" / "good").read_bytes() == b"1"
    assert names_of_ours(mounted.backing) == []
    # What goes on in such a directory troubles nobody.
    (one.work / "cursed directory" / "inner" / "more").write_bytes(b"4")
    (one.work / "good").write_bytes(b"5")
    assert one.flush() == 3
    assert (mounted.backing / "project" / "good").read_bytes() == b"5"
    for name in refused:
        (one.work / name).rename(one.work / name.replace("cursed", "blessed"))
    assert one.flush() == 0, one.log()
    assert one.status()["problems"] == []
    expected = picture(one.work)
    assert one.end() == 0, one.log()
    two.deploy()
    assert picture(two.work) == expected
    assert two.end() == 0, two.log()


def test_scrub_mends_what_has_an_escaped_name(nodes: list[Node], mounted: Mounted) -> None:
    mounted.names(undecodable=errno.EAGAIN)
    one, _ = nodes
    one.deploy()
    name = os.path.join(os.fsencode(one.work), b"caf\xe9@")
    Path(os.fsdecode(name)).write_bytes(b"good")
    assert one.flush() == 0, one.log()
    kept = mounted.backing / "project" / "onesync=1=caf%E9%40"
    assert kept.read_bytes() == b"good"
    kept.write_bytes(bytes(4))
    assert one.command("verify", "--content").returncode == 3
    assert one.command("scrub").returncode == 0
    assert kept.read_bytes() == b"good"
    assert one.end() == 0, one.log()


def test_a_folder_of_before_goes_on(nodes: list[Node], mounted: Mounted) -> None:
    """What an earlier version kept under odd names of their own is found, changed and removed."""
    names = [b"\xff", b"@x", b"a@b", HIDDEN[0], "ü".encode(), b"n" * 255]
    one, two = nodes
    one.deploy()
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(one.work), name))).write_bytes(name)
    assert one.end() == 0, one.log()
    for name in names:  # as they would stand there
        if must_be_escaped(name):
            os.rename(
                os.path.join(project(mounted), escape(name)), os.path.join(project(mounted), name)
            )
    mounted.hide(SPECIAL)
    two.deploy()
    assert picture(two.work) == picture(one.work)
    for name in names[:-1]:
        Path(os.fsdecode(os.path.join(os.fsencode(two.work), name))).write_bytes(b"changed")
    os.unlink(os.path.join(os.fsencode(two.work), names[0]))
    assert two.flush() == 0, two.log()
    assert two.command("verify", "--content").stdout == "No differences.\n"
    expected = picture(two.work)
    assert two.end() == 0, two.log()
    shutil.rmtree(one.work)
    shutil.rmtree(one.home / "state")
    for place in (one.work, one.home / "state"):
        place.mkdir()
    one.deploy()
    assert picture(one.work) == expected
    assert one.end() == 0, one.log()
