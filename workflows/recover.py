"""Moving on what stands still: the destination's verdict, and both hosts act by it.

The same canvas serves the reconcilers of both hosts and an operator's abort or word. It can be started any number of
times, from anywhere: every step of it looks into the journal first.
"""

from __future__ import annotations

from typing import Any

from sojourn.model import Message, Role
from tasks.dump import interrupt, resume
from tasks.page_server import stop_page_server
from tasks.reserve import release
from tasks.restore import decide, refuse
from workflows.canvas import Rows, linked
from workflows.conclude import conclude
from workflows.pipeline import On

SETTLE: Rows = [
    (decide, On.DESTINATION, True),
    (resume, On.SOURCE, True),
    (stop_page_server, On.DESTINATION, True),
    (release, On.BOTH, True),
]

ABORT: Rows = [
    (interrupt, On.SOURCE, True),
    (refuse, On.DESTINATION, True),
    (resume, On.SOURCE, True),
    (stop_page_server, On.DESTINATION, True),
    (release, On.BOTH, True),
]

#: When one host will never answer, the other one acts on an operator's word.
WITHOUT_DESTINATION: Rows = [(resume, On.SOURCE, True), (release, On.SOURCE, True)]
WITHOUT_SOURCE: Rows = [(decide, On.DESTINATION, True), (release, On.DESTINATION, True)]


def settle(message: Message, expires_s: float) -> Any:  # noqa: ANN401  (Celery has no types)
    """Ask for the verdict and act by it. Messages that nobody takes in time vanish: the next attempt sends others."""
    return linked(SETTLE, message, conclude, expires_s=expires_s).apply_async()


def abort(message: Message) -> Any:  # noqa: ANN401
    """Give the migration up if that is still possible; the destination's verdict says whether it was."""
    return linked(ABORT, message, conclude).apply_async()


def resolve(message: Message, dead: Role) -> Any:  # noqa: ANN401
    """Act on an operator's word that one host is dead; the word is in the message's facts, and so in the journal."""
    rows = WITHOUT_DESTINATION if dead is Role.DESTINATION else WITHOUT_SOURCE
    return linked(rows, message, conclude).apply_async()
