"""Flower's pages as an operator sees them: a real lab, real migrations, a real browser."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import workload
from lab.host import within
from lab.lab import Lab
from lab.plan import FLOWER_USER
from lab.workload import Workload
from sojourn.cluster.ledger import Ledger
from sojourn.cluster.registry import Registry
from sojourn.cluster.store import Store
from tests.browser.conftest import Opens
from tests.browser.site import Browser
from tests.conftest import eventually
from tests.integration.door import Door
from tests.lab.site import FAILPOINTS, Site, redis_tls, require_lab, runs_on

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]

#: One migration at a time leaves a host, so that a second one waits and its page shows that.
SETTINGS = {"reconcile_s": 0.5, "announce_s": 0.5, "max_outgoing": 1, "stall_s": 30}

TABLE = "/migrations"
GUIDE = "/docs/how-to/recover-from-in-doubt.md"


@dataclass
class Place:
    """The lab and its Flower."""

    site: Site
    door: Door
    login: str

    @property
    def lab(self) -> Lab:
        """The lab."""
        return self.site.lab

    @property
    def store(self) -> Store:
        """The lab's Redis."""
        return Store(self.lab.plan.redis_url, redis_tls(self.lab))

    def counter(self, host: str = "alpha") -> Workload:
        """Start a process that can be moved."""
        return workload.start(self.lab.host(host), "counter", mb=32, beat_ms=50)

    def migrate(
        self, pid: int, *options: str, source: str = "alpha", destination: str = "beta"
    ) -> str:
        """Ask for a migration; return its id."""
        asked = self.site.sojourn(
            "migrate", str(pid), "--from", source, "--to", destination, "--detach", *options
        )
        assert asked.returncode == 0, asked.stderr
        return asked.stdout.strip()

    def stop_at(self, host: str, instant: str) -> None:
        """Let the next migration stop at an instant."""
        self.lab.host(host).run(
            ["sh", "-c", f"mkdir -p {FAILPOINTS}; touch {FAILPOINTS}/{instant}"]
        )

    def stands(self, host: str, instant: str) -> None:
        """Wait until a migration has stopped there."""
        reached = ["test", "-e", f"{FAILPOINTS}/{instant}.reached"]
        assert within(30, lambda: self.lab.host(host).run(reached, check=False).returncode == 0)

    def go_on(self, host: str, *, stop_again_at: str = "") -> None:
        """Let it go on, and perhaps the next one stop."""
        again = f"touch {FAILPOINTS}/{stop_again_at};" if stop_again_at else ""
        self.lab.host(host).run(["sh", "-c", f"{again} rm -f {FAILPOINTS}/*.reached"])


@pytest.fixture(scope="module")
def made(chromium: None) -> Iterator[Place]:
    """Two hosts with their workers, and the hub with its Flower."""
    require_lab()
    lab = Lab("browser")
    lab.down()
    lab.up(2, settings=SETTINGS, encrypted=True)
    login = f"{FLOWER_USER}:{lab.plan.flower_password}"
    place = Place(Site(lab), Door(lab.plan.flower_url, login), login)
    try:
        eventually(place.door.answers, within_s=60)
        yield place
    finally:
        lab.down()


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    """Return the place, and remove afterwards what a test has left."""
    yield made
    for name in ("alpha", "beta"):
        made.lab.host(name).run(
            ["sh", "-c", f"rm -rf {FAILPOINTS}; pkill -KILL -f '[/]shared/' || true"]
        )
        Registry(made.store).uncordon(name)
    open_ones = Ledger(made.store, 3600)
    eventually(lambda: all(account.state.final for account in open_ones.latest(20)), within_s=60)


@pytest.fixture
def browser(place: Place, opens: Opens) -> Browser:
    """Return a browser that has logged in."""
    return opens(place.lab.plan.flower_url, place.login)


def cell(migration: str, field: str) -> str:
    """Return the selector of one cell of the table."""
    return f'#migrations tr[data-id="{migration}"] .cell-{field}'


