"""The registry, in a real Redis: which hosts there are, and which plans can not work."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sojourn.errors import HostUnreachable, Refused, UsageError
from sojourn.model import Plan
from sojourn.registry import CORDONED, HostInfo, Registry
from sojourn.store import Store
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Redis

ALPHA = HostInfo(
    "alpha", "192.0.2.1", "0.1.0", "4.2.1", "6.12", "x86_64", 2, 2**33, 2**32, 0, 1.0, 0.5, ("aes", "avx"), 4, 4
)
BETA = dataclasses.replace(ALPHA, name="beta", address="192.0.2.2", criu="4.2")


@pytest.fixture
def registry(redis: Redis) -> Registry:
    """Give out a registry in which alpha and beta are there and nobody else."""
    registry = Registry(Store(redis.url))
    Store(redis.url).remove(CORDONED)
    for info in (ALPHA, BETA):
        registry.announce(info, 20)
    return registry


def test_announced(registry: Registry) -> None:
    """What a host says of itself is what others read; a patch release of CRIU is no other CRIU."""
    assert registry.alive() == {"alpha": ALPHA, "beta": BETA}
    assert registry.check_host("alpha") == ALPHA
    registry.check(PLAN)


def test_a_host_that_falls_silent(registry: Registry) -> None:
    """After three announcements that did not come it is known still, but not there."""
    registry.announce(dataclasses.replace(BETA, name="gamma"), 0.02)
    eventually(lambda: registry.hosts()["gamma"] is None)
    assert "gamma" not in registry.alive()
    with pytest.raises(HostUnreachable, match="host gamma does not answer") as caught:
        registry.check(Plan(5, "alpha", "gamma"))
    assert caught.value.exit_code == 14


def test_a_host_that_withdraws(registry: Registry) -> None:
    """One that goes away on purpose is not there at once."""
    registry.withdraw("alpha")
    registry.withdraw("alpha")
    with pytest.raises(HostUnreachable, match="host alpha does not answer"):
        registry.check(PLAN)


@pytest.mark.parametrize("plan", [Plan(5, "alpha", "nobody"), Plan(5, "nobody", "beta")])
def test_a_host_that_nobody_knows(registry: Registry, plan: Plan) -> None:
    """A name that was never announced is a usage error, with the names that were."""
    with pytest.raises(UsageError, match="There is no host nobody") as caught:
        registry.check(plan)
    assert "alpha, beta" in caught.value.hint


def test_an_empty_registry(redis: Redis) -> None:
    """Where no host ever was, the hint says so."""
    with pytest.raises(UsageError) as caught:
        Registry(Store(redis.url.replace("/0", "/7"))).check_host("alpha")
    assert caught.value.hint == "Known hosts: none."


@pytest.mark.parametrize("version", ["4.1.1", "3.19", "5.2"])
def test_two_series_of_criu(registry: Registry, version: str) -> None:
    """Hosts whose CRIU differs in more than its patch level are refused, in either direction."""
    registry.announce(dataclasses.replace(BETA, criu=version), 20)
    for plan in (PLAN, Plan(5, "beta", "alpha")):
        with pytest.raises(Refused, match="do not understand each other"):
            registry.check(plan)


@pytest.mark.parametrize("one", [ALPHA, BETA])
def test_only_one_of_two_hosts_has_certificates(registry: Registry, one: HostInfo) -> None:
    """Nothing is sent between them, in either direction; the sentence says which lacks them."""
    registry.announce(dataclasses.replace(one, certified_until=9e9), 20)
    other = "beta" if one is ALPHA else "alpha"
    for plan in (PLAN, Plan(5, "beta", "alpha")):
        with pytest.raises(Refused, match=f"{one.name} has certificates and {other} has none") as caught:
            registry.check(plan)
        assert (caught.value.code, f"sojourn pki issue {other}" in caught.value.hint) == ("CERTIFICATES", True)


@pytest.mark.parametrize("past", [ALPHA, BETA])
def test_a_certificate_that_has_ended(registry: Registry, past: HostInfo) -> None:
    """Nothing is begun that would fail at it, whichever of the two hosts it is."""
    for info in (ALPHA, BETA):
        until = info.announced - 1 if info is past else 9e9
        registry.announce(dataclasses.replace(info, certified_until=until), 20)
    with pytest.raises(Refused, match=f"The certificate of {past.name} has ended") as caught:
        registry.check(PLAN)
    assert (caught.value.code, f"sojourn pki issue {past.name}" in caught.value.hint) == ("CERTIFICATES", True)


def test_a_host_with_another_key(redis: Redis, registry: Registry) -> None:
    """It would refuse every message, so it is named before one is sent; who tells no key is not compared."""
    ours = Registry(Store(redis.url), "cafe")
    ours.check(PLAN)
    registry.announce(dataclasses.replace(ALPHA, cluster="cafe"), 20)
    ours.check(PLAN)
    registry.announce(dataclasses.replace(BETA, cluster="beef"), 20)
    for ask in (lambda: ours.check(PLAN), lambda: ours.check_host("beta")):
        with pytest.raises(Refused, match="host beta has another key") as caught:
            ask()
        assert caught.value.code == "OTHER_KEY"
    registry.check(PLAN)


def test_a_cordoned_host(registry: Registry) -> None:
    """It is said at once, whatever the host announces later; nothing may go there, but all may leave."""
    registry.cordon("beta")
    registry.announce(BETA, 20)
    assert registry.hosts() == registry.hosts() | {"alpha": ALPHA, "beta": dataclasses.replace(BETA, cordoned=True)}
    with pytest.raises(Refused, match="beta is cordoned"):
        registry.check(PLAN)
    registry.announce(dataclasses.replace(BETA, criu="4.2.1"), 20)
    registry.check(Plan(5, "beta", "alpha"))
    registry.uncordon("beta")
    registry.check(PLAN)
    for change in (registry.cordon, registry.uncordon):
        with pytest.raises(UsageError, match="no host nobody"):
            change("nobody")


def test_hosts_of_another_version(redis: Redis, registry: Registry) -> None:
    """While a cluster is upgraded host by host, announcements lack some fields and have others."""
    said = dataclasses.asdict(ALPHA) | {"colour": "blue"}
    del said["load"], said["cpu_flags"]
    Store(redis.url).put("sojourn:host:alpha", json.dumps(said), expire_s=20)
    assert registry.check_host("alpha") == dataclasses.replace(ALPHA, load=0.0, cpu_flags=())
