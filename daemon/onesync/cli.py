"""The command line.

Each command imports what it alone needs: asking a daemon takes half the time without its parts.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from onesync import __version__, configuration
from onesync import instance as units
from onesync.configuration import load
from onesync.control import NEVER_RAN, NotRunning, StatusFile, ask
from onesync.core import legacy
from onesync.core.duration import seconds_of
from onesync.core.model import Kind, is_user_path, printable, show
from onesync.errors import ConfigurationError, OnesyncError
from onesync.settings import Settings, check_directories, check_user, state_dirs
from onesync.systemd import hold_signals

if TYPE_CHECKING:
    from onesync.verify import Finding

app = typer.Typer(no_args_is_help=True, add_completion=False)

Config = Annotated[Path | None, typer.Option(help="Configuration file.")]
Instance = Annotated[str | None, typer.Option(help="Use /etc/onesync/NAME.toml.")]
_STATUS_SECONDS = 0.8


@app.command()
def run(config: Config = None, instance: Instance = None) -> None:
    """Deploy, keep in sync, and on SIGTERM or SIGINT undeploy."""
    hold_signals()
    from onesync.reader import begin_to_load

    loaded = begin_to_load(config, instance)
    from onesync.daemon import run_daemon

    run_daemon(loaded, config, instance)


@app.command()
def status(
    config: Config = None,
    instance: Instance = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as config/status.schema.json has it.")
    ] = False,
    watched: Annotated[bool, typer.Option("--watch", help="Look again until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
) -> None:
    """Show the state of the deployment; answers also while the mount hangs or nothing runs."""
    settings = load(config, instance)
    if as_json:
        _print_status(settings, interval if watched else None)
        return
    from onesync.core.view import Look
    from onesync.screen import show_once, watch

    def look() -> Look:
        document, is_live = _status_of(settings)
        return Look(document, time.time(), is_live)

    if watched:
        watch(look, interval)
    else:
        show_once(look)


def _print_status(settings: Settings, interval: float | None) -> None:
    """Print the document, one on a line; every ``interval`` seconds until Ctrl-C, if given."""
    with suppress(KeyboardInterrupt):
        while True:
            typer.echo(json.dumps(_status_of(settings)[0]))
            if interval is None:
                return
            time.sleep(interval)


@app.command()
def top(
    config: Config = None,
    instance: Instance = None,
    is_once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show which files are on their way, how far and how fast, until Ctrl-C."""
    from onesync.screen import watch_files

    settings = load(config, instance)
    watch_files(lambda: _ask(settings, "flights"), interval, is_once=is_once)


@app.command()
def flush(config: Config = None, instance: Instance = None) -> None:
    """Commit everything that reached the working copy before this call."""
    from onesync.progress import following

    settings = load(config, instance)
    with following(lambda: _status_of(settings)[0]):
        reply = _ask(settings, "flush")
    if not reply.get("ok"):
        typer.echo(f"Not flushed: {printable(str(reply.get('reason')))}.", err=True)
        raise typer.Exit(1)
    for problem in reply["problems"]:
        typer.echo(printable(problem), err=True)
    raise typer.Exit(3 if reply["problems"] else 0)


@app.command()
def pause(
    config: Config = None,
    instance: Instance = None,
    duration: Annotated[
        str, typer.Option("--for", help="It goes on by itself after so long: 30min, 2h, 1d.")
    ] = "1h",
) -> None:
    """Push nothing for a while, but for a flush; 'resume' goes on earlier, as does a restart."""
    seconds = _seconds(duration)
    _done(_ask(load(config, instance), "pause", seconds=seconds))
    typer.echo(f"Paused for {duration}: what changes is in the working directory only.")


@app.command()
def extend(
    duration: Annotated[str, typer.Argument(help="How much longer: 12h, 3d.")] = "",
    until: Annotated[str, typer.Option(help="Or until when: 2026-12-24T18:00+01:00.")] = "",
    config: Config = None,
    instance: Instance = None,
) -> None:
    """Put off the end of a deployment that has one ([deployment] until or duration)."""
    if bool(duration) == bool(until):
        raise ConfigurationError("Say how much longer, or --until when; one of them.")
    at = _moment(until) if until else None
    seconds = _seconds(duration) if duration else 0.0
    reply = _done(_ask(load(config, instance), "extend", until=at, seconds=seconds))
    if "until" in reply:
        when = datetime.fromtimestamp(reply["until"], UTC).isoformat(" ", "minutes")
        typer.echo(f"The deployment ends at {when}.")


