"""One more layer of the hosts' root: the packages of the programs that ``make programs`` moves.

The lab's own layers stay as they are, so ``make demo`` does not wait for a database to be
installed. The packages come from the mirror, and with the settings, of which the base root was
made.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from lab import base
from lab.base import APART
from lab.errors import LabFailed
from lab.layer import Layer, Report
from lab.libraries import CHECKOUT
from sojourn.system.run import Argument, run

INSTALL_S = 1500

#: No package starts its service, and PostgreSQL makes no cluster of its own: each program gets its
#: directories when it is started. Debian's mirror may be reached by a name server of this machine.
INSTALL = """
set -e
export DEBIAN_FRONTEND=noninteractive
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d
mkdir -p /etc/postgresql-common /usr/share/man/man1
echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
apt-get update --quiet=2
apt-get install --yes --quiet=2 --no-install-recommends "$@"
apt-get clean
rm -rf /var/lib/apt/lists/* /usr/sbin/policy-rc.d
"""


def layer(packages: Iterable[str]) -> Layer:
    """Return the layer that holds these packages, and all that they depend on."""
    names = sorted(set(packages))
    recipe = "\n".join([base.layer().path.name, INSTALL, *names])
    return Layer("programs", recipe, lambda draft, report: _fill(draft, names, report))


def _fill(draft: Path, names: list[str], report: Report) -> None:
    root = base.layer().ready(report)
    report(f"programs: installing {len(names)} packages of Debian's")
    with tempfile.TemporaryDirectory(dir=draft.parent, prefix="programs-work-") as scratch:
        place = Path(scratch)
        stacked: list[Argument] = [sys.executable, "-P", "-m", "lab.stacked"]
        roots = [root, draft, place / "work", place / "root"]
        command = ["/bin/sh", "-c", INSTALL, "install", *names]
        done = run(
            [*APART, *stacked, *roots, *command],
            deadline_s=INSTALL_S,
            check=False,
            env={"PYTHONPATH": str(CHECKOUT)},
        )
    if done.returncode != 0:
        raise LabFailed(
            f"apt-get could not install the programs: {_cause(done.stdout + done.stderr)}",
            "Check that the mirror answers and carries Debian 13.",
        )


def _cause(output: str) -> str:
    """Return the first error, which caused the others."""
    errors = [line for line in output.splitlines() if line.startswith(("E: ", "dpkg: error"))]
    return errors[0] if errors else output[-200:]
