"""``make demo``: a small project deployed, changed, flushed, undeployed and deployed elsewhere."""

from __future__ import annotations

import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.node import Node, picture
from tests.standin.mounted import Mounted
from tests.test_program import fill


def main() -> int:
    """Show the whole job; returns 0 when the second node got the identical tree."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onesync-demo-")))
        has_fuse = Path("/dev/fuse").exists() and shutil.which("fusermount3") is not None
        if has_fuse:
            mount = stack.enter_context(Mounted(home / "onedata"))
            mount.latency(0.002)
            store = mount.path / "project"
            store.mkdir()
            say(f"a FUSE stand-in for OneData is mounted at {mount.path}, 2 ms a call")
        else:
            store = home / "project"
            store.mkdir()
            say("no FUSE on this machine: a plain folder stands for OneData")
        options = {"mount__require_fuse": has_fuse}
        return show(Node(home / "one", store, **options), Node(home / "two", store, **options))


def show(one: Node, two: Node) -> int:
    """Deploy on ``one``, work, undeploy, deploy on ``two``, compare."""
    one.deploy()
    say("node one: deployed")
    fill(one.work)
    say("node one: a small project with a database, links and odd names was written")
    print(one.command("status").stdout)
    if one.flush() != 0:
        return failed(one)
    say("node one: flushed, everything is in OneData:")
    for path in sorted(p for p in one.store.rglob("*") if p.is_file())[:12]:
        print("   ", ascii(str(path.relative_to(one.store))))
    (one.work / "Runs").rename(one.work / "Renamed")
    expected = picture(one.work)
    if one.end() != 0:
        return failed(one)
    say("node one: a directory was renamed, then SIGTERM: flushed, undeployed, lock released")
    two.deploy()
    same = picture(two.work) == expected
    if two.end() != 0 or not same:
        return failed(two)
    say("node two: deployed the identical tree: bytes, links, modes, nanosecond times")
    return 0


def say(text: str) -> None:
    """Print one step."""
    print(f"== {text}", flush=True)


def failed(node: Node) -> int:
    """Print the node's log."""
    print(node.log(), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
