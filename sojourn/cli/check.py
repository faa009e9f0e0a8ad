"""``sojourn check``: what would stop a migration, found out before anything is touched."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sojourn import units
from sojourn.cli import gone, listing
from sojourn.cli.listing import Cell, Column, Form, Output, Row
from sojourn.cli.options import (
    Bandwidth,
    Destination,
    FileLocks,
    MaxFreeze,
    Mode,
    ShellJob,
    Source,
    StopUnit,
    TcpEstablished,
    chosen,
    limited,
)
from sojourn.cli.output import console
from sojourn.cluster.client import Cluster
from sojourn.errors import ProcessGone, SojournError
from sojourn.model import Json, Plan
from sojourn.preflight.estimate import Estimate, Measured, estimates
from sojourn.preflight.finding import Finding, Verdict

EPILOG = (
    "Exit status: 0 nothing speaks against it; 10 something blocks it, or needs an option that was "
    "not given; 14 host unreachable; 2 usage; 1 anything else. With --format nagios: 0 OK, 1 "
    "WARNING (an option is needed), 2 CRITICAL (something blocks it), 3 UNKNOWN."
)

REFUSED = 10

#: In which order findings are listed.
WEIGHTS = {
    Verdict.BLOCKS: 0,
    Verdict.NEEDS_OPTION: 1,
    Verdict.NOTE: 2,
    Verdict.OK: 3,
}

COLUMNS = (
    Column("verdict"),
    Column("code"),
    Column("host"),
    Column("finding"),
    Column("hint"),
)

COLOURS = {Verdict.BLOCKS: "red", Verdict.NEEDS_OPTION: "yellow", Verdict.NOTE: "cyan"}


class Format(StrEnum):
    """How the findings are printed."""

    TABLE = "table"
    NAGIOS = "nagios"


class Level(StrEnum):
    """The states of a Nagios plugin, in the order of their exit codes."""

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
    mode: Mode = None,
    tcp_established: TcpEstablished = False,
    shell_job: ShellJob = False,
    file_locks: FileLocks = False,
    stop_unit: StopUnit = False,
    max_freeze: MaxFreeze = None,
    bandwidth: Bandwidth = None,
    form: Annotated[
        Format, typer.Option("--format", help="For people, or one line for Nagios.")
    ] = Format.TABLE,
    output_form: Output = None,
    json: Annotated[bool, typer.Option("--json", help="Print all findings as JSON.")] = False,
) -> None:
    """Check whether a migration would go well, and what speaks against it; nothing is touched."""
    options = chosen(
        mode=mode,
        tcp_established=tcp_established,
        shell_job=shell_job,
        file_locks=file_locks,
        stop_unit=stop_unit,
        max_freeze_s=max_freeze,
        bandwidth_mbit=bandwidth,
    )
    plan = Plan(pid, source, destination, **limited(**options))
    try:
        findings, closure, expected = _ask(plan)
    except SojournError as error:
        if form is not Format.NAGIOS:
            raise
        # A plugin reports on stdout, with its own exit code, that it could not find out.
        console.print(f"{Level.UNKNOWN} - {error.message}", soft_wrap=True, markup=False)
        raise typer.Exit(Level.UNKNOWN.exit_code) from None
    # What passed has the code of its check too.
    if any(finding.stops and finding.code == ProcessGone.code for finding in findings):
        if not (output_form or json or form is Format.NAGIOS):
            raise gone.refusal(Cluster(), plan)
        where = gone.hint(Cluster(), plan)
        findings = [_with_hint(finding, ProcessGone.code, where) for finding in findings]
    stops = any(finding.stops for finding in findings)
    answer = {"migratable": not stops, "closure": closure, **_to_json(findings, expected)}
    output_form = listing.form_of(output_form, json=json)
    if form is Format.NAGIOS and not output_form:
        raise typer.Exit(_nagios(plan, findings, expected))
    if output_form:
        named = output_form is Form.NAME
        rows = [_row(each) for each in _by_weight(findings) if each.stops or not named]
        listing.show(COLUMNS, rows, output_form, lambda: plan.to_json() | answer)
    else:
        _table(plan, findings, expected)
        _closure(plan, closure)
    raise typer.Exit(REFUSED if stops else 0)


def _ask(plan: Plan) -> tuple[list[Finding], Json | None, list[Estimate]]:
    cluster = Cluster()
    for host in (plan.source, plan.destination):
        cluster.registry.check_host(host)
    # Celery is imported only now, so that a wrong argument is reported at once.
    from workflows.check import findings_of
    from workflows.survey import check_workers

    check_workers(plan)
    findings, source = findings_of(plan)
    # The size is unknown where the source could not examine the tree; a finding shows why.
    if "tree_bytes" not in source:
        return findings, None, []
    way, registry = (plan.source, plan.destination), cluster.registry
    measured = Measured(registry.pace(*way), registry.window(*way), plan.bytes_per_s)
    sizes = source["tree_bytes"], source.get("never_lazy_bytes", 0)
    return findings, source["closure"], estimates(plan, *sizes, measured)


def _with_hint(finding: Finding, code: str, hint: str) -> Finding:
    return replace(finding, hint=hint) if finding.code == code else finding


def _by_weight(findings: list[Finding]) -> list[Finding]:
    """Return what stops the migration first, and then what passed."""
    return sorted(findings, key=lambda finding: WEIGHTS[finding.verdict])


def _row(finding: Finding) -> Row:
    cells = (
        Cell(finding.verdict, COLOURS.get(finding.verdict, "green")),
        finding.code,
        finding.host,
        finding.sentence,
        finding.hint,
    )
    return Row(finding.code, cells, finding.to_json)


def _to_json(findings: list[Finding], expected: list[Estimate]) -> Json:
    return {
        "findings": [finding.to_json() for finding in findings],
        "estimate": [asdict(one) for one in expected],
    }


def _table(plan: Plan, findings: list[Finding], expected: list[Estimate]) -> None:
    stopping = [finding for finding in findings if finding.stops]
    verdict = "[green]nothing speaks against it[/]"
    if stopping:
        speak = "speaks" if len(stopping) == 1 else "speak"
        verdict = f"[red]{units.counted(len(stopping), 'finding')} {speak} against it[/]"
    console.print(f"[bold]{plan.describe()}[/]: {verdict}", soft_wrap=True)
    notes = [finding for finding in findings if finding.verdict is Verdict.NOTE]
    if sys.stdout.isatty():
        _on_terminal(plan, findings, [*stopping, *notes])
    else:
        listing.show(COLUMNS, [_row(finding) for finding in _by_weight(findings)], None)
    if expected:
        console.print(f"About {units.size(expected[0].move_bytes)} to move.")
    for one in expected:
        console.print(_expectation(plan, one), soft_wrap=True)


def _on_terminal(plan: Plan, findings: list[Finding], shown: list[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in shown:
        hint = f"\n[dim]{escape(finding.hint)}[/]" if finding.hint else ""
        colour = COLOURS[finding.verdict]
        table.add_row(f"[{colour}]{finding.code}[/]", finding.host, escape(finding.sentence) + hint)
    for host in (plan.source, plan.destination):
        passed = [
            finding.sentence
            for finding in findings
            if finding.host == host and finding.verdict is Verdict.OK
        ]
        table.add_row(
            "[green]ok[/]",
            host,
            f"[dim]{escape('; '.join(passed))}[/]" if passed else "[dim]not asked[/]",
        )
    console.print(table)


def _closure(plan: Plan, closure: Json | None) -> None:
    """Print which trees hold everything in common, if that is not the one that was asked for."""
    trees = closure["trees"] if closure else []
    if len(trees) < 2 and all(tree["pid"] == plan.pid for tree in trees):
        return
    console.print("Trees that share something, and could only move together:")
    for tree in trees:
        console.print(f"  {tree['pid']:>7}  {escape(tree['command'])}", soft_wrap=True)
    one = closure["one"] if closure else None
    way = f"as the tree of process {one}: add --closure" if one else "not as one tree"
    console.print(f"They can be migrated {way}.", soft_wrap=True)


def _expectation(plan: Plan, expected: Estimate) -> str:
    frozen, total = units.span(expected.freeze_ms), units.span(expected.total_ms)
    too_long = expected.freeze_ms > plan.max_freeze_s * 1000
    return (
        f"With {expected.mode}: frozen for about {frozen}{_window(plan, expected)}, "
        f"{total} in all ({_pace(plan, expected)})."
        + (f" A freeze of more than {plan.max_freeze_s:g} s is rolled back." if too_long else "")
    )


def _window(plan: Plan, expected: Estimate) -> str:
    """Return what the process needs after the freeze, and what crosses in it, in post-copy."""
    if not expected.window_ms:
        return ""
    never, window = units.size(expected.freeze_bytes), units.span(expected.window_ms)
    return (
        f", with {never} that can never come later; then it runs on {plan.destination} and needs "
        f"{plan.source} too for about {window}"
    )


def _pace(plan: Plan, expected: Estimate) -> str:
    rate = expected.bytes_per_s
    pace = f"the last one went at {units.rate(rate)}" if rate else "none was measured yet"
    if plan.bytes_per_s:
        pace += f"; this one sends {units.rate(plan.bytes_per_s)} at most"
    return f"from {plan.source} to {plan.destination} {pace}"


def _nagios(plan: Plan, findings: list[Finding], expected: list[Estimate]) -> int:
    """Print one line in the format of Nagios plugins and return the exit code.

    Performance data stand behind the bar (https://www.monitoring-plugins.org/doc/guidelines.html).
    """
    blocking = [finding for finding in findings if finding.verdict is Verdict.BLOCKS]
    lacking = [finding for finding in findings if finding.verdict is Verdict.NEEDS_OPTION]
    level = Level.CRITICAL if blocking else Level.WARNING if lacking else Level.OK
    reasons = "; ".join(
        f"{finding.code} on {finding.host}: {finding.sentence}" for finding in blocking + lacking
    )
    data = f"blocks={len(blocking)} needs_option={len(lacking)}"
    if expected:
        ours = expected[0]
        times = f"freeze={ours.freeze_ms:.0f}ms total={ours.total_ms:.0f}ms"
        times += f" window={ours.window_ms:.0f}ms" if ours.window_ms else ""
        data += f" move={ours.move_bytes}B {times}"
    line = f"{level} - {plan.describe()}: {reasons or 'nothing speaks against it'} | {data}"
    # Nagios reads the first line only.
    console.print(line.replace("\n", " "), soft_wrap=True, markup=False)
    return level.exit_code
