"""The registry, in a real Redis: which hosts there are, and which plans cannot work."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sojourn.cluster.registry import CORDONED, HostInfo, Pace, Registry, Window
from sojourn.cluster.store import Store
from sojourn.errors import HostUnreachable, Refused, UsageError
from sojourn.model import Plan
from tests.conftest import eventually
from tests.integration.conftest import PLAN, Redis

ALPHA = HostInfo(
    "alpha",
    "192.0.2.1",
    "0.1.0",
    "4.2.1",
    "6.12",
    "x86_64",
    2,
    2**33,
    2**32,
    0,
    1.0,
    0.5,
    ("aes", "avx"),
    4,
    4,
)
BETA = dataclasses.replace(ALPHA, name="beta", address="192.0.2.2", criu="4.2")


@pytest.fixture
def registry(redis: Redis) -> Registry:
    """Give out a registry in which alpha and beta are present and no other host is."""
    store = Store(redis.url)
    store.write([["DEL", CORDONED]])
    registry = Registry(store)
    for info in (ALPHA, BETA):
        registry.announce(info, 20)
    return registry


def test_announced(registry: Registry) -> None:
    """What a host announces is what others read; patch releases of CRIU are compatible."""
    assert registry.alive() == {"alpha": ALPHA, "beta": BETA}
    assert registry.check_host("alpha") == ALPHA
    registry.check(PLAN)


def test_a_host_that_falls_silent(registry: Registry) -> None:
    """After three missed announcements it is still known, but not alive."""
    registry.announce(dataclasses.replace(BETA, name="gamma"), 0.02)
    eventually(lambda: registry.hosts()["gamma"] is None)
    assert "gamma" not in registry.alive()
    with pytest.raises(HostUnreachable, match="host gamma does not answer") as caught:
        registry.check(Plan(5, "alpha", "gamma"))
    assert caught.value.exit_code == 14


def test_a_host_that_withdraws(registry: Registry) -> None:
    """One that is shut down on purpose is silent at once; withdrawing is idempotent."""
    registry.withdraw("alpha")
    registry.withdraw("alpha")
    with pytest.raises(HostUnreachable, match="host alpha does not answer"):
        registry.check(PLAN)


@pytest.mark.parametrize("plan", [Plan(5, "alpha", "nobody"), Plan(5, "nobody", "beta")])
def test_an_unknown_host(registry: Registry, plan: Plan) -> None:
    """A name that was never announced is a usage error, with the names that were."""
    with pytest.raises(UsageError, match="There is no host nobody") as caught:
        registry.check(plan)
    assert "alpha, beta" in caught.value.hint


def test_an_empty_registry(redis: Redis) -> None:
    """Where no host was ever announced, the hint shows that."""
    with pytest.raises(UsageError) as caught:
        Registry(Store(redis.url.replace("/0", "/7"))).check_host("alpha")
    assert caught.value.hint == "Known hosts: none."


@pytest.mark.parametrize("version", ["4.1.1", "3.19", "5.2"])
def test_two_series_of_criu(registry: Registry, version: str) -> None:
    """Hosts whose CRIU differs in more than its patch level are refused, in either direction."""
    registry.announce(dataclasses.replace(BETA, criu=version), 20)
    for plan in (PLAN, Plan(5, "beta", "alpha")):
        with pytest.raises(Refused, match="not compatible"):
            registry.check(plan)


@pytest.mark.parametrize("one", [ALPHA, BETA])
def test_only_one_of_two_hosts_has_certificates(registry: Registry, one: HostInfo) -> None:
    """Nothing is sent between them, in either direction; the sentence names the one without."""
    registry.announce(dataclasses.replace(one, certified_until=9e9), 20)
    other = "beta" if one is ALPHA else "alpha"
    for plan in (PLAN, Plan(5, "beta", "alpha")):
        with pytest.raises(
            Refused, match=f"{one.name} has certificates and {other} has none"
        ) as caught:
            registry.check(plan)
        assert (caught.value.code, f"sojourn pki issue {other}" in caught.value.hint) == (
            "CERTIFICATES",
            True,
        )


@pytest.mark.parametrize("past", [ALPHA, BETA])
def test_a_certificate_that_has_ended(registry: Registry, past: HostInfo) -> None:
    """Nothing begins that would fail for it, whichever of the two hosts it is."""
    for info in (ALPHA, BETA):
        until = info.announced - 1 if info is past else 9e9
        registry.announce(dataclasses.replace(info, certified_until=until), 20)
    with pytest.raises(Refused, match=f"The certificate of {past.name} has ended") as caught:
        registry.check(PLAN)
    assert (caught.value.code, f"sojourn pki issue {past.name}" in caught.value.hint) == (
        "CERTIFICATES",
        True,
    )


def test_a_host_with_another_key(redis: Redis, registry: Registry) -> None:
    """It would refuse every message, so it is named before one is sent.

    A host that announces no key is not compared, and neither is a caller that has none.
    """
    ours = Registry(Store(redis.url), "cafe")
    ours.check(PLAN)
    registry.announce(dataclasses.replace(ALPHA, cluster="cafe"), 20)
    ours.check(PLAN)
    registry.announce(dataclasses.replace(BETA, cluster="beef"), 20)
    for check in (lambda: ours.check(PLAN), lambda: ours.check_host("beta")):
        with pytest.raises(Refused, match="beta has another key than this machine") as caught:
            check()
        assert caught.value.code == "OTHER_KEY"
    assert registry.check_host("beta").cluster == "beef"
    with pytest.raises(Refused, match="beta has another key than alpha"):
        registry.check(PLAN)


def test_a_cordoned_host(registry: Registry) -> None:
    """It counts at once, whatever the host announces later; nothing may go there, all may leave."""
    registry.cordon("beta")
    registry.announce(BETA, 20)
    assert registry.hosts() == registry.hosts() | {
        "alpha": ALPHA,
        "beta": dataclasses.replace(BETA, cordoned=True),
    }
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
    announced = dataclasses.asdict(ALPHA) | {"colour": "blue"}
    del announced["load"], announced["cpu_flags"]
    Store(redis.url).put("sojourn:host:alpha", json.dumps(announced), expire_s=20)
    assert registry.check_host("alpha") == dataclasses.replace(ALPHA, load=0.0, cpu_flags=())


def test_how_long_the_last_window_was(registry: Registry) -> None:
    """It is kept beside the pace of the other modes, unless it is too small to be measured."""
    assert registry.window("alpha", "beta") is None
    registry.remember_window("alpha", "beta", Window(10, 1), 60)
    assert registry.window("alpha", "beta") is None
    registry.remember_window("alpha", "beta", Window(10**9, 1000), 60)
    registry.remember("alpha", "beta", Pace(10**9, 2000), 60)
    assert registry.window("alpha", "beta") == Window(10**9, 1000)
    assert registry.pace("alpha", "beta") == Pace(10**9, 2000)
