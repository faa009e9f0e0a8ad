"""The cluster of docker-compose.yml, built and started once by the command lines of its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

import pytest

from tests.compose.engine import CHECKOUT, Engine, require_docker
from tests.conftest import eventually

PAGE = CHECKOUT / "docs/compose.md"

#: How long the containers may take to become healthy, on a busy machine.
HEALTHY_S = 120


def commands(heading: str) -> list[str]:
    """Return the command lines of the first code block below a heading of the page."""
    (block,) = re.findall(
        rf"^## {heading}$.*?^```\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    return [line.partition("  #")[0].strip() for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """Return a Docker engine; skip, with the reason, where there cannot be one."""
    made = require_docker()
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def cluster(engine: Engine) -> Engine:
    """Return the engine with the cluster running and healthy."""
    for line in commands("Start it"):
        engine.follow(line)
    for service in ("redis", "alpha", "beta", "flower"):
        eventually(partial(is_healthy, engine, service), within_s=HEALTHY_S)
    return engine


def is_healthy(engine: Engine, service: str) -> bool:
    """Whether a container's own health check reports that it is healthy."""
    health = engine.docker(
        "inspect", "--format", "{{.State.Health.Status}}", engine.container(service)
    )
    return health.stdout.strip() == "healthy"
