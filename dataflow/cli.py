"""``dataflow ...``: one function per command, nothing else."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dataflow
from dataflow.lib import config, context, names, place
from dataflow.lib.config import Config, Here
from dataflow.lib.context import Context
from dataflow.lib.errors import BadConfig, DataflowError, Exit, HostDown

if TYPE_CHECKING:
    from dataflow.lib.by_hand import Result
    from dataflow.lib.scrub import Found

HOST_VARIABLE = "DATAFLOW_HOST"
ERASE_LINE = "\r\033[K"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run one command; its exit code is the contract of every command."""
    arguments = _parsed(argv)
    try:
        code = int(arguments.command(arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("dataflow: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # who reads our output has seen enough; Python must not fail at its last flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except BadConfig as error:
        print(f"dataflow: {error}", file=sys.stderr)
        return Exit.CONFIG
    except HostDown as error:
        print(f"dataflow: {error}", file=sys.stderr)
        return Exit.UNREACHABLE
    except (DataflowError, OSError) as error:
        print(f"dataflow: {error}", file=sys.stderr)
        return Exit.LEFT_OVER


def run(arguments: argparse.Namespace) -> int:
    """Run one step once."""
    from dataflow.lib import runner

    loaded = _load(arguments)
    host = arguments.host or _host_of_step(loaded, arguments.step)
    ctx = _context(loaded, arguments, host, arguments.step, arguments.part)
    try:
        return runner.run(ctx, [path.absolute() for path in arguments.files])
    finally:
        ctx.requests.hear_no_more()


def daemon(arguments: argparse.Namespace) -> int:
    """Wait for work and run the host's steps."""
    from dataflow.lib import daemon as daemon_module

    return daemon_module.serve(_context(_load(arguments), arguments, arguments.host, "daemon"), arguments.once)


def receive(arguments: argparse.Namespace) -> int:
    """Answer the host before; the forced command of its key."""
    from dataflow.lib import gate

    ctx = _context(_load(arguments), arguments, arguments.host, "receive")
    return gate.serve(ctx, arguments.sender, sys.stdin.buffer, sys.stdout.buffer)


def keys(arguments: argparse.Namespace) -> int:
    """Make the key of the link that begins here, and tell what ssh has to know at the ends of this host's links."""
    from dataflow.lib import keys as keys_module

    loaded = _load(arguments)
    here = loaded.here(arguments.host, arguments.radar)
    _require_user(loaded, here)
    folder = (arguments.folder or Path.home() / ".ssh").absolute()
    for link in keys_module.links(loaded, here):
        for piece in keys_module.pieces(link, here, folder):
            is_here = piece.machine == here.machine.name
            state = " (added)" if arguments.write and is_here and keys_module.add(piece) else ""
            where = f"{piece.file}{state}" if is_here else f"~/.ssh/{piece.file.name}"
            print(f"# on {piece.machine}, in {where}:\n{piece.text}\n")
    return Exit.ACCOUNTED


def check(arguments: argparse.Namespace) -> int:
    """Check the configuration and this machine's environment."""
    from dataflow.lib import check as check_module

    loaded = _load(arguments)
    findings = list(check_module.configuration(loaded))
    if arguments.host == config.MIRROR:
        settings, here = loaded.mirror()
        _require_user(loaded, here)
        findings += [*check_module.look(here, arguments.create_markers), *check_module.secrets(settings)]
    elif arguments.host or arguments.radar:
        findings += check_module.look(_here(loaded, arguments), arguments.create_markers)
    elif arguments.create_markers:
        raise BadConfig("markers of which machine? Give HOST and --radar")
    else:
        print("to check this machine as well, give HOST and --radar", file=sys.stderr)
    if arguments.json:
        print(json.dumps([{k: getattr(f, k) for k in ("subject", "is_good", "message", "mend")} for f in findings]))
    for finding in findings if not arguments.json else ():
        mend = f"\n       {finding.mend}" if finding.mend else ""
        print(f"{'good ' if finding.is_good else 'WRONG'}  {finding.subject}: {finding.message}{mend}")
    return Exit.ACCOUNTED if all(finding.is_good for finding in findings) else Exit.LEFT_OVER


def status(arguments: argparse.Namespace) -> int:
    """Tell what waits on this machine."""
    from dataflow.lib import report

    found = report.status(_here(_load(arguments), arguments), context.utc_now())
    _print(arguments, found, _status_text(found))
    return Exit.ACCOUNTED


def summary(arguments: argparse.Namespace) -> int:
    """Tell what the steps did in the last days."""
    from dataflow.lib import report

    found = report.statistics(_here(_load(arguments), arguments), context.utc_now(), arguments.days)
    _print(arguments, found, _summary_text(found))
    return Exit.ACCOUNTED


def trace(arguments: argparse.Namespace) -> int:
    """Tell the custody of one file."""
    from dataflow.lib import report

    here = _here(_load(arguments), arguments)
    is_whole = here.host.next is None
    hops, faults = report.trace(here, arguments.name, context.utc_now(), is_whole)
    if arguments.json:
        print(json.dumps(hops, indent=1))
    else:
        print(_shown("\n".join(_hop_text(hop) for hop in hops)))
        if not is_whole:
            print(f"This is what {here.machine.name} knows; the whole custody is told on campus.")
    for fault in faults:
        print(_shown(f"dataflow: {fault}"), file=sys.stderr)
    return Exit.LEFT_OVER if faults else Exit.ACCOUNTED


def quarantine(arguments: argparse.Namespace) -> int:
    """List, show, retry or drop what lies in quarantine."""
    from dataflow.lib import quarantine as quarantine_module

    here = _here(_load(arguments), arguments)
    found = quarantine_module.reasons(here)
    if arguments.verb == "list":
        rows = [{"file": path.name, "kind": r.kind, "reason": r.message, "time": r.time, "step": r.step} for path, r in found]
        lines = ["{file}  {time}  {kind}: {reason}".format(**row) for row in rows]
        _print(arguments, rows, "\n".join(lines) or f"nothing lies in {here.folder('quarantine')}")
        return Exit.ACCOUNTED
    if arguments.name is None:
        raise BadConfig(f"which file? dataflow quarantine {arguments.verb} NAME, as dataflow quarantine list shows it")
    wanted = next(((path, reason) for path, reason in found if path.name == arguments.name), None)
    if wanted is None:
        raise BadConfig(f"{arguments.name!r} does not lie in {here.folder('quarantine')}: see dataflow quarantine list")
    path, reason = wanted
    if arguments.verb == "show":
        print(json.dumps({k: getattr(reason, k) for k in reason.__slots__}, indent=1))
    elif arguments.verb == "retry":
        back = quarantine_module.retry(here, path)
        _print(arguments, {"file": path.name, "place": str(back)}, f"back at {back}; the next run takes it up")
    elif not arguments.yes:
        raise BadConfig(f"drop deletes {path} for ever; say so with --yes")
    else:
        quarantine_module.drop(path)
        _print(arguments, {"file": path.name, "place": None}, f"deleted {path}")
    return Exit.ACCOUNTED


def pause(arguments: argparse.Namespace) -> int:
    """Pause one step, or all, with a reason."""
    file = _pause_file(arguments)
    file.parent.mkdir(parents=True, exist_ok=True)
    who = place.account(os.getuid())
    reason = f"{arguments.reason} ({who}, {context.utc_now():%Y-%m-%d %H:%M} UTC)"
    place.write_whole(file, f"{reason}\n".encode())
    go_on = f"dataflow resume {arguments.step or ''}".rstrip()
    text = f"{arguments.step or 'every step'} is paused; it stops within one file. Go on with: {go_on}"
    _print(arguments, {"step": arguments.step, "paused": reason}, text)
    return Exit.ACCOUNTED


def resume(arguments: argparse.Namespace) -> int:
    """End a pause, or put a blown fuse back."""
    file = _pause_file(arguments)
    was = file.exists()
    file.unlink(missing_ok=True)
    text = f"{arguments.step or 'every step'} {'goes on with the next run' if was else 'was not paused'}"
    _print(arguments, {"step": arguments.step, "was_paused": was}, text)
    return Exit.ACCOUNTED


def scrub(arguments: argparse.Namespace) -> int:
    """Read again what is kept for good."""
    from dataflow.lib import scrub as scrub_module
    from dataflow.lib.checksum import Pace

    loaded = _load(arguments)
    host = arguments.host or _host_of_machine(loaded, arguments.radar)
    ctx = _context(loaded, arguments, host, scrub_module.STEP)
    pace = Pace(loaded.flow.scrub.read_limit_mib_s * 2**20)
    wanted = [file.name for file in arguments.files]
    code, found = scrub_module.scrub(ctx, wanted, arguments.source, pace, _progress(arguments))
    print(ERASE_LINE if sys.stderr.isatty() else "", end="", file=sys.stderr, flush=True)
    _print(arguments, asdict(found), _scrub_text(found))
    return code


def convert(arguments: argparse.Namespace) -> int:
    """Convert rawacf HDF5 to DMAP, away from any chain."""
    from dataflow.lib import by_hand

    progress = _progress(arguments)
    return _tell_results(arguments, by_hand.convert(arguments.files, arguments.output, arguments.processes, progress))


def plot(arguments: argparse.Namespace) -> int:
    """Draw antennas_iq and rawacf files, away from any chain."""
    from dataflow.lib import by_hand

    thresholds, progress = _load(arguments).flow.antenna_health, _progress(arguments)
    drawn = by_hand.plot(arguments.files, arguments.output, arguments.processes, thresholds, progress)
    return _tell_results(arguments, drawn)


def simulate_radar(arguments: argparse.Namespace) -> int:
    """Write blocks as a radar does."""
    from dataflow.demo import simulate_radar as simulator

    return simulator.run(arguments)


def demo(arguments: argparse.Namespace) -> int:
    """Run the whole chain on this computer."""
    from dataflow.demo import chain

    return chain.run(arguments.folder)


def mirror(arguments: argparse.Namespace) -> int:
    """One job of the mirror: publish, sync, compare, pull, delete, verify ..., or backfill."""
    from dataflow.mirror import command_line
    from dataflow.mirror import job as job_module

    loaded, task = _load(arguments), arguments.task(arguments)
    out = (lambda text: None) if arguments.json else (lambda text: print(_shown(text), flush=True))
    made = job_module.open_job(loaded, task.name, task.lock_name, _say, out)
    _require_user(loaded, made.here)
    made.requests.listen()
    made.progress = _progress(arguments)
    code = job_module.run(made, task.work)
    print(ERASE_LINE if sys.stderr.isatty() else "", end="", file=sys.stderr, flush=True)
    counts = ", ".join(f"{count} {word}" for word, count in sorted(made.counts.items()) if count)
    told = counts or ("nothing was done" if code else "nothing to do")
    _print(arguments, command_line.summary_of(made, code), f"{made.name}: {told}, exit {int(code)}")
    return code


def demo_mirror(arguments: argparse.Namespace) -> int:
    """Publish, sync and compare two mirrors on this computer."""
    from dataflow.demo import mirror as demo_module

    return demo_module.run(arguments.folder)


def _load(arguments: argparse.Namespace) -> Config:
    loaded = config.load(arguments.config, arguments.root, arguments.set or ())
    os.environ.update(loaded.environment())
    os.environ["LC_ALL"] = "C"
    return loaded


def _here(loaded: Config, arguments: argparse.Namespace) -> Here:
    here = loaded.here(arguments.host or _host_of_machine(loaded, arguments.radar), arguments.radar or _only_radar(loaded))
    _require_user(loaded, here)
    return here


def _context(loaded: Config, arguments: argparse.Namespace, host: str, step: str, part: str = "") -> Context:
    ctx = context.open_context(loaded, host, arguments.radar, step, part, _say)
    _require_user(loaded, ctx.here)
    ctx.requests.listen()
    return ctx


def _say(text: str) -> None:
    print(_shown(text), file=sys.stderr, flush=True)


def _pause_file(arguments: argparse.Namespace) -> Path:
    here = _here(_load(arguments), arguments)
    steps = {config.step_name(entry.split()[0]) for entry in here.host.steps}
    if arguments.step and config.step_name(arguments.step) not in steps:
        raise BadConfig(f"{arguments.step} is no step of {here.host_name}; there are: {', '.join(sorted(steps))}")
    return context.pause_file(here, arguments.step)


def _require_user(loaded: Config, here: Here) -> None:
    """Refuse another user than the host's own: what root creates, the daemon could not touch."""
    user = here.machine.user or here.host.user
    me = place.account(os.getuid())
    if loaded.root is None and me != user:
        command = shlex.join(["sudo", "-u", user, "dataflow", *sys.argv[1:]])
        raise BadConfig(f"{here.host_name} of {here.radar} belongs to the user {user}, you are {me}. Type: {command}")


def _host_of_step(loaded: Config, step: str) -> str:
    hosts = [name for name, host in loaded.flow.hosts.items() if step in {entry.split()[0] for entry in host.steps}]
    if len(hosts) == 1:
        return hosts[0]
    if os.environ.get(HOST_VARIABLE) in hosts:
        return os.environ[HOST_VARIABLE]
    config.step_file(step)
    raise BadConfig(f"{step} runs on {', '.join(hosts) or 'no host of the configuration'}: say which with --host")


def _host_of_machine(loaded: Config, radar: str | None) -> str:
    """The host that this computer plays, told by DATAFLOW_HOST or by its name."""
    if HOST_VARIABLE in os.environ:
        return os.environ[HOST_VARIABLE]
    me = socket.gethostname().split(".")[0]
    radars = [loaded.flow.radars[radar]] if radar in loaded.flow.radars else loaded.flow.radars.values()
    hosts = {host for entry in radars for host, machine in entry.machines.items() if machine.name == me}
    if len(hosts) == 1:
        return hosts.pop()
    raise BadConfig(f"which host? No machine of the configuration is called {me}: give --host ({', '.join(loaded.flow.hosts)})")


def _only_radar(loaded: Config) -> str:
    """The radar that need not be named, because there is no other."""
    if len(loaded.flow.radars) == 1:
        return next(iter(loaded.flow.radars))
    raise BadConfig(f"which radar? Give --radar ({', '.join(loaded.flow.radars)})")


def _progress(arguments: argparse.Namespace) -> Callable[[str, int, int], None] | None:
    """A progress bar when a person is watching; the file's result takes its line."""
    if arguments.json or not sys.stderr.isatty():
        return None

    def show(what: str, done: int, total: int) -> None:
        width = 30
        filled = width * done // max(total, 1)
        print(f"{ERASE_LINE}{what} [{'#' * filled}{'.' * (width - filled)}] {done}/{total}", end="", file=sys.stderr, flush=True)

    return show


def _tell_results(arguments: argparse.Namespace, results: Iterable[Result]) -> int:
    """Print what became of each file as soon as it is known, or all as JSON."""
    told = []
    for result in results:
        told.append(result)
        if not arguments.json:
            print(ERASE_LINE if sys.stderr.isatty() else "", end="", file=sys.stderr, flush=True)
            print(_result_text(result), file=sys.stderr if result.outcome == "refused" else sys.stdout, flush=True)
    if arguments.json:
        print(json.dumps([asdict(result) for result in told], indent=1))
    return Exit.LEFT_OVER if any(result.outcome == "refused" for result in told) else Exit.ACCOUNTED


def _print(arguments: argparse.Namespace, found: Any, text: str) -> None:
    print(json.dumps(found, indent=1) if arguments.json else _shown(text))


def _shown(text: str) -> str:
    """A text as a terminal may see it: names of files may hold what commands it."""
    return "\n".join(map(names.printable, text.split("\n")))


def _status_text(found: dict[str, Any]) -> str:
    flags, lines = found["flags"], [f"{found['host']} of {found['radar']} on {found['machine']}, {found['time']}"]
    lines += [f"  PAUSED {step}: {reason}" for step, reason in found["paused"].items()]
    places = {"waiting": "waiting", "open": "open", "outbox": "in the outbox", "unreadable": "unreadable"}
    lines.append("  flags: " + ", ".join(f"{flags[key]} {text}" for key, text in places.items()))
    lines += [f"  NO ANSWER from {root}: {message}" for root, message in found["silent"].items()]
    lines += [f"  backlog {key}: {size['files']} files, {size['bytes'] / 1e6:.1f} MB" for key, size in found["backlog"].items()]
    for step, last in found["steps"].items():
        counts = ", ".join(f"{last[word]} {word}" for word in ("done", "kept", "quarantined", "skipped") if last.get(word))
        lines.append(f"  {step}: {last['time']}, exit {last['exit']}, {counts or 'nothing to do'}, {last['seconds']} s")
    lines += [f"  quarantine {item['file']}: {item['kind']}: {item['reason']}" for item in found["quarantine"]]
    return "\n".join(lines)


def _summary_text(found: dict[str, Any]) -> str:
    lines = [f"{found['host']} of {found['radar']} on {found['machine']}, the last {found['days']} days"]
    for step, entry in found["steps"].items():
        counts = ", ".join(f"{count} {word}" for word, count in entry["files"].items())
        lines.append(
            f"  {step}: {entry['runs']} runs, {counts or 'no files'}, {entry['bytes'] / 1e6:.1f} MB, {entry['seconds']} s"
        )
        lines += [f"    {file}: {reason}" for file, reason in entry["trouble"].items()]
    return "\n".join(lines)


def _scrub_text(found: Found) -> str:
    counts = {
        "verified": found.verified, "adopted": found.adopted, "restored": len(found.restored), "damaged": len(found.damaged),
        "lost": len(found.lost), "lost before": found.known_lost, "not checked": len(found.not_checked), "waiting": found.waiting,
    }  # fmt: skip
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    return f"{told or 'nothing is due'}, {found.bytes / 1e6:.1f} MB read"


def _hop_text(hop: dict[str, Any]) -> str:
    digest = (hop["sha256"] or "-")[:16]
    return (
        f"{hop['time'][:19]}Z  {hop['host']:10}  {hop['machine']:13}  {hop['step']:24}  {hop['action']:11}  {digest:16}  "
        f"{hop['file']}  {hop['place']}"
    )


def _result_text(result: Result) -> str:
    if result.outcome == "refused":
        return f"refused  {result.file}: {result.reason}"
    many = f" and {len(result.outputs) - 1} pictures beside it" if len(result.outputs) > 1 else ""
    counts = [f"{result.details[word]} {word}" for word in ("records", "sequences", "bytes") if word in result.details]
    antennas = [f"antenna {antenna} is {state}" for antenna, state in result.details.get("antennas", {}).items()]
    return f"{result.outcome:8} {result.outputs[-1]}{many}: {', '.join([*counts, *antennas])}".removesuffix(": ")


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; files may also come after options, which argparse by itself does not take from a subcommand."""
    words = sys.argv[1:] if argv is None else argv
    parser = _parser(*words[:1])
    arguments, late = parser.parse_known_args(words)
    if late and ("files" not in arguments or any(word.startswith("-") for word in late)):
        parser.error(f"unrecognized arguments: {shlex.join(late)}")
    if late:
        arguments.files = [*arguments.files, *map(Path, late)]
    return arguments


def _parser(asked: str | None = None) -> argparse.ArgumentParser:
    """What a command line may be. Where a command is asked for, only that one: each block is dozens of starts of it."""
    parser = argparse.ArgumentParser(
        prog="dataflow",
        description="Carries SuperDARN radar data from the instrument to the people who use it.",
        epilog="Exit codes: 0 all accounted for; 1 something kept, quarantined or refused; 2 configuration or usage; 3 a bug, or "
        "the fuse; 75 the other side is unreachable, it will be tried again.",
    )
    parser.add_argument("--version", action="version", version=f"dataflow {dataflow.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, add in _COMMANDS.items():
        if asked == name or asked not in _COMMANDS:
            add(commands)
    return parser


def _add_run(commands: Any) -> None:
    text = "run one step once, as the daemon does; dataflow run STEP --help explains the step"
    one = _command(commands, "run", run, text, "run rsync_to_campus --part data --radar sas", add_help=False)
    one.add_argument("-h", "--help", action=_StepHelp, nargs=0, help="show this; after STEP: what that step does")
    one.add_argument("step", help="name of a step, see docs/steps.md, or the absolute path of your own")
    one.add_argument("files", nargs="*", type=Path, help="only these files, even when the step is paused or its fuse is blown")
    one.add_argument("--part", default="", help="the part of its work that is meant (rsync_to_campus: data, pictures)")
    _where(one, radar_required=True)


def _add_daemon(commands: Any) -> None:
    text = "wait for work and run the host's steps in order"
    one = _command(commands, "daemon", daemon, text, "daemon site-linux --radar sas --once")
    one.add_argument("host", help="borealis, site-linux or campus")
    one.add_argument("--radar", required=True, help="three letters, like sas")
    one.add_argument("--once", action="store_true", help="run what is pending, then exit with the code of that run")


def _add_check(commands: Any) -> None:
    text = "check the configuration and this machine, and say how to mend each finding"
    one = _command(commands, "check", check, text, "check borealis --radar sas")
    one.add_argument("host", nargs="?", help="also check the machine as this host (with --radar), or as the mirror")
    one.add_argument("--radar", help="three letters, like sas")
    one.add_argument(
        "--create-markers", action="store_true", help="write .dataflow-root into each root: these are the right disks"
    )
    _json(one)


def _add_status(commands: Any) -> None:
    text = "what waits on this machine: flags, outbox, backlog, last runs, quarantine, pauses"
    one = _command(commands, "status", status, text, "status --host campus --radar sas")
    _where(one)
    _json(one)


def _add_summary(commands: Any) -> None:
    text = "what the steps did in the last days"
    one = _command(commands, "summary", summary, text, "summary --days 2 --host campus --radar sas")
    one.add_argument("--days", type=int, default=7, help="how many days, today included (7)")
    _where(one)
    _json(one)


def _add_trace(commands: Any) -> None:
    text = "the custody of one file: each hop with time, host, machine, place and hash"
    one = _command(commands, "trace", trace, text, "trace 20261101.1400.00.sas.0.rawacf.h5 --host campus --radar sas")
    one.add_argument("name", help="file name, like 20261101.1400.00.sas.0.rawacf.h5")
    _where(one)
    _json(one)


def _add_quarantine(commands: Any) -> None:
    text = "what was set aside, why, and what to do with it"
    one = _command(commands, "quarantine", quarantine, text, "quarantine list --host campus --radar sas")
    one.add_argument("verb", choices=("list", "show", "retry", "drop"), help="retry puts a file back where it came from")
    one.add_argument("name", nargs="?", help="the file's name as `list` shows it")
    one.add_argument("--yes", action="store_true", help="drop: really delete")
    _where(one)
    _json(one)


def _add_pause(commands: Any) -> None:
    text = "pause a step, or all of them, within one file"
    one = _command(commands, "pause", pause, text, "pause convert_on_campus --reason 'new disk' --host campus --radar sas")
    one.add_argument("step", nargs="?", help="a step; none: every step")
    one.add_argument("--reason", required=True, help="shown wherever the pause is shown")
    _where(one)
    _json(one)


def _add_resume(commands: Any) -> None:
    text = "end a pause, or put a blown fuse back"
    one = _command(commands, "resume", resume, text, "resume convert_on_campus --host campus --radar sas")
    one.add_argument("step", nargs="?", help="a step; none: the pause of every step")
    _where(one)
    _json(one)


def _add_scrub(commands: Any) -> None:
    text = "read again what is kept for good, compare it with its recorded hash, and restore what is damaged or lost"
    one = _command(commands, "scrub", scrub, text, "scrub --host campus --radar sas --from DIR")
    one.description = (
        f"{one.description} Oldest-checked first, within scrub.read_limit_mib_s, what was not checked for scrub.every_days "
        "(--set scrub.every_days=0: all). It may be ended at any time and goes on where it was. A damaged file goes to "
        "quarantine when a copy that has the recorded hash takes its place; a file that no record knows is adopted. "
        "Exit 0: all is well; 1: something was damaged, is lost, or could not be read."
    )
    one.add_argument("files", nargs="*", type=Path, help="only files of these names, due or not")
    one.add_argument("--from", dest="source", type=Path, metavar="DIR", help="a folder in which good copies may lie")
    _where(one, radar_required=True)
    _json(one)


def _add_convert(commands: Any) -> None:
    text = "convert rawacf HDF5 to DMAP, read back and compared"
    one = _command(commands, "convert", convert, text, "convert 20261101.1400.00.sas.0.rawacf.h5 -o there")
    _by_hand(one, "rawacf HDF5 files")


def _add_plot(commands: Any) -> None:
    text = "draw every antenna of antennas_iq files with a contact sheet, or a quick-look of rawacf"
    one = _command(commands, "plot", plot, text, "plot 20261101.1400.00.sas.0.rawacf.h5 -o there")
    _by_hand(one, "HDF5 files")


def _add_simulate_radar(commands: Any) -> None:
    from dataflow.demo import simulate_radar as simulator

    text = "write blocks of files as a radar does"
    simulator.add_arguments(_command(commands, "simulate-radar", simulate_radar, text, "simulate-radar there --records 20"))


def _add_demo(commands: Any) -> None:
    text = "run the whole chain on this computer: real files, real rsync, real SSH"
    one = _command(commands, "demo", demo, text, "demo there")
    one.add_argument("folder", nargs="?", type=Path, default=Path("demo-run"), help="where the machines' folders go (demo-run)")


def _add_mirror(commands: Any) -> None:
    from dataflow.mirror import command_line

    text = "one of the world's mirrors: publish, sync, compare, pull, delete, verify"
    one = commands.add_parser(
        "mirror", help=text, description=f"{text[0].upper()}{text[1:]}. dataflow mirror VERB --help tells more."
    )
    one.set_defaults(command=mirror)
    command_line.add_verbs(one, _mirror_arguments)


def _add_backfill(commands: Any) -> None:
    from dataflow.mirror import command_line

    text = "ask partners and other sources for files that should be on the mirror and are not"
    one = _command(commands, "backfill", mirror, text, "backfill --radar sas --from 2026-10-01 --to 2026-10-31")
    command_line.add_backfill(one)
    _json(one)


def _add_demo_mirror(commands: Any) -> None:
    text = "publish, sync and compare two mirrors on this computer, without any account"
    one = _command(commands, "demo-mirror", demo_mirror, text, "demo-mirror /tmp/two-mirrors")
    one.add_argument("folder", nargs="?", type=Path, default=Path("demo-mirror-run"), help="where they go (demo-mirror-run)")


def _add_keys(commands: Any) -> None:
    text = "the key of each link of a host, which delivers over that link and can do nothing else: make it, show where it goes"
    one = _command(commands, "keys", keys, text, "keys site-linux --radar sas --write")
    one.description = (
        f"{one.description} Call it on the sender first: it makes the pair dataflow-RADAR-SENDER-to-RECEIVER, if there is none, "
        "and the block of ssh_config that uses it. Copy the .pub of that pair into ~/.ssh of the receiver and call it there: it "
        "makes the line of authorized_keys, which allows `dataflow receive` for this radar from this sender and nothing else, "
        "and the line with the receiver's host key for known_hosts of the sender. A private key never leaves its machine; no "
        "file is overwritten."
    )
    one.add_argument("host", help="the host that this machine plays: borealis, site-linux or campus")
    one.add_argument("--radar", required=True, help="three letters, like sas")
    one.add_argument(
        "--write", action="store_true", help="also append what is missing in this machine's config and authorized_keys"
    )
    one.add_argument("--folder", type=Path, metavar="DIR", help="where this machine's keys and files of ssh lie (~/.ssh)")


def _add_receive(commands: Any) -> None:
    text = "answer the host before this one; the forced command of its key, see dataflow keys"
    one = _command(commands, "receive", receive, text, "receive --host campus --radar sas --from site-linux")
    asked = "What is asked comes in SSH_ORIGINAL_COMMAND: rsync into `incoming`, accept, flag, logs, hello, archived or compare"
    one.description = f"{one.description} {asked}."
    one.add_argument("--host", required=True, help="who is asked")
    one.add_argument("--radar", required=True, help="three letters, like sas")
    one.add_argument("--from", dest="sender", required=True, help="the host that sends")


_COMMANDS: dict[str, Callable[[Any], None]] = {
    "run": _add_run, "daemon": _add_daemon, "check": _add_check,
    "status": _add_status, "summary": _add_summary, "trace": _add_trace, "quarantine": _add_quarantine,
    "pause": _add_pause, "resume": _add_resume, "scrub": _add_scrub,
    "convert": _add_convert, "plot": _add_plot, "simulate-radar": _add_simulate_radar, "demo": _add_demo,
    "mirror": _add_mirror, "backfill": _add_backfill, "demo-mirror": _add_demo_mirror,
    "keys": _add_keys, "receive": _add_receive,
}  # fmt: skip
"""What adds each command to the command line, in the order of the help."""


class _StepHelp(argparse.Action):
    """``dataflow run STEP --help``: what the header of the step's file says."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: object) -> None:
        if namespace.step is None:
            parser.print_help()
            parser.exit()
        from dataflow.lib import step

        try:
            print(step.header(namespace.step))
        except BadConfig as error:
            parser.error(str(error))
        parser.exit()


def _command(
    commands: Any, name: str, function: Callable[[argparse.Namespace], int], text: str, example: str, **options: Any
) -> argparse.ArgumentParser:
    description, epilog = f"{text[0].upper()}{text[1:]}.", f"Example: dataflow {example}"
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=description, epilog=epilog, **options)
    parser.set_defaults(command=function)
    _common(parser)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    """What every command takes."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="the configuration (DATAFLOW_CONFIG, /etc/dataflow/config.yaml)"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="put each machine below its own folder in DIR (DATAFLOW_ROOT)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="override one dotted key, VALUE is YAML; repeatable")


def _by_hand(parser: argparse.ArgumentParser, what: str) -> None:
    """What the commands take that work on files away from any chain."""
    parser.add_argument("files", nargs="+", type=Path, metavar="IN.h5", help=what)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="a folder; for one file to convert also the file to write. Default: beside each input. Nothing is overwritten",
    )
    parser.add_argument(
        "--processes", type=_positive, metavar="N", default=len(os.sched_getaffinity(0)), help="work on N cores (all)"
    )
    _json(parser)


def _mirror_arguments(parser: argparse.ArgumentParser) -> None:
    _common(parser)
    _json(parser)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return number


def _where(parser: argparse.ArgumentParser, radar_required: bool = False) -> None:
    parser.add_argument("--radar", required=radar_required, help="three letters, like sas")
    parser.add_argument("--host", help="borealis, site-linux or campus; told by the step or by this machine's name if not given")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for machines")
