"""Completion of names that only the cluster knows: hosts, migrations, batches."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sojourn.cluster.batches import INDEX as BATCHES
from sojourn.cluster.ledger import INDEX as MIGRATIONS
from sojourn.cluster.store import Store
from sojourn.system.run import run
from tests.integration.conftest import Redis
from tests.integration.test_registry import registry  # noqa: F401  (alpha and beta are there)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sojourn ps al", ["alpha"]),
        ("sojourn drain b", ["beta"]),
        ("sojourn drain alpha --mode p", ["post-copy"]),
        ("sojourn check 7 --from ", ["alpha", "beta"]),
        ("sojourn migrate 7 --to a", ["alpha", "auto"]),
        ("sojourn show 0a", ["0a1b2c3d"]),
        ("sojourn batch ", ["beefbeef"]),
    ],
)
def test_names_are_offered(redis: Redis, line: str, offered: list[str]) -> None:
    """In the way in which bash asks for them."""
    Store(redis.url).write(
        [("ZADD", MIGRATIONS, 1, "0a1b2c3d", 2, "0b1b2c3d"), ("ZADD", BATCHES, 1, "beefbeef")]
    )
    env = {
        "SOJOURN_CONFIG": "/dev/null",
        "SOJOURN_REDIS_URL": redis.url,
        "PYTHONPATH": ":".join(sys.path),
        "_SOJOURN_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    done = run([Path(sys.executable).parent / "sojourn"], deadline_s=30, check=False, env=env)
    assert (done.stdout.split(), done.stderr) == (offered, "")
