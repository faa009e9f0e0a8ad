"""The layer over the base root that holds Sojourn's libraries, as the virtual environment ``/opt/sojourn``.

The outside's pip fetches them, with the outside's settings, for the hosts' Python. Sojourn itself is not in
the layer: the checkout is mounted into the hosts, so an edit counts as soon as a worker is started again.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
import tempfile
import tomllib
from pathlib import Path

from lab.base import APART
from lab.errors import LabFailed, LabUnsuitable
from lab.layer import Layer, Report
from sojourn.errors import CommandFailed
from sojourn.run import Argument, run
from sojourn.settings import environment

CHECKOUT = Path(__file__).parents[1]

#: The Python of Debian 13.
PYTHON = "3.13"

#: The minor versions of glibc whose wheels run on Debian 13 (2.41), the newest first.
GLIBC = range(41, 4, -1)

INSTALL_S = 600
COMPILE_S = 300

#: The checkout is read-only in the hosts, so what Python compiles goes to a directory of the host's own.
COMPILED = Path("/var/cache/sojourn/pyc")
PATHS = f"import sys; sys.pycache_prefix = {str(COMPILED)!r}\n/opt/sojourn/src\n"

PYVENV = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n"

#: ``/usr/local/bin/sojourn`` of the hosts. The checkout is found through the environment's ``.pth`` file.
COMMAND = '#!/bin/sh\nexec /opt/sojourn/bin/python3 -P -m sojourn "$@"\n'


def layer(base: Path) -> Layer:
    """Return the layer of libraries over a base root; pyproject.toml and constraints.txt are its recipe."""
    recipe = [base.name, PYTHON, PATHS, PYVENV, COMMAND, *requirements(), constraints().read_text()]
    return Layer("libraries", "\n".join(recipe), lambda draft, report: _fill(base, draft, report))


def requirements() -> list[str]:
    """Return what Sojourn and Flower need, as pyproject.toml says it."""
    path = CHECKOUT / "pyproject.toml"
    if not path.is_file():
        raise LabUnsuitable(
            "The lab runs from a checkout of Sojourn.", "Clone the repository, and start the lab there."
        )
    project = tomllib.loads(path.read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["flower"]]


def for_hosts() -> list[Argument]:
    """Return the options with which pip takes wheels for the hosts' Python, in the versions that were tested."""
    wheels = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in GLIBC]
    return [*("--python-version", PYTHON), "--only-binary=:all:", *wheels, f"--constraint={constraints()}"]


def constraints() -> Path:
    """Return the file with the version of every library."""
    return CHECKOUT / "constraints.txt"


def _fill(base: Path, draft: Path, report: Report) -> None:
    home = draft / "opt/sojourn"
    packages = home / f"lib/python{PYTHON}/site-packages"
    report("libraries: fetching with pip")
    _install(packages)
    (packages / "sojourn-checkout.pth").write_text(PATHS)
    (home / "pyvenv.cfg").write_text(PYVENV)
    (home / "bin").mkdir()
    (home / "bin/python3").symlink_to("/usr/bin/python3")
    (home / "src").mkdir()
    command = draft / "usr/local/bin/sojourn"
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND)
    command.chmod(0o755)
    report("libraries: compiling")
    _compile(base, draft)


def _install(packages: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise LabUnsuitable(
            f"{sys.executable} has no pip, which the lab needs to fetch the hosts' libraries.",
            "Run the lab from a virtual environment made with python3 -m venv.",
        )
    argv: list[Argument] = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", f"--target={packages}"),
        *("--implementation", "cp", *for_hosts(), *requirements()),
    ]
    try:
        run(argv, deadline_s=INSTALL_S, env=environment())
    except CommandFailed as error:
        raise LabFailed(
            f"pip could not fetch the hosts' libraries. {error.message}",
            "Check pip's own settings: the lab uses those of this environment.",
        ) from error


def _compile(base: Path, draft: Path) -> None:
    """Compile the libraries and Python's own, which costs seconds at each start otherwise."""
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix="libraries-work-") as scratch:
        root, work = Path(scratch) / "root", Path(scratch) / "work"
        stacked: list[Argument] = [sys.executable, "-P", "-m", "lab.stacked", base, draft, work, root]
        # In the environment, where compileall's own child processes find it too.
        prefix = ["/usr/bin/env", f"PYTHONPYCACHEPREFIX={COMPILED}"]
        compiler = [*prefix, "/usr/bin/python3", "-m", "compileall", "-q", "-j0"]
        run(
            [*APART, *stacked, *compiler, f"/usr/lib/python{PYTHON}", f"/opt/sojourn/lib/python{PYTHON}"],
            deadline_s=COMPILE_S,
            check=False,  # some packages carry files for other versions of Python
            env={"PYTHONPATH": str(CHECKOUT)},
        )
