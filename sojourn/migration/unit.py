"""--stop-unit, on the source: the process's supervisor is kept from starting it again.

Nothing of it touches the process, which runs on. It is done before the freeze, so that neither the
original's end nor a boot of this host in the middle of the migration starts a second process: if
this host crashes after ``released``, the process may run on the destination already.

What is done is noted in the journal as held before it is done. If the worker dies at any instant,
whoever resumes the original puts the unit back first of all that is still held, and if this host
dies, its reconciler does so after the boot; the unit then starts its program, as it would have
after any crash. If the process runs on the destination, the unit stays as it is. Until one of the
two the process is not supervised: one that ends meanwhile is started when the unit is put back.
"""

from __future__ import annotations

import json

from sojourn.errors import Refused, SojournError
from sojourn.migration.context import Migration
from sojourn.preflight import supervisor
from sojourn.preflight.supervisor import Stop
from sojourn.system import process, service_directory, systemd
from sojourn.system.service_directory import SUITES

#: The kind of the row in the journal's table ``held``.
HELD = "unit"

SYSTEMD = "systemd"


def stop(migration: Migration) -> str:
    """Keep a supervisor from starting the process again, if the plan says so. Safe to repeat.

    Returns what was done, to follow a sentence. Raises Refused if there is a supervisor that this
    cannot be done to, or that did not obey.
    """
    plan = migration.plan
    if not plan.stop_unit:
        return ""
    members = [member.identity.pid for member in process.tree(plan.pid)]
    found = supervisor.of(plan.pid, members, plan.max_freeze_s)
    if found is None:
        return ""
    if found.stop is None:
        raise Refused(f"Process {plan.pid} {found.verdict} on {plan.source}.", found.hint)
    # The journal first: nothing would ever put back a unit that was not noted.
    migration.host.journal.hold(migration.entry, HELD, json.dumps(vars(found.stop)))
    _run_once(found.stop, plan.source)
    return f"; {found.stop.kind} does not start {found.stop.place} again"


def put_back(migration: Migration) -> str:
    """Have every unit that is held supervised as before; return what was done. Safe to repeat.

    Raises SojournError: then the unit stays held, and the reconciler tries again.
    """
    held = migration.host.journal.held(migration.entry, HELD)
    for what in held:
        stopped = Stop(**json.loads(what))
        try:
            if stopped.kind == SYSTEMD:
                systemd.put_back(stopped.place)
            else:
                service_directory.put_back(SUITES[stopped.kind], stopped.place)
        except OSError as error:
            raise _failed(stopped, migration.plan.source, error) from None
        migration.host.journal.let_go(migration.entry, HELD, what)
    return "".join(f"; {Stop(**json.loads(what)).place} is supervised as before" for what in held)


def leave_stopped(migration: Migration) -> None:
    """Forget the units: the process runs on the destination, so they stay as they are."""
    for what in migration.host.journal.held(migration.entry, HELD):
        migration.host.journal.let_go(migration.entry, HELD, what)


def _run_once(stopped: Stop, host: str) -> None:
    try:
        if stopped.kind == SYSTEMD:
            systemd.run_once(stopped.place)
        else:
            service_directory.run_once(SUITES[stopped.kind], stopped.place)
    except (OSError, SojournError) as error:
        raise _failed(stopped, host, error) from None


def _failed(stopped: Stop, host: str, error: Exception) -> Refused:
    return Refused(
        f"{stopped.kind} on {host} did not do as it was asked with {stopped.place}: {error}",
        "Look at the service there, and try again.",
    )
