"""CRIU is killed in the middle of a restore; ``sojourn.criu.restored`` must see what is left."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab import workload
from lab.host import Host, within
from lab.workload import Workload
from tests.lab.site import Site, killed_at_write

pytestmark = pytest.mark.lab

HOST_PYTHON = "/opt/sojourn/bin/python3"
PLACE = "/tmp/death"
COMMON = f"--no-default-config --manage-cgroups=ignore -v4 --images-dir {PLACE} --work-dir {PLACE}"

#: Waits in the action ``$MOMENT`` until the file ``go`` exists.
SCRIPT = f"""#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = "$MOMENT" ] || exit 0
touch {PLACE}/reached
while [ ! -e {PLACE}/go ]; do sleep 0.005; done
"""

LOOK = """
import json, sys
from pathlib import Path
from sojourn.criu import restored
pids, began, occupied, times, log = json.load(sys.stdin)
states = [restored.state(pids, began, occupied) for _ in range(times)]
release, members = restored.release(Path(log)), len(restored.members(pids, began))
print(json.dumps({"states": states, "release": release, "members": members}))
"""


@dataclass
class Death:
    """A tree that was dumped on a host, and a restore of it that is killed."""

    host: Host
    workload: Workload
    pids: list[int]
    began: int = 0
    criu: int = 0

    def dump(self) -> None:
        """Dump the tree and kill it, but not in the middle of a report.

        The next run would remove the new file of that report.
        """
        self._dump()
        while list(self.workload.file.parent.glob("*.new")):
            self.host.run(
                ["sh", "-c", f"criu restore --restore-detached {COMMON} --log-file restore.log"]
            )
            self._dump()

    def _dump(self) -> None:
        self.host.run(["rm", "-rf", PLACE])
        self.host.run(["mkdir", PLACE])
        self.host.run(["sh", "-c", f"cat > {PLACE}/script; chmod +x {PLACE}/script"], stdin=SCRIPT)
        self.host.run(
            ["sh", "-c", f"criu dump --tree {self.workload.pid} {COMMON} --log-file dump.log"]
        )
        assert within(
            5,
            lambda: not self.host.run(["pgrep", "-f", self.workload.file.name], check=False).stdout,
        )

    def restore(self, moment: str) -> None:
        """Restore the tree up to a moment, in which the action script waits."""
        uptime = self.host.run(["cat", "/proc/uptime"]).stdout.split()[0]
        self.began = int(float(uptime) * 100)
        criu = (
            f"criu restore --restore-detached --action-script {PLACE}/script {COMMON} "
            "--log-file restore.log"
        )
        self.host.run(["rm", "-f", f"{PLACE}/go", f"{PLACE}/reached"])
        command = f"MOMENT={moment} setsid {criu} > /dev/null 2>&1 & echo $!"
        self.criu = int(self.host.run(["sh", "-c", command]).stdout)
        assert within(10, lambda: self.has("reached")), self.host.run(
            ["tail", "-n5", f"{PLACE}/restore.log"]
        ).stdout

    def has(self, name: str) -> bool:
        """Whether a file exists in the directory of the images."""
        return self.host.run(["test", "-e", f"{PLACE}/{name}"], check=False).returncode == 0

    def kill_criu(self) -> None:
        """Kill only CRIU, then let the script end."""
        self.host.run(["kill", "-KILL", str(self.criu)])
        self.host.run(["touch", f"{PLACE}/go"])
        time.sleep(0.3)

    def look(
        self, times: int = 1, began: int | None = None, occupied: tuple[int, ...] = ()
    ) -> dict[str, Any]:
        """Return what ``sojourn.criu.restored`` reports inside the host."""
        question = (
            self.pids,
            self.began if began is None else began,
            occupied,
            times,
            f"{PLACE}/restore.log",
        )
        done = self.host.run([HOST_PYTHON, "-c", LOOK], stdin=json.dumps(question))
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def beats(self, seconds: float = 0.5) -> int:
        """Return how many beats the tree does in some time."""
        before = self.workload.status().counter
        time.sleep(seconds)
        return self.workload.status().counter - before

    def end(self) -> None:
        """Kill CRIU and the tree, and wait until they are reaped: a restore needs the PIDs."""
        everything = [str(pid) for pid in (self.criu, *self.pids) if pid]
        self.host.run(["kill", "-KILL", *everything], check=False)
        # A killed restore leaves the names that it gave to deleted files, and the next one fails
        # where they exist.
        self.host.run(["sh", "-c", "rm -f /var/tmp/*.ghost"])
        assert within(
            10,
            lambda: self.host.run(["ps", "-p", ",".join(everything)], check=False).returncode != 0,
        )


@pytest.fixture(params=["counter", "tree"])
def death(site: Site, request: pytest.FixtureRequest) -> Iterator[Death]:
    """Return a dumped tree of one process, and one of three with threads."""
    host = site.host("alpha")
    # Without growing files: the same images are restored again and again, and CRIU refuses a file
    # whose size is not that of the dump.
    options = {"with_": "pipes,socketpair,shm,threads"} if request.param == "tree" else {}
    started = workload.start(host, request.param, **options)
    started.wait_for_beats()
    below = host.run(["pgrep", "-P", str(started.pid)], check=False).stdout.split()
    made = Death(host, started, [started.pid, *map(int, below)])
    made.dump()
    yield made
    made.end()


def test_killed_before_the_tree_may_run(death: Death) -> None:
    """The tree stays in CRIU's restorer whatever signal it gets; killed, it is gone for good."""
    death.restore("post-restore")
    death.kill_criu()
    death.host.run(["kill", "-CONT", *map(str, death.pids)])
    assert death.beats(2) == 0
    assert death.look() == {"states": ["stuck"], "release": "not begun", "members": len(death.pids)}
    death.host.run(["kill", "-TERM", *map(str, death.pids)])
    assert death.look()["states"] == ["stuck"]
    death.host.run(["kill", "-KILL", str(death.pids[-1])])
    assert within(
        5, lambda: death.look()["states"] == (["stuck"] if len(death.pids) > 1 else ["gone"])
    )
    death.end()
    assert death.look() == {"states": ["gone"], "release": "not begun", "members": 0}


