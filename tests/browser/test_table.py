"""The table with many rows, and when Redis dies: a real Flower and Redis, without hosts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sojourn.cluster.registry import HostInfo, Registry
from sojourn.cluster.store import Store
from sojourn.model import Failure, State, StepRecord
from sojourn.security.seal import Seal
from tests.browser.conftest import Opens
from tests.browser.site import PATIENCE_S, Browser
from tests.integration.conftest import KEY, Redis
from tests.integration.door import LOGIN, Flower

MANY = 500

#: Notes which lines of the table are touched from now on, and that none of them is replaced.
WATCH = """
window.touched = new Set();
window.lines = [...document.querySelectorAll('#migrations tbody tr')];
new MutationObserver((changes) => {
  for (const { target } of changes) {
    window.touched.add(target.closest('tr')?.dataset.id ?? target.tagName);
  }
}).observe(document.querySelector('#migrations tbody'),
           { subtree: true, childList: true, characterData: true, attributes: true });
"""

#: Waits for all lines, then types into the search and waits until one is left; returns both times.
USE = """
const done = arguments[arguments.length - 1], many = arguments[0], wanted = arguments[1];
const lines = () => document.querySelectorAll('#migrations tbody tr').length;
const shown = () => document.querySelectorAll('#migrations tbody tr:not([hidden])').length;
function look() {
  if (lines() < many) return requestAnimationFrame(look);
  const there = performance.now(), field = document.querySelector('[name=text]');
  field.value = wanted;
  field.dispatchEvent(new Event('input', { bubbles: true }));
  requestAnimationFrame(() => done({ there, sifted: performance.now() - there, shown: shown() }));
}
look();
"""


@pytest.fixture
def place(chromium: None, redis: Redis, tmp_path: Path) -> Iterator[Flower]:
    """Start Flower at a Redis of our own."""
    Store(redis.url).script("return redis.call('FLUSHALL')")
    made = Flower(redis, tmp_path)
    made.start()
    yield made
    made.stop()


def test_five_hundred_migrations_are_there_at_once_and_a_change_touches_one_line(
    place: Flower, opens: Opens
) -> None:
    """Times are only printed, since a busy machine is slow; touched lines are counted."""
    ids = place.fill(MANY)
    browser = opens(place.door.base, LOGIN)
    browser.driver.set_script_timeout(PATIENCE_S)
    browser.count_work()
    browser.open("/migrations")
    used = browser.driver.execute_async_script(USE, MANY, f"pid {1000 + 77}")
    print(
        f"\n{MANY} rows interactive after {used['there']:.0f} ms, "
        f"searched in {used['sifted']:.0f} ms; "
        f"for both the page worked {browser.work_ms():.0f} ms"
    )
    assert used["shown"] == 1

    browser.run("document.querySelector('[name=text]').value = ''")
    browser.run("document.getElementById('filters').dispatchEvent(new Event('input'))")
    browser.run(WATCH)
    began = time.monotonic()
    place.ledger.record_state(ids[123], State.RUNNING)
    browser.see("running", f'#migrations tr[data-id="{ids[123]}"] .cell-state')
    print(f"a change was seen after {1000 * (time.monotonic() - began):.0f} ms")
    assert browser.run("return [...window.touched]") == [ids[123]]
    lines = "document.querySelectorAll('#migrations tbody tr')"
    same = f"return window.lines.every((line, place) => line === {lines}[place])"
    assert browser.run(same), "the lines are the same ones"

    place.ledger.record_step(ids[123], "source", StepRecord("dump", "alpha", time.time()))
    for crossed in range(0, 100_000_000, 1_000_000):
        place.ledger.record_progress(ids[123], bytes=crossed, total=100_000_000)
    browser.see("/s", f'#migrations tr[data-id="{ids[123]}"] .cell-progress')
    assert browser.run("return [...window.touched]") == [ids[123]]


def test_the_table_is_filtered_by_state_and_host(place: Flower, opens: Opens) -> None:
    """By one filter and by several; later rows are filtered too."""
    ids = place.fill(9)
    place.ledger.record_state(ids[4], State.IN_DOUBT)
    browser = opens(place.door.base, LOGIN)
    browser.open("/migrations")
    lines = "document.querySelectorAll('#migrations tbody tr:not([hidden])')"
    shown = f"return [...{lines}].map((line) => line.dataset.id)"
    browser.until(lambda: len(browser.run(shown)) == 9)
    choose(browser, "state", "in doubt")
    assert browser.run(shown) == [ids[4]]
    choose(browser, "host", "alpha")
    assert browser.run(shown) == [], "it is between beta and gamma"
    choose(browser, "state", "")
    assert len(browser.run(shown)) == 6
    place.ledger.record_state(ids[5], State.IN_DOUBT)
    choose(browser, "state", "in doubt")
    browser.until(lambda: browser.run(shown) == [ids[5]])
    assert browser.text("[data-count=bad]") == "2"


def announce(place: Flower) -> None:
    """Announce a host, with values like those of real ones."""
    names = {
        "address": "192.0.2.11",
        "sojourn": "0",
        "criu": "4.2",
        "kernel": "6.12.0-amd64-with-a-long-name",
    }
    numbers = {
        "machine": "x86_64",
        "cpus": 2,
        "memory_bytes": 2**34,
        "free_bytes": 2**33,
        "running": 0,
        "announced": 0.0,
    }
    info = HostInfo("alpha", **names, **numbers, cpu_flags=tuple(f"feature{n}" for n in range(60)))  # type: ignore[arg-type]
    Registry(Store(place.redis.url, seal=Seal(KEY, "tester"))).announce(info, 1000)


def choose(browser: Browser, name: str, value: str) -> None:
    """Choose in one of the filters."""
    script = (
        "const field = document.querySelector(`[name=${arguments[0]}]`);field.value = arguments[1];"
    )
    browser.run(
        f"{script} field.dispatchEvent(new Event('input', {{ bubbles: true }}))", name, value
    )


def test_when_redis_dies_the_pages_show_it_and_recover_by_themselves(
    place: Flower, opens: Opens
) -> None:
    """One sentence, on the table and on a single page; also on one that is opened meanwhile."""
    ids = place.fill(3)
    table, single = opens(place.door.base, LOGIN), opens(place.door.base, LOGIN)
    table.open("/migrations")
    single.open(f"/migrations/migration/{ids[0]}")
    table.see("queued", "#migrations")
    single.see("queued", "#state")
    place.redis.stop()
    for browser in (table, single):
        browser.see("does not answer", "#away")
        browser.see("Waiting", "#live-state")
    assert "queued" in single.text("#live"), "what was known stays visible"
    single.open(f"/migrations/migration/{ids[1]}")
    single.see("does not answer", "#away")
    place.redis.start()
    place.fill(3)
    place.ledger.record_state(ids[1], State.RUNNING)
    table.see("running", f'#migrations tr[data-id="{ids[1]}"]')
    single.see("running", "#state")
    for browser in (table, single):
        browser.until(lambda browser=browser: not browser.text("#away"))  # type: ignore[misc]
        assert browser.text("#live-state") == "Live"


def test_when_flower_ends_a_page_shows_it_and_recovers_by_itself(
    place: Flower, opens: Opens
) -> None:
    """A restart of Flower needs no reload."""
    ids = place.fill(1)
    browser = opens(place.door.base, LOGIN)
    browser.open("/migrations")
    browser.see("queued", "#migrations")
    place.stop()
    browser.see("The server does not answer", "#away")
    place.start()
    place.ledger.record_state(ids[0], State.RUNNING)
    browser.see("running", "#migrations")
    browser.until(lambda: not browser.text("#away"))


def test_the_name_of_a_process_is_never_interpreted_as_html(place: Flower, opens: Opens) -> None:
    """Reasons and outcomes hold names that a process can choose freely."""
    (name,) = place.fill(1)
    evil = "<img src=x onerror='window.hacked=1'><script>window.hacked=1</script>"
    place.ledger.record_step(
        name, "source", StepRecord("examine", "alpha", time.time(), time.time(), evil, failed=True)
    )
    place.ledger.record_failure(name, Failure("EVIL", evil, evil))
    place.ledger.record_state(name, State.REFUSED)
    browser = opens(place.door.base, LOGIN)
    for path in ("/migrations", f"/migrations/migration/{name}", "/migrations/host/alpha"):
        browser.open(path)
        shown = "document.body.innerText.includes('<script>')"
        browser.wait(f"return {shown} || location.pathname.endsWith('alpha')")
        assert not browser.run("return window.hacked")
    policy = place.door.ask("/migrations").headers["Content-Security-Policy"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy


def test_pages_fit_a_narrow_window_in_both_colours(place: Flower, opens: Opens) -> None:
    """Nothing is wider than the window; a dark page has a dark background."""
    (name,) = place.fill(1)
    place.ledger.record_step(
        name, "source", StepRecord("examine", "alpha", time.time(), time.time(), "done")
    )
    announce(place)
    browser = opens(place.door.base, LOGIN)
    for path in ("/migrations", f"/migrations/migration/{name}", "/migrations/host/alpha"):
        for dark in (False, True):
            browser.resize(390)
            browser.look(dark=dark)
            browser.open(path)
            browser.see("alpha", "#sojourn")
            assert browser.run("return document.documentElement.scrollWidth") <= 390, path
            colour = browser.run(
                "return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
            )
            assert (int(colour) < 60) is dark
