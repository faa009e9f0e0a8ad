"""Moving on what stands still: the destination's verdict, and both hosts act by it.

The same canvas serves the reconcilers of both hosts and an operator's abort or word. It can be started any number of
times, from anywhere: every step of it looks into the journal first.
"""

from __future__ import annotations

from typing import Any

from celery import shared_task

from sojourn.host import this_host
from sojourn.model import Failure, Json, Message, Phase, Role, Verdict
from tasks.dump import interrupt, resume
from tasks.give_way import give_way
from tasks.page_server import stop_page_server
from tasks.reclaim import reclaim
from tasks.reserve import release
from tasks.restore import decide, refuse
from workflows.app import the_app
from workflows.canvas import Rows, linked, send
from workflows.conclude import close, conclude
from workflows.pipeline import DESTINATION, SOURCE

#: What both hosts do by the destination's verdict.
BY_THE_VERDICT: Rows = [
    (resume, SOURCE, True),
    (release, SOURCE, True),
    (stop_page_server, DESTINATION, True),
    (release, DESTINATION, True),
]

SETTLE: Rows = [(decide, DESTINATION, True), *BY_THE_VERDICT]

#: An abort goes to the source first, which stops at once and, before ``released``, decides alone; then come the others.
ABORT: Rows = [(interrupt, SOURCE, True), (reclaim, SOURCE, True)]
ABORT_FURTHER: Rows = [(refuse, DESTINATION, True), *BY_THE_VERDICT]

#: The source by itself, with a verdict or an operator's word in the message.
SOURCE_ALONE: Rows = [(resume, SOURCE, True), (release, SOURCE, True)]

#: When one host will never answer, the other one acts on an operator's word.
WITHOUT: dict[Role, Rows] = {
    Role.DESTINATION: SOURCE_ALONE,
    Role.SOURCE: [(decide, DESTINATION, True), (release, DESTINATION, True)],
}

#: What the dead host does if it comes back after all; this waits in its queue.
IF_BACK: dict[Role, Rows] = {
    Role.DESTINATION: [(give_way, DESTINATION, True), (release, DESTINATION, True)],
    Role.SOURCE: SOURCE_ALONE,
}

#: What is known of a migration that no host has heard of, and that nobody will tell any.
NEVER_BEGUN: Json = {"source_phase": Phase.RESUMED, "verdict": Verdict.REFUSED}


def settle(message: Message, expires_s: float) -> Any:  # noqa: ANN401  (Celery has no types)
    """Ask for the verdict and act by it. Messages that nobody takes in time vanish: the next attempt sends others.

    Raises StoreUnreachable.
    """
    the_app()
    return send(linked(SETTLE, message, conclude, expires=expires_s), message.id)


def abort(message: Message, *, waits: bool = False) -> Any:  # noqa: ANN401
    """Give the migration up if that is still possible: the source decides alone, or the destination's verdict does.

    One that ``waits`` in the queue is taken out of it; then no host need answer.
    """
    the_app()  # an operator's program has none yet, and the canvas would go to no broker of ours
    if waits:
        return withdraw.delay(message.to_text())
    return send(linked(ABORT, message, ask_the_destination), message.id)


@shared_task(name="sojourn.withdraw", bind=True, ignore_result=True)
def withdraw(self: Any, handed: str) -> None:  # noqa: ANN401
    """Take a migration out of the queue and say that it has ended; abort it as any other if it has begun by now."""
    message = Message.from_text(handed)
    if this_host().queue.remove(message.id):
        close(self.app, message.with_facts(NEVER_BEGUN))
    else:
        abort(message)


@shared_task(name="sojourn.ask_the_destination", bind=True, ignore_result=True)
def ask_the_destination(self: Any, handed: str) -> None:  # noqa: ANN401
    """Go on with an abort. What is known without the destination is told at once, since that may never answer."""
    message = Message.from_text(handed)
    alone = message.facts.get("source_phase") == Phase.RESUMED
    if alone or message.plan.destination not in this_host().registry.alive():
        close(self.app, message)
    send(linked(ABORT_FURTHER, message, conclude), message.id)


def report_given_up() -> None:
    """Abort what was handed out too often and never began: then a message of it that comes late begins nothing."""
    host = this_host()
    for given_up in host.queue.given_up():
        account = host.ledger.account(given_up.entry.id)
        if account and not account.state.definite and not account.steps:
            told = f"{account.plan.source} was told {given_up.tries} times to begin, and never did: {given_up.why}."
            host.ledger.tell_failure(account.id, Failure("NOT_BEGUN", told, "Is the worker there overloaded?"))
            abort(Message(account.id, account.plan))
        host.queue.end(given_up.entry.id)


def resolve(message: Message, dead: Role) -> Any:  # noqa: ANN401
    """Act on an operator's word that one host is dead; the word is in the message's facts, and so in the journal."""
    the_app()
    then = {Role.DESTINATION: without_destination, Role.SOURCE: without_source}[dead]
    return send(linked(WITHOUT[dead], message, then), message.id)


@shared_task(name="sojourn.without_destination", bind=True, ignore_result=True)
def without_destination(self: Any, handed: str) -> None:  # noqa: ANN401
    """End a migration that the source has ended alone, and leave word for the destination."""
    _end_without(self.app, Message.from_text(handed), Role.DESTINATION)


@shared_task(name="sojourn.without_source", bind=True, ignore_result=True)
def without_source(self: Any, handed: str) -> None:  # noqa: ANN401
    """End a migration that the destination has ended alone, and leave word for the source."""
    _end_without(self.app, Message.from_text(handed), Role.SOURCE)


def _end_without(app: Any, message: Message, dead: Role) -> None:  # noqa: ANN401
    close(app, message)
    send(linked(IF_BACK[dead], message, conclude), message.id)
