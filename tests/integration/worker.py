"""One host's worker for tests: as ``workers.host`` starts its lanes, but in one process and without CRIU.

A migration that is asked for is done by the steps of ``tests.integration.steps``, and the host has the trees that
are written down there, since all these hosts are one machine. With ``--reconcile`` there is a
reconciler beside it.
"""

from __future__ import annotations

import os
import sys

from sojourn.host import this_host
from sojourn.log import configure
from sojourn.preflight import candidate
from sojourn.settings import load
from tests.integration import steps
from workers.lane import run
from workers.reconciler import Reconciler
from workflows.app import shared_queue, the_app
from workflows.migrate import PIPELINES


def main(host: str, *options: str) -> None:
    """Run until killed."""
    configure(load().log_format)
    PIPELINES["stop-and-copy"] = steps.PIPELINE
    candidate.survey = lambda worker: steps.trees(this_host())
    if "--reconcile" in options and os.fork() == 0:
        the_app().loader.import_default_modules()
        Reconciler(this_host()).run()
    queues = ",".join([host, f"{host}.frozen", shared_queue(load())])
    run(
        [
            *("worker", f"--hostname=main@{host}", f"--queues={queues}", "--concurrency=3", "--pool=prefork"),
            *("--without-gossip", "--without-mingle", "--loglevel=INFO"),
        ]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
