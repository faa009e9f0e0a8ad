"""One host's worker for tests: both lanes of ``workers.host`` as one Celery worker, without CRIU.

Migrations run the steps of ``tests.integration.steps``, and the host has the trees that are listed
there, since all these hosts are one machine. With ``--reconcile`` a reconciler runs beside it, and
a courier where the settings name somebody to call after the end.
"""

from __future__ import annotations

import os
import sys

from sojourn.log import configure
from sojourn.messaging.application import shared_queue
from sojourn.migration.context import this_host
from sojourn.preflight import candidate
from sojourn.settings import load
from tests.integration import steps
from workers.courier import Courier
from workers.lane import Lane, run
from workers.reconciler import Reconciler
from workflows.app import the_app
from workflows.pipelines import PIPELINES


def main(host: str, *options: str) -> None:
    """Run the worker of a host until it is killed."""
    configure(load().log_format)
    PIPELINES["stop-and-copy"] = steps.PIPELINE
    candidate.survey = lambda worker: steps.trees(this_host())
    # Both stay in the process group that the test kills.
    if load().end_targets and os.fork() == 0:
        Courier(this_host()).run()
    if "--reconcile" in options and os.fork() == 0:
        the_app().loader.import_default_modules()
        Reconciler(this_host()).run()
    lane = Lane("main", (host, f"{host}.frozen", shared_queue(load())), slots=3)
    if "--frozen" in options:
        # For commands that ask whether both lanes answer.
        lane = Lane("frozen", (f"{host}.frozen",), slots=1)
    run(lane.arguments(host))


if __name__ == "__main__":
    main(*sys.argv[1:])
