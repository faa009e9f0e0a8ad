"""``sojourn show ID --profile`` after real migrations: where their freezes went."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from lab import workload
from lab.host import Host
from lab.workload import Workload
from tests.lab.site import Site, rolled_back
from tests.lab.test_migrate import end

pytestmark = pytest.mark.lab


@pytest.fixture
def counter(alpha: Host, beta: Host) -> Iterator[Workload]:
    """Start a process with some memory on alpha, and end it wherever it is."""
    started = workload.start(alpha, "counter", mb=32)
    started.wait_for_beats()
    yield started
    end(started, alpha, beta)


def profile_of(site: Site, migration: str, code: int = 0) -> dict[str, Any]:
    """Return the profile as JSON."""
    shown = site.sojourn("show", migration, "--profile", "--json")
    assert shown.returncode == code, shown.stderr + shown.stdout
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def covered_ms(spans: list[dict[str, Any]], begin: float, end: float) -> float:
    """Return how much of a time lies in any of these spans."""
    covered, at = 0.0, begin
    for span in sorted(spans, key=lambda span: float(span["begin_ms"])):
        covered += max(0.0, min(span["end_ms"], end) - max(span["begin_ms"], at))
        at = max(at, span["end_ms"])
    return covered


def assert_whole(found: dict[str, Any]) -> None:
    """Check that a profile adds up, and that nothing lies outside of the freeze or its parent."""
    spans = found["spans"]
    for span in spans:
        around = {"begin_ms": 0, "end_ms": found["freeze_ms"]}
        if span["parent"] is not None:
            around = spans[span["parent"]]
        assert around["begin_ms"] <= span["begin_ms"] < span["end_ms"] <= around["end_ms"], span
    assert abs(sum(found["sums_ms"].values()) - found["freeze_ms"]) < 0.1
    counted = [span for span in spans if span["kind"] not in ("beside", "waiting")]
    assert covered_ms(counted, 0, found["freeze_ms"]) <= found["freeze_ms"]
    assert {span["host"] for span in counted} == {"alpha", "beta"}


def test_where_the_freeze_went(site: Site, counter: Workload) -> None:
    """The profile is the downtime, divided: by the steps of both hosts, and by CRIU's own logs."""
    answer = site.migrate(counter.pid, "alpha", "beta").answer
    found = profile_of(site, answer["id"])
    assert_whole(found)
    assert (found["ending"], found["silent"]) == ("arrived", [])
    assert abs(found["freeze_ms"] - answer["downtime_ms"]) < 0.2
    assert found["sums_ms"]["unknown"] == 0
    spans = {span["name"]: span for span in found["spans"]}
    working = [span for span in found["spans"] if span["kind"] in ("criu", "sojourn")]
    waiting = found["sums_ms"]["waiting"]
    assert covered_ms(working, 0, found["freeze_ms"]) > 0.9 * (found["freeze_ms"] - waiting)
    for run in ("criu dump", "criu restore"):
        inside = [span for span in found["spans"] if span["parent"] == spans[run]["number"]]
        lasted = spans[run]["end_ms"] - spans[run]["begin_ms"]
        assert covered_ms(inside, spans[run]["begin_ms"], spans[run]["end_ms"]) > 0.9 * lasted
    assert spans["send memory"]["host"] == "alpha"
    assert spans["move mappings, read memory"]["host"] == "beta"
    assert spans["the commit"]["kind"] == "sojourn"
    assert spans["page server: receive memory"]["kind"] == "beside"
    assert found["figures"]["alpha"]["dump"]["pages_written"] > 32e6 / 4096
    assert found["figures"]["beta"]["restore"]["restore_us"] > 0
    # The hosts of a lab have one clock.
    clocks = found["clocks"]
    assert clocks["at_least_s"] < 0.05 < clocks["at_most_s"] + 0.06
    assert abs(clocks["ahead_s"]) < 0.05


def test_the_drawing_is_plain_text_without_a_terminal(site: Site, counter: Workload) -> None:
    """It has both hosts, the begin and the end of the freeze, sums, and what CRIU measured."""
    answer = site.migrate(counter.pid, "alpha", "beta").answer
    shown = site.sojourn("show", answer["id"][:8], "--profile")
    assert shown.returncode == 0, shown.stderr
    assert "\x1b" not in shown.stdout
    for part in ("alpha", "beta", "the freeze begins", "the freeze ends", "criu restore"):
        assert part in shown.stdout
    for part in ("CRIU's work", "Sojourn's work", "messages and waiting", "figures of the dump"):
        assert part in shown.stdout


def test_of_a_rolled_back_migration_it_shows_what_there_was(site: Site, counter: Workload) -> None:
    """The freeze ends where the original is woken on alpha."""
    ended = rolled_back(site, counter.pid)
    assert ended.code == 11, ended.answer
    found = profile_of(site, ended.answer["id"])
    assert_whole(found)
    assert found["ending"] == "woken"
    roots = [span["name"] for span in found["spans"] if span["parent"] is None]
    assert [name for name in roots if name in ("dump", "copy_images", "restore", "resume")] == [
        *("dump", "copy_images", "restore", "resume")
    ]
    assert "woken on alpha" in site.sojourn("show", ended.answer["id"], "--profile").stdout
    counter.wait_for_beats()


def test_a_host_that_does_not_answer(site: Site, counter: Workload, beta: Host) -> None:
    """The rest is shown, one line names the host, and the exit status is 14."""
    answer = site.migrate(counter.pid, "alpha", "beta").answer
    beta.service("worker", "stop")
    try:
        found = profile_of(site, answer["id"], code=14)
        shown = site.sojourn("show", answer["id"], "--profile")
    finally:
        site.restart_worker(beta)
    assert_whole(found)
    assert (found["silent"], found["ending"]) == (["beta"], "arrived")
    assert found["sums_ms"]["unknown"] > 0
    assert shown.returncode == 14
    assert "criu dump" in shown.stdout
    assert "beta does not answer" in shown.stderr


def test_without_a_freeze_there_is_no_profile(site: Site, alpha: Host) -> None:
    """An id that does not exist is the usual error; a refused migration was not frozen."""
    unknown = site.sojourn("show", "ffffffff", "--profile")
    assert unknown.returncode == 2
    assert "No migration has an id that begins with 'ffffffff'" in unknown.stderr
    refused = site.migrate(alpha.launch(["sleep", "0"]), "alpha", "beta")
    assert refused.code != 0
    assert profile_of(site, refused.answer["id"])["spans"] == []
    shown = site.sojourn("show", refused.answer["id"], "--profile")
    assert (shown.returncode, "Nothing shows" in shown.stdout) == (0, True)
