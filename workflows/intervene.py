"""An operator's requests on one migration, from the command line or a browser, and the answers."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import cast

from sojourn.cluster.account import Account, Event
from sojourn.cluster.client import Cluster
from sojourn.errors import UsageError
from sojourn.migration.context import RESOLVE
from sojourn.model import Json, Role, State, where_it_runs
from sojourn.state.facts import Facts
from sojourn.state.message import Message
from workflows import recover

#: How long an abort waits for an end that is in doubt, or for a silent host, in whose queue the
#: request stays.
SILENCE_S = 10

#: How long the host that is left may take to act on an operator's decision; meanwhile the state may
#: be "in doubt" for a moment.
ACT_S = 60


@dataclass(frozen=True)
class Answer:
    """What became of a migration after an operator's request.

    ``silent`` names, for people, the hosts that keep it open; it is empty where none does.
    """

    account: Account
    silent: str = ""

    @property
    def sentence(self) -> str:
        """The answer to the operator."""
        account = self.account
        why = f" {account.failure.message}" if account.failure else ""
        waits = f" {self.silent} does not answer; the request waits for it." if self.silent else ""
        where = where_it_runs(account.state, account.owner)
        return f"{account.plan.describe()}: {account.state}. {where}{why}{waits}"


def unended(account: Account) -> Account:
    """Return a migration that has not ended. Raises UsageError, with the end, for one that has."""
    if account.state.definite:
        where = where_it_runs(account.state, account.owner)
        raise UsageError(f"Migration {account.id} has ended: {account.state}. {where}")
    return account


def abort(cluster: Cluster, account: Account, who: str) -> Answer:
    """Give a migration up, and wait until that is done or it is clear that it takes long.

    Raises StoreUnreachable.
    """
    # Before the request is sent, or its end could come first and be waited for in vain.
    bookmark = cluster.ledger.bookmark()
    recover.give_up(cluster, Message(account.id, account.plan), f"Aborted by {who}.", by=who)
    return _await_end(cluster, bookmark, account, SILENCE_S)


def check_dead(cluster: Cluster, account: Account, gone: Role, *, force: bool) -> None:
    """Raise UsageError if the host that is to be declared dead announces itself, unless forced.

    Raises HostUnreachable if the other one, which has to act, does not answer.
    """
    cluster.registry.check_host(account.plan.host_of(_other(gone)))
    host = account.plan.host_of(gone)
    if not force and cluster.registry.are_alive(host):
        raise UsageError(
            f"The worker of {host} announces itself, so that host is not dead; nothing was done.",
            "If it was switched off a moment ago, wait for some seconds. If it cannot decide, and "
            "nothing of the process runs there: --force.",
        )


def resolve(
    cluster: Cluster, account: Account, gone: Role, who: str, *, force: bool = False
) -> Answer:
    """Act on the decision that one host is dead for good.

    Raises UsageError if it announces itself or has answered the other one lately, unless forced;
    HostUnreachable if the other one does not answer.
    """
    check_dead(cluster, account, gone, force=force)
    decision: Json = {
        "resolved": gone,
        "resolved_by": who,
        "resolved_at": time.time(),
        "resolved_seen": account.state,
        "resolved_by_force": force,
    }
    bookmark = cluster.ledger.bookmark()
    # Before anything is done: each reconciler, and each restore, looks for it there.
    cluster.ledger.record_resolution(account.id, decision)
    recover.resolve(Message(account.id, account.plan, cast("Facts", decision)), gone)
    return _await_end(cluster, bookmark, account, ACT_S, decided=True)


def effect_of_resolution(cluster: Cluster, account: Account, gone: Role) -> str:
    """Return the sentences that an operator must agree to before one host is declared dead."""
    plan = account.plan
    host = plan.host_of(gone)
    act = {
        Role.DESTINATION: (
            f"The original, process {plan.pid}, will run on {plan.source}; "
            f"{host} will never run it."
        ),
        Role.SOURCE: (
            f"{plan.destination} goes on alone if it has all of process {plan.pid}; "
            "if not, it is lost."
        ),
    }[gone]
    if plan.post_copy and gone is Role.DESTINATION:
        act += " What the process has done there since the freeze, if it ran, is in no memory."
    alive = host in cluster.registry.alive()
    answers = f"The worker of {host} answers: is it dead? " if alive else ""
    return f"{act} {answers}If {host} still runs the process, there will be two of it."


def _other(role: Role) -> Role:
    return Role.SOURCE if role is Role.DESTINATION else Role.DESTINATION


def _await_end(
    cluster: Cluster, bookmark: str, account: Account, patience_s: float, *, decided: bool = False
) -> Answer:
    """Wait for a known end; after ``patience_s`` accept a doubt, or a host that stays silent.

    Raises UsageError if a host refuses what an operator has ``decided``.
    """
    until = time.monotonic() + patience_s
    for event in cluster.ledger.follow(bookmark):
        ours = event if event and event.migration == account.id else None
        if ours and ours.kind == "state" and State(ours.data["state"]).definite:
            break
        if ours and decided:
            _raise_refusal(ours)
        if time.monotonic() > until and (answer := _in_doubt(cluster, account)):
            return answer
    return Answer(cluster.ledger.account(account.id) or account)


def _raise_refusal(event: Event) -> None:
    if event.kind == "step" and event.data["name"] == RESOLVE:
        raise UsageError(
            event.data["outcome"],
            "If that host is switched off, and stays so: --force. Or decide again when it has been "
            "silent for longer than `patience_s`.",
        )


def _in_doubt(cluster: Cluster, account: Account) -> Answer | None:
    """Return what is known while the end is not, None to wait on; a silent host makes a doubt."""
    now, silent = cluster.ledger.account(account.id) or account, _silent(cluster, account)
    if silent and not now.state.definite:
        cluster.ledger.record_doubt(account.id)
        return Answer(cluster.ledger.account(account.id) or account, silent)
    return Answer(now) if now.state.final else None


def _silent(cluster: Cluster, account: Account) -> str:
    """Return the names of those of the two hosts that do not answer, as part of a sentence."""
    alive, plan = cluster.registry.alive(), account.plan
    return " and ".join(host for host in (plan.source, plan.destination) if host not in alive)
