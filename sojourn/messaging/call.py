"""A call of another program, checked and sent to Sojourn with what is to follow it.

If Redis dies before that, the call raises; if the process dies between the ledger's record and the
message, the migration is shown as queued and never begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from sojourn.cluster import planfile
from sojourn.cluster.client import Cluster
from sojourn.cluster.queue import check_batch_id, check_migration_id
from sojourn.cluster.requests import Request
from sojourn.errors import UsageError
from sojourn.messaging import follow_up, names
from sojourn.messaging.application import Application
from sojourn.messaging.client import the_client, the_cluster
from sojourn.messaging.pending import Pending
from sojourn.model import Json, Plan, Untyped
from sojourn.settings import load
from sojourn.text import quoted

#: What Celery's callers may choose for other tasks, and why not for these.
NOT_CHOSEN = {
    "queue": "Sojourn's hosts have their own queues.",
    "exchange": "Sojourn's hosts have their own queues.",
    "routing_key": "Sojourn's hosts have their own queues.",
    "priority": "The lines of `migrate_many` have priorities.",
    "time_limit": "`max_freeze_s` limits what matters, the freeze.",
    "soft_time_limit": "`max_freeze_s` limits what matters, the freeze.",
    "compression": "A message of Sojourn's is small.",
}

#: The options of a drain that are none of a plan.
OF_A_DRAIN = {"host", "by", "skip", "timeout_s", "wait_s"}

#: What is passed on to Celery as it is.
PASSED_ON = ("retry", "retry_policy", "shadow", "root_id", "parent_id", "add_to_parent")


@dataclass(frozen=True)
class Kind:
    """One of the calls: how its arguments are checked, and recorded before its message is sent.

    ``checked`` returns the arguments by their names; it and ``check_id`` raise UsageError.
    ``can_wait``: whether it can begin at a time of the caller's choice.
    """

    checked: Callable[[Iterable[Untyped], Json], Json]
    check_id: Callable[[str], None]
    record: Callable[[Cluster, str, Json], None] = lambda _cluster, _id, _asked: None
    can_wait: bool = False


def send(
    task: Untyped,
    args: Iterable[Untyped],
    kwargs: Json,
    task_id: str | None,
    options: Mapping[str, Untyped],
) -> Untyped:
    """Send a call to Sojourn, as a task of some application; options as Celery has them.

    Raises UsageError for what cannot be done, and then nothing was sent; StoreUnreachable.
    """
    kind = KINDS[task.name]
    _check(task, kind, options)
    asked, task_id = kind.checked(args, kwargs), task_id or str(uuid4())
    kind.check_id(task_id)
    the_cluster().requests.keep(task_id, _request(task.app, task_id, options))
    kind.record(the_cluster(), task_id, asked)
    passed_on = {name: options[name] for name in PASSED_ON if options.get(name) is not None}
    client = the_client()
    return client.send_task(
        task.name, (), asked, task_id=task_id, result_cls=client.AsyncResult, **passed_on
    )


def in_canvas(app: Untyped, task_id: str, **options: Untyped) -> Untyped:
    """Return the result of a call as a part of a canvas.

    Celery waits for all of a group where the first of them has its results. So it is that of the
    application, if that has them in our Redis, where a copy is put at the end.
    """
    elsewhere = isinstance(app, Application) or not follow_up.keeps_results_here(
        app, load().redis_url
    )
    return the_client().AsyncResult(task_id) if elsewhere else Pending(task_id, app=app, **options)


def _check(task: Untyped, kind: Kind, options: Mapping[str, Untyped]) -> None:
    if task.app.conf.task_always_eager:
        raise in_place(f"{task.name}, with task_always_eager,")
    for name, why in NOT_CHOSEN.items():
        if options.get(name) is not None:
            raise UsageError(f"{task.name} takes no {name}. {why}")
    if options.get("serializer") not in {None, "json"}:
        raise UsageError(f"{task.name} is sent as JSON, not as {options['serializer']}.")
    for name in ("countdown", "eta", "expires"):
        if options.get(name) is not None and not kind.can_wait:
            raise UsageError(f"{task.name} begins at once; it has no {name}.")


def in_place(name: str) -> UsageError:
    """Return the error for a call that should be done by the process that makes it."""
    return UsageError(
        f"{name} cannot be done in the process that calls it: Sojourn's hosts do it.",
        "Call its `delay` or `apply_async`, without task_always_eager.",
    )


def _request(app: Untyped, task_id: str, options: Mapping[str, Untyped]) -> Request:
    begins, until = options.get("countdown"), options.get("expires")
    begins = options.get("eta") if begins is None else begins
    # A program of Sojourn's own waits for the result, and nothing follows.
    ours = isinstance(app, Application)
    follows = "" if ours else follow_up.written(app, load().redis_url, task_id, options)
    return Request(_instant(begins), _instant(until), follows or None)


def _one(args: Iterable[Untyped], kwargs: Json) -> Json:
    """Return the options of a plan; mappings that the task before returned are options too."""
    asked: Json = {}
    for before in args:
        asked |= _options_of(before)
    asked |= kwargs
    Plan.from_json(asked)
    return asked


def _record_one(cluster: Cluster, task_id: str, asked: Json) -> None:
    """Record a migration as queued, unless it was before; then it is only sent again.

    Raises UsageError for an id that another migration has.
    """
    plan, known = Plan.from_json({**load().limits, **asked}), cluster.ledger.account(task_id)
    if known is None:
        cluster.ledger.open(task_id, plan)
    elif known.plan != plan:
        raise UsageError(f"Another migration has the id {task_id}: {known.plan.describe()}.")


def _many(args: Iterable[Untyped], kwargs: Json) -> Json:
    """Return the lines of a plan, who asked, and for how long."""
    asked = {**dict(zip(("plan", "by", "timeout_s"), args, strict=False)), **kwargs}
    planfile.from_json(asked.get("plan"))
    planfile.times_of(until=asked.get("timeout_s"))
    return asked


def _drain(args: Iterable[Untyped], kwargs: Json) -> Json:
    """Return a host, who asked, what stays, for how long, and options of a plan."""
    asked = {**dict(zip(("host", "by"), args, strict=False)), **kwargs}
    options = {name: value for name, value in asked.items() if name not in OF_A_DRAIN}
    planfile.lines_of_drain(asked.get("host", ""), asked.get("skip"), **options)
    planfile.times_of(until=asked.get("timeout_s"), waits=asked.get("wait_s"))
    return asked


def _options_of(before: Untyped) -> Json:
    """Return what the task before contributes: options of a plan, or where it moved a process to.

    Raises UsageError.
    """
    if not isinstance(before, Mapping):
        raise UsageError(
            f"migrate was handed {quoted(before)} by the task before it, and takes a mapping.",
            "Let that task return options such as {'pid': 4242}, or use the signature `.si()`.",
        )
    if {"id", "state", "owner"} <= set(before):
        return {"pid": before["pid"], "source": before["owner"]}
    return dict(before)


def _instant(when: Untyped) -> float | None:
    """Return a number of seconds from now, a time, or its text, in seconds since the epoch."""
    if when is None:
        return None
    if isinstance(when, int | float):
        return time.time() + when
    moment = when if isinstance(when, datetime) else datetime.fromisoformat(str(when))
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


KINDS = {
    names.MIGRATE: Kind(_one, check_migration_id, _record_one, can_wait=True),
    names.MIGRATE_MANY: Kind(_many, check_batch_id),
    names.DRAIN: Kind(_drain, check_batch_id),
}
