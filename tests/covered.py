"""Coverage of what the hosts of a lab do, and of programs that tests start: a plugin of pytest for ``make coverage``.

A lab's hosts get one layer more, with coverage.py in Sojourn's environment there, so that workers, holders and what
CRIU calls are followed too. What they write is taken out of a lab before it goes away. Who is killed writes nothing, so
what is measured is the least that was done.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lab.lab import Lab
from lab.layer import Layer, Report
from lab.libraries import CHECKOUT, PYTHON, constraints, for_hosts
from sojourn.run import CLEAN_ENVIRONMENT, Argument, run
from sojourn.settings import environment

#: Where a host's processes write, and the same directory of a lab from outside.
DATA = Path("/shared/covered")

#: What Python does there when it starts. The settings are those of the checkout, as a host sees it; what the outside
#: hands to its own programs does not count there.
START = f"""\
import os; os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
import os; os.environ["COVERAGE_FILE"] = "{DATA / ".coverage"}"
import os; os.environ["COVERAGE_PROCESS_START"] = "/opt/sojourn/src/pyproject.toml"
import coverage; coverage.process_startup()
"""

FETCH_S = 300

#: How long a worker may take to end, and to write what it did.
END_S = 40


def pytest_configure() -> None:
    """Let every lab of this run be followed, and every program that is started with a clean environment."""
    CLEAN_ENVIRONMENT.update({name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")})
    layers, down = Lab._layers, Lab.down

    def followed(lab: Lab) -> list[Path]:
        return [layer().ready(print), *layers(lab)]

    def taken_down(lab: Lab) -> bool:
        if lab.exists:
            _collect(lab)
        return down(lab)

    Lab._layers, Lab.down = followed, taken_down  # type: ignore[method-assign]


def layer() -> Layer:
    """Return the layer that follows Python in a host."""
    return Layer("coverage", "\n".join([PYTHON, START, constraints().read_text()]), _fill)


def _fill(place: Path, report: Report) -> None:
    report("coverage: fetching with pip")
    packages = place / f"opt/sojourn/lib/python{PYTHON}/site-packages"
    fetch: list[Argument] = [sys.executable, "-m", "pip", "install", "--quiet", f"--target={packages}", *for_hosts()]
    run([*fetch, "coverage"], deadline_s=FETCH_S, env=environment())
    (packages / "coverage-starts.pth").write_text(START)


def _collect(lab: Lab) -> None:
    """End the workers, so that they write, and take what all have written."""
    for host in lab.hosts():
        if host.is_up:
            host.run(["sv", "-w", str(END_S), "down", "worker"], deadline_s=END_S + 10, check=False)
    for file in (lab.plan.shared / DATA.name).glob(".coverage.*"):
        shutil.copy(file, CHECKOUT / f"{file.name}.{lab.name}")
