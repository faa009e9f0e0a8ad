"""Recovery of what stalled: the destination's verdict, and both hosts act by it.

The same canvases serve the reconcilers of both hosts and an operator's abort or decision. They may
be started any number of times, from anywhere: every step of them reads the journal first.
"""

from __future__ import annotations

from celery import shared_task

from sojourn.cluster.client import Cluster
from sojourn.cluster.queue import Standing
from sojourn.errors import Aborted
from sojourn.migration.context import this_host
from sojourn.model import Failure, Phase, Plan, Role, Untyped, Verdict
from sojourn.state.facts import Facts
from sojourn.state.message import Message
from sojourn.system.caller import Caller
from workflows.app import the_app
from workflows.canvas import linked, send
from workflows.conclude import close
from workflows.pipelines import ABORT, ABORT_THERE, FORESTALL, IF_BACK, SETTLE, WITHOUT

#: The facts of a migration that no host has a row of, and that none will be sent.
NEVER_BEGUN: Facts = {"source_phase": Phase.RESUMED, "verdict": Verdict.REFUSED}

#: The standings in the queue of a migration that has not begun.
WAITS = {Standing.WAITING, Standing.LATER}


def settle(message: Message, expires_s: float) -> Untyped:
    """Ask for the verdict and act by it. Messages that expire vanish: the next attempt sends more.

    Raises StoreUnreachable.
    """
    the_app()  # an operator's program has none yet
    return send(linked(SETTLE, message, expires=expires_s), message.id)


def abort(message: Message, *, by: str = "", waits: bool = False) -> Untyped:
    """Give the migration up if that is still possible, by the source alone or by the verdict.

    One that ``waits`` in the queue is taken out of it; then no host need answer. ``by`` names the
    operator who asks, for the audit trail.
    """
    message = message.with_facts({"aborted_by": by} if by else {})
    the_app()  # an operator's program has none yet, and the canvas would go to no broker of ours
    if waits:
        return withdraw.delay(message.to_text())
    return send(linked(ABORT, message, end=abort_there.name), message.id)


def give_up(cluster: Cluster, message: Message, why: str, *, by: str) -> None:
    """Abort a migration, or take it out of the queue; record why, and who asked for it.

    Raises StoreUnreachable.
    """
    # The first failure that is recorded stays: the steps that this interrupts add none of theirs.
    cluster.ledger.record_failure(message.id, Failure(Aborted.code, why))
    abort(message, by=by, waits=cluster.queue.standing(message.id) in WAITS)


@shared_task(name="sojourn.withdraw", bind=True, ignore_result=True)
def withdraw(self: Untyped, handed: str) -> None:
    """Take a migration out of the queue and record its end; abort it if it has begun already."""
    message = Message.from_text(handed)
    if this_host().queue.remove(message.id):
        _note_abort(message)
        close(self.app, message.with_facts(NEVER_BEGUN))
        forestall(message)
    else:
        abort(message)


def _note_abort(message: Message) -> None:
    """Keep in the audit trail that an operator has asked for this."""
    if by := message.facts.get("aborted_by"):
        caller = Caller.named(by)
        this_host().audit.record(caller, "abort", message.id, message.plan.describe())


def forestall(message: Message) -> None:
    """Let the source note that a migration which was taken out of the queue never begins."""
    send(linked(FORESTALL, message, end=None), message.id)


@shared_task(name="sojourn.abort_there", bind=True, ignore_result=True)
def abort_there(self: Untyped, handed: str) -> None:
    """Go on with an abort on the destination.

    What is known without the destination is recorded at once, since it may never answer.
    """
    message = Message.from_text(handed)
    _note_abort(message)
    alone = message.facts.get("source_phase") == Phase.RESUMED
    if alone or message.plan.destination not in this_host().registry.alive():
        close(self.app, message)
    send(linked(ABORT_THERE, message), message.id)


def report_given_up() -> None:
    """End what reached its maximum of attempts and never began, if the source says so too."""
    # The source then refuses a message that comes late. What the ledger shows decides nothing: it
    # could lack the steps of a migration that is under way.
    host = this_host()
    for given_up in host.queue.given_up():
        account = host.ledger.account(given_up.entry.id)
        if account and not account.state.definite and not account.steps:
            # The entry is sealed, and the ledger's copy is not.
            plan = Plan.from_json(given_up.entry.plan)
            sentence = (
                f"{plan.source} was sent the migration {given_up.tries} times "
                f"and never began it: {given_up.why}."
            )
            end = end_unbegun.s(why=sentence)
            send(linked(FORESTALL, Message(account.id, plan), end=end), account.id)
        # Last, so that what a dying process has not reported is found again.
        host.queue.end(given_up.entry.id)


@shared_task(name="sojourn.end_unbegun", bind=True, ignore_result=True)
def end_unbegun(self: Untyped, handed: str, why: str) -> None:
    """Record that a migration has ended before it began; nothing if the source has begun it."""
    message = Message.from_text(handed)
    if message.facts.get("source_phase") == Phase.RESUMED:
        failure = Failure("NOT_BEGUN", why, "Is the worker there overloaded?")
        this_host().ledger.record_failure(message.id, failure)
        close(self.app, message)


def resolve(message: Message, dead: Role) -> Untyped:
    """Act on an operator's decision that one host is dead; it is in the message's facts."""
    the_app()  # an operator's program has none yet
    end = {Role.DESTINATION: without_destination, Role.SOURCE: without_source}[dead]
    return send(linked(WITHOUT[dead], message, end=end.name), message.id)


@shared_task(name="sojourn.without_destination", bind=True, ignore_result=True)
def without_destination(self: Untyped, handed: str) -> None:
    """End a migration that the source has ended alone, and leave a message for the destination."""
    _end_without(self.app, Message.from_text(handed), Role.DESTINATION)


@shared_task(name="sojourn.without_source", bind=True, ignore_result=True)
def without_source(self: Untyped, handed: str) -> None:
    """End a migration that the destination has ended alone, and leave a message for the source."""
    _end_without(self.app, Message.from_text(handed), Role.SOURCE)


def _end_without(app: Untyped, message: Message, dead: Role) -> None:
    # The end first: the canvas waits in the queue of a host that may never come back.
    close(app, message)
    send(linked(IF_BACK[dead], message), message.id)
