"""Those whom the settings name learn of an end: it is owed here, and the worker's courier delivers.

Written down before the end is recorded in the ledger. If the process dies in between, the end is
recorded again by a reconciler, and owed again: at least once, under the same id.
"""

from __future__ import annotations

import logging
import sqlite3
import time

from sojourn.cluster.account import Account
from sojourn.migration.context import this_host
from sojourn.model import Json
from sojourn.notices.notice import notice_of
from sojourn.notices.outbox import Outbox

log = logging.getLogger("sojourn.notices")


def on_end(account: Account | None, result: Json) -> None:
    """Owe the notice of an end, unless the ledger has this end already.

    A file that cannot be written keeps no migration from its end: that is logged.
    """
    settings = this_host().settings
    if not settings.end_targets or (account and _has(account, result)):
        return
    notice = notice_of(result, settings.host, time.time(), **_asked(account))
    try:
        Outbox(settings.outbox).owe(notice, settings.end_targets)
    except (sqlite3.Error, OSError) as error:
        context = {"migration": notice.migration, "host": settings.host, "step": "on_end"}
        log.error("Nobody is called for the end %r: %s", notice.state, error, extra=context)


def _asked(account: Account | None) -> Json:
    """Return who asked for a migration, as they claim, and as part of which batch."""
    part = account.part if account else None
    return {"asked_by": account and account.asked_by, "batch": part and part["batch"]}


def _has(account: Account, result: Json) -> bool:
    """Whether the ledger has this end: then whoever recorded it has owed it before."""
    return account.result is not None and account.state == result["state"]