def confirm(browser: Browser, button: str, typed: str = "", also: str = "") -> None:
    """Press a button, type what it asks for, set a check box, and confirm."""
    browser.click(button)
    browser.until(lambda: browser.run("return document.getElementById('dialog').open"))
    if typed:
        browser.type("#dialog [name=typed]", typed)
    if also:
        browser.click(f"#dialog [name={also}]")
    browser.click("#dialog-yes")


def test_a_migration_is_seen_from_queued_to_completed_without_loading_the_page_again(
    place: Place, browser: Browser, pictures: Path
) -> None:
    """Two migrations from a host that lets one out at a time: the second waits, then arrives."""
    counters = [place.counter(), place.counter()]
    browser.open(TABLE)
    browser.see("Live", "#live-state")
    browser.run("window.sameDocument = true")
    place.stop_at("alpha", "dump.begin")
    first = place.migrate(counters[0].pid)
    place.stands("alpha", "dump.begin")
    second = place.migrate(counters[1].pid)

    browser.see("queued", cell(second, "state"))
    browser.see("running", cell(first, "state"))
    browser.see("dump on alpha", cell(first, "progress"))
    place.go_on("alpha", stop_again_at="dump.begin")
    browser.see("completed", cell(first, "state"))
    browser.see("running", cell(second, "state"))
    browser.see("dump on alpha", cell(second, "progress"))
    bar = f"document.querySelector('{cell(second, 'progress')} progress')"
    assert 0 < int(browser.run(f"return {bar}.value")) < 100
    browser.shoot(pictures / "migrations.png", high=620)
    place.go_on("alpha")
    browser.see("completed", cell(second, "state"))
    assert browser.text(cell(second, "owner")) == "beta"
    assert browser.run("return window.sameDocument"), "the page was loaded again"
    assert browser.complaints() == []


def test_the_page_of_a_migration_draws_its_steps_the_freeze_and_the_commit(
    place: Place, browser: Browser, pictures: Path
) -> None:
    """It is open from the first step on; at the end it links to tasks and shows both logs."""
    place.stop_at("beta", "preflight.begin")
    counter = place.counter()
    migration = place.migrate(counter.pid)
    place.stands("beta", "preflight.begin")
    browser.open(f"/migrations/migration/{migration}")
    browser.see("running", "#state")
    browser.see("preflight", ".timeline")
    place.go_on("beta")
    browser.see("completed", "#state")
    browser.see("The process runs on beta.", ".head")
    assert re.search(r"counter.* \(pid \d+\): alpha → beta", browser.text("h1"))
    assert re.fullmatch(r"\d+ ms", browser.text("#downtime"))
    browser.see("committed", ".timeline")
    titles = "[...document.querySelectorAll('.timeline .bar title')]"
    steps = browser.run(f"return {titles}.map((title) => title.textContent)")
    assert {step.split()[0] for step in steps} >= {
        "examine",
        "dump",
        "copy_images",
        "restore",
        "retire",
        "release",
    }
    freeze = "document.querySelector('.timeline .freeze')"
    assert browser.run(f"return {freeze}.getBoundingClientRect().width") > 5
    assert "MB/s" in browser.text(".facts")
    browser.wait("return document.querySelectorAll('.steps td:last-child a').length >= 9")
    browser.click("#logs summary")
    for log in ("dump.log", "restore.log"):
        browser.see(log, "#logs")
    browser.click(".steps td:last-child a")
    browser.see(f"pid {counter.pid} from alpha to beta; migration {migration}", "#task-page")

    back = place.migrate(counter.pid, source="beta", destination="alpha")
    browser.open(f"/migrations/migration/{back}")
    browser.see("completed", "#state")
    browser.wait("return document.querySelectorAll('.steps td:last-child a').length >= 9")
    browser.shoot(pictures / "migration.png", high=900)


def test_a_migration_that_failed_shows_why_and_what_to_do(place: Place, browser: Browser) -> None:
    """The freeze may not last long enough: it shows code, sentence, hint, and the owner."""
    counter = place.counter()
    migration = place.migrate(counter.pid, "--max-freeze", "0.001")
    browser.open(f"/migrations/migration/{migration}")
    browser.see("rolled back", "#state")
    browser.see("Allow more with `--max-freeze`", "#failure .hint")
    browser.see("The process runs on alpha.", ".head")
    assert runs_on(place.lab.host("alpha"), counter)
    assert "Abort" not in browser.text(".head"), "there is nothing left to abort"


