"""Builds the source archive and the wheel, and checks them as somebody would meet them: ``make release``.

Both are built from this checkout into ``dist/``, looked at by twine, looked into, and installed into environments that
have nothing else. There the command must run, and a program that uses the public API must pass mypy --strict.

Nothing is published; what to do with the files is said at the end.
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
from sojourn.errors import SojournError
from sojourn.run import Argument, run
from sojourn.settings import environment

ROOT = Path(__file__).parents[1]

BUILD_S, CHECK_S, INSTALL_S = 300, 120, 600

#: What a wheel must hold beside the modules, and what must not be in it.
IN_THE_WHEEL = (
    *(f"{package}/py.typed" for package in ("sojourn", "tasks", "workflows", "workers", "web", "lab")),
    *("web/templates/migrations.html", "web/static/table.js", "lab/workloads/counter.py"),
    *(f"share/sojourn/{name}" for name in ("sojourn.toml", "constraints.txt", "prometheus/alerts.yml")),
    *(f"share/sojourn/systemd/sojourn-{name}.service" for name in ("worker", "flower")),
    "licenses/LICENSE",
)
NOT_IN_THE_WHEEL = re.compile(r"(^|/)(tests|benchmarks|docs|bin)/|\.pyc$|\.db$")

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
from workflows import migrate

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
    """What was built is not what should be published."""

    code = "RELEASE_FAILED"


def build(to: Path) -> tuple[Path, Path]:
    """Build source archive and wheel, the wheel from the archive; return both."""
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", to, ROOT], deadline_s=BUILD_S, env=environment())
    return to / f"sojourn-{__version__}.tar.gz", to / f"sojourn-{__version__}-py3-none-any.whl"


def look_at(*files: Path) -> None:
    """Let twine look at the metadata. Raises CommandFailed."""
    run([sys.executable, "-m", "twine", "check", "--strict", *files], deadline_s=CHECK_S, env=environment())


def look_into(source: Path, wheel: Path) -> None:
    """Look whether everything is in both, and nothing that should not be. Raises ReleaseFailed."""
    with zipfile.ZipFile(wheel) as archive:
        _compare(wheel, archive.namelist(), IN_THE_WHEEL, NOT_IN_THE_WHEEL)
    with tarfile.open(source) as archive:
        _compare(source, archive.getnames(), IN_THE_SOURCE, NOT_IN_THE_SOURCE)


def try_out(file: Path, place: Path, install: Callable[[Path, Path], object]) -> None:
    """Install a file into a fresh environment below ``place`` by ``install``, and use it. Raises CommandFailed."""
    home = place / "environment"
    venv.create(home, with_pip=False, symlinks=True)
    install(home, file)
    for words in (["--version"], ["--help"]):
        done = run([home / "bin/sojourn", *words], deadline_s=CHECK_S, cwd=place)
        if __version__ not in done.stdout and words == ["--version"]:
            raise ReleaseFailed(f"{file.name} says that it is {done.stdout.strip()}.")
    program = place / "program.py"
    program.write_text(PROGRAM)
    run([home / "bin/python", program], deadline_s=CHECK_S, cwd=place)
    mypy: list[Argument] = [sys.executable, "-m", "mypy", "--strict", "--python-executable", home / "bin/python"]
    run([*mypy, "--cache-dir", place / "cache", program], deadline_s=CHECK_S, cwd=place)


def from_the_index(home: Path, file: Path) -> None:
    """Install a file with its dependencies, in the versions that were tested, as pip's own settings say."""
    pip: list[Argument] = [sys.executable, "-m", "pip", "--python", home / "bin/python", "install", "--quiet"]
    pinned = f"--constraint={ROOT / 'constraints.txt'}"
    run([*pip, "--disable-pip-version-check", pinned, file], deadline_s=INSTALL_S, env=environment())


def check_state() -> None:
    """Refuse changes that are in no commit, and a version that the changelog does not know. Raises ReleaseFailed."""
    changed = run(["git", "status", "--porcelain"], deadline_s=CHECK_S, cwd=ROOT).stdout
    if changed:
        raise ReleaseFailed("There are changes that are in no commit.", "Commit them, or try out with --draft.")
    if f"## [{__version__}]" not in (ROOT / "CHANGELOG.md").read_text():
        hint = f"Name the section of unreleased changes [{__version__}], with its date; or try out with --draft."
        raise ReleaseFailed(f"CHANGELOG.md has no section [{__version__}].", hint)


def release(to: Path, say: Say) -> None:
    """Do all of it. Raises ReleaseFailed, CommandFailed."""
    say(f"building {__version__}")
    source, wheel = build(to)
    say("looking at both")
    look_at(source, wheel)
    look_into(source, wheel)
    for file in (wheel, source):
        say(f"trying out {file.name}")
        with tempfile.TemporaryDirectory() as place:
            try_out(file, Path(place), from_the_index)
    say(f"{source} and {wheel} are good. Next: git tag v{__version__}, push it, publish both.")


def _compare(archive: Path, names: Iterable[str], wanted: Iterable[str], unwanted: re.Pattern[str]) -> None:
    held = list(names)
    missing = [name for name in wanted if not any(each.endswith(name) for each in held)]
    surplus = [name for name in held if unwanted.search(name)]
    if missing or surplus:
        raise ReleaseFailed(f"{archive.name} lacks {missing} and holds {surplus[:5]}.")


def main() -> int:
    """Release what the command line says."""
    parser = argparse.ArgumentParser(description="Build the source archive and the wheel, and check both.")
    parser.add_argument("--draft", action="store_true", help="also with changes that are in no commit")
    parser.add_argument("--to", type=Path, default=ROOT / "dist", help="where the files go")
    asked = parser.parse_args()
    try:
        if not asked.draft:
            check_state()
        release(asked.to, lambda line: print(f"release: {line}", flush=True))
    except SojournError as error:
        print(f"error: {error.message}\nhint:  {error.hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
