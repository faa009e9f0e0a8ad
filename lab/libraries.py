"""The layer over the base root that holds Sojourn's libraries: the environment ``/opt/sojourn``.

This machine's pip fetches them, with its own settings, for the hosts' Python. Sojourn itself is not
in the layer: the checkout is mounted into the hosts, so an edit takes effect as soon as a worker is
restarted.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
import tempfile
import tomllib
from pathlib import Path

from lab import base
from lab.base import APART
from lab.errors import LabFailed, LabUnsuitable
from lab.layer import Layer, Report
from sojourn.environment import environment
from sojourn.errors import CommandFailed
from sojourn.system.run import Argument, run

CHECKOUT = Path(__file__).parents[1]

#: The Python of Debian 13.
PYTHON = "3.13"

#: The minor versions of glibc whose wheels run on Debian 13 (2.41), the newest first.
GLIBC = range(41, 4, -1)

INSTALL_S = 600
COMPILE_S = 300

#: The checkout is read-only in the hosts, so Python's bytecode goes to a directory of the host.
COMPILED = Path("/var/cache/sojourn/pyc")
PATHS = f"import sys; sys.pycache_prefix = {str(COMPILED)!r}\n/opt/sojourn/src\n"

PYVENV = f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {PYTHON}\n"

#: ``/usr/local/bin/sojourn`` of the hosts; the environment's ``.pth`` file leads to the checkout.
COMMAND = '#!/bin/sh\nexec /opt/sojourn/bin/python3 -P -m sojourn "$@"\n'


def layers(report: Report) -> list[Path]:
    """Return the layers of a host's root, the topmost first; build those that are missing."""
    root = base.layer()
    return [layer(root).ready(report), root.ready(report)]


def layer(root: Layer) -> Layer:
    """Return the layer of libraries over a base root.

    Its recipe is the root, pyproject.toml and constraints.txt.
    """
    pinned = constraints().read_text()
    recipe = [root.path.name, PYTHON, PATHS, PYVENV, COMMAND, *requirements(), pinned]
    return Layer("libraries", "\n".join(recipe), lambda draft, report: _fill(root, draft, report))


def requirements() -> list[str]:
    """Return what Sojourn and Flower require, as it stands in pyproject.toml."""
    path = CHECKOUT / "pyproject.toml"
    if not path.is_file():
        raise LabUnsuitable(
            "The lab runs from a checkout of Sojourn.",
            "Clone the repository, and start the lab there.",
        )
    project = tomllib.loads(path.read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["flower"]]


def for_hosts() -> list[Argument]:
    """Return pip's options for wheels of the hosts' Python, in the versions that were tested."""
    wheels = [f"--platform=manylinux_2_{minor}_{platform.machine()}" for minor in GLIBC]
    return [
        *("--python-version", PYTHON),
        "--only-binary=:all:",
        *wheels,
        f"--constraint={constraints()}",
    ]


def constraints() -> Path:
    """Return the file with the version of every library."""
    return CHECKOUT / "constraints.txt"


def _fill(root: Layer, draft: Path, report: Report) -> None:
    home = draft / "opt/sojourn"
    packages = home / f"lib/python{PYTHON}/site-packages"
    report("libraries: fetching with pip")
    _install(packages)
    (packages / "sojourn-checkout.pth").write_text(PATHS)
    (home / "pyvenv.cfg").write_text(PYVENV)
    (home / "bin").mkdir()
    # Python looks for ``pyvenv.cfg`` near the link by which it was started, not near its target.
    (home / "bin/python3").symlink_to("/usr/bin/python3")
    (home / "src").mkdir()
    command = draft / "usr/local/bin/sojourn"
    command.parent.mkdir(parents=True)
    command.write_text(COMMAND)
    command.chmod(0o755)
    # Only now: another process may be building the root while pip fetches (bin/setup).
    base_root = root.ready(report)
    report("libraries: compiling")
    _reuse_bytecode(base_root, draft)
    _compile(base_root, draft)


def _install(packages: Path) -> None:
    if importlib.util.find_spec("pip") is None:
        raise LabUnsuitable(
            f"{sys.executable} has no pip, which the lab needs to fetch the hosts' libraries.",
            "Run the lab from a virtual environment made with python3 -m venv.",
        )
    # Not compiled by pip, whose Python may be of another version than that of the hosts.
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"]
    target = [f"--target={packages}", "--implementation", "cp"]
    argv: list[Argument] = [*pip, *target, *for_hosts(), *requirements()]
    try:
        run(argv, deadline_s=INSTALL_S, env=environment())
    except CommandFailed as error:
        raise LabFailed(
            f"pip could not fetch the hosts' libraries. {error.message}",
            "Check pip's own settings: the lab uses those of this environment.",
        ) from error


def _reuse_bytecode(root: Path, draft: Path) -> None:
    """Copy the bytecode of Debian's packages to where the hosts' Python looks for it."""
    for file in (root / "usr/lib" / f"python{PYTHON}").rglob("__pycache__/*.pyc"):
        directory = draft / COMPILED.relative_to("/") / file.parents[1].relative_to(root)
        directory.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, directory)


def _compile(root: Path, draft: Path) -> None:
    """Compile the libraries in the hosts' root; otherwise each start of a host takes seconds."""
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix="libraries-work-") as scratch:
        place = Path(scratch)
        stacked = [sys.executable, "-P", "-m", "lab.stacked"]
        # In the environment, where the child processes of compileall find it too.
        prefix = ["/usr/bin/env", f"PYTHONPYCACHEPREFIX={COMPILED}"]
        compiler = [*prefix, "/usr/bin/python3", "-m", "compileall", "-q", "-j0"]
        roots: list[Argument] = [root, draft, place / "work", place / "root"]
        run(
            [*APART, *stacked, *roots, *compiler, f"/opt/sojourn/lib/python{PYTHON}"],
            deadline_s=COMPILE_S,
            check=False,  # some packages contain files for other versions of Python
            env={"PYTHONPATH": str(CHECKOUT)},
        )
