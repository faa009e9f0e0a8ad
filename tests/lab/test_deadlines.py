"""What hangs is ended, what it held is given back, and the process runs on where it was."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lab import workload
from lab.host import Host, within
from lab.workload import Workload
from tests.lab.site import Ended, Site, left_behind, runs_on

pytestmark = pytest.mark.lab

FAILPOINTS = "/var/lib/sojourn/failpoints"


@pytest.fixture
def counter(site: Site) -> Workload:
    """Return a small process on alpha, so that nothing takes long but what a test makes hang."""
    counter = workload.start(site.host("alpha"), "counter", mb=16)
    counter.wait_for_beats()
    return counter


def meanwhile(act: Callable[[], object], migrate: Callable[[], Ended]) -> Ended:
    """Migrate, and do something else at the same time."""
    thread = threading.Thread(target=act)
    thread.start()
    ended = migrate()
    thread.join()
    return ended


def assert_given_back(site: Site, counter: Workload, ended: Ended, code: str) -> None:
    """Check that the process runs where it was, whole, and that nothing is left of the attempt."""
    assert ended.code == 11, ended.answer
    assert ended.answer["failure"]["code"] == code, ended.answer["failure"]
    alpha, beta = site.host("alpha"), site.host("beta")
    assert runs_on(alpha, counter)
    assert not runs_on(beta, counter)
    assert counter.wait_for_beats(20).details["damaged_slices"] == 0
    assert within(10, lambda: left_behind(alpha) == left_behind(beta) == [])
    alpha.run(["pkill", "-KILL", "-f", counter.file.name])


def test_a_dump_that_hangs(site: Site) -> None:
    """CRIU stalls in the middle of the memory: it is ended when the freeze has lasted too long."""
    counter = workload.start(site.host("alpha"), "counter", mb=256)
    counter.wait_for_beats()
    ended = meanwhile(
        lambda: site.host("alpha").run(["sh", "-c", _STOP_A_DUMP], deadline_s=60),
        lambda: site.migrate(counter.pid, "alpha", "beta", "--max-freeze", "3"),
    )
    assert_given_back(site, counter, ended, "FREEZE_TOO_LONG")


def test_a_restore_that_hangs(site: Site, counter: Workload) -> None:
    """CRIU waits for an answer: ``refused`` is written first, then both are ended."""
    beta = site.host("beta")
    arm(beta, "accepted.before")
    ended = site.migrate(counter.pid, "alpha", "beta", "--max-freeze", "5")
    disarm(beta)
    assert_given_back(site, counter, ended, "FREEZE_TOO_LONG")


def test_names_of_deleted_files(site: Site) -> None:
    """A restore that is ended leaves no names of deleted files, so that the next one succeeds."""
    alpha, beta = site.host("alpha"), site.host("beta")
    tree = workload.start(alpha, "tree", with_="deleted")
    tree.wait_for_beats()
    arm(beta, "accepted.before")
    ended = site.migrate(tree.pid, "alpha", "beta", "--max-freeze", "3")
    disarm(beta)
    assert ended.code == 11, ended.answer
    assert beta.run(["find", "/var/tmp", "-name", "*.ghost"]).stdout == ""
    assert site.migrate(tree.pid, "alpha", "beta").code == 0
    assert tree.wait_for_beats(20).details["errors"] == {}
    beta.run(["pkill", "-KILL", "-f", tree.file.name])


def test_a_step_that_hangs(site: Site, counter: Workload) -> None:
    """A step stalls while the tree is frozen: it is stopped, and the tree resumed."""
    alpha = site.host("alpha")
    arm(alpha, "copy_images.begin")
    ended = site.migrate(counter.pid, "alpha", "beta", "--max-freeze", "3")
    disarm(alpha)
    assert_given_back(site, counter, ended, "STEP_TIMED_OUT")


def test_a_limit_that_is_met(site: Site, counter: Workload) -> None:
    """The plan carries the limit with the migration; one that is not reached changes nothing."""
    ended = site.migrate(counter.pid, "alpha", "beta", "--max-freeze", "60")
    assert ended.code == 0, ended.answer
    site.host("beta").run(["pkill", "-KILL", "-f", counter.file.name])


@pytest.mark.parametrize("limit", ["0", "-1", "86401", "nan"])
def test_a_limit_that_makes_no_sense(site: Site, counter: Workload, limit: str) -> None:
    """One sentence, exit code 2, and nothing was touched."""
    ended = site.sojourn(
        "migrate", str(counter.pid), "--from", "alpha", "--to", "beta", "--max-freeze", limit
    )
    assert ended.returncode == 2
    assert "A freeze may last" in ended.stderr
    site.host("alpha").run(["pkill", "-KILL", "-f", counter.file.name])


def arm(host: Host, instant: str) -> None:
    """Arm the fail point, so that the next process to reach it pauses there."""
    host.run(
        ["sh", "-c", f"mkdir -p {FAILPOINTS}; rm -f {FAILPOINTS}/*; touch {FAILPOINTS}/{instant}"]
    )


def disarm(host: Host) -> None:
    """Remove all fail points, so that whatever pauses there continues."""
    host.run(["sh", "-c", f"rm -f {FAILPOINTS}/*"])


#: Stops the CRIU that dumps as soon as there is one.
_STOP_A_DUMP = "until pkill -STOP -f '[c]riu dump'; do :; done"
