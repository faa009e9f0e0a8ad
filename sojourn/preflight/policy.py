"""What this host's own settings permit, whoever asks: what may leave it, and what may come to it.

The settings are in a file that only root of this host can write; a message or a plan cannot
overrule them. The source judges before it reports anything else, since a host that would take the
process must not be the one that decides whether it may have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from sojourn.cluster.selector import Process
from sojourn.model import Plan
from sojourn.preflight.finding import Finding, blocks, named
from sojourn.settings import Settings

#: What a setting permits that is not set.
ALL = "*"

HINT = "Whoever administers {host} can permit it: `{setting}` in sojourn.toml there."


def limits_leaving(settings: Settings) -> bool:
    """Whether this host has a setting by which something may not leave."""
    return any((settings.leave_users, settings.leave_units, settings.allowed_modes))


def may_leave(plan: Plan, members: Sequence[Process], settings: Settings) -> Iterator[Finding]:
    """Yield why a tree may not leave this host, by what each of its processes is."""
    users = {member.user_name or str(member.user) for member in members}
    forbidden = sorted(user for user in users if not _permits(settings.leave_users, user))
    if forbidden:
        yield _forbids(
            "MAY_NOT_LEAVE",
            f"Processes of {named(forbidden, 8)} may not leave {plan.source}.",
            plan.source,
            "leave_users",
        )
    without = [
        member.pid
        for member in members
        if not any(_permits(settings.leave_units, part) for part in member.cgroup.split("/"))
    ]
    if without:
        yield _forbids(
            "MAY_NOT_LEAVE",
            f"Process {without[0]} is in no unit whose processes may leave {plan.source}.",
            plan.source,
            "leave_units",
        )
    yield from _mode(plan, plan.source, "MAY_NOT_LEAVE", settings)


def may_come(plan: Plan, settings: Settings) -> Iterator[Finding]:
    """Yield why no process of a plan may come to this host."""
    if not _permits(settings.come_from, plan.source):
        yield _forbids(
            "MAY_NOT_COME",
            f"Processes of {plan.source} may not come to {plan.destination}.",
            plan.destination,
            "come_from",
        )
    yield from _mode(plan, plan.destination, "MAY_NOT_COME", settings)


def _mode(plan: Plan, host: str, code: str, settings: Settings) -> Iterator[Finding]:
    if not _permits(settings.allowed_modes, plan.mode):
        yield _forbids(code, f"{host} does not permit {plan.mode}.", host, "allowed_modes")


def _permits(patterns: str | None, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in (patterns or ALL).split())


def _forbids(code: str, sentence: str, host: str, setting: str) -> Finding:
    return blocks(code, sentence, HINT.format(host=host, setting=setting))
