"""A pytest plugin for ``make coverage``: it measures labs' hosts and programs that tests start.

A lab's hosts get another layer, with coverage.py in Sojourn's environment there, so that workers,
holders and what CRIU calls are measured too. Their data is copied out of a lab before it is
removed. A process that is killed writes none, so the result is a lower bound.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from lab.lab import Lab
from lab.layer import Layer, Report
from lab.libraries import CHECKOUT, PYTHON, constraints, for_hosts
from sojourn.settings import environment
from sojourn.system.run import CLEAN_ENVIRONMENT, Argument, run

#: Where a host's processes write their data; from outside it is in the lab's shared directory.
DATA = Path("/shared/covered")

#: Python runs these lines there when it starts. The settings are those of the checkout, as a host
#: sees it; the configuration that coverage.py hands to its child processes outside is dropped.
START = f"""\
import os; os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
import os; os.environ["COVERAGE_FILE"] = "{DATA / ".coverage"}"
import os; os.environ["COVERAGE_PROCESS_START"] = "/opt/sojourn/src/pyproject.toml"
import coverage; coverage.process_startup()
"""

FETCH_S = 300

#: How long a worker may take to end and to write its data.
END_S = 40


def pytest_configure() -> None:
    """Measure every lab of this run, and every program started with a clean environment."""
    CLEAN_ENVIRONMENT.update(
        {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
    )
    layers, down = Lab._layers, Lab.down

    def measured(lab: Lab) -> list[Path]:
        return [layer().ready(print), *layers(lab)]

    def taken_down(lab: Lab) -> bool:
        if lab.exists:
            _collect(lab)
        return down(lab)

    Lab._layers, Lab.down = measured, taken_down  # type: ignore[method-assign]


def layer() -> Layer:
    """Return the layer that measures Python in a host."""
    return Layer("coverage", "\n".join([PYTHON, START, constraints().read_text()]), _fill)


def _fill(place: Path, report: Report) -> None:
    report("coverage: fetching with pip")
    packages = place / f"opt/sojourn/lib/python{PYTHON}/site-packages"
    fetch: list[Argument] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        f"--target={packages}",
        *for_hosts(),
    ]
    run([*fetch, "coverage"], deadline_s=FETCH_S, env=environment())
    (packages / "coverage-starts.pth").write_text(START)


def _collect(lab: Lab) -> None:
    """End the workers, so that they write their data, and copy all data out of the lab."""
    for host in lab.hosts():
        if host.is_up:
            host.run(["sv", "-w", str(END_S), "down", "worker"], deadline_s=END_S + 10, check=False)
    for file in (lab.plan.shared / DATA.name).glob(".coverage.*"):
        shutil.copy(file, CHECKOUT / f"{file.name}.{lab.name}")
