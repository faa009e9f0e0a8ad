"""Who would start the process again on the source as soon as its original is gone.

The process would then run twice: on the destination, where it was moved to, and on the source,
where its supervisor misses it. What can be known is looked at: the parent and what it is, the
service's directory, the systemd unit. A shell that loops, or a program that looks after another one
by its PID file, cannot be recognised (docs/reference/checks.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import CommandFailed, CommandMissing, CommandTimedOut, ProcessGone
from sojourn.model import Plan
from sojourn.preflight import restart_policy
from sojourn.preflight.finding import Finding, Verdict, blocks, ok
from sojourn.system import process, service_directory, supervisord, systemd
from sojourn.system.service_directory import SUITES, Suite

#: Programs that read commands from a terminal or a script: whether they would start one again is
#: in their script, and nowhere else.
SHELLS = {"sh", "ash", "bash", "busybox", "csh", "dash", "fish", "ksh", "mksh", "tcsh", "zsh"}

#: Programs that wait for the one that they have started, and then end themselves.
WRAPPERS = {"catatonit", "dumb-init", "flock", "runuser", "su", "sudo", "timeout", "tini"}

#: Programs that run others' files, so that two of them need not belong together.
INTERPRETERS = {"java", "lua", "node", "nodejs", "perl", "php", "python", "ruby"}

#: Supervisors that have no state to ask for, by the names of their programs.
OTHERS = {
    "autossh",
    "circusd",
    "dinit",
    "finit",
    "god",
    "immortal",
    "mariadbd-safe",
    "monit",
    "mysqld_safe",
    "perpd",
    "procServ",
    "runsvdir",
    "s6-svscan",
    "safe_asterisk",
    "shepherd",
    "supervise-daemon",
    "svscan",
}

#: The process of PM2 that supervises renames itself.
PM2 = "PM2 v"

#: Marks of a worker that its master has started by an exec of its own interpreter: an argument of
#: Python's multiprocessing, and a variable of Node's cluster.
MULTIPROCESSING, CLUSTER = "--multiprocessing-fork", b"NODE_UNIQUE_ID="

INITTAB = Path("/etc/inittab")
RESPAWNED = {"respawn", "ondemand"}

AWAY = (CommandFailed, CommandMissing, CommandTimedOut)


@dataclass(frozen=True)
class Stop:
    """What ``--stop-unit`` does: ``kind`` is a suite's name or ``systemd``, ``place`` its unit."""

    kind: str
    place: str


@dataclass(frozen=True)
class Supervisor:
    """Who starts a process again: ``relation`` and ``does`` follow the process in a sentence.

    ``hint`` is a way out without an option. Where there is no ``stop``, ``--stop-unit`` is none.
    """

    relation: str
    hint: str
    stop: Stop | None = None
    does: str = "would start it again"

    @property
    def verdict(self) -> str:
        """Why the process is not chosen among others, for lists."""
        return f"{self.relation}, which {self.does}"


def check(pid: int, members: Collection[int], plan: Plan) -> Iterator[Finding]:
    """Yield the finding for a tree, if anybody would start it again."""
    with contextlib.suppress(ProcessGone):  # which another check reports
        found = of(pid, members, plan.max_freeze_s)
        if found:
            yield _finding(pid, found, plan)


def _finding(pid: int, found: Supervisor, plan: Plan) -> Finding:
    name = process.stat(pid).name
    sentence = (
        f"Process {pid} ({name}) {found.relation}, which {found.does} on {plan.source} as soon as "
        "it has moved."
    )
    if found.stop and plan.stop_unit:
        return ok("SUPERVISED", f"{sentence} --stop-unit takes care of it.")
    if found.stop:
        hint = f"Migrate with --stop-unit. Or: {found.hint}"
        return Finding("SUPERVISED", Verdict.NEEDS_OPTION, sentence, hint)
    return blocks("SUPERVISED", sentence, found.hint)


def of(pid: int, members: Collection[int], freeze_s: float) -> Supervisor | None:
    """Return who would start a tree again, by its root; None if nobody is known to.

    A freeze may last up to ``freeze_s`` seconds. Raises ProcessGone.
    """
    lineage = list(_lineage(pid))
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return (
            _of_parent(lineage[-1])
            or _of_systemd(pid, {*members, *lineage}, freeze_s)
            or _of_master(pid)
        )
    return None


