"""``sojourn lab``: hosts made of namespaces on this machine."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from lab import demo as demonstration
from lab import libraries, outside, workload
from lab.lab import DEFAULT_HOSTS, DEFAULT_NAME, HostStatus, Lab, all_names
from lab.layer import Report
from lab.plan import Setting
from sojourn.cli import listing
from sojourn.cli.listing import Column, Output, Row
from sojourn.errors import UsageError
from sojourn.system import run

app = typer.Typer(
    no_args_is_help=True, help="Hosts made of namespaces on this machine, to try everything on."
)

#: How often progress is printed where it cannot be drawn.
BETWEEN_LINES_S = 2.0

HOSTS = (
    Column("host"),
    Column("address"),
    Column("state"),
    Column("init", right=True, from_width=100),
    Column("services", wraps=True),
    Column("mounts", from_width=100, wraps=True),
)

out = Console()

#: Progress and remarks go to stderr, so that stdout holds the result alone.
err = Console(stderr=True, highlight=False)

Name = Annotated[
    str, typer.Option("--name", help="The lab's name; several can be up at the same time.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HostName = Annotated[str, typer.Argument(metavar="HOST", help="One of the lab's hosts, or hub.")]
Command = Annotated[list[str], typer.Argument(metavar="CMD...", help="Write -- in front of it.")]

#: For commands whose own arguments may begin with a dash.
PASS_THROUGH = {"ignore_unknown_options": True, "allow_interspersed_args": False}


def add_to(root: typer.Typer) -> None:
    """Add the commands to the command line."""
    root.add_typer(app, name="lab")


@app.command()
def up(
    *,
    hosts: Annotated[
        int, typer.Option(metavar="N", min=1, max=12, help="How many hosts, beside the hub.")
    ] = DEFAULT_HOSTS,
    name: Name = DEFAULT_NAME,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting for sojourn.toml of the hosts."),
    ] = None,
    encrypted: Annotated[
        bool,
        typer.Option(
            "--encrypted", help="A new lab whose hosts have certificates and talk over TLS."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option(help="Wait until the hosts' workers have announced themselves.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Start the lab, or those of its hosts that are not up.

    The first time, it builds the root of the hosts, which takes one to two minutes.

    Exit status: 0 the lab is up; 2 usage; 1 anything else.
    """
    started = time.monotonic()
    with _progress() as report:
        lab = Lab(name, report)
        booted = lab.up(hosts, settings=_settings(settings or []), encrypted=encrypted, wait=wait)
    if as_json:
        _print_json({"booted": booted, "config": str(lab.config), "hosts": _as_dicts(lab.status())})
        return
    _print_hosts(lab, booted, time.monotonic() - started)
    out.print(f"export SOJOURN_CONFIG={lab.config}", highlight=False)
    if lab.plan.flower_password:
        _print(f"Flower: {lab.plan.flower_url}, {lab.flower_login}")


@app.command()
def prepare() -> None:
    """Build the root of the hosts, as the first start of a lab does.

    It takes a moment only where it is built already.

    Exit status: 0 it is built; 1 it could not be.
    """
    outside.check()
    with _progress() as report:
        libraries.layers(report)


@app.command()
def demo(
    *,
    mb: Annotated[int, typer.Option(min=1, help="How much memory the process holds, in MB.")] = 256,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the lab up afterwards, to look around.")
    ] = False,
) -> None:
    """Migrate a process from one host to another and back, and check every promise on real output.

    It uses a lab of its own, named demo, and removes an earlier one of that name first.

    Exit status: 0 every promise was kept; 1 one was not, or no lab could be started.
    """
    demonstration.show(_progress, size_mb=mb, keep=keep)