def test_a_button_aborts_a_migration(place: Place, browser: Browser) -> None:
    """The same as the command: the process stays, and the ledger names the operator."""
    counter = place.counter()
    place.stop_at("beta", "page_server.begin")
    migration = place.migrate(counter.pid)
    place.stands("beta", "page_server.begin")
    browser.open(f"/migrations/migration/{migration}")
    browser.click("#abort")
    browser.click("#dialog [value=no]")
    assert browser.text("#state") == "running", "not confirmed"
    confirm(browser, "#abort")
    browser.see("reclaim", ".steps")
    place.go_on("beta")
    browser.see("aborted. The process runs on alpha.", "#answer")
    browser.see("aborted", "#state")
    browser.see(f"Aborted by {FLOWER_USER} in Flower", "#failure")
    assert runs_on(place.lab.host("alpha"), counter)


def row_of(counter: Workload) -> str:
    """Return the selector of a process in the list of its host's page."""
    return f'#processes tr[data-pid="{counter.pid}"]'


def test_a_process_is_checked_and_migrated_from_its_hosts_page(
    place: Place, browser: Browser
) -> None:
    """Preflight's verdict on both hosts stands beside it; the dialogue checks other options too."""
    counter = place.counter()
    alpha, beta = place.lab.host("alpha"), place.lab.host("beta")
    server = workload.start(alpha, "tcp_server", address=alpha.address)
    workload.start(beta, "tcp_client", address=alpha.address).wait_for_beats()
    browser.open("/migrations/host/alpha")
    browser.see("can be migrated", f"{row_of(counter)} .verdict")
    assert "counter" in browser.text(row_of(counter))
    browser.see("cannot be migrated", f"{row_of(server)} .verdict")
    browser.click(f"{row_of(server)} button")
    browser.see("TCP_ESTABLISHED", "#dialog-findings")
    browser.click("#dialog-options [name=tcp_established]")
    browser.until(lambda: "TCP_ESTABLISHED" not in browser.text("#dialog-findings"))
    browser.see("ADDRESS_MISSING on beta", "#dialog-findings")
    browser.click("#dialog [value=no]")

    browser.click(f"{row_of(counter)} button")
    browser.see("can be migrated", "#dialog-findings")
    browser.run("document.querySelector('#dialog-options [name=mode]').value = 'post-copy'")
    browser.click("#dialog-yes")
    browser.see(f"Requested: pid {counter.pid} from alpha to beta.", "#answer")
    browser.click("#answer a")
    browser.see("completed", "#state")
    browser.see("post-copy", ".facts")
    assert runs_on(beta, counter)
    assert browser.complaints() == []


def test_a_host_is_cordoned_and_drained_by_buttons(
    place: Place, browser: Browser, pictures: Path
) -> None:
    """A cordon is shown at once; a drain asks for the host's name and links to its batch."""
    counters = [place.counter("beta"), place.counter("beta")]
    stays = workload.start(place.lab.host("beta"), "tree")
    browser.open("/migrations/host/alpha")
    confirm(browser, "#cordon")
    browser.see("alpha is cordoned", "#answer")
    browser.see("cordoned", "#state")
    confirm(browser, "#uncordon")
    browser.see("up", "#state")
    browser.open("/migrations/host/beta")
    browser.see("Memory free", ".facts")
    browser.see("until 20", ".facts")  # its certificate
    browser.click("#drain")
    assert not browser.driver.find_element("id", "dialog-yes").is_enabled(), (
        "its name was not typed"
    )
    browser.run("document.querySelector('#dialog-options [name=bandwidth_mbit]').value = 4000")
    browser.type("#dialog [name=typed]", "beta")
    browser.type("#dialog-options [name=skip]", "command=tree")
    browser.click("#dialog-yes")
    browser.see("2 migrations are queued", "#answer", within_s=60)
    browser.click("#answer a")
    browser.see("finished", "#state", within_s=90)
    browser.see("Drain of beta", "h1")
    browser.see("counter", "[data-part=lines]")
    browser.see(f"pid {stays.pid}", "[data-part=stays]")
    assert "state-good" in browser.run("return document.getElementById('state').className")
    browser.see("2 completed", ".counts")
    browser.shoot(pictures / "batch.png", high=620)
    assert all(runs_on(place.lab.host("alpha"), counter) for counter in counters)
    browser.click(".steps a")
    browser.see("at most 4000 Mbit/s", ".facts")
    browser.open("/migrations/host/beta")
    browser.see("cordoned", "#state")
    browser.see("the worker cannot migrate itself", "#processes")
    Registry(place.store).uncordon("beta")
    browser.open("/migrations/host/alpha")
    browser.see("can be migrated", f"{row_of(counters[0])} .verdict")
    browser.see("can be migrated", f"{row_of(counters[1])} .verdict")
    browser.shoot(pictures / "host.png", high=960)
    assert browser.complaints() == []


