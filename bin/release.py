"""Builds the source archive and the wheel, and checks them as a user gets them: ``make release``.

Both are built from this checkout into ``dist/``, checked by twine, compared with lists of files,
and installed into environments that have nothing else. There the command must run, and a program
that uses the public API must pass mypy --strict.

Nothing is published; the last line says how to.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from sojourn import __version__
from sojourn.environment import environment
from sojourn.errors import SojournError
from sojourn.system.run import run

ROOT = Path(__file__).parents[1]

BUILD_S, CHECK_S, INSTALL_S = 300, 120, 600

#: What a wheel must hold beside the modules, and what must not be in it.
IN_THE_WHEEL = (
    *(
        f"{package}/py.typed"
        for package in ("sojourn", "tasks", "workflows", "workers", "web", "lab")
    ),
    *("web/templates/migrations.html", "web/static/table.js", "lab/workloads/counter.py"),
    *(
        f"share/sojourn/{name}"
        for name in ("sojourn.toml", "constraints.txt", "prometheus/alerts.yml")
    ),
    *(f"share/sojourn/systemd/sojourn-{name}.service" for name in ("worker", "flower")),
    "share/sojourn/docs/how-to/recover-from-in-doubt.md",
    "licenses/LICENSE",
)
NOT_IN_THE_WHEEL = re.compile(r"(^|/)(tests|benchmarks|bin)/|^docs/|\.pyc$|\.db$")

#: What a source archive must hold so that everything in the documentation can be done from it.
IN_THE_SOURCE = (
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "constraints.txt",
    "bin/setup",
    "docs/index.md",
    "deploy/systemd/sojourn-worker.service",
)
NOT_IN_THE_SOURCE = re.compile(r"\.venv/|\.git/|__pycache__|^[^/]*/dist/")

#: A program as people write it against the public API.
PROGRAM = """\
from sojourn.errors import MigrationError
from sojourn.model import Plan, State
from sojourn.settings import Settings, load
from sojourn import migrate

plan: Plan = Plan(4242, "alpha", "beta")
state: State = State.COMPLETED
name: str = plan.describe()
settings: Settings


def move() -> object:
    try:
        return migrate.delay(pid=plan.pid, source=plan.source, destination=plan.destination)
    except MigrationError as error:
        return error.owner or error.state
"""

Say = Callable[[str], None]


class ReleaseFailed(SojournError):
    """The archives are not fit to be published."""

    code = "RELEASE_FAILED"


def build(to: Path) -> tuple[Path, Path]:
    """Build source archive and wheel, the wheel from the archive; return both."""
    run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", to, ROOT],
        deadline_s=BUILD_S,
        env=environment(),
    )
    return to / f"sojourn-{__version__}.tar.gz", to / f"sojourn-{__version__}-py3-none-any.whl"


def look_at(*files: Path) -> None:
    """Let twine check the metadata. Raises CommandFailed."""
    run(
        [sys.executable, "-m", "twine", "check", "--strict", *files],
        deadline_s=CHECK_S,
        env=environment(),
    )


def look_into(source: Path, wheel: Path) -> None:
    """Check that both hold what they must, and nothing else. Raises ReleaseFailed."""
    with zipfile.ZipFile(wheel) as archive:
        _compare(wheel, archive.namelist(), IN_THE_WHEEL, NOT_IN_THE_WHEEL)
    with tarfile.open(source) as archive:
        _compare(source, archive.getnames(), IN_THE_SOURCE, NOT_IN_THE_SOURCE)


def try_out(file: Path, place: Path, install: Callable[[Path, Path], object]) -> None:
    """Install a file into a fresh environment below ``place``, and use it. Raises CommandFailed."""
    home = place / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    install(home, file)
    for option in ("--version", "--help"):
        output = run([home / "bin/sojourn", option], deadline_s=CHECK_S, cwd=place).stdout
        if option == "--version" and __version__ not in output:
            raise ReleaseFailed(f"{file.name} has another version: {output.strip()}.")
    program = place / "program.py"
    program.write_text(PROGRAM)
    run([home / "bin/python", program], deadline_s=CHECK_S, cwd=place)
    mypy = [sys.executable, "-m", "mypy", "--strict", f"--python-executable={home}/bin/python"]
    run([*mypy, f"--cache-dir={place}/cache", program], deadline_s=CHECK_S, cwd=place)


def from_the_index(home: Path, file: Path) -> None:
    """Install a file with its dependencies, in the versions that were tested, from pip's index."""
    pip = [sys.executable, "-m", "pip", f"--python={home}/bin/python", "install", "--quiet"]
    pinned = f"--constraint={ROOT / 'constraints.txt'}"
    run(
        [*pip, "--disable-pip-version-check", pinned, file], deadline_s=INSTALL_S, env=environment()
    )


def check_state() -> None:
    """Refuse uncommitted changes, and a version without a changelog. Raises ReleaseFailed."""
    changed = run(["git", "status", "--porcelain"], deadline_s=CHECK_S, cwd=ROOT).stdout
    if changed:
        raise ReleaseFailed(
            "There are uncommitted changes.", "Commit them, or try it out with --draft."
        )
    if f"## [{__version__}]" not in (ROOT / "CHANGELOG.md").read_text():
        raise ReleaseFailed(
            f"CHANGELOG.md has no section [{__version__}].",
            f"Rename the section of unreleased changes to [{__version__}], with its date; "
            "or try it out with --draft.",
        )


def release(to: Path, say: Say) -> None:
    """Build both and check them. Raises ReleaseFailed, CommandFailed."""
    say(f"building {__version__}")
    source, wheel = build(to)
    say("checking both")
    look_at(source, wheel)
    look_into(source, wheel)
    for file in (wheel, source):
        say(f"trying out {file.name}")
        with tempfile.TemporaryDirectory() as place:
            try_out(file, Path(place), from_the_index)
    say(f"{source} and {wheel} are good. Next: git tag v{__version__}, push it, publish both.")


def _compare(
    archive: Path, names: Iterable[str], wanted: Iterable[str], unwanted: re.Pattern[str]
) -> None:
    held = list(names)
    missing = [name for name in wanted if not any(path.endswith(name) for path in held)]
    surplus = [name for name in held if unwanted.search(name)]
    if missing or surplus:
        raise ReleaseFailed(f"{archive.name} lacks {missing} and holds {surplus[:5]}.")


def main() -> int:
    """Build and check, as the command line asks for."""
    parser = argparse.ArgumentParser(
        description="Build the source archive and the wheel, and check both."
    )
    parser.add_argument("--draft", action="store_true", help="also with uncommitted changes")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="where the files go")
    options = parser.parse_args()
    try:
        if not options.draft:
            check_state()
        release(options.to, lambda line: print(f"release: {line}", flush=True))
    except SojournError as error:
        print(f"error: {error.message}\nhint:  {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
