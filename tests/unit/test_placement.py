"""Placement: which host takes which tree, and the sentences that say why."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sojourn.cluster.placement import Hosts, Item, Placement, Planned, place, why_not
from sojourn.cluster.registry import HostInfo

GB = 10**9
ALPHA = HostInfo(
    "alpha",
    "192.0.2.1",
    "0.1.0",
    "4.2.1",
    "6.18.5-amd64",
    "x86_64",
    4,
    64 * GB,
    32 * GB,
    0,
    1.0,
    0.0,
    ("aes", "avx"),
    cluster="cafe",
)


def like_alpha(name: str, **differing: object) -> HostInfo:
    """Return a host that is like alpha except for these fields."""
    return dataclasses.replace(ALPHA, name=name, **differing)  # type: ignore[arg-type]


def cluster(*others: HostInfo) -> dict[str, HostInfo | None]:
    """Return a snapshot of the registry with alpha and some others."""
    return {info.name: info for info in (ALPHA, *others)}


def one(hosts: Hosts, item: Item | None = None, planned: tuple[Planned, ...] = ()) -> Placement:
    """Place one item of 1 GB from alpha."""
    return place([item or Item("pid 7 on alpha", "alpha", GB)], hosts, planned)[0]


INCOMPATIBLE = [
    (like_alpha("beta", cordoned=True), "beta is cordoned."),
    (
        like_alpha("beta", cluster="beef"),
        "beta has another key than alpha: each refuses the other's messages.",
    ),
    (
        like_alpha("beta", certified_until=9e9),
        "beta has certificates and alpha has none: one would encrypt, and the other would not.",
    ),
    (
        like_alpha("beta", machine="aarch64"),
        "beta is a machine of another kind: aarch64, not x86_64.",
    ),
    (
        like_alpha("beta", criu="4.1.1"),
        "alpha has CRIU 4.2.1 and beta has 4.1.1; they are not compatible.",
    ),
    (like_alpha("beta", kernel="6.9.12"), "beta has kernel 6.9.12, older than 6.18.5-amd64."),
    (like_alpha("beta", cpu_flags=("aes",)), "beta's processor lacks avx."),
    (like_alpha("beta", free_bytes=GB - 1), "beta has 1000 MB of memory left, not 1000 MB."),
]


@pytest.mark.parametrize(("beta", "why"), INCOMPATIBLE, ids=[why for _, why in INCOMPATIBLE])
def test_a_host_that_cannot_take_it(beta: HostInfo, why: str) -> None:
    """The sentence is the reason, also where the operator named that host."""
    for item in (Item("pid 7 on alpha", "alpha", GB), Item("pid 7 on alpha", "alpha", GB, "beta")):
        found = one(cluster(beta), item)
        assert found.destination is None
        assert found.against["beta"] == why
        assert found.why == f"No host can take pid 7 on alpha: {why}"


@pytest.mark.parametrize(
    "beta",
    [
        like_alpha("beta", criu="4.2"),
        like_alpha("beta", kernel="6.18.1-cloud"),
        like_alpha("beta", kernel="7.0"),
        like_alpha("beta", cpu_flags=("aes", "avx", "avx2")),
        like_alpha("beta", free_bytes=GB),
        like_alpha("beta", cluster=""),
    ],
    ids=lambda info: f"{info.criu} {info.kernel} {info.free_bytes} {info.cluster}",
)
def test_a_host_that_differs_but_can(beta: HostInfo) -> None:
    """Patch levels, a newer kernel, a more capable processor and an unknown key do not matter."""
    assert one(cluster(beta)).destination == "beta"


@pytest.mark.parametrize("past", ["alpha", "beta"])
def test_a_certificate_that_has_ended(past: str) -> None:
    """By the clock of its host, when it announced itself; nothing goes there or leaves."""
    until = {name: 0.5 if name == past else 9e9 for name in ("alpha", "beta")}
    hosts = {name: like_alpha(name, announced=1.0, certified_until=until[name]) for name in until}
    assert one(hosts).against["beta"] == (
        f"The certificate of {past} has ended, or cannot be read."
    )


def test_many_lacking_features() -> None:
    """Only the first few are named."""
    alpha = dataclasses.replace(ALPHA, cpu_flags=tuple("abcdef"))
    assert why_not("alpha", "beta", {"alpha": alpha, "beta": like_alpha("beta", cpu_flags=())}) == (
        "beta's processor lacks a, b, c and 3 more."
    )


def test_hosts_that_are_silent_or_unknown() -> None:
    """Nothing goes to a silent host, and nothing from one, since it is unknown what fits."""
    assert one(cluster() | {"beta": None}).against["beta"] == "beta does not answer."
    assert one({"alpha": None, "beta": like_alpha("beta")}).why == (
        "No host can take pid 7 on alpha: alpha does not answer, so it is unknown what fits."
    )
    named = one(cluster(), Item("pid 7 on alpha", "alpha", GB, "nobody"))
    assert named.why == "No host can take pid 7 on alpha: There is no host nobody."


def test_nowhere_to_go() -> None:
    """A cluster of one host has no other; a source that was named as destination is reported."""
    assert one(cluster()).why == "No host can take pid 7 on alpha: there is no other."
    assert "alpha is where it runs already." in one(cluster(), Item("x", "alpha", GB, "alpha")).why


def test_memory_first_then_load_then_the_name() -> None:
    """More memory left wins, compared roughly; then the load per processor, then the name."""
    more = one(cluster(like_alpha("beta"), like_alpha("gamma", free_bytes=40 * GB, load=9.0)))
    assert more.destination == "gamma"
    calmer = one(
        cluster(like_alpha("beta", load=1.0, free_bytes=32 * GB + 1), like_alpha("gamma", load=0.5))
    )
    assert calmer.destination == "gamma"
    wider = one(cluster(like_alpha("beta", load=1.0), like_alpha("gamma", load=1.5, cpus=8)))
    assert wider.destination == "gamma"
    assert one(cluster(like_alpha("gamma"), like_alpha("beta"))).destination == "beta"


def test_what_is_planned_counts() -> None:
    """Memory that was reserved is not free any more, and what is coming adds to the load."""
    hosts = cluster(like_alpha("beta"), like_alpha("gamma", free_bytes=30 * GB))
    found = one(hosts, planned=(Planned("beta", 8 * GB), Planned("nobody", GB)))
    assert found.destination == "gamma"
    full = one(hosts, planned=(Planned("beta", 40 * GB), Planned("gamma", 29 * GB + 1)))
    assert full.against == {
        "alpha": "alpha is where it runs already.",
        "beta": "beta has 0 MB of memory left after 1 planned, not 1000 MB.",
        "gamma": "gamma has 1000 MB of memory left after 1 planned, not 1000 MB.",
    }


def test_why() -> None:
    """Every choice is one sentence with the figures on which it is based."""
    hosts = cluster(like_alpha("beta", load=1.0), like_alpha("gamma", free_bytes=20 * GB))
    first, second = place([Item("a", "alpha", GB), Item("b", "alpha", GB)], hosts)
    best = "beta is the best of 2 hosts that can take it:"
    assert first.why == (f"{best} 31000 MB of memory stay free there, at 0.25 tasks per processor.")
    assert second.why == (
        f"{best} 30000 MB of memory stay free there after 1 planned, at 0.50 tasks per processor."
    )
    alone = one(cluster(like_alpha("beta")))
    assert alone.why.startswith("beta is the only host that can take it: 31000 MB")
    requested = one(hosts, Item("x", "alpha", GB, "gamma"))
    assert requested.destination == "gamma"
    assert requested.why.startswith("gamma was requested and can take it: 19000 MB")


@pytest.mark.parametrize("size", [10**6, GB])
def test_equal_hosts_share(size: int) -> None:
    """Small and large trees spread evenly over equal hosts."""
    hosts = cluster(*(like_alpha(name) for name in ("beta", "gamma", "delta", "eta")))
    placed = place([Item(str(number), "alpha", size) for number in range(30)], hosts)
    counts = Counter(placement.destination for placement in placed)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts) == {"beta", "gamma", "delta", "eta"}


NAMES = ("alpha", "beta", "gamma", "delta")
INFOS = some.builds(
    like_alpha,
    some.just("any"),
    free_bytes=some.integers(0, 8 * GB),
    load=some.floats(0, 50),
    cpus=some.integers(1, 4),
    cordoned=some.sampled_from([False, False, False, True]),
    criu=some.sampled_from(["4.2.1", "4.2", "4.3"]),
    kernel=some.sampled_from(["6.18.5", "6.18", "6.12.1", "7.1"]),
    cpu_flags=some.sampled_from([("aes",), ("aes", "avx"), ("aes", "avx", "avx2")]),
    machine=some.sampled_from(["x86_64", "x86_64", "x86_64", "aarch64"]),
)
SNAPSHOTS = some.dictionaries(some.sampled_from(NAMES), some.none() | INFOS).map(
    lambda hosts: {
        name: dataclasses.replace(info, name=name) if info else None for name, info in hosts.items()
    }
)
SIZES = some.integers(0, 3 * GB)
ITEMS = some.lists(
    some.builds(
        Item,
        some.just("x"),
        some.sampled_from(NAMES),
        SIZES,
        some.none() | some.sampled_from(NAMES),
    ),
    max_size=6,
)
PLANNED = some.lists(some.builds(Planned, some.sampled_from(NAMES), SIZES), max_size=4)


@settings(max_examples=50)
@given(ITEMS, SNAPSHOTS, PLANNED)
def test_never_where_it_must_not(items: list[Item], hosts: Hosts, planned: list[Planned]) -> None:
    """Never the source, a silent, cordoned or incompatible host, or another than was named."""
    for placement in place(items, hosts, planned):
        item, destination = placement.item, placement.destination
        source, there = hosts.get(item.source), hosts.get(destination or "")
        if destination is None:
            continue
        assert source is not None
        assert there is not None
        assert destination != item.source
        assert item.destination in {None, destination}
        assert not there.cordoned
        assert there.machine == source.machine
        assert there.criu[:3] == source.criu[:3]
        assert set(source.cpu_flags) <= set(there.cpu_flags)


@settings(max_examples=50)
@given(ITEMS, SNAPSHOTS, PLANNED)
def test_never_more_memory_than_there_is(
    items: list[Item], hosts: Hosts, planned: list[Planned]
) -> None:
    """What is placed on a host fits beside what is planned there."""
    placed = place(items, hosts, planned)
    for name, info in hosts.items():
        here = [placement.item.bytes for placement in placed if placement.destination == name]
        if here and info:
            assert sum(here) + _reserved(planned, name) <= info.free_bytes


def _reserved(planned: list[Planned], name: str) -> int:
    """Return the memory that is planned already on a host."""
    return sum(reservation.bytes for reservation in planned if reservation.destination == name)


@settings(max_examples=50)
@given(ITEMS, SNAPSHOTS, PLANNED)
def test_always_an_answer(items: list[Item], hosts: Hosts, planned: list[Planned]) -> None:
    """Every item has an answer, in order, with a sentence; without a place, one for every host."""
    placed = place(items, hosts, planned)
    assert [placement.item for placement in placed] == items
    for placement in placed:
        assert placement.why.endswith(".")
        named = placement.item.destination
        considered = {named} if named else set(hosts)
        assert set(placement.against) <= considered
        assert placement.destination or set(placement.against) == considered


@settings(max_examples=50)
@given(ITEMS, SNAPSHOTS, PLANNED, some.randoms())
def test_the_same_answer_whatever_the_order_of_hosts(
    items: list[Item], hosts: Hosts, planned: list[Planned], chance: object
) -> None:
    """The order in which the registry has its hosts does not matter."""
    names = list(hosts)
    chance.shuffle(names)  # type: ignore[attr-defined]
    assert place(items, {name: hosts[name] for name in names}, planned) == place(
        items, hosts, planned
    )


@settings(max_examples=50)
@given(SIZES, SNAPSHOTS, PLANNED)
def test_none_only_if_nobody_can(size: int, hosts: Hosts, planned: list[Planned]) -> None:
    """A host that can take a single tree is found."""
    (found,) = place([Item("x", "alpha", size)], hosts, planned)
    left = {
        name: info.free_bytes - _reserved(planned, name)
        for name, info in hosts.items()
        if info and not why_not("alpha", name, hosts)
    }
    assert (found.destination is not None) == any(size <= free for free in left.values())