def _lineage(pid: int) -> Iterator[int]:
    """Yield the process, and those above it that only wait for it and end with it."""
    yield pid
    parent = process.stat(pid).parent
    while parent > 1 and _only_waits(parent):
        yield parent
        parent = process.stat(parent).parent


def _only_waits(pid: int) -> bool:
    """Return whether a process is a wrapper or a script's shell, with a single child."""
    names, stat = _names(pid), process.stat(pid)
    # A shell with a terminal is somebody's session, or a job of one.
    waits = bool(names & WRAPPERS) or (bool(names & SHELLS) and not stat.terminal)
    return waits and not names & OTHERS and len(_children(pid)) == 1


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _names(pid: int) -> set[str]:
    """Return what a process is called: by its program, and by the script that this runs."""
    arguments = process.arguments(pid)
    program = _base(process.program(pid))
    runs_script = program in SHELLS or _is_interpreter(program)
    # A script may follow options, as in ``python3 -P /usr/bin/supervisord``.
    script = next((one for one in arguments[1:] if not one.startswith("-")), "")
    names = {program, _base(arguments[0]), _base(script) if runs_script else ""}
    return names - {""}


def _base(path: str) -> str:
    return path.removesuffix(" (deleted)").rpartition("/")[2].lstrip("-")


def _is_interpreter(program: str) -> bool:
    # Python's names end with a version.
    return program.rstrip("0123456789.") in INTERPRETERS


def _of_parent(child: int) -> Supervisor | None:
    """Return the supervisor that has a process as its child."""
    parent = process.stat(child).parent
    if parent < 1:
        return None
    if parent == 1:
        return _of_inittab(child)
    names = _names(parent)
    for suite in SUITES.values():
        if suite.program in names:
            return _of_suite(suite, parent, child)
    if "supervisord" in names:
        return _of_supervisord(parent, child)
    return _of_engine(parent, child, names) or _of_others(parent, names)


def _of_suite(suite: Suite, parent: int, child: int) -> Supervisor | None:
    place = service_directory.place_of(suite, parent, child)
    if not service_directory.starts_again(suite, place):
        return None
    directory = str(place.resolve())
    relation = (
        f"is supervised by {suite.program}, process {parent}, as the service {directory} of "
        f"{suite.name}"
    )
    hint = f"`{suite.command(directory)}`, which lets it run and gives its supervision up."
    stop = Stop(suite.name, directory) if _may_stop(parent, directory) else None
    return Supervisor(relation, hint, stop)


def _may_stop(supervisor: int, directory: str) -> bool:
    """Return whether root may act on a service: nobody else has a hand in it, nor a container."""
    theirs, ours = (Path(f"/proc/{who}/ns/mnt").readlink() for who in (supervisor, "self"))
    is_roots = Path(f"/proc/{supervisor}").stat().st_uid == 0
    return is_roots and theirs == ours and service_directory.is_roots_own(directory)


def _of_supervisord(parent: int, child: int) -> Supervisor | None:
    if not supervisord.starts_again(parent, child):
        return None
    name = supervisord.program_of(child)
    return Supervisor(
        f"is supervised by supervisord, process {parent}, as the program {name or child}",
        f"Migrate supervisord, process {parent}: its programs move along. Or start the program "
        "without supervisord, by `setsid CMD </dev/null >LOG 2>&1`.",
    )


def _of_engine(parent: int, child: int, names: set[str]) -> Supervisor | None:
    found = restart_policy.of(parent, child, names)
    return Supervisor(*found) if found else None


def _of_others(parent: int, names: set[str]) -> Supervisor | None:
    name = next(iter(names & OTHERS), "")
    if not name and process.command_line(parent).startswith(PM2):
        name = "PM2"
    if not name:
        return None
    return Supervisor(f"is supervised by {name}, process {parent}", _without(name))


def _without(name: str) -> str:
    return f"Start it without {name}, such as by `setsid CMD </dev/null >LOG 2>&1`."


