"""A limit of the bandwidth: what passes the wire, with certificates and without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import workload
from lab.host import HOST_PYTHON, Host, within
from lab.workload import Workload
from sojourn.model import MBIT_BYTES
from tests.lab.site import Site, left_behind, runs_on
from tests.lab.test_check import check, stopping

pytestmark = pytest.mark.lab

#: 64 MB take more than three seconds at this rate, and far less than one without a limit.
MB, MBIT = 64, 160
BYTES_PER_S = MBIT * MBIT_BYTES

#: Headers of packets, requests to Redis, and what is sent at once: the share that comes on top.
ON_TOP = 0.15

#: The kernel does not pace the first ten segments of a connection.
UNPACED_BYTES = 2**15

#: Writes down, twenty times per second, how many bytes have left the host until a file exists.
METER = """
import os, time
open("/tmp/metering", "w").close()
while not os.path.exists("/tmp/enough"):
    cards = [line.split() for line in open("/proc/net/dev") if ":" in line]
    sent = sum(int(card[9]) for card in cards if card[0] != "lo:")
    print(time.monotonic(), sent, flush=True)
    time.sleep(0.05)
"""

#: Has a file in memory, which travels with the images.
KEEPER = (
    "import os, time; kept = open('/dev/shm/paced', 'w+b', 0); "
    f"kept.write(os.urandom({MB // 2 * 2**20})); time.sleep(1000)"
)


@pytest.fixture(params=["without certificates", "with certificates"])
def place(request: pytest.FixtureRequest) -> Site:
    """Give out a lab of each kind."""
    kind = "encrypted" if request.param == "with certificates" else "site"
    found: Site = request.getfixturevalue(kind)
    return found


@pytest.fixture
def counter(place: Site) -> Iterator[Workload]:
    """Give out a process on alpha, which is ended wherever it is."""
    counter = workload.start(place.host("alpha"), "counter", mb=MB)
    counter.wait_for_beats()
    yield counter
    for name in ("alpha", "beta"):
        place.host(name).run(["pkill", "-KILL", "-f", counter.file.name], check=False)


@pytest.fixture
def meter(place: Site) -> Iterator[Host]:
    """Meter what leaves alpha."""
    alpha = place.host("alpha")
    alpha.run(["rm", "-f", "/tmp/metering", "/tmp/metered", "/tmp/enough"])
    alpha.launch([HOST_PYTHON, "-c", METER], log="/tmp/metered")
    assert within(
        10, lambda: alpha.run(["test", "-e", "/tmp/metering"], check=False).returncode == 0
    )
    yield alpha
    alpha.run(["touch", "/tmp/enough"])


def fastest(meter: Host) -> float:
    """Return the most bytes per second that left a host, in any second of it or a little more."""
    lines = meter.run(["cat", "/tmp/metered"]).stdout.splitlines()
    seen = [(float(at), int(sent)) for at, sent in (line.split() for line in lines)]
    return max(
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for begin, earlier in enumerate(seen)
        if (later := next((one for one in seen[begin:] if one[0] - earlier[0] >= 1), None))
    )


def least_ms(size: int) -> float:
    """Return how long so many bytes take at least."""
    return (size - UNPACED_BYTES) / BYTES_PER_S * 1000


def took_ms(answer: dict[str, Any], name: str) -> float:
    """Return how long a step of a finished migration took."""
    (step,) = [step for step in answer["steps"] if step["name"] == name]
    return float(step["ended"] - step["started"]) * 1000


def test_memory(place: Site, counter: Workload, meter: Host) -> None:
    """No second of the wire has more than the limit; without one, the way back is much faster."""
    there = place.migrate(counter.pid, "alpha", "beta", "--bandwidth", str(MBIT))
    assert there.code == 0, there.answer
    assert there.answer["pages_bytes"] > MB * 2**20
    assert there.answer["frozen_ms"] >= least_ms(there.answer["pages_bytes"])
    assert took_ms(there.answer, "dump") >= least_ms(there.answer["pages_bytes"])
    assert BYTES_PER_S / 2 < fastest(meter) < BYTES_PER_S * (1 + ON_TOP)
    back = place.migrate(counter.pid, "beta", "alpha")
    assert back.code == 0, back.answer
    assert back.answer["frozen_ms"] < there.answer["frozen_ms"] / 2
    assert counter.wait_for_beats(20).details["damaged_slices"] == 0


def test_files_in_memory(place: Site, meter: Host) -> None:
    """They travel with the images, whose connection has the same limit."""
    alpha, beta = place.host("alpha"), place.host("beta")
    keeper = alpha.launch([HOST_PYTHON, "-c", KEEPER])
    size = ["stat", "-c", "%s", "/dev/shm/paced"]
    full = str(MB // 2 * 2**20)
    try:
        assert within(10, lambda: alpha.run(size, check=False).stdout.strip() == full)
        ended = place.migrate(keeper, "alpha", "beta", "--bandwidth", str(MBIT))
        assert ended.code == 0, ended.answer
        assert beta.run(size).stdout.strip() == full
    finally:
        for host in (alpha, beta):
            host.run(["kill", "-KILL", str(keeper)], check=False)
            host.run(["rm", "-f", "/dev/shm/paced"])
    assert ended.answer["images_bytes"] > int(full)
    assert took_ms(ended.answer, "copy_images") >= least_ms(ended.answer["images_bytes"])
    assert fastest(meter) < BYTES_PER_S * (1 + ON_TOP)


def test_an_abort_in_the_middle(place: Site, counter: Workload) -> None:
    """It does not wait for memory that is still to be sent: the process runs on at once."""
    alpha, beta = place.host("alpha"), place.host("beta")
    # At 4 Mbit/s the memory would take more than two minutes.
    begun = place.sojourn(
        *("migrate", str(counter.pid), "--from", "alpha", "--to", "beta"),
        *("--bandwidth", "4", "--max-freeze", "600", "--detach"),
    )
    assert within(20, lambda: _is_frozen(counter))
    ended = place.sojourn("abort", begun.stdout.strip(), "--json")
    assert json.loads(ended.stdout)["state"] == "aborted", ended.stdout
    assert runs_on(alpha, counter)
    assert not runs_on(beta, counter)
    assert counter.wait_for_beats(20).details["damaged_slices"] == 0
    assert within(10, lambda: left_behind(alpha) == left_behind(beta) == [])


def _is_frozen(counter: Workload) -> bool:
    """Whether it does not beat, which it does a hundred times per second.

    Its state shows nothing: while CRIU's code runs in it, it sleeps as any other process.
    """
    before = counter.status().counter
    return not within(1, lambda: counter.status().counter > before)


def test_a_freeze_that_would_be_too_long(place: Site, counter: Workload) -> None:
    """It is refused before the freeze, with a limit that is long enough; the estimate agrees."""
    slow = ("--bandwidth", "10", "--max-freeze", "20")
    report = check(place, counter.pid, *slow)
    (found,) = [one for one in report["findings"] if one["code"] == "BANDWIDTH"]
    assert found["verdict"] == "needs option"
    assert "At 10 Mbit/s" in found["sentence"]
    assert report["estimate"][0]["freeze_ms"] > 20_000
    refused = place.migrate(counter.pid, "alpha", "beta", *slow)
    assert (refused.code, refused.answer["failure"]["code"]) == (10, "BANDWIDTH")
    option = found["hint"].split(",")[0].removeprefix("Migrate with ").split()
    longer = check(place, counter.pid, *slow[:2], *option)
    assert stopping(longer) == []
    assert longer["estimate"][0]["freeze_ms"] < float(option[1]) * 1000
