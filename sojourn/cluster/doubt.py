"""What there is to know of a migration in doubt: who is silent, what happens, what a person may do.

A pure function of what the cluster knows, so that the command line, JSON and the web page show the
same sentences. Each command in them can be run as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sojourn.model import Json, Plan, Role

#: The last instant that is shown, in seconds since the epoch: the year 9000.
LATEST = 221_845_392_000

#: The guide that explains all of it.
HOW_TO = "docs/how-to/recover-from-in-doubt.md"


@dataclass(frozen=True)
class Contact:
    """Whether a host announces itself, and when it did last, in seconds since the epoch.

    ``heard`` is by that host's clock, None where nothing is known of it.
    """

    answers: bool
    heard: float | None = None


@dataclass(frozen=True)
class Doubt:
    """A migration in doubt: its id, what was asked for, and since when its process is frozen."""

    id: str
    plan: Plan
    frozen: float

    def describe(self, contacts: Mapping[str, Contact]) -> Json:
        """Return ``silent``, ``since``, ``by_itself``, ``you_may`` and ``how_to``.

        ``contacts`` has both hosts. ``docs/reference/json.md`` documents the fields.
        """
        silent = [role for role in Role if not contacts[self.plan.host_of(role)].answers]
        # Of two silent hosts the destination is named: its verdict is what is missing.
        named = self.plan.host_of(silent[-1]) if silent else None
        heard = contacts[named].heard if named else None
        by_itself, ways = self._help(silent)
        return {
            "silent": named,
            "since": moment(self.frozen if heard is None else heard),
            "by_itself": by_itself,
            "you_may": [{"do": act, "risk": risk} for act, risk in ways],
            "how_to": HOW_TO,
        }

    def _help(self, silent: list[Role]) -> tuple[str, list[tuple[str, str]]]:
        """Return what happens by itself, and what a person may do, each with its risk."""
        if len(silent) == len(Role):
            return self._both_are_silent(), [self._bring_back(" and ".join(self._hosts))]
        if silent == [Role.DESTINATION]:
            ways = [self._bring_back(self.plan.destination), self._abort(), self._go_back()]
            return self._destination_is_silent(), ways
        if silent == [Role.SOURCE]:
            return self._source_is_silent(), [self._bring_back(self.plan.source), self._go_on()]
        return self._both_answer(), [self._end_there(), self._accept_there()]

    @property
    def _hosts(self) -> tuple[str, str]:
        return self.plan.source, self.plan.destination

    def _destination_is_silent(self) -> str:
        source, destination = self._hosts
        return (
            f"{source} goes on asking {destination}, and the migration ends within seconds once "
            f"that is back with its disk and its worker. {self._verdicts()}"
        )

    def _source_is_silent(self) -> str:
        source, destination = self._hosts
        return (
            f"{destination} waits for {source}, and the migration ends within seconds once that is "
            f"back with its disk and its worker. {self._verdicts()}"
        )

    def _both_are_silent(self) -> str:
        return (
            f"Nothing until both hosts are back: {self.plan.source} is silent too. "
            f"{self._verdicts()}"
        )

    def _verdicts(self) -> str:
        """Return on which host the process runs when both have answered."""
        source, destination = self._hosts
        return (
            f"The process then runs on {destination} if that has taken it or has all of it, else "
            f"on {source}. If it ran on a host that was rebooted since, it has ended with it."
        )

    def _both_answer(self) -> str:
        source, destination = self._hosts
        return (
            f"{source} goes on asking. If {destination} is only busy, it answers and the migration "
            f"ends; if it cannot prove what became of the process, nothing changes by itself."
        )

    def _bring_back(self, hosts: str) -> tuple[str, str]:
        act = (
            f"Bring {hosts} back: the host, its network or its worker. Then follow the end: "
            f"`sojourn watch {self.id}`"
        )
        return act, "None: both hosts decide by their journals."

    def _abort(self) -> tuple[str, str]:
        source, destination = self._hosts
        risk = (
            f"None: back again, {destination} refuses, unless it has taken the process, or takes "
            "it first since it has all of it. Until then the process stays frozen."
        )
        return f"Ask for the process to stay on {source}: `sojourn abort {self.id}`", risk

    def _go_back(self) -> tuple[str, str]:
        source, destination = self._hosts
        act = (
            f"Only if {destination} is switched off and stays so, let the original run on, on "
            f"{source}: `sojourn resolve {self.id} --destination-is-dead`"
        )
        risk = (
            f"If {destination} still runs the process, there will be two of it. {self._undone()} "
            f"{_may_be_slow(destination)}"
        )
        return act, risk

    def _go_on(self) -> tuple[str, str]:
        source, destination = self._hosts
        act = (
            f"Only if {source} is switched off and stays so, let {destination} go on alone: "
            f"`sojourn resolve {self.id} --source-is-dead`"
        )
        risk = (
            f"If {destination} does not have all of the process, it is lost. If {source} still "
            f"runs it, there will be two of it. {_may_be_slow(source)}"
        )
        return act, risk

    def _end_there(self) -> tuple[str, str]:
        source, destination = self._hosts
        act = (
            f"End what there is of process {self.plan.pid} on {destination}, all of it. Then let "
            f"the original run on, on {source}: "
            f"`sojourn resolve {self.id} --destination-is-dead --force`"
        )
        risk = (
            f"If a part of it still runs on {destination}, there will be two of it. "
            f"{self._undone()}"
        )
        return act, risk

    def _accept_there(self) -> tuple[str, str]:
        source, destination = self._hosts
        act = (
            f"Take what runs on {destination} for the process, after you have looked at it: "
            f"`sojourn resolve {self.id} --source-is-dead --force`"
        )
        risk = (
            f"If anything of it runs on {destination}, the original on {source} is ended: what "
            f"is missing on {destination} is lost. If nothing does, the original runs on."
        )
        return act, risk

    def _undone(self) -> str:
        return f"What it has done on {self.plan.destination} since the freeze is lost."


def _may_be_slow(host: str) -> str:
    """Return when a resolution is refused, and what overrules that."""
    return (
        f"It is refused until {host} has not answered for `patience_s` (ten minutes): if you have "
        "seen that it is off, add `--force`."
    )


def sentence(doubt: Json) -> str:
    """Return which host is silent since when, or since when the process is frozen if none is."""
    if doubt["silent"]:
        return f"{doubt['silent']} has been silent since {doubt['since']}."
    return f"Both hosts answer; the process has been frozen since {doubt['since']}."


def moment(since_epoch_s: float) -> str:
    """Return an instant in ISO 8601, by this machine's clock and with its zone.

    One that no calendar has, as only a damaged record can hold, is moved to the nearest.
    """
    known = min(max(since_epoch_s, 0), LATEST)
    return datetime.fromtimestamp(known).astimezone().isoformat(timespec="seconds")
