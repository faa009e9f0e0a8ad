"""The metrics of the cluster as text: ``sojourn metrics``."""

from __future__ import annotations

import sys

import typer

from sojourn.settings import load


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(metrics)


def metrics() -> None:
    """Print the metrics of the cluster in Prometheus's text format.

    If Redis does not answer, `sojourn_redis_up 0` is all that is printed. Exit status: 0.
    """
    from sojourn.cluster.metrics import cluster_collector, exposition

    sys.stdout.write(exposition(cluster_collector(load())).decode())
