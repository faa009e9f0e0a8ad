"""Real programs from Debian's packages: the checks let them pass, and they move and work on.

Of the catalogue of ``make programs`` these are the ones that need no more packages than a host of
the lab has.
"""

from __future__ import annotations

import pytest

from tests.lab.site import Site
from tests.programs.catalogue import CATALOGUE
from tests.programs.place import OnHost
from tests.programs.program import Program
from tests.programs.starts import Daemon
from tests.programs.trial import Trial

pytestmark = pytest.mark.lab

#: What every host has of the catalogue's packages (lab/base.py); of perl, the interpreter.
PRESENT = {
    *("bash", "coreutils", "iproute2", "iputils-ping", "openssh-server", "perl", "python3"),
    "redis-server",
}

PROGRAMS = [
    program
    for program in CATALOGUE
    if isinstance(program.start, Daemon) and PRESENT.issuperset(program.packages)
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_real_program_passes_and_moves(site: Site, program: Program) -> None:
    """The check finds nothing against it; it works on the other host, and back again."""
    trial = Trial(site, program, OnHost(site.host("alpha")), OnHost(site.host("beta")))
    try:
        trial.start(program.start)
        trial.attempt()
        trial.turn_round()
        trial.attempt()
        assert trial.result.moved
        assert trial.result.stopped == []
    finally:
        trial.clear()
