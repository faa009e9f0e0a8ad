"""What an operator asks of one migration, from the command line or a browser: it is sent, and its end is waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sojourn.cluster import Cluster
from sojourn.errors import Aborted, UsageError
from sojourn.ledger import Account
from sojourn.model import Failure, Json, Message, Role, State, Verdict, dead, where_it_runs
from sojourn.queue import Standing
from workflows import recover

#: How long an abort waits for what is in doubt, or for a silent host; what was asked waits in its queue.
SILENCE_S = 10

#: How long the host that is left may take to act on an operator's word; doubts may be told meanwhile.
ACT_S = 60

#: Where a migration stands in the queue before it has begun.
WAITS = {Standing.WAITING, Standing.LATER}


@dataclass(frozen=True)
class Answer:
    """What became of a migration that an operator stepped into; ``silent`` names, in words, hosts that keep it open."""

    account: Account
    silent: str = ""

    @property
    def sentence(self) -> str:
        """What to tell the operator."""
        account = self.account
        why = f" {account.failure.message}" if account.failure else ""
        waits = f" {self.silent} does not answer; what was asked waits for it." if self.silent else ""
        where = where_it_runs(account.state, account.owner)
        return f"{account.plan.describe()}: {account.state}. {where}{why}{waits}"


def unended(account: Account) -> Account:
    """Return a migration that has not ended. Raises UsageError for one that has, saying how."""
    if account.state.definite:
        where = where_it_runs(account.state, account.owner)
        raise UsageError(f"Migration {account.id} has ended: {account.state}. {where}")
    return account


def abort(cluster: Cluster, account: Account, who: str) -> Answer:
    """Give a migration up, and wait until that is done or it is clear that it takes long. Raises StoreUnreachable."""
    cluster.ledger.tell_failure(account.id, Failure(Aborted.code, f"Aborted by {who}."))
    bookmark = cluster.ledger.bookmark()
    recover.abort(Message(account.id, account.plan), waits=cluster.queue.standing(account.id) in WAITS)
    return _await_end(cluster, bookmark, account, SILENCE_S)


def resolve(cluster: Cluster, account: Account, gone: Role, who: str) -> Answer:
    """Act on the word that one host is dead for good. Raises HostUnreachable if the other one does not answer."""
    cluster.registry.check_host(account.plan.host_of(_other(gone)))
    word: Json = {"resolved": dead(gone), "resolved_by": who, "resolved_at": time.time()}
    bookmark = cluster.ledger.bookmark()
    cluster.ledger.tell_word(account.id, word)
    verdict = {"verdict": Verdict.REFUSED} if gone is Role.DESTINATION else {}
    recover.resolve(Message(account.id, account.plan, word | verdict), gone)
    return _await_end(cluster, bookmark, account, ACT_S)


def what_a_word_does(cluster: Cluster, account: Account, gone: Role) -> str:
    """Say what will be done on the word that one host is dead."""
    plan = account.plan
    host = plan.host_of(gone)
    act = {
        Role.DESTINATION: f"The original, process {plan.pid}, will run on {plan.source}; {host} will never run it.",
        Role.SOURCE: f"{plan.destination} goes on alone if it has all of process {plan.pid}; if not, it is lost.",
    }[gone]
    answers = f"The worker of {host} answers: is it dead? " if host in cluster.registry.alive() else ""
    return f"{act} {answers}If {host} still runs the process, there will be two of it."


def _other(role: Role) -> Role:
    return Role.SOURCE if role is Role.DESTINATION else Role.DESTINATION


def _await_end(cluster: Cluster, bookmark: str, account: Account, patience_s: float) -> Answer:
    """Wait for an end that is known; after ``patience_s`` one in doubt, or kept by a silent host, will do."""
    until = time.monotonic() + patience_s
    for event in cluster.ledger.follow(bookmark):
        if event and event.migration == account.id and event.kind == "state" and State(event.data["state"]).definite:
            break
        if time.monotonic() > until and (answer := _in_doubt(cluster, account)):
            return answer
    return Answer(cluster.ledger.account(account.id) or account)


def _in_doubt(cluster: Cluster, account: Account) -> Answer | None:
    """Return what is known if nobody knows how it ended, None to wait on; tell so where a host stays silent."""
    now, silent = cluster.ledger.account(account.id) or account, _silent(cluster, account)
    if silent and not now.state.definite:
        cluster.ledger.tell_doubt(account.id)
        return Answer(cluster.ledger.account(account.id) or account, silent)
    return Answer(now) if now.state.final else None


def _silent(cluster: Cluster, account: Account) -> str:
    """Return which of the two hosts do not answer, in words."""
    alive = cluster.registry.alive()
    return " and ".join(host for host in (account.plan.source, account.plan.destination) if host not in alive)
