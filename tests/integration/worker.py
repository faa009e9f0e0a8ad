"""One host's worker for tests: as ``workers.host`` starts its lanes, but in one process and without CRIU."""

from __future__ import annotations

import sys

from sojourn.log import configure
from tests.integration import steps
from workflows.app import the_app


def main(host: str) -> None:
    """Run until killed."""
    configure("text")
    queues = ",".join([host, f"{host}.frozen", "sojourn"])
    assert steps.PIPELINE.steps
    the_app().worker_main(
        [
            *("worker", f"--hostname=main@{host}", f"--queues={queues}", "--concurrency=3", "--pool=prefork"),
            *("--without-gossip", "--without-mingle", "--loglevel=INFO"),
        ]
    )


if __name__ == "__main__":
    main(sys.argv[1])
