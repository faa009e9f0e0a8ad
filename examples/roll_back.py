"""Bring a migration to rest that stands still because a worker died: ``python examples/roll_back.py MIGRATION``.

It asks both hosts to undo what they did. Each looks into its own journal first, so nothing is guessed: if the process
was already taken over, the original is retired; if the destination can say no, the process is resumed on the
source; if it can not say either, the tree stays frozen. May be run again. Both workers must be up.
"""

from __future__ import annotations

import sys

from sojourn.cli.cluster import Cluster
from sojourn.model import Message
from workflows.app import the_app
from workflows.canvas import SHARED_QUEUE
from workflows.migrate import roll_back


def main(migration: str) -> None:
    """Send the rollback of one migration, by its id or how it begins."""
    the_app()
    account = Cluster().find(migration)
    message = Message(account.id, account.plan)
    roll_back.apply_async((message.to_json(),), queue=SHARED_QUEUE)
    sys.stdout.write(f"asked for; see how it ends: sojourn show {account.id}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