@app.command()
def reload(config: Config = None, instance: Instance = None) -> None:
    """Let the daemon read its configuration again; tells what changed, and what needs a restart."""
    reply = _done(_ask(load(config, instance), "reload"))
    if reply["applied"]:
        typer.echo(f"Changed: {', '.join(reply['applied'])}.")
    if reply["restart"]:
        typer.echo(f"Needs a restart: {', '.join(reply['restart'])}.", err=True)
    if not reply["applied"] and not reply["restart"]:
        typer.echo("Nothing changed.")


def _done(reply: dict[str, Any]) -> dict[str, Any]:
    """Return the reply where it was done, or will be. Raises OnesyncError with the reason."""
    if not reply.get("ok"):
        raise OnesyncError(str(reply.get("reason")))
    if reply.get("is_later"):
        typer.echo("onesync is busy; it follows as soon as it has finished what it does.")
    return reply


def _seconds(duration: str) -> float:
    try:
        return seconds_of(duration)
    except ValueError as error:
        raise ConfigurationError(f"{printable(duration)!r}: {error}.") from error


def _moment(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise ConfigurationError(
            f"{printable(text)!r} is no time with its zone, such as 2026-12-24T18:00+01:00."
        )
    return found.timestamp()


@app.command()
def resume(
    config: Config = None,
    instance: Instance = None,
    accept_deletions: Annotated[
        bool, typer.Option("--accept-deletions", help="Let go what is held now.")
    ] = False,
) -> None:
    """Go on after a pause, and list the deletions that are held for a person to decide.

    The exit code is 3 if there are any.
    """
    from onesync.inspect import held_deletions

    settings = load(config, instance)
    with suppress(NotRunning):
        if _done(ask(_socket(settings), "pause", None, seconds=0)).get("was_paused"):
            typer.echo("It goes on.")
    held, shown = held_deletions(settings)
    for path in held:
        typer.echo(show(path))
    if held and accept_deletions:
        _accept(settings, shown)
        return
    if held:
        typer.echo(
            f"{len(held)} paths are missing from the working directory and kept in OneData."
            " 'onesync resume --accept-deletions' lets them go.",
            err=True,
        )
    raise typer.Exit(3 if held else 0)


def _accept(settings: Settings, shown: str) -> None:
    """Let go what was shown, and nothing that came to be held since."""
    reply = _ask(settings, "accept_deletions", shown=shown)
    if not reply.get("ok"):
        typer.echo("Other paths are held by now, so nothing was let go. Look again.", err=True)
        raise typer.Exit(3)
    typer.echo(f"Accepted: these {reply['accepted']} paths leave OneData with the next batches.")


@app.command()
def deployments() -> None:
    """Name the instances of this node whose folder is not undeployed, whether they run or not."""
    from onesync.inspect import has_deployment

    for name, places in state_dirs().items():
        try:
            is_deployed = any(map(has_deployment, places))
        except OnesyncError as error:
            typer.echo(f"onesync: {printable(str(error))}", err=True)
            is_deployed = True  # nobody can tell, and it may hold what is nowhere else
        if is_deployed:
            typer.echo(printable(name))


@app.command()
def handover(config: Config = None, instance: Instance = None) -> None:
    """Flush for a minute and leave with the lock kept; the next start goes on without stage-in."""
    reply = _ask(load(config, instance), "handover")
    if not reply.get("ok"):
        typer.echo(f"Not handed over: {printable(str(reply.get('reason')))}", err=True)
        raise typer.Exit(1)
    if reply.get("pending"):
        typer.echo(
            f"Handed over. What changed at {reply['pending']} paths is not in OneData yet and"
            " follows with the next start; until then it is only here."
        )


@app.command()
def verify(
    config: Config = None,
    instance: Instance = None,
    content: Annotated[
        bool, typer.Option("--content", help="Read and compare every byte.")
    ] = False,
) -> None:
    """Compare working copy, manifest and OneData; exit code 3 when they differ."""
    from onesync.inspect import verify_folder
    from onesync.progress import shown

    settings = _let_in(config, instance)
    with shown("verify") as bar:
        findings = verify_folder(settings, content, bar.advanced, bar.copied)
    for finding in findings:
        typer.echo(f"{finding.where}: {show(finding.path)} {finding.text}")
    if not findings:
        typer.echo("No differences.")
    raise typer.Exit(3 if findings else 0)


@app.command()
def scrub(config: Config = None, instance: Instance = None) -> None:
    """Read everything in OneData and send anew what is damaged there; exit code 3 if some remains.

    The daemon must be running; it goes on syncing meanwhile.
    """
    from onesync.inspect import find_damage
    from onesync.progress import shown

    settings = _let_in(config, instance)
    _ask(settings, "status")
    with shown("scrub") as bar:
        mendable, lost, moving = find_damage(settings, bar.advanced, bar.copied)
    is_sent = _send_anew(settings, mendable) if mendable else True
    for finding in lost:
        typer.echo(
            f"{show(finding.path)} {finding.text}, and the working copy has no good one: restore it"
            " from a backup",
            err=True,
        )
    for finding in moving:
        typer.echo(
            f"{show(finding.path)} {finding.text}: whether it is damaged shows when it rests."
            " Nothing was changed; scrub again then",
            err=True,
        )
    if not mendable and not lost and not moving:
        typer.echo("No damage.")
    raise typer.Exit(0 if is_sent and not lost else 3)


def _send_anew(settings: Settings, mendable: list[Finding]) -> bool:
    """Let the daemon send ``mendable`` anew; returns whether nothing of others stands there."""
    from onesync.outcome import OCCUPIED

    for finding in mendable:
        _ask(settings, "doubt", path=finding.path.decode("utf-8", "surrogateescape"))
    if not (reply := _ask(settings, "flush")).get("ok"):
        typer.echo(
            f"Not sent: {printable(str(reply.get('reason')))}; it is sent with the next flush.",
            err=True,
        )
        raise typer.Exit(1)
    problems = _ask(settings, "status")["problems"]
    occupied = [problem["path"] for problem in problems if problem["kind"] == OCCUPIED]
    is_sent = True
    for finding in mendable:
        path = show(finding.path)
        above = [top for top in occupied if path == top or path.startswith(top + "/")]
        if above:
            is_sent = False
            text = f"not sent, for what stands at {above[0]} in OneData is kept. Rename that"
            typer.echo(f"{path} {finding.text}: {text}", err=True)
        else:
            typer.echo(f"{path} {finding.text}: sent anew")
    return is_sent


manifest_app = typer.Typer(no_args_is_help=True, help="Show what the newest checkpoint holds.")
app.add_typer(manifest_app, name="manifest")


@manifest_app.command("ls")
def manifest_ls(config: Config = None, instance: Instance = None) -> None:
    """List every entry: kind, mode, size, time, path."""
    from onesync.inspect import read_manifest

    for path, entry in sorted(read_manifest(_let_in(config, instance)).items()):
        when = datetime.fromtimestamp(entry.mtime_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        arrow = f" -> {show(entry.target)}" if entry.kind is Kind.LINK else ""
        text = f"{entry.kind.value:4} {entry.mode:04o} {entry.size:14} {when} {show(path)}{arrow}"
        typer.echo(text)


@manifest_app.command("links")
def manifest_links(config: Config = None, instance: Instance = None) -> None:
    """List the symbolic links and their targets."""
    from onesync.inspect import read_manifest

    for path, entry in sorted(read_manifest(_let_in(config, instance)).items()):
        if entry.kind is Kind.LINK:
            typer.echo(f"{show(path)} -> {show(entry.target)}")


@manifest_app.command("export")
def manifest_export(
    linklist: Annotated[bool, typer.Option("--linklist", help="In West-Life's format.")] = False,
    config: Config = None,
    instance: Instance = None,
) -> None:
    """Write the links in a format that the predecessors read."""
    from onesync.inspect import read_manifest

    if not linklist:
        raise ConfigurationError("Name a format: --linklist.")
    settings = _let_in(config, instance)
    links = ((p, e.target) for p, e in sorted(read_manifest(settings).items()) if e.target)
    root = os.fsencode(settings.working_dir)
    sys.stdout.buffer.write(legacy.write_linklist(root, links))


@app.command("log")
def history(config: Config = None, instance: Instance = None) -> None:
    """List the deployments of the folder, and the checkpoints that are kept, oldest first."""
    from concurrent.futures import ThreadPoolExecutor

    from onesync.history import checkpoints, deployments, told_of, told_of_claim
    from onesync.inspect import opened

    settings = _let_in(config, instance)
    with opened(settings) as replica, ThreadPoolExecutor(settings.push.workers) as pool:
        lines = [told_of_claim(deployment) for deployment in deployments(replica)]
        lines += [told_of(name, found) for name, found in checkpoints(replica, pool)]
    for line in lines:
        typer.echo(printable(line))


@app.command("show")
def show_checkpoint(
    checkpoint: Annotated[str, typer.Argument(help="Its name, as 'onesync log' tells it.")],
    config: Config = None,
    instance: Instance = None,
) -> None:
    """List what a checkpoint changed: + brought, - gone, > renamed, ! left out with a problem."""
    from onesync.history import checkpoint_of, told
    from onesync.inspect import opened

    with opened(_let_in(config, instance)) as replica:
        found = checkpoint_of(replica, checkpoint)
    for change in found.changes:
        typer.echo(printable(told(change)))


@app.command("find")
def find_path(
    path: Annotated[str, typer.Argument(help="Relative to the working directory.")],
    config: Config = None,
    instance: Instance = None,
) -> None:
    """Tell where a path stands (here, index, newest checkpoint, OneData), and why."""
    from concurrent.futures import ThreadPoolExecutor

    from onesync.history import find, reasons, sides
    from onesync.inspect import opened

    settings = _let_in(config, instance)
    wanted = os.fsencode(path.rstrip("/"))
    if not is_user_path(wanted):
        raise ConfigurationError(f"{printable(path)!r} is no path beneath the working directory.")
    answer: dict[str, Any] = {}
    with suppress(NotRunning, TimeoutError):
        text = wanted.decode("utf-8", "surrogateescape")
        answer = ask(_socket(settings), "find", _STATUS_SECONDS, path=text)
    with opened(settings) as replica, ThreadPoolExecutor(settings.push.workers) as pool:
        place = find(settings, replica, pool, wanted)
    for side, told in sides(place):
        typer.echo(f"{side:12} {told}")
    for sentence in reasons(place, answer.get("pending"), answer.get("problem")):
        typer.echo(printable(sentence))


@app.command()
def unlock(
    epoch: Annotated[int, typer.Option(help="The epoch that the refusal named.")],
    config: Config = None,
    instance: Instance = None,
) -> None:
    """End the claim of a dead deployment, after watching it for life."""
    from onesync.service import unlock_folder

    settings = _let_in(config, instance)
    check_directories(settings)
    for removed in unlock_folder(settings, epoch):
        typer.echo(f"Removed {removed}.")


@app.command()
def adopt(
    config: Config = None,
    instance: Instance = None,
    disable_cron: Annotated[
        bool,
        typer.Option("--disable-cron", help="Comment the scripts' cron job out, keeping a copy."),
    ] = False,
) -> None:
    """Take over a folder that West-Life's scripts deployed here, without a new stage-in.

    Run it once as root, then start the service. Nothing leaves OneData by it; it may be run again.
    """
    from onesync.adopt import adopt_folder
    from onesync.progress import shown

    settings = load(config, instance)
    user = settings.user
    if instance is not None:
        user = units.read(instance, for_root=True).user
    check_user(replace(settings, user=user), is_daemon=False)
    check_directories(settings, are_ours_made_later=instance is not None)
    with shown("adopt") as bar:
        adopt_folder(settings, user, disable_cron, bar.advanced, typer.echo)


@app.command()
def check(config: Config = None, instance: Instance = None) -> None:
    """Validate a configuration and print the effective one."""
    settings = load(config, instance)
    if instance is not None:
        units.read(instance, for_root=True)
    check_user(settings, is_daemon=False)
    check_directories(settings, are_ours_made_later=instance is not None)
    typer.echo(configuration.shown(settings))


@app.command()
def doctor(
    config: Config = None,
    instance: Instance = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, as config/doctor.schema.json has it.")
    ] = False,
    no_probe: Annotated[
        bool, typer.Option("--no-probe", help="Make no file on the mount, not even for a moment.")
    ] = False,
) -> None:
    """Check node, limits, mount and lock, and say what to mend; harmless at any time."""
    from onesync.core.diagnosis import document, exit_code
    from onesync.doctor import examine

    # A plain death would leave the probes behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    checks = examine(config, instance, is_probing=not no_probe)
    if as_json:
        made = list(checks)
        typer.echo(json.dumps(document(made)))
    else:
        from onesync.screen import show_checks

        made = show_checks(checks)
    raise typer.Exit(exit_code(made))


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"onesync {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Deploy a OneData folder on this node, keep it in sync, undeploy it."""


def _let_in(config: Path | None, instance: str | None) -> Settings:
    """Return the settings for a command that looks at the mount, as a user whom it lets in."""
    from onesync.mount import go_as_owner

    settings = load(config, instance)
    go_as_owner(settings.onedata_dir)
    return settings


def _socket(settings: Settings) -> Path:
    return settings.runtime_dir / "control.sock"


def _ask(settings: Settings, command: str, **arguments: Any) -> dict[str, Any]:
    try:
        return ask(_socket(settings), command, None, **arguments)
    except NotRunning as error:
        raise OnesyncError(f"onesync is not running here ({error}); nothing was done.") from error


def _status_of(settings: Settings) -> tuple[dict[str, Any], bool]:
    """Return the status document, and whether the daemon itself gave it."""
    try:
        found = ask(_socket(settings), "status", _STATUS_SECONDS)
    except (TimeoutError, BlockingIOError):  # it is stuck; the latter: so are many who asked before
        return StatusFile(settings.state_dir).read() or NEVER_RAN, False
    except NotRunning:
        return StatusFile(settings.state_dir).last_word(), False
    if "phase" not in found:
        raise OnesyncError(f"The daemon does not tell: {found.get('reason')}.")
    return NEVER_RAN | found, True
