"""Delivers what this host owes: notices of ends, to the targets that its settings name.

A process of its own beside the lanes, at a low priority, and one thread for each target: a receiver
that is slow or away delays neither a migration nor the other receivers. It needs no Redis. If it
dies, it is restarted, and goes on with what is owed; what it had sent and not yet recorded, it
sends once more.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from threading import Thread

from sojourn.migration.context import Host
from sojourn.notices.delivery import NotDelivered, Sender
from sojourn.notices.outbox import Outbox, Outcome, Owed
from sojourn.notices.target import Target, secret_of

log = logging.getLogger("sojourn.notices")

#: How often a target's thread looks for something that is due, in seconds.
LOOK_S = 0.5

#: How often old notices are removed, in seconds.
TIDY_S = 3600.0

#: How long to wait before the next look after the file could not be read or written, in seconds.
AGAIN_S = 10.0

#: A low priority: after everything else that wants the processor.
NICE = 10


class Courier:
    """Delivers the notices of one host."""

    def __init__(self, host: Host) -> None:
        self._host, self._outbox = host, Outbox(host.settings.outbox)
        secret = host.settings.on_end_secret.get_secret_value()
        self._sender = Sender(secret_of(secret) if secret else b"", host.settings.on_end_timeout_s)

    def run(self) -> None:
        """Deliver until the process is ended."""
        os.nice(NICE)
        targets = self._host.settings.end_targets
        threads = [
            Thread(target=self._serve, args=(target,), name=target.name, daemon=True)
            for target in targets
        ]
        for thread in threads:
            thread.start()
        tidied = float("-inf")
        # A thread that has died is missed: this process ends, and is started again with all.
        while all(thread.is_alive() for thread in threads):
            if time.monotonic() > tidied + TIDY_S:
                tidied = time.monotonic()
                self._tidy(targets)
            time.sleep(LOOK_S)

    def _serve(self, target: Target) -> None:
        while True:
            try:
                if not self.deliver_one(target):
                    time.sleep(LOOK_S)
            except (sqlite3.Error, OSError) as error:
                log.error("What is owed to %s cannot be read or recorded: %s", target.name, error)
                time.sleep(AGAIN_S)

    def _tidy(self, targets: Sequence[Target]) -> None:
        """Give up what is owed to others than these, and forget what is old."""
        try:
            for owed in self._outbox.abandon(targets):
                why = f"{owed.target.name} is not in the settings any more"
                self._report(owed, Outcome.GIVEN_UP, why)
            self._outbox.forget_old_ones(self._host.settings.keep_s)
        except (sqlite3.Error, OSError) as error:
            log.error("What is owed cannot be tidied: %s", error)

    def deliver_one(self, target: Target) -> bool:
        """Try to deliver one notice that is due; False if none is.

        Raises sqlite3.Error or OSError if that cannot be recorded: it will be delivered again.
        """
        owed = self._outbox.due(target)
        if owed is None:
            return False
        try:
            answer = self._sender.deliver(owed.notice, target)
        except NotDelivered as error:
            self._report(owed, self._outbox.failed(owed, for_good=error.for_good), error.why)
        else:
            self._report(owed, self._outbox.delivered(owed), answer)
        return True

    def _report(self, owed: Owed, outcome: Outcome, answer: str) -> None:
        """Log what came of an attempt, and show it with the migration."""
        notice, host = owed.notice, self._host.name
        context = {"migration": notice.migration, "host": host, "step": "on_end"}
        log.log(
            logging.INFO if outcome is Outcome.DELIVERED else logging.ERROR,
            "notice of %r, attempt %d, %s: %s",
            *(notice.state, owed.tries + 1, outcome, answer),
            extra=context,
        )
        record = {
            "id": notice.id,
            "state": notice.state,
            "target": owed.target.name,
            "outcome": outcome,
            "tries": owed.tries + 1,
            "answer": answer,
            "host": host,
            "at": time.time(),
        }
        self._host.ledger.record_notice(notice.migration, owed.target.where, record)
