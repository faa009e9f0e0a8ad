"""page_sender, on the source: be ready to hand out the memory once the process runs elsewhere.

Post-copy only. The sender (``sojourn.transfer.sender``) is started before the freeze and does not
need the worker. Until the images have left it answers nothing. If it, the worker or Redis dies
here, nothing was touched; if this host dies, the process dies with it, as it would have without us.
It is ended by ``resume``, ``retire`` and ``release``. A second run ends the first sender and starts
another.
"""

from __future__ import annotations

from sojourn.migration import serving
from sojourn.migration.context import Migration
from sojourn.state.message import Outcome
from tasks.step import step


@step(deadline_s=30)
def page_sender(migration: Migration) -> Outcome:
    """Start the sender."""
    facts = serving.begin(migration)
    where = f"{facts['memory_address']} port {facts['memory_port']}"
    return Outcome(f"ready to hand out the memory on {where}", facts)