@app.command()
def down(
    *,
    name: Name = DEFAULT_NAME,
    everything: Annotated[bool, typer.Option("--all", help="All labs on this machine.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the lab with all that runs in it, its disks included. Safe to repeat.

    Exit status: 0 nothing is left; 2 usage; 1 anything else.
    """
    names = all_names() if everything else [name]
    removed = [lab for lab in names if Lab(lab).down()]
    if as_json:
        _print_json({"removed": removed})
    else:
        _print(f"removed {', '.join(removed)}" if removed else "there was nothing to remove")


@app.command()
def status(*, name: Name = DEFAULT_NAME, form: Output = None, as_json: Json = False) -> None:
    """Show the lab's hosts.

    Exit status: 0 there is such a lab; 1 there is none.
    """
    rows = [_row(host) for host in Lab(name).status()]
    listing.show(HOSTS, rows, listing.form_of(form, json=as_json))


@app.command("exec", context_settings=PASS_THROUGH)
def execute(host: HostName, command: Command, *, name: Name = DEFAULT_NAME) -> None:
    """Run a command inside a host, with this terminal.

    Exit status: the command's.
    """
    run.replace(Lab(name).host(host).argv(_without_dashes(command)))


@app.command("run", context_settings=PASS_THROUGH)
def launch(
    host: HostName,
    command: Command,
    *,
    name: Name = DEFAULT_NAME,
    log: Annotated[
        str, typer.Option(help="Where the output goes: a path inside the host.")
    ] = "/dev/null",
    as_json: Json = False,
) -> None:
    """Start a program on a host, detached from this terminal, and print its PID.

    Exit status: 0 it runs; 1 it could not be started.
    """
    pid = Lab(name).host(host).launch(_without_dashes(command), log=log)
    _answer({"pid": pid, "host": host}, str(pid), as_json=as_json)


@app.command()
def start(
    host: HostName,
    program: Annotated[
        str, typer.Argument(metavar="WORKLOAD", help=f"One of {', '.join(workload.NAMES)}.")
    ],
    *,
    name: Name = DEFAULT_NAME,
    mb: Annotated[int | None, typer.Option(help="Memory to fill, in MB; of counter only.")] = None,
    as_json: Json = False,
) -> None:
    """Start one of the lab's workloads; print its PID and the path of its status file.

    Exit status: 0 it runs; 2 usage; 1 it could not be started.
    """
    started = workload.start(Lab(name).host(host), program, **({} if mb is None else {"mb": mb}))
    answer: dict[str, object] = {"pid": started.pid, "host": host, "status": str(started.file)}
    _answer(answer, f"{started.pid} {started.file}", as_json=as_json)


@app.command()
def cut(host: HostName, *, name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """Pull a host's network cable.

    Exit status: 0 it is cut off; 2 usage; 1 anything else.
    """
    Lab(name).cut(host)
    _answer({"host": host, "state": "cut"}, f"{host} is cut off", as_json=as_json)


@app.command()
def heal(host: HostName, *, name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """Plug a host's network cable in again.

    Exit status: 0 it is plugged in; 2 usage; 1 anything else.
    """
    Lab(name).heal(host)
    _answer({"host": host, "state": "healed"}, f"{host} is plugged in", as_json=as_json)


@app.command()
def crash(host: HostName, *, name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """Take a host's power away: its processes and memory are gone, its disk stays.

    Exit status: 0 it is down; 2 usage; 1 anything else.
    """
    Lab(name).crash(host)
    _answer({"host": host, "state": "down"}, f"{host} is down", as_json=as_json)


@app.command()
def boot(host: HostName, *, name: Name = DEFAULT_NAME, as_json: Json = False) -> None:
    """Start a crashed host again, with the disk it had.

    Exit status: 0 it is up; 2 usage; 1 anything else.
    """
    with _progress() as report:
        Lab(name, report).boot(host)
    _answer({"host": host, "state": "up"}, f"{host} is up", as_json=as_json)


@app.command()
def worker(
    host: HostName,
    command: Annotated[str, typer.Argument(metavar="start|stop|kill|restart|status")],
    *,
    name: Name = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Start, stop, kill (its supervisor starts it again) or restart the worker of a host.

    Exit status: 0 done; 2 usage; 1 anything else.
    """
    # What runit calls them (sv(8)).
    actions = {
        "start": "up",
        "stop": "down",
        "kill": "kill",
        "restart": "restart",
        "status": "status",
    }
    if command not in actions:
        raise UsageError(
            f"There is no action {command!r} on a worker.", f"Choose one of {', '.join(actions)}."
        )
    machine = Lab(name).host(host)
    machine.service("worker", actions[command])
    answer = machine.service("worker", "status")
    _answer({"host": host, "worker": answer}, answer, as_json=as_json)


@contextlib.contextmanager
def _progress() -> Iterator[Report]:
    """Show progress: on a terminal in one line that changes, elsewhere in a line now and then."""
    started = time.monotonic()

    def line(text: str) -> str:
        return f"{time.monotonic() - started:6.1f} s  {text}"

    if not err.is_terminal:
        yield _seldom(lambda text: err.print(line(text), soft_wrap=True))
        return
    with err.status("") as status_line:
        yield lambda text: status_line.update(line(text))


def _seldom(report: Report) -> Report:
    """Pass on the first line, then at most one per interval: building a root has hundreds."""
    printed = -math.inf

    def pass_on(text: str) -> None:
        nonlocal printed
        if time.monotonic() >= printed + BETWEEN_LINES_S:
            printed = time.monotonic()
            report(text)

    return pass_on


def _print_hosts(lab: Lab, booted: list[str], seconds: float) -> None:
    running = [host.name for host in lab.hosts() if host.name not in booted]
    if booted:
        _print(f"booted {', '.join(booted)} in {seconds:.1f} s")
    if running:
        _print(f"{', '.join(running)} ran already")


def _settings(pairs: list[str]) -> dict[str, Setting]:
    return dict(_setting(pair) for pair in pairs)


def _setting(pair: str) -> tuple[str, Setting]:
    key, equals, text = pair.partition("=")
    if not equals:
        raise UsageError(f"{pair!r} is not a setting.", "Write it as KEY=VALUE.")
    # Numbers and booleans are written as in JSON; all else is text, which then needs no quotes.
    try:
        value = json.loads(text)
    except ValueError:
        return key, text
    return key, value if isinstance(value, str | int | float | bool) else text


def _without_dashes(command: list[str]) -> list[str]:
    # The parser may leave the separator in place.
    return command[1:] if command[:1] == ["--"] else command


def _as_dicts(found: list[HostStatus]) -> list[dict[str, object]]:
    return [asdict(host) for host in found]


def _row(host: HostStatus) -> Row:
    services = ", ".join(line.split(";")[0] for line in host.services.values())
    init = "-" if host.init_pid is None else str(host.init_pid)
    cells = (host.host, host.address, host.state, init, services or "-", ", ".join(host.mounts))
    return Row(host.host, cells, partial(asdict, host))


def _answer(fields: dict[str, object], sentence: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(fields)
    else:
        out.print(sentence, highlight=False, soft_wrap=True)


def _print(sentence: str) -> None:
    err.print(sentence, soft_wrap=True)


def _print_json(value: object) -> None:
    out.print_json(json.dumps(value))