def test_a_batch_is_paused_and_goes_on_by_buttons(place: Place, browser: Browser) -> None:
    """One of two is under way when the batch is paused: it ends, the other waits for the resume."""
    counters = [place.counter(), place.counter()]
    place.stop_at("alpha", "dump.begin")
    browser.open("/migrations/host/alpha")
    confirm(browser, "#drain", typed="alpha")
    browser.see("2 migrations are queued", "#answer")
    browser.click("#answer a")
    place.stands("alpha", "dump.begin")
    confirm(browser, "[data-action$='/pause']")
    browser.see("paused", "#state")
    place.go_on("alpha")
    browser.see("1 of 2 have ended", ".head")
    browser.see("1 completed", ".counts")
    browser.see("queued", ".steps")
    confirm(browser, "[data-action$='/resume']")
    browser.see("finished", "#state")
    browser.see("2 completed", ".counts")
    assert all(runs_on(place.lab.host("beta"), counter) for counter in counters)
    assert browser.complaints() == []


def test_a_decision_on_a_dead_host_by_button_ends_the_doubt(place: Place, browser: Browser) -> None:
    """The host's name must be typed. The process runs on its source; the page names who decided."""
    counter = place.counter()
    place.stop_at("alpha", "copy_images.end")
    migration = place.migrate(counter.pid)
    place.stands("alpha", "copy_images.end")
    place.lab.crash("beta")
    try:
        place.go_on("alpha")
        browser.open(f"/migrations/migration/{migration}")
        confirm(browser, "#abort")
        browser.see("in doubt", "#state")
        browser.see("does not answer", "#answer")
        browser.see("beta is silent since 20", "#doubt")
        browser.see("Risk:", "#doubt li .risk")
        browser.see("so far", ".timeline .freeze-label")
        assert browser.run("return document.getElementById('how-to').pathname").endswith(GUIDE)
        browser.click("[data-gone=destination]")
        assert not browser.driver.find_element("id", "dialog-yes").is_enabled(), (
            "its name was not typed"
        )
        browser.click("#dialog [value=no]")
        assert not runs_on(place.lab.host("alpha"), counter), "not confirmed"
        confirm(browser, "[data-gone=destination]", typed="beta")
        browser.see("that host answered", "#answer")
        confirm(browser, "[data-gone=destination]", typed="beta", also="force")
        browser.see("The process runs on alpha.", "#answer")
        browser.see(f"{FLOWER_USER} in Flower declared beta, the destination, dead", ".head")
        assert runs_on(place.lab.host("alpha"), counter)
        browser.until(lambda: not browser.text("#doubt"))
    finally:
        beta = place.site.host("beta")
    eventually(lambda: place.site.answers(beta), within_s=60)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/tasks",
        "/api/tasks",
        "/migrations",
        "/migrations/live",
        "/migrations/host/alpha",
        "/migrations/host/alpha/live",
    ],
)
def test_nothing_is_shown_without_a_login(place: Place, path: str) -> None:
    """Pages, streams and the API ask for it first."""
    assert place.door.ask(path, login=False).code == 401
    wrong = Door(place.door.base, f"{FLOWER_USER}:wrong")
    assert wrong.ask(path).code == 401


