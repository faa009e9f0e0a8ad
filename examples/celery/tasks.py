"""A Celery project of somebody else's, with tasks that come before and after migrations.

celery -A tasks worker
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task, shared_task

from sojourn import migrate

REDIS = os.environ.get("SHOP_REDIS", "redis://127.0.0.1:6379")

app = Celery("shop", broker=f"{REDIS}/3", backend=f"{REDIS}/4")
app.conf.task_routes = {"tasks.notify": {"queue": "mail"}}


@shared_task
def find(name: str) -> dict[str, Any]:
    """Return which process is to move, and where it is."""
    return {"pid": int(name), "source": "alpha"}


@shared_task
def notify(result: dict[str, Any]) -> str:
    """Do something with the result of a migration."""
    return f"{result['pid']} runs on {result['owner']}"


@shared_task
def report(results: list[dict[str, Any]]) -> list[str]:
    """Do something with the results of many."""
    return [notify(result) for result in results]


@shared_task
def alarm(task_id: str) -> None:
    """Note that a migration did not arrive."""
    app.backend.client.rpush("alarms", task_id)


@shared_task(bind=True)
def relocate(self: Task, name: str) -> None:
    """Become a migration."""
    raise self.replace(migrate.s(destination="beta", **find(name)))
