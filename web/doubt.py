"""What a migration's page shows while that is in doubt: who is silent, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from sojourn import units
from sojourn.cluster import records
from sojourn.cluster.account import Account
from sojourn.model import State

#: The guides that a record may name: pages of our own documentation, and places on them.
GUIDE = re.compile(r"docs/([a-z0-9-]+/)*[a-z0-9-]+\.md(#[a-z0-9-]+)?", re.ASCII)


@dataclass(frozen=True)
class Way:
    """Something that a person may do, and what that risks, each as a sentence."""

    do: str
    risk: str = ""


@dataclass(frozen=True)
class Doubt:
    """Which host is silent since when (none: both answer), what happens, and what to do.

    ``by_itself`` is what happens by itself once the host is back; ``how_to`` the path of a page of
    the documentation.
    """

    silent: str | None = None
    since: str = ""
    by_itself: str = ""
    you_may: tuple[Way, ...] = ()
    how_to: str = ""

    @property
    def moment(self) -> str:
        """Since when, as pages show instants; as it came if it is none."""
        try:
            return units.moment(datetime.fromisoformat(self.since).timestamp())
        except (ValueError, OverflowError, OSError):
            return self.since

    @property
    def guide(self) -> str:
        """The path of the page to link, below ``docs``; empty if it is no page of ours."""
        return self.how_to.removeprefix("docs/") if GUIDE.fullmatch(self.how_to) else ""


def doubt_of(account: Account) -> Doubt | None:
    """Return what is recorded of a doubt, None for a migration that is not in doubt."""
    if account.state is not State.IN_DOUBT:
        return None
    return records.of(Doubt, account.to_json().get("doubt"))


def pieces(sentence: str) -> list[tuple[str, bool]]:
    """Return a sentence in pieces, each with whether it is a command, which has backquotes."""
    return [(piece, bool(place % 2)) for place, piece in enumerate(sentence.split("`")) if piece]