def test_nothing_can_be_done_without_a_login(place: Place) -> None:
    """Not even with our token."""
    answer = place.door.ask(
        "/migrations/host/alpha/cordon", {}, login=False, headers=place.door.token()
    )
    assert answer.code == 401
    assert not Registry(place.store).is_cordoned("alpha")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"X-XSRFToken": "wrong"},
        {"X-XSRFToken": ""},
        {"Cookie": ""},
    ],
    ids=str,
)
def test_a_button_pressed_by_another_site_does_nothing(
    place: Place, headers: dict[str, str]
) -> None:
    """A browser sends the password by itself; the origin and the token show whose page it was."""
    button = "/migrations/host/alpha/cordon"
    assert place.door.ask(button, {}, headers=place.door.token() | headers).code == 403
    assert not Registry(place.store).is_cordoned("alpha")
    assert place.door.ask(button, {}, headers=place.door.token()).code == 200, (
        "as our own page does"
    )
    assert Registry(place.store).is_cordoned("alpha")


def test_a_form_on_another_site_is_refused_in_a_browser_that_is_logged_in(
    place: Place, browser: Browser, tmp_path: Path
) -> None:
    """A page elsewhere submits its form to our button as soon as it is opened."""
    target = f"{place.door.base}/migrations/host/alpha/cordon"
    (tmp_path / "evil.html").write_text(
        f'<form method="post" action="{target}"></form><script>document.forms[0].submit()</script>'
    )
    quiet = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser.driver.get(f"http://127.0.0.1:{server.server_port}/evil.html")
        browser.see("request forbidden")
        server.shutdown()
    assert not Registry(place.store).is_cordoned("alpha")


def test_flowers_own_pages_show_workers_queues_and_tasks_and_no_secret(
    place: Place, browser: Browser
) -> None:
    """Both lanes of both hosts, their queues, readable tasks; no keys, passwords or addresses."""
    counter = place.counter()
    place.site.migrate(counter.pid, "alpha", "beta")
    browser.open("/tasks")
    browser.see(f"pid {counter.pid} from alpha to beta", "#tasks-table")
    browser.see("sojourn.restore", "#tasks-table")
    queues = {"alpha", "alpha.frozen", "beta", "beta.frozen", place.site.shared_queue}
    eventually(
        lambda: queues <= set(re.findall(r"[a-z.0-9-]+", place.door.ask("/broker").text)),
        within_s=90,
    )
    paths = ["/", "/tasks", "/broker", "/api/tasks?limit=1000", "/api/workers?refresh=1"]
    pages = [place.door.ask(path) for path in [*paths, "/worker/main@alpha", "/worker/frozen@beta"]]
    assert {page.code for page in pages} == {200}
    for page in pages:
        for secret in (
            place.lab.plan.key,
            place.lab.plan.password,
            place.lab.plan.flower_password,
            " at 0x",
        ):
            assert secret not in page.text
    assert '"sojourn.copy_images"' in pages[3].text, "each step is a task by its own name"
    assert "/usr/bin/python3" not in pages[3].text, (
        "command lines may hold secrets of the processes"
    )


def test_flower_itself_cannot_be_used_to_send_or_end_a_step(place: Place) -> None:
    """Its API and its buttons are read-only."""
    for path in (
        "/api/task/async-apply/sojourn.release",
        "/api/task/send-task/sojourn.release",
        "/api/worker/shutdown/main@alpha",
    ):
        assert place.door.ask(path, {}).code == 403


def test_the_history_of_tasks_outlives_flower(place: Place) -> None:
    """It is written when Flower ends, and there when it comes back."""
    place.site.migrate(place.counter().pid, "alpha", "beta")
    eventually(lambda: "sojourn.restore" in place.door.ask("/api/tasks?limit=1000").text)
    hub = place.lab.host("hub")
    hub.service("flower", "restart")
    eventually(place.door.answers, within_s=60)
    assert "sojourn.restore" in place.door.ask("/api/tasks?limit=1000").text
    assert hub.run(["stat", "-c", "%a", "/var/lib/sojourn/flower"]).stdout.strip() == "700"