def _of_inittab(child: int) -> Supervisor | None:
    """Return init, if its table has a process respawned, by its command line (inittab(5))."""
    command = process.command_line(child)
    with contextlib.suppress(OSError):
        for line in INITTAB.read_text(errors="replace").splitlines():
            fields = line.strip().split(":", 3)
            if len(fields) == 4 and fields[2] in RESPAWNED and _runs(fields[3], command):
                how = f"is respawned by init, by the entry {fields[0]} of {INITTAB}"
                return Supervisor(how, _without("init"))
    return None


def _runs(entry: str, command: str) -> bool:
    # ``+`` has init not record it, ``-`` makes a shell of it a login shell.
    return entry.lstrip("+-").split() == command.split()


def _of_systemd(pid: int, members: Collection[int], freeze_s: float) -> Supervisor | None:
    """Return the unit whose main process is one of these, if it would be started again."""
    unit = systemd.unit_of(pid)
    if unit is None:
        return None
    name = f"{unit.name} of user {unit.user}" if unit.user is not None else unit.name
    try:
        shown = systemd.show(unit)
        watchdog_s = systemd.watchdog_s(shown)
    except AWAY:
        return _of_unknown_unit(pid, name)
    if not _is_main(shown, members):
        return None
    if 0 < watchdog_s < freeze_s and unit.user is None:
        return _watched(name, watchdog_s)
    if not systemd.starts_again(shown):
        return None
    relation = f"is the systemd service {name} (Restart={shown.get('Restart', '')})"
    edit = "systemctl edit" if unit.user is None else "systemctl --user edit"
    return Supervisor(
        relation,
        f"`{edit} --runtime {unit.name}`, with the lines [Service] and Restart=no.",
        Stop("systemd", unit.name) if unit.user is None else None,
    )


def _is_main(shown: dict[str, str], members: Collection[int]) -> bool:
    """Return whether the unit ends with these processes."""
    main = int(shown.get("MainPID") or 0)
    if main:
        return main in members
    # A service without a main process ends with the last one of its group.
    inside = systemd.members(shown)
    return bool(inside) and inside <= set(members)


def _of_unknown_unit(pid: int, name: str) -> Supervisor | None:
    """Return the unit of a manager that does not answer, if a process is its manager's child."""
    parent = process.stat(pid).parent
    if parent != 1 and "systemd" not in _names(parent):
        return None
    return Supervisor(
        f"is in the systemd service {name}, whose manager does not answer",
        "Start it in a session of its own, by `setsid CMD`, from a shell.",
    )


def _watched(name: str, watchdog_s: float) -> Supervisor:
    return Supervisor(
        f"is the systemd service {name} (WatchdogSec={watchdog_s:g})",
        "Allow a shorter freeze with --max-freeze, or `systemctl service-watchdogs no`.",
        does=f"ends it when it has been frozen for {watchdog_s:g} s, and starts it again",
    )


def _of_master(pid: int) -> Supervisor | None:
    """Return the parent of a process that was made to do a part of the parent's work."""
    parent = process.stat(pid).parent
    program = _base(process.program(pid))
    if parent <= 1 or program in SHELLS | {""} or not _is_of_one_program(pid, parent):
        return None
    if not any(made(pid, parent) for made in _signs(program)):
        return None
    name = process.stat(parent).name
    return Supervisor(
        f"is a worker of process {parent} ({name})",
        f"Migrate the master, process {parent}: its workers move along.",
        does="would start another one",
    )


def _signs(program: str) -> tuple[Callable[[int, int], bool], ...]:
    """Return by what a worker is recognised that runs the same program as its parent.

    Programs that start themselves a second time do so to split their work. Interpreters do it for
    any reason: only a fork, or the mark of a library that keeps workers, shows it.
    """
    if _is_interpreter(program):
        return (process.is_fork_of, _is_marked)
    return (_is_of_one_program,)


def _is_of_one_program(pid: int, parent: int) -> bool:
    return process.program(pid) == process.program(parent)


def _is_marked(pid: int, _: int) -> bool:
    with contextlib.suppress(OSError):
        if CLUSTER in Path(f"/proc/{pid}/environ").read_bytes():
            return True
    return MULTIPROCESSING in process.arguments(pid)
