"""Services of systemd: which unit has a process, whether it is started again, and how to end that.

A unit is kept from starting again by one drop-in file (systemd.unit(5)), which is read by a
``daemon-reload``. That signals no process and stops no unit. The file is a condition too, so that
neither a boot nor a timer starts the unit; a unit that runs is not asked for its conditions.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import CommandFailed
from sojourn.system.durable import sync_directory
from sojourn.system.run import run

#: What says that systemd is this host's service manager (sd_booted(3)).
BOOTED = Path("/run/systemd/system")

#: Where an administrator's drop-ins are. Its name comes last, so it overrides all others.
DROP_INS, DROP_IN = Path("/etc/systemd/system"), "zz-sojourn.conf"

#: The unit manager of a user, in whose group its services are.
USER_MANAGER = re.compile(r"user@(\d+)\.service")

#: systemd.unit(5): what the names of units consist of.
UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}\.service")

#: How long a question may take, and a reload, which reads every unit again.
ASK_S, RELOAD_S = 10.0, 25.0

PROPERTIES = (
    *("MainPID", "ControlGroup", "ActiveState", "Result", "Restart"),
    *("RestartPreventExitStatus", "RestartForceExitStatus", "SuccessExitStatus", "WatchdogUSec"),
)

#: Results after which each kind of ``Restart=`` starts a unit again, of those by which a process
#: that was killed can count (``service_shall_restart`` in systemd's service.c).
AFTER_SIGNAL = {"always", "on-failure", "on-abnormal", "on-abort"}
AFTER_SUCCESS = {"always", "on-success"}

TEXT = """\
# Written by Sojourn: the program of this unit has moved to another host. Remove this file, then
# `systemctl daemon-reload`, and the unit can be started here again.
[Unit]
ConditionPathExists=!{path}
[Service]
Restart=no
RestartForceExitStatus=
"""


@dataclass(frozen=True)
class Unit:
    """A service, and the user whose manager has it; None for the system's."""

    name: str
    user: int | None = None


def unit_of(pid: int) -> Unit | None:
    """Return the service in whose control group a process is; None in a scope or without systemd.

    Sessions and containers are scopes, which systemd never starts again (systemd.scope(5)).
    Raises FileNotFoundError or ProcessLookupError if the process is gone.
    """
    if not BOOTED.is_dir():
        return None
    return next(filter(None, map(_unit_in, _groups_of(pid))), None)


def _groups_of(pid: int) -> list[str]:
    """Return the paths of a process's control groups that systemd may have made (cgroups(7)).

    They are in the unified hierarchy, in one of version 1 by the name of systemd, or in both.
    """
    lines = Path(f"/proc/{pid}/cgroup").read_text(errors="replace").splitlines()
    named = [line.split(":", 2) for line in lines]
    return [path for number, of, path in named if number == "0" or of == "name=systemd"]


def _unit_in(group: str) -> Unit | None:
    """Return the innermost unit of a control group's path, if that is a service."""
    parts = group.split("/")
    units = [part for part in parts if part.endswith((".service", ".scope"))]
    if not units or not UNIT_NAME.fullmatch(units[-1]) or USER_MANAGER.fullmatch(units[-1]):
        return None
    managers = [found for part in parts if (found := USER_MANAGER.fullmatch(part))]
    return Unit(units[-1], int(managers[-1][1]) if managers else None)


def show(unit: Unit) -> dict[str, str]:
    """Return the properties of a unit (systemctl(1), ``show``).

    Raises CommandFailed, CommandMissing, CommandTimedOut.
    """
    names = f"--property={','.join(PROPERTIES)}"
    answer = run([*_systemctl(unit), "show", names, "--", unit.name], deadline_s=ASK_S)
    lines = (line.partition("=") for line in answer.stdout.splitlines())
    return {name: value for name, _, value in lines}


def starts_again(shown: dict[str, str]) -> bool:
    """Return whether the unit is started again when its main process is killed."""
    if _lists_kill(shown.get("RestartPreventExitStatus", "")):
        return False
    if _lists_kill(shown.get("RestartForceExitStatus", "")):
        return True
    clean = _lists_kill(shown.get("SuccessExitStatus", ""))
    return shown.get("Restart", "always") in (AFTER_SUCCESS if clean else AFTER_SIGNAL)


def watchdog_s(shown: dict[str, str]) -> float:
    """Return after how many seconds without a sign of life systemd ends the unit; 0: never.

    Raises CommandFailed, CommandMissing, CommandTimedOut.
    """
    seconds = _seconds(shown.get("WatchdogUSec", "0"))
    # An operator can have all of them ignored, until the next boot (systemctl(1)).
    ignored = seconds and run(["systemctl", "service-watchdogs"], deadline_s=ASK_S).stdout
    return 0.0 if ignored and ignored.strip() == "no" else seconds


def members(shown: dict[str, str]) -> set[int]:
    """Return the processes in a unit's own control group, version 1 or 2; empty if not found."""
    for hierarchy in ("", "unified", "systemd"):
        place = Path(f"/sys/fs/cgroup/{hierarchy}{shown.get('ControlGroup', '')}/cgroup.procs")
        if shown.get("ControlGroup") and place.is_file():
            return {int(pid) for pid in place.read_text().split()}
    return set()


def drop_in(unit: str) -> Path:
    """Return the file that keeps a unit from starting. Raises ValueError for a malformed name."""
    if not UNIT_NAME.fullmatch(unit):
        raise ValueError(f"{unit!r} is not a name of a service.")
    return DROP_INS / f"{unit}.d" / DROP_IN


def run_once(unit: str) -> None:
    """Let the unit run on, and not start again: neither when it ends nor after a boot.

    Safe to repeat. Raises CommandFailed, CommandMissing, CommandTimedOut, OSError.
    """
    path = drop_in(unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write(path, TEXT.format(path=path))
    _reload()
    if starts_again(show(Unit(unit))):
        raise CommandFailed(f"systemd has read {path}, and would start {unit} again all the same.")


def put_back(unit: str) -> None:
    """Have the unit started again when it ends; and now, if it would have been. Safe to repeat.

    Raises CommandFailed, CommandMissing, CommandTimedOut, OSError.
    """
    path = drop_in(unit)
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
    _reload()
    shown = show(Unit(unit))
    if shown.get("ActiveState") in {"failed", "inactive"} and _had_restarted(shown):
        run(["systemctl", "start", "--no-block", "--", unit], deadline_s=ASK_S)


def _had_restarted(shown: dict[str, str]) -> bool:
    """Return whether a unit that has ended would have been started again, by how it ended."""
    succeeded = shown.get("Result") == "success"
    return shown.get("Restart") in (AFTER_SUCCESS if succeeded else AFTER_SIGNAL)


def _reload() -> None:
    run(["systemctl", "daemon-reload"], deadline_s=RELOAD_S)


def _systemctl(unit: Unit) -> list[str]:
    whose = [] if unit.user is None else ["--user", f"--machine={unit.user}@.host"]
    return ["systemctl", *whose]


def _lists_kill(statuses: str) -> bool:
    return bool({"9", "KILL", "SIGKILL"} & set(statuses.split()))


def _write(path: Path, text: str) -> None:
    """Write a file that a crash of this host does not take away."""
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    for directory in (path.parent, path.parent.parent):
        sync_directory(directory)


#: systemd.time(7), as ``show`` prints a span: ``1min 30s``, ``infinity``.
SPANS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0}


def _seconds(span: str) -> float:
    parts = re.findall(r"([\d.]+)\s*([a-z]+)", span)
    return sum(float(number) * SPANS.get(unit, 0.0) for number, unit in parts)
