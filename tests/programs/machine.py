"""alpha with systemd as its init, for services that are units of it, and its worker one of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lab.host import within
from lab.libraries import CHECKOUT
from tests.lab.machine import Machine
from tests.lab.site import Site
from tests.programs.place import OnMachine

WORKER = "sojourn-worker.service"
FIRST_PID = 40_000
ANSWERS_S = 60


@contextlib.contextmanager
def systemd(site: Site) -> Iterator[OnMachine]:
    """Boot systemd on alpha in place of the lab's own worker, and put that back afterwards."""
    alpha = site.host("alpha")
    machine = Machine(alpha, {})
    machine.boot(FIRST_PID, keep=True)
    try:
        unit = (CHECKOUT / "deploy/systemd" / WORKER).read_text()
        machine.shell(f"cat >/etc/systemd/system/{WORKER} <<'END'\n{unit}\nEND\n")
        machine.shell(f"systemctl daemon-reload; systemctl start {WORKER}")
        within(ANSWERS_S, lambda: site.answers(alpha))
        yield OnMachine(machine)
    finally:
        machine.shut_down()
        alpha.run(["rm", "-f", f"/etc/systemd/system/{WORKER}"])
        alpha.run(["sv", "up", "worker"])
        within(ANSWERS_S, lambda: site.answers(alpha))