@pytest.mark.parametrize(
    ("moment", "release"), [("pre-resume", "unfinished"), ("post-resume", "done")]
)
def test_killed_when_the_tree_has_left_the_restorer(
    death: Death, moment: str, release: str
) -> None:
    """The tree runs on as if nothing had happened, and never looks like one that has never run."""
    death.restore(moment)
    death.kill_criu()
    assert death.beats() > 10
    answer = death.look(times=300)
    assert (answer["release"], answer["members"]) == (release, len(death.pids))
    assert "stuck" not in answer["states"]
    assert "gone" not in answer["states"]
    assert answer["states"].count("running") > 200


def test_a_tree_that_lost_a_part_is_unclear(death: Death) -> None:
    """If one process runs and another is gone, nothing shows from outside what was intended."""
    death.restore("post-resume")
    death.kill_criu()
    death.host.run(["kill", "-KILL", str(death.pids[-1])])
    expected = "unclear" if len(death.pids) > 1 else "gone"
    assert within(5, lambda: death.look()["states"] == [expected])
    assert death.look()["release"] == "done"


def test_strangers_are_never_the_tree(death: Death) -> None:
    """A process that began before the restore, or had the PID before, is not part of the tree."""
    death.restore("post-restore")
    death.kill_criu()
    later = death.began + 100 * 3600
    assert death.look(began=later)["states"] == ["gone"]
    assert death.look(occupied=tuple(death.pids))["states"] == ["gone"]


def test_killed_at_any_instant(death: Death) -> None:
    """A tree reported as stuck does not beat and never has; one reported as running does."""
    for _ in range(8):
        death.restore("post-restore")
        beats = death.workload.status().counter
        pause = f"sleep {random.uniform(0, 0.03):.4f}"
        death.host.run(["sh", "-c", f"touch {PLACE}/go; {pause}; kill -9 {death.criu}; :"])
        time.sleep(0.3)
        answer, further = death.look(), death.beats()
        assert (answer["states"] == ["stuck"]) <= (further == 0)
        assert (answer["states"] == ["running"]) <= (further > 0)
        assert (answer["states"] == ["stuck"]) <= (death.workload.status().counter == beats)
        death.end()


def test_killed_before_it_logs(death: Death) -> None:
    """CRIU has let the last thread go but not logged it: only the state of the tree shows it."""
    seen = set()
    for written in range(1, 8):
        death.restore("post-restore")
        with killed_at_write(death.host, death.criu, written):
            death.host.run(["touch", f"{PLACE}/go"])
        assert within(5, lambda: death.look()["states"] != ["unclear"])
        answer, further = death.look(), death.beats()
        (state,) = answer["states"]
        assert (further > 0) == (state == "running"), (written, answer)
        seen.add((state, answer["release"]))
        death.end()
    assert ("stuck", "not begun") in seen
    assert (("running", "not begun") in seen) == (len(death.pids) == 1)
