"""Removes from a host what is old: logs, its audit trail, which messages it has begun."""

from __future__ import annotations

import logging
import time

from sojourn.criu import logs
from sojourn.messaging.freshness import Taken
from sojourn.migration.context import Host
from sojourn.settings import SECONDS_PER_DAY

log = logging.getLogger("sojourn.worker")

#: How often old logs are looked for.
TIDY_S = 3600.0


class Tidying:
    """Removes, once an hour, the logs of migrations that ended ``keep_days`` ago, and the like."""

    def __init__(self, host: Host) -> None:
        self._host = host
        # The clock counts from the boot, so 0 could be less than an hour ago.
        self._last = float("-inf")

    def tidy_when_due(self) -> None:
        """Remove old logs, unless that was done within the last hour."""
        if time.monotonic() >= self._last + TIDY_S:
            self._last = time.monotonic()
            self._tidy()

    def _tidy(self) -> None:
        Taken(self._host.settings.taken).forget_late_ones()
        self._host.audit.forget(time.time() - self._host.settings.audit_days * SECONDS_PER_DAY)
        # A row that is not final may still be diagnosed from its logs, however old they are.
        needed = {entry.id for entry in self._host.journal.unfinished()}
        before = time.time() - self._host.settings.keep_s
        removed = logs.remove_old(self._host.settings.runtime_dir, before, needed)
        if removed:
            log.info("the logs of %d old migrations were removed", len(removed))
