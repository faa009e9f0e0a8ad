"""Questions to hosts: a task on a host's own queue, with a caller that waits for its answer."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from celery.exceptions import TimeoutError as NoAnswer

from sojourn.errors import HostUnreachable, SojournError
from sojourn.model import Untyped
from workflows.app import the_app
from workflows.canvas import queue_of

#: How long a worker may take to answer a ping; a busy one needs 10 ms.
PING_S = 2.0


def ask(host: str, task: Untyped, *arguments: Untyped, within_s: float) -> Untyped:
    """Return a host's answer. Raises HostUnreachable if there is none in time.

    ``within_s`` includes the wait in the host's queue; a message that is not taken by then expires.
    """
    return _answer_of(host, _send(host, task, *arguments, within_s=within_s), within_s)


def ask_each(
    questions: Sequence[tuple[str, tuple[Untyped, ...]]], task: Untyped, *, within_s: float
) -> list[Untyped]:
    """Ask hosts one thing each, all at once; return their answers in order.

    In place of an answer that did not come stands the error.
    """
    sent = [(host, _send(host, task, *words, within_s=within_s)) for host, words in questions]
    until = time.monotonic() + within_s
    found: list[Untyped] = []
    for host, answer in sent:
        try:
            found.append(_answer_of(host, answer, max(0.1, until - time.monotonic())))
        except SojournError as error:
            found.append(error)
    return found


def _answer_of(host: str, answer: Untyped, within_s: float) -> Untyped:
    try:
        found = answer.get(timeout=within_s)
    except NoAnswer:
        raise HostUnreachable(
            f"Host {host} did not answer within {within_s:g} s.", "Is its worker busy or down?"
        ) from None
    if answer.worker != f"main@{host}":
        raise HostUnreachable(
            f"{answer.worker} answered in place of host {host}; nothing was done by that."
        )
    return found


def ask_all(
    hosts: Collection[str], task: Untyped, *arguments: Untyped, within_s: float
) -> dict[str, Untyped]:
    """Ask several hosts at once; None for one that does not answer in time, or at all."""
    # A ping first: all answers would wait for a host that is down, until ``within_s`` is over.
    up = answering([f"main@{host}" for host in hosts])
    pending = {
        host: _send(host, task, *arguments, within_s=within_s)
        for host in hosts
        if f"main@{host}" in up
    }
    until = time.monotonic() + within_s
    return {host: _answer(pending.get(host), until) for host in hosts}


def answering(workers: Collection[str]) -> set[str]:
    """Return which of these Celery workers answer now."""
    answers = the_app().control.ping(destination=list(workers), timeout=PING_S)
    return {name for answer in answers for name in answer}


def _send(host: str, task: Untyped, *arguments: Untyped, within_s: float) -> Untyped:
    queue = queue_of(host, frozen=False)
    return task.apply_async(arguments, queue=queue, expires=within_s)


def _answer(pending: Untyped, until: float) -> Untyped:
    if pending is None:
        return None
    try:
        answer = pending.get(timeout=max(0.1, until - time.monotonic()))
    except NoAnswer:
        return None
    pending.forget()  # it may be large, and would stay in Redis for days
    return answer
