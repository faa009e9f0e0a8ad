"""``sojourn pki``: the cluster's own certificate authority, and the certificates it issues."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sojourn.cli import output
from sojourn.cli.output import console

app = typer.Typer(
    help="Make the certificates with which hosts authenticate and encrypt their connections."
)

Directory = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Where the authority is kept.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]

#: Where a host keeps its certificates, unless a site has another place for them.
PLACE = "/etc/sojourn/pki"


def add_to(root: typer.Typer) -> None:
    """Add the commands to the command line."""
    root.add_typer(app, name="pki")


@app.command()
def init(
    *,
    directory: Directory = Path("pki"),
    days: Annotated[
        int, typer.Option(metavar="N", min=1, max=36_500, help="How long it is valid.")
    ] = 3650,
    as_json: Json = False,
) -> None:
    """Make a new authority, on a machine that is not a host of the cluster.

    Keep its ca.key secret: whoever has it can impersonate any host.

    Exit status: 0; 2 there is one already, and nothing was touched.
    """
    # Imported here: only these commands need the library that makes certificates.
    from sojourn.security.pki import Authority

    made = Authority.create(directory, days)
    if as_json:
        output.as_json({"directory": str(directory), "until": made.until.isoformat()})
        return
    console.print(
        f"{escape(str(directory))} holds an authority that is valid until {made.until:%Y-%m-%d}."
    )
    console.print(
        f"Keep {escape(str(directory / 'ca.key'))} secret. "
        "Next: sojourn pki issue HOST, for each host."
    )


@app.command()
def issue(
    name: Annotated[
        str, typer.Argument(metavar="HOST", help="The host's name, as in its settings.")
    ],
    *,
    address: Annotated[
        list[str] | None,
        typer.Option(help="Another name or IP address of it; Redis needs the one in `redis_url`."),
    ] = None,
    directory: Directory = Path("pki"),
    days: Annotated[
        int, typer.Option(metavar="N", min=1, max=36_500, help="How long it is valid.")
    ] = 365,
    as_json: Json = False,
) -> None:
    """Make a new key and a certificate for a host, for Redis, or for a machine with a command line.

    Files that were made before are replaced.

    Exit status: 0; 2 there is no such authority, or the name is not one of a host.
    """
    from sojourn.security.pki import Authority

    place = Authority.load(directory).issue(name, address or [], days)
    if as_json:
        output.as_json({"host": name, "directory": str(place), "files": ["ca.crt", "host.pem"]})
        return
    console.print(f"{escape(str(place))} holds ca.crt and host.pem of {name}.")
    console.print(
        f"Put both into {PLACE} there, host.pem with mode 0600, "
        f"and this into sojourn.toml: certificates = '{PLACE}'"
    )
