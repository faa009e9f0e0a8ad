"""One lab named ``test`` for all tests here, started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.host import Host
from lab.lab import Lab
from tests.lab.site import Site, fresh_lab, require_lab


@pytest.fixture(scope="session")
def suitable() -> None:
    """Skip, with the reason, where there can be no lab; fail where there must be one."""
    require_lab()


@pytest.fixture(scope="session")
def lab(suitable: None) -> Iterator[Lab]:
    """Two hosts with their workers, and the hub."""
    with fresh_lab("test") as made:
        yield made


@pytest.fixture(scope="session")
def configured(lab: Lab) -> Site:
    """Save every host's first configuration, and return the site."""
    site = Site(lab)
    for name in ("alpha", "beta"):
        site.host(name).run(["cp", "/etc/sojourn/sojourn.toml", "/etc/sojourn/site.toml"])
    return site


@pytest.fixture
def site(configured: Site) -> Site:
    """Return the site, with its hosts up and plugged in."""
    for name in ("alpha", "beta"):
        configured.host(name)
    return configured


@pytest.fixture(scope="module")
def encrypted(suitable: None) -> Iterator[Site]:
    """Two hosts, a Redis and a command line that all have certificates."""
    with fresh_lab("encrypted", encrypted=True) as made:
        yield Site(made)


@pytest.fixture
def alpha(site: Site) -> Host:
    """Return the host on which programs start."""
    return site.host("alpha")


@pytest.fixture
def beta(site: Site) -> Host:
    """Return the host to which they move."""
    return site.host("beta")
