"""``make programs``: start programs of Debian's, migrate each, and write docs/programs.md.

The exit code is 1 if any was neither moved right nor refused right.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from lab.lab import Lab
from sojourn.model import Plan
from tests.lab.site import Site
from tests.programs.catalogue import CATALOGUE, packages
from tests.programs.layer import layer
from tests.programs.machine import systemd
from tests.programs.page import page
from tests.programs.place import OnHost
from tests.programs.program import Program, Result
from tests.programs.starts import Unit
from tests.programs.trial import Trial

console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    """Try what was asked for."""
    options = _options()
    results = Results(options.results)
    chosen = [one for one in CATALOGUE if not options.only or _is_named(one, options.only)]
    if options.resume:
        chosen = [one for one in chosen if not results.has(one)]
    lab = Lab(options.name, console.print, [layer(packages())])
    if not options.keep:
        lab.down()
    lab.up(2)
    try:
        for number, result in enumerate(_tried(Site(lab), chosen, options.mode), 1):
            console.print(f"{number}/{len(chosen)} {_line(result)}", markup=False)
            results.add(result)
            if options.out:
                options.out.write_text(_page(lab, options.mode, results.all()))
    finally:
        if not options.keep:
            lab.down()
    sys.exit(any(one.wrong for one in results.all()))


class Results:
    """What became of the programs, in the catalogue's order; kept in a file if there is one."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        kept = json.loads(file.read_text()) if file and file.exists() else []
        self._found = {result.key: result for result in (Result(**fields) for fields in kept)}

    def add(self, result: Result) -> None:
        """Add a result, in place of an earlier one of the same program."""
        self._found[result.key] = result
        if self._file:
            self._file.write_text(json.dumps([asdict(one) for one in self._found.values()]))

    def has(self, program: Program) -> bool:
        """Whether a program was tried, and nothing was wrong."""
        found = self._found.get((program.name, program.start.how))
        return found is not None and not found.wrong

    def all(self) -> list[Result]:
        """Return all results."""
        order = [(program.name, program.start.how) for program in CATALOGUE]
        return [self._found[key] for key in order if key in self._found]


PAGE = Path("docs/programs.md")


def _is_named(program: Program, names: Sequence[str]) -> bool:
    return any(name.lower() in program.name.lower() for name in names)


def _tried(site: Site, chosen: Sequence[Program], mode: str) -> Iterator[Result]:
    units = [program for program in chosen if isinstance(program.start, Unit)]
    others = [program for program in chosen if program not in units]
    alpha, beta = OnHost(site.host("alpha")), OnHost(site.host("beta"))
    for program in others:
        yield Trial(site, program, alpha, beta, mode).run()
    if units:
        with systemd(site) as machine:
            for program in units:
                yield Trial(site, program, machine, beta, mode).run()


def _line(one: Result) -> str:
    pause = f", {one.frozen_ms:.0f} ms" if one.frozen_ms is not None else ""
    stopped = f" [{' '.join(one.stopped)}]" if one.stopped else ""
    options = f" {' '.join(one.options)}" if one.options else ""
    outcome = f"WRONG: {one.wrong}" if one.wrong else one.outcome
    return f"{one.name} {one.version}, {one.how}: {outcome}{pause}{stopped}{options}"


def _page(lab: Lab, mode: str, results: Sequence[Result]) -> str:
    beta = OnHost(lab.host("beta"))
    criu = beta.sh("criu --version").stdout.split()[1]
    debian = beta.sh("cat /etc/debian_version").stdout.strip()
    day = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    return page(results, mode, day, criu, debian, os.cpu_count() or 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="a text in a program's name")
    parser.add_argument(
        "--results", type=Path, help="where to keep results; later runs with --only add to them"
    )
    parser.add_argument(
        "--resume", action="store_true", help="only what is not in --results, or was wrong there"
    )
    parser.add_argument("--name", default="programs", help="the lab's name")
    parser.add_argument(
        "--keep", action="store_true", help="use the lab that an earlier run has left, and leave it"
    )
    parser.add_argument("--mode", choices=Plan.MODES, default=Plan.MODES[0])
    parser.add_argument(
        "--out", type=Path, help=f"the page; without --mode and --only it is {PAGE}"
    )
    options = parser.parse_args()
    complete = not options.only or options.results
    if options.out is None and complete and options.mode == Plan.MODES[0]:
        options.out = PAGE
    return options


if __name__ == "__main__":
    main()
