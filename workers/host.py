"""The worker of one host: it keeps the host's processes running, and announces the host.

What happens when one of its processes dies:

``this one``        The kernel sends SIGTERM to the others: the lanes finish their steps and end.
                    The host's announcement expires, and systemd restarts the unit.
``main``            The lane for most steps and for planning. The kernel kills its pool with it;
                    how far the steps came is in the journal. It is restarted, and the host is
                    not announced until the lane takes steps again. A lane that lives but
                    has not listened to Redis for ``DEAF_S``, while that answers, is deaf: the
                    host is not announced until it listens again.
``frozen``          The lane for the steps that a stopped tree waits for. The same as ``main``.
a pool's process    Celery reports its step as failed, and starts another process.
``reconciler``      It is restarted and begins from the journal again. Until then nobody on this
                    host moves stalled migrations on.
``metrics``         Only where a port is set for it. It is restarted, and loses nothing, since it
                    reads the journal. Migrations do not need it.
``courier``         Only where somebody is called after the end. It is restarted, and goes on with
                    what is owed. Migrations do not need it.

Migrated processes, a CRIU at work, and the holder of a page channel end with none of these.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial

from sojourn.log import configure
from sojourn.migration.context import Host, this_host
from workers import announcement, identity, metrics
from workers.courier import Courier
from workers.lane import DEAF_S, Reports, consume, lanes
from workers.readiness import Readiness, notify_systemd
from workers.reconciler import Reconciler
from workers.refusals import Refusals
from workers.shared import Clock, Counts, Hearing
from workers.supervisor import CAUSES, Body, Supervisor
from workers.tidying import Tidying
from workflows.app import the_app, trace_here
from workflows.border import REASONS

#: The children that are not lanes, as the log and the metric of restarts name them.
RECONCILER, METRICS, COURIER = "reconciler", "metrics", "courier"

#: Warnings of Celery that mean nothing here: that a worker is root, which it must be; and that TLS
#: has no options, since Celery leaves the address out of the configuration to hide its password.
IRRELEVANT = ("superuser privileges", "defaulting to insecure SSL behaviour")

log = logging.getLogger("sojourn.worker")

#: Reports that a child takes work now.
Report = Callable[[], None]


def start(host: Host) -> None:
    """Run the worker until SIGTERM or SIGINT.

    Raises CommandMissing or CriuFailed without CRIU, JournalFailed without the host's journal, and
    NameTaken.
    """
    configure(host.settings.log_format)
    announcement.warn_of_certificates(host.settings)
    _quieten_celery()
    criu = host.criu.version()
    identity.check(host)
    # Imported before the children are forked, so that they share the memory of the modules.
    the_app().loader.import_default_modules()
    _write_pid(host)
    notify_systemd()
    _work(host, criu)
    host.worker_file.unlink(missing_ok=True)


class Vital:
    """What shows whether the children of a worker do their work; they write it, all may read it."""

    def __init__(self, host: Host, clock: Clock = time.monotonic) -> None:
        names = [lane.name for lane in lanes(host)]
        self.readiness, self.hearing = Readiness(), Hearing(names, clock)
        self._clock, self._away_at = clock, float("-inf")
        self.refused = Counts([(name, reason) for name in names for reason in REASONS])
        children = (*names, RECONCILER, METRICS, COURIER)
        self.restarts = Counts([(name, cause) for name in children for cause in CAUSES])
        self._deaf: set[str] = set()

    def forget(self, names: Sequence[str]) -> None:
        """Forget what children have reported that have died."""
        self.readiness.forget(names)
        self.hearing.forget(names)

    def note_away(self) -> None:
        """Note that Redis does not answer this process either."""
        self._away_at = self._clock()

    def has_deaf_lanes(self) -> bool:
        """Whether a lane has stopped listening to a Redis that answers; each is logged once.

        When a cut has healed the lanes have ``DEAF_S`` to come back, as this process has.
        """
        answers_s = self._clock() - self._away_at
        deaf = {
            name for name, silent_s in self.hearing.items() if min(silent_s, answers_s) > DEAF_S
        }
        for name in deaf - self._deaf:
            log.error(
                "Lane %s has not listened to Redis for %g s: this host is not announced until it "
                "does. Does it get the processor, and does Redis answer?",
                name,
                DEAF_S,
            )
        self._deaf = deaf
        return bool(deaf)

    def reports_of(self, lane: str) -> Reports:
        """Return what a lane calls to report about itself."""
        return Reports(
            partial(self.readiness.report, lane),
            partial(self.hearing.note, lane),
            partial(self.refused.count, lane),
        )


def _work(host: Host, criu: str) -> None:
    """Keep the children running and the host announced until the worker is asked to end."""
    vital, tidying = Vital(host), Tidying(host)
    refusals = Refusals(host.settings.runtime_dir, vital.refused)
    needed = _lanes_and_reconciler(host, vital)
    beside = _metrics_server(host, vital) | _courier(host)
    supervisor = Supervisor(needed | beside, vital.restarts)
    supervisor.start()
    announced = False
    try:
        while not supervisor.ending:
            vital.forget(supervisor.restart_dead())
            tidying.tidy_when_due()
            refusals.keep()
            # A report ends the wait, so a host that has become ready is announced at once.
            vital.readiness.wait(host.settings.announce_s)
            if vital.has_deaf_lanes():
                announcement.withdraw(host)
            elif vital.readiness.includes(needed):
                reached = announcement.announce(host, criu, again=announced)
                announced = announced or reached
                if not reached:
                    vital.note_away()
    finally:
        if announced:  # or it is another machine's
            announcement.withdraw(host)
        supervisor.end()


def _lanes_and_reconciler(host: Host, vital: Vital) -> dict[str, Body]:
    """Return the children that migrations need: the host is announced while all are ready."""
    bodies: dict[str, Body] = {
        lane.name: partial(consume, lane, host.name, vital.reports_of(lane.name))
        for lane in lanes(host)
    }
    report_ready = partial(vital.readiness.report, RECONCILER)
    return bodies | {RECONCILER: partial(_reconcile, host, report_ready)}


def _metrics_server(host: Host, vital: Vital) -> dict[str, Body]:
    """Return the child that serves metrics, none where no port is set for it."""
    if not host.settings.metrics_port:
        return {}
    return {METRICS: partial(_serve_metrics, vital)}


def _courier(host: Host) -> dict[str, Body]:
    """Return the child that delivers notices of ends, none where nobody is to be called."""
    return {COURIER: _deliver_notices} if host.settings.end_targets else {}


def _deliver_notices() -> None:
    """Be the courier."""
    # A host of its own: connections to Redis must not cross a fork.
    Courier(this_host()).run()


def _serve_metrics(vital: Vital) -> None:
    """Be the server of metrics."""
    metrics.serve(this_host(), metrics.Counted(vital.restarts, vital.refused, vital.hearing))


def _reconcile(host: Host, report_ready: Report) -> None:
    """Be the reconciler."""
    report_ready()
    trace_here(host.settings)
    # A host of its own: connections to Redis and SQLite must not cross a fork.
    Reconciler(this_host()).run()


def _write_pid(host: Host) -> None:
    host.worker_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    host.worker_file.write_text(str(os.getpid()))


def _quieten_celery() -> None:
    """Suppress what our own lines report better: every task received and succeeded, in full."""
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("py.warnings", "kombu.connection"):
        logging.getLogger(name).addFilter(_is_relevant)


def _is_relevant(record: logging.LogRecord) -> bool:
    return not any(fragment in record.getMessage() for fragment in IRRELEVANT)
