"""Who a host is: with an older journal, or under another one's name, no worker does anything."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from lab import workload
from lab.host import Host, within
from lab.workload import Workload
from tests.lab.site import Site, runs_on
from tests.lab.test_migrate import end

pytestmark = pytest.mark.lab

#: The journal of a host, and where tests put copies of it.
JOURNAL, COPY, NEWEST = "/var/lib/sojourn/journal.db", "/var/tmp/copy", "/var/tmp/newest"


@pytest.fixture
def counter(alpha: Host, beta: Host) -> Iterator[Workload]:
    """Start a process that moves to beta; end it afterwards."""
    started = workload.start(alpha, "counter", mb=8)
    yield started
    end(started, alpha, beta)


def keep(host: Host, place: str) -> None:
    """Copy a host's journal to a directory, whole, as a backup does."""
    copy = f"rm -rf {place}; mkdir {place}; cp {JOURNAL}* {place}/"
    host.run(["sh", "-c", copy])


def put_back(host: Host, place: str) -> None:
    """Put a copy in the place of a host's journal."""
    host.run(["sh", "-c", f"rm -f {JOURNAL}*; cp {place}/* /var/lib/sojourn/"])


def noted(host: Host) -> bool:
    """Whether the worker has noted how far the journal is now."""
    note = json.loads(host.run(["cat", "/run/sojourn/journal.json"]).stdout)
    number = "import sqlite3; print(*sqlite3.connect('%s').execute('SELECT number FROM host'))"
    found = host.run(["python3", "-c", number % JOURNAL]).stdout
    return found.strip() == f"({note['number']},)"


def ended_as(site: Site, migration: str) -> str:
    """Return the state of a migration."""
    return str(json.loads(site.sojourn("show", migration, "--json").stdout)["state"])


def diagnosis(host: Host) -> str:
    """Return what the doctor finds wrong with a host's journal."""
    found = json.loads(host.run(["sojourn", "doctor", "--json"], check=False).stdout)
    (finding,) = [each for each in found["findings"] if each["check"] == "journal"]
    assert finding["level"] == "failure"
    return str(finding["sentence"])


def test_a_journal_from_a_backup(site: Site, alpha: Host, beta: Host, counter: Workload) -> None:
    """By it beta would refuse the process that runs there, and end it."""
    ended = site.migrate_meanwhile(counter.pid, (beta, "page_server.end"), lambda: keep(beta, COPY))
    assert ended.code == 0, ended.answer
    assert within(30, lambda: noted(beta))
    beta.service("worker", "stop")
    keep(beta, NEWEST)
    put_back(beta, COPY)
    try:
        beta.service("worker", "start")
        assert within(30, lambda: "it is an older copy" in beta.log("worker")), beta.log("worker")
        assert "phases that beta has recorded" in beta.log("worker")
        assert not site.answers(beta)
        assert "older copy" in diagnosis(beta)
        counter.wait_for_beats()
        assert runs_on(beta, counter)
    finally:
        beta.service("worker", "stop")
        put_back(beta, NEWEST)
        site.restart_worker(beta)
    counter.wait_for_beats()
    assert runs_on(beta, counter)


def test_a_journal_that_was_removed(site: Site, alpha: Host, beta: Host, counter: Workload) -> None:
    """A destination without its record of what it had prepared gives no verdict."""

    def remove() -> None:
        beta.service("worker", "stop")
        keep(beta, NEWEST)
        beta.run(["sh", "-c", f"rm -f {JOURNAL}*"])
        site.restart_worker(beta)

    try:
        ended = site.migrate_meanwhile(counter.pid, (alpha, "copy_images.end"), remove)
        assert ended.code == 12, ended.answer
        assert "its journal was removed, or is an older copy" in str(ended.answer)
        assert not runs_on(alpha, counter)
    finally:
        beta.service("worker", "stop")
        put_back(beta, NEWEST)
        site.restart_worker(beta)
    # By the journal that is back beta decides, one way or the other.
    assert within(60, lambda: runs_on(alpha, counter) or runs_on(beta, counter))
    assert within(30, lambda: ended_as(site, ended.answer["id"]) in {"completed", "rolled back"})
    counter.wait_for_beats()
    assert runs_on(alpha, counter) is not runs_on(beta, counter)


def test_two_machines_of_one_name(site: Site, alpha: Host, beta: Host) -> None:
    """The second one does not start; its sentence names both."""
    addresses = [host.run(["hostname", "-I"]).stdout.split()[0] for host in (alpha, beta)]
    places = ["SOJOURN_STATE_DIR=/var/lib/other", "SOJOURN_RUNTIME_DIR=/run/other"]
    second = alpha.run(["env", *places, "sojourn", "worker", "--host", "beta"], check=False)
    assert second.returncode == 1
    assert "Two machines have the name beta" in second.stderr
    assert all(address in second.stderr for address in addresses)
    assert site.answers(beta)


def test_a_damaged_journal(site: Site, beta: Host) -> None:
    """It is one sentence, with what to do."""
    keep(beta, NEWEST)
    beta.service("worker", "stop")
    try:
        beta.run(["sh", "-c", f"rm -f {JOURNAL}-*; echo damaged > {JOURNAL}"])
        started = beta.run(["sojourn", "worker"], check=False)
        assert started.returncode == 1
        assert "The journal of this host failed: file is not a database." in started.stderr
        assert "Traceback" not in started.stderr
        assert "file is not a database" in diagnosis(beta)
    finally:
        put_back(beta, NEWEST)
        site.restart_worker(beta)
