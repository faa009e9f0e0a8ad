"""Cordons and placement by the real command line, on a real Redis and real workers."""

from __future__ import annotations

import json
import sys

import pytest

from sojourn.system.run import Completed, run
from tests.integration.conftest import Cluster


def sojourn(cluster: Cluster, *words: str) -> Completed:
    """Run the command line as on a machine that is not a host."""
    done = run(
        [sys.executable, "-m", "sojourn", *words],
        deadline_s=30,
        check=False,
        env=cluster.environment("tester"),
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(autouse=True)
def _there(cluster: Cluster) -> None:
    cluster.announce()


def test_cordon_and_uncordon(cluster: Cluster) -> None:
    """Nothing new goes to a host that is cordoned, until it is not."""
    assert sojourn(cluster, "cordon", "beta").returncode == 0
    refused = sojourn(cluster, "migrate", "4242", "--from", "alpha", "--to", "beta", "--json")
    assert refused.returncode == 10
    assert "beta is cordoned" in json.loads(refused.stdout)["error"]["message"]
    assert sojourn(cluster, "uncordon", "beta").returncode == 0
    assert not cluster.registry.check_host("beta").cordoned


def test_an_unknown_host(cluster: Cluster) -> None:
    """It cannot be cordoned: that is a usage error."""
    assert sojourn(cluster, "cordon", "omega").returncode == 2
