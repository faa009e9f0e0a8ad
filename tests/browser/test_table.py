"""The table with many rows, and when Redis dies: a real Flower and Redis, without hosts."""

from __future__ import annotations

import re
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

MANY, TEN_THOUSAND, PER_PAGE = 500, 10_000, 100

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

#: Returns the ids of the lines that are there, and the counts of the cards.
SHOWN = "return [...document.querySelectorAll('#migrations tbody tr')].map((tr) => tr.dataset.id)"
COUNTS = """
const cards = [...document.querySelectorAll('[data-count]')];
return Object.fromEntries(cards.map((card) => [card.dataset.count, Number(card.textContent)]));
"""

#: Waits for the lines of one page, then types into the search and waits until one is left; returns
#: both times.
USE = """
const done = arguments[arguments.length - 1], many = arguments[0], wanted = arguments[1];
const lines = () => document.querySelectorAll('#migrations tbody tr').length;
function look() {
  if (lines() < many) return requestAnimationFrame(look);
  const there = performance.now(), field = document.querySelector('[name=text]');
  field.value = wanted;
  field.dispatchEvent(new Event('input', { bubbles: true }));
  function sift() {
    if (lines() > 1) return requestAnimationFrame(sift);
    return done({ there, sifted: performance.now() - there, shown: lines() });
  }
  return sift();
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
    place.fill(MANY)
    browser = opens(place.door.base, LOGIN)
    browser.driver.set_script_timeout(PATIENCE_S)
    browser.count_work()
    browser.open("/migrations")
    used = browser.driver.execute_async_script(USE, PER_PAGE, f"pid {1000 + 77}")
    print(
        f"\n{MANY} rows interactive after {used['there']:.0f} ms, "
        f"searched in {used['sifted']:.0f} ms; "
        f"for both the page worked {browser.work_ms():.0f} ms"
    )
    assert used["shown"] == 1

    choose(browser, "text", "")
    browser.until(lambda: len(browser.run(SHOWN)) == PER_PAGE)
    browser.run(WATCH)
    seen = browser.run(SHOWN)[50]
    began = time.monotonic()
    place.ledger.record_state(seen, State.RUNNING)
    browser.see("running", f'#migrations tr[data-id="{seen}"] .cell-state')
    print(f"a change was seen after {1000 * (time.monotonic() - began):.0f} ms")
    assert browser.run("return [...window.touched]") == [seen]
    lines = "document.querySelectorAll('#migrations tbody tr')"
    same = f"return window.lines.every((line, place) => line === {lines}[place])"
    assert browser.run(same), "the lines are the same ones"

    place.ledger.record_step(seen, "source", StepRecord("dump", "alpha", time.time()))
    for crossed in range(0, 100_000_000, 1_000_000):
        place.ledger.record_progress(seen, bytes=crossed, total=100_000_000)
    browser.see("/s", f'#migrations tr[data-id="{seen}"] .cell-progress')
    assert browser.run("return [...window.touched]") == [seen]


def test_the_table_is_filtered_by_cards_states_hosts_and_time(place: Flower, opens: Opens) -> None:
    """By one filter and by several, which the address keeps; later rows are filtered too."""
    ids = place.fill(9)
    place.ledger.record_state(ids[4], State.IN_DOUBT)
    place.ledger.record_state(ids[0], State.REFUSED)
    browser = opens(place.door.base, LOGIN)
    browser.open("/migrations")
    browser.until(lambda: len(browser.run(SHOWN)) == 9)
    assert browser.run(COUNTS) == {"": 9, "waiting": 7, "stayed": 1, "operator": 1} | dict.fromkeys(
        ("moving", "arrived"), 0
    )
    leaves(browser, "state", "in doubt", [ids[4]])
    leaves(browser, "host", "alpha", [])  # it is between beta and gamma
    browser.see("No migration is like that", "#nothing")
    choose(browser, "state", "")
    browser.until(lambda: len(browser.run(SHOWN)) == 6)
    place.ledger.record_state(ids[5], State.IN_DOUBT)
    browser.click("[data-card=operator]")
    browser.until(lambda: browser.run(SHOWN) == [ids[5]])
    browser.open(browser.run("return location.pathname + location.search"))
    browser.until(lambda: browser.run(SHOWN) == [ids[5]])
    assert browser.text("[data-count='']") == "6", "the cards count what the other filters leave"
    browser.run("history.back()")
    browser.until(lambda: len(browser.run(SHOWN)) == 6)

    choose(browser, "range", "between")
    leaves(browser, "until", "2001-01-01T00:00", [])
    choose(browser, "until", "")
    choose(browser, "since", "2001-01-01T00:00")
    browser.until(lambda: len(browser.run(SHOWN)) == 6)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+",
        browser.text("#migrations .cell-asked"),
    )
    assert place.door.ask("/migrations?since=yesterday").code == 400


def test_ten_thousand_migrations_are_paged_by_the_server(place: Flower, opens: Opens) -> None:
    """A browser gets the rows of one page, whatever the number of all."""
    place.fill(TEN_THOUSAND)
    browser = opens(place.door.base, LOGIN)
    browser.open("/migrations")
    browser.see(f"1 to {PER_PAGE} of {TEN_THOUSAND}", "#shown")
    assert browser.text("[data-count=waiting]") == str(TEN_THOUSAND)
    first = browser.run(SHOWN)
    assert len(first) == PER_PAGE
    browser.click("#older")
    browser.see(f"{PER_PAGE + 1} to {2 * PER_PAGE} of", "#shown")
    assert not set(first) & set(browser.run(SHOWN))
    browser.run("history.back()")
    browser.until(lambda: browser.run(SHOWN) == first)
    browser.open(f"/migrations?page={TEN_THOUSAND // PER_PAGE}")
    browser.see(f" to {TEN_THOUSAND} of {TEN_THOUSAND}", "#shown")
    assert not browser.driver.find_element("id", "older").is_enabled()
    assert browser.complaints() == []


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


def leaves(browser: Browser, name: str, value: str, ids: list[str]) -> None:
    """Choose in one of the filters, and wait for the lines that are left."""
    choose(browser, name, value)
    browser.until(lambda: browser.run(SHOWN) == ids)


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


#: Returns the texts beside the commit line that its place covers.
COVERED = """
const line = document.querySelector('.timeline .commit line').getBoundingClientRect();
const texts = [...document.querySelectorAll('.timeline text')];
return texts.filter((text) => {
  const box = text.getBoundingClientRect();
  return box.left < line.right && box.right > line.left
    && box.top < line.bottom && box.bottom > line.top;
}).map((text) => text.textContent);
"""

#: Returns of all that scrolls sideways whether it is wider than its frame, and says so.
SCROLLS = """
return [...document.querySelectorAll('.scroll')].map((frame) => {
  const { overflowX, backgroundImage } = getComputedStyle(frame);
  return frame.scrollWidth > frame.clientWidth && overflowX === 'auto'
    && backgroundImage.includes('gradient') && frame.tabIndex === 0;
});
"""


def arrive(place: Flower, name: str) -> None:
    """Record a migration from alpha to beta that arrived, with a step at each end of the time."""
    began = time.time() - 100
    steps = [("examine", "alpha", 0, 1), ("reserve", "beta", 1, 1), ("dump", "alpha", 3, 6)]
    steps += [("copy_images", "alpha", 6, 6), ("restore", "beta", 6, 7), ("retire", "alpha", 7, 8)]
    for step, host, begin, end in steps:
        record = StepRecord(step, host, began + begin, began + end, "done")
        place.ledger.record_step(name, "source" if host == "alpha" else "destination", record)
    place.ledger.record_command(name, "/usr/sbin/nginx -g daemon")
    result = {"state": State.COMPLETED, "owner": "beta", "failure": None, "downtime_ms": 3500.0}
    freeze = {"began": began + 3.2, "ended": began + 6.7}
    place.ledger.close(name, result | {"freeze": freeze})


def test_no_label_of_the_timeline_is_on_the_line_of_the_commit(place: Flower, opens: Opens) -> None:
    """However narrow the window is; the head names the program and its downtime."""
    (name,) = place.fill(1)
    arrive(place, name)
    browser = opens(place.door.base, LOGIN)
    browser.open(f"/migrations/migration/{name}")
    for wide in (400, 760, 1400):
        browser.resize(wide)
        browser.see("committed", ".timeline")
        assert browser.run(COVERED) == []
    assert browser.text("h1") == "nginx -g daemon (pid 1000): alpha → beta"
    assert browser.text("#downtime") == "3500 ms"


MISSING = {
    "/migrations/migration/ffffffff": "The ledger knows no migration ffffffff.",
    "/migrations/batch/nothing": "There is no batch nothing.",
    "/migrations/host/nowhere": "There is no host nowhere.",
    "/migrations/docs/nothing.md": "The documentation has no page nothing.md.",
    "/migrations/nothing/at/all": "Nothing is at this address.",
    "/nothing": "Nothing is at this address.",
}


def test_what_is_not_there_is_a_page_too(place: Flower, opens: Opens) -> None:
    """With the navigation, a way on, and the status 404."""
    browser = opens(place.door.base, LOGIN)
    for path, why in MISSING.items():
        assert place.door.ask(path).code == 404
        browser.open(path)
        assert why in browser.text("#missing")
        assert "All migrations" in browser.text("#missing a")
        assert "Migrations" in browser.text("nav")


def test_pages_fit_a_narrow_window_in_both_colours(place: Flower, opens: Opens) -> None:
    """Nothing is wider than the window, tables scroll; a dark page has a dark background."""
    (name,) = place.fill(1)
    arrive(place, name)
    announce(place)
    browser = opens(place.door.base, LOGIN)
    for path in ("/migrations", f"/migrations/migration/{name}", "/migrations/host/alpha"):
        for dark in (False, True):
            browser.resize(390)
            browser.look(dark=dark)
            browser.open(path)
            browser.see("alpha", "#sojourn")
            assert browser.run("return document.documentElement.scrollWidth") <= 390, path
            assert all(browser.run(SCROLLS)), path
            colour = browser.run(
                "return getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]"
            )
            assert (int(colour) < 60) is dark
