"""``sojourn check``: it says why not, before anything was touched."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn.cli import output
from sojourn.cli.cluster import Cluster
from sojourn.cli.options import Destination, FileLocks, Mode, ShellJob, Source, TcpEstablished
from sojourn.cli.output import console, megabytes, milliseconds
from sojourn.errors import SojournError
from sojourn.model import Json, Plan
from sojourn.preflight.estimate import Estimate, estimate
from sojourn.preflight.finding import Finding, Verdict

EPILOG = (
    "Exit status: 0 nothing speaks against it; 10 something blocks it, or needs an option that was not given; "
    "14 host unreachable; 2 usage; 1 anything else. With --format nagios: 0 OK, 1 WARNING (an option is needed), "
    "2 CRITICAL (something blocks it), 3 UNKNOWN."
)

REFUSED = 10


class Format(StrEnum):
    """How the findings are printed."""

    TABLE = "table"
    NAGIOS = "nagios"


class Level(StrEnum):
    """The words of Nagios plugins; their exit codes are their places here."""

    OK = "OK"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"
    UNKNOWN = "UNKNOWN"

    @property
    def exit_code(self) -> int:
        """The plugin's exit code."""
        return list(Level).index(self)


def add_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command(epilog=EPILOG)(check)


def check(
    pid: Annotated[int, typer.Argument(help="The process, by its PID on the source.")],
    source: Source,
    destination: Destination,
    mode: Mode = "stop-and-copy",
    tcp_established: TcpEstablished = False,
    shell_job: ShellJob = False,
    file_locks: FileLocks = False,
    form: Annotated[Format, typer.Option("--format", help="For people, or one line for Nagios.")] = Format.TABLE,
    json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Tell whether a migration would go well, and what speaks against it, without touching anything."""
    plan = Plan(pid, source, destination, mode, tcp_established, shell_job, file_locks)
    try:
        findings, expected = _ask(plan)
    except SojournError as error:
        if form is not Format.NAGIOS:
            raise
        console.print(f"{Level.UNKNOWN} - {error.message}", soft_wrap=True, markup=False)
        raise typer.Exit(Level.UNKNOWN.exit_code) from None
    stops = any(finding.stops for finding in findings)
    if json:
        output.as_json({**plan.to_json(), "migratable": not stops, **_told(findings, expected)})
    elif form is Format.NAGIOS:
        raise typer.Exit(_nagios(plan, findings, expected))
    else:
        _table(plan, findings, expected)
    raise typer.Exit(REFUSED if stops else 0)


def _ask(plan: Plan) -> tuple[list[Finding], Estimate | None]:
    cluster = Cluster()
    for host in (plan.source, plan.destination):
        cluster.registry.check_host(host)
    from workflows.check import findings_of  # noqa: PLC0415  (Celery is slow to import: bad input is told at once)
    from workflows.survey import check_workers  # noqa: PLC0415

    check_workers(plan)
    findings, size = findings_of(plan)
    if "tree_bytes" not in size:
        return findings, None
    return findings, estimate(plan.mode, size["tree_bytes"], cluster.registry.pace(plan.source, plan.destination))


def _told(findings: list[Finding], expected: Estimate | None) -> Json:
    return {
        "findings": [finding.to_json() for finding in findings],
        "estimate": [asdict(expected)] if expected else [],
    }


def _table(plan: Plan, findings: list[Finding], expected: Estimate | None) -> None:
    stopping = [finding for finding in findings if finding.stops]
    against = f"[red]{len(stopping)} findings speak against it[/]" if stopping else ""
    verdict = against or "[green]nothing speaks against it[/]"
    console.print(f"[bold]{plan.describe()}[/]: {verdict}")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in stopping:
        hint = f"\n[dim]{escape(finding.hint)}[/]" if finding.hint else ""
        colour = "red" if finding.verdict is Verdict.BLOCKS else "yellow"
        table.add_row(f"[{colour}]{finding.code}[/]", finding.host, escape(finding.sentence) + hint)
    for host in (plan.source, plan.destination):
        passed = [finding.sentence for finding in findings if finding.host == host and not finding.stops]
        table.add_row("[green]ok[/]", host, f"[dim]{escape('; '.join(passed))}[/]" if passed else "[dim]not asked[/]")
    console.print(table)
    if expected:
        console.print(_expectation(plan, expected))


def _expectation(plan: Plan, expected: Estimate) -> str:
    rate = expected.bytes_per_s
    pace = f"the last one went at {megabytes(rate)}/s" if rate else "none was measured yet"
    return (
        f"About {megabytes(expected.move_bytes)} to move. With {expected.mode}: frozen for about "
        f"{milliseconds(expected.freeze_ms)}, {milliseconds(expected.total_ms)} in all "
        f"(from {plan.source} to {plan.destination} {pace})."
    )


def _nagios(plan: Plan, findings: list[Finding], expected: Estimate | None) -> int:
    """Print one line as plugins do, with performance data behind the bar, and return the exit code."""
    blocking = [finding for finding in findings if finding.verdict is Verdict.BLOCKS]
    lacking = [finding for finding in findings if finding.verdict is Verdict.NEEDS_OPTION]
    level = Level.CRITICAL if blocking else Level.WARNING if lacking else Level.OK
    said = "; ".join(f"{each.code} on {each.host}: {each.sentence}" for each in (*blocking, *lacking))
    data = f"blocks={len(blocking)} needs_option={len(lacking)}"
    if expected:
        data += f" move={expected.move_bytes}B freeze={expected.freeze_ms:.0f}ms total={expected.total_ms:.0f}ms"
    line = f"{level} - {plan.describe()}: {said or 'nothing speaks against it'} | {data}"
    console.print(line.replace("\n", " "), soft_wrap=True, markup=False)
    return level.exit_code
