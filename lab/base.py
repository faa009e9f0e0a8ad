"""The root that all hosts stand on: a small Debian 13 with CRIU 4.2 from Debian unstable.

CRIU 4.1 of Debian 13 cannot dump inet sockets on kernels from 6.16 on, which is why that one
package and the libraries that it needs come from unstable, and nothing else does.

``python3 -m lab.base`` builds it. This module and what it imports need the standard library only,
so that bin/setup can build the root while pip installs Sojourn's libraries.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.errors import LabFailed
from lab.layer import Layer, Report
from sojourn.environment import variable
from sojourn.system.run import Argument, Child, run, spawn

SUITE = "trixie"
PACKAGES = (
    "criu",
    "iproute2",
    "iputils-arping",
    "iputils-ping",
    "nftables",
    "openssh-client",
    "openssh-server",
    "pipx",
    "procps",
    "python3",
    "python3-venv",
    "redis-server",
    "runit",
    "tini",
)
NEWER_SUITE = "sid"
NEWER_PACKAGES = ("criu", "libcompel1", "libnet9", "libnl-3-200")

#: Priorities of apt_preferences(5): with 10, a package comes from unstable only where Debian 13 has
#: none of that name.
PREFERENCES = f"""\
Package: *
Pin: release n={NEWER_SUITE}
Pin-Priority: 10

Package: {" ".join(NEWER_PACKAGES)}
Pin: release n={NEWER_SUITE}
Pin-Priority: 990
"""

#: Settings of this machine's apt that decide whether and how it reaches the mirror.
NETWORK_SETTINGS = (
    "Acquire::http",
    "Acquire::Check-",
    "Acquire::Retries",
    "Acquire::ForceIPv4",
)

#: Nobody reads documentation in a host, and a root that is not complete is thrown away, so it need
#: not survive a crash file by file (dpkg(1), --force-unsafe-io).
DPKG_OPTIONS = (
    "force-unsafe-io",
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/man/*",
)

#: mmdebstrap trusts the keys of this machine's apt, which may be another distribution's.
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

#: How the lines of mmdebstrap, apt and dpkg begin that show how far they are.
PROGRESS = ("I: ", "Get:", "Unpacking ", "Setting up ")

BUILD_S = 1200
ASK_S = 30

#: Everything that is built dies with its builder, and its mounts are visible to no other process.
APART = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
)


def layer() -> Layer:
    """Return the layer of the base root; its recipe does not depend on the mirror."""
    recipe = [SUITE, *PACKAGES, PREFERENCES, *DPKG_OPTIONS]
    return Layer("base", "\n".join(recipe), _fill)


def mirror() -> str:
    """Return a Debian mirror: SOJOURN_LAB_MIRROR, or the first of this machine's apt sources."""
    chosen = variable("SOJOURN_LAB_MIRROR")
    if chosen:
        return chosen
    fields = "$(SITE) $(ORIGIN) $(LABEL)"
    targets = run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], deadline_s=ASK_S
    )
    for line in targets.stdout.splitlines():
        site, *origin_and_label = line.split()
        if origin_and_label == ["Debian", "Debian"]:
            return site
    raise LabFailed(
        "The apt sources of this machine name no Debian mirror to build the hosts' root from.",
        "Set SOJOURN_LAB_MIRROR to the address of one, then try again.",
    )


def network_settings() -> str:
    """Return the lines of apt.conf with which this machine's apt reaches its mirror."""
    lines = run(["apt-config", "dump", "Acquire"], deadline_s=ASK_S).stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith(NETWORK_SETTINGS))


def bootstrap(
    root: Path, report: Report, *, suites: Sequence[str] = (SUITE,), options: Sequence[str] = ()
) -> None:
    """Make a minimal Debian 13 of an empty directory. Raises LabFailed.

    ``options`` are more of mmdebstrap's own.
    """
    site = mirror()
    with tempfile.NamedTemporaryFile("w", prefix="sojourn-lab-", suffix=".conf") as settings:
        settings.write(network_settings() + 'Acquire::Languages "none";\n')
        settings.flush()
        argv: list[Argument] = [
            *(*APART, "mmdebstrap", "--mode=root", "--format=directory", "--variant=minbase"),
            *("--verbose", f"--keyring={KEYRING}", f"--aptopt={settings.name}"),
            *(f"--dpkgopt={option}" for option in DPKG_OPTIONS),
            *options,
            SUITE,
            root,
            *(f"deb {site} {suite} main" for suite in suites),
        ]
        _follow(argv, report)


def _fill(root: Path, report: Report) -> None:
    with tempfile.TemporaryDirectory(prefix="sojourn-lab-") as place:
        preferences = Path(place) / "sojourn"
        preferences.write_text(PREFERENCES)
        include = f"--include={','.join(PACKAGES)}"
        pin = f"--setup-hook=copy-in {preferences} /etc/apt/preferences.d"
        bootstrap(root, report, suites=(SUITE, NEWER_SUITE), options=(include, pin))


def _follow(argv: Sequence[Argument], report: Report) -> None:
    """Run a builder and report how far it is. Raises LabFailed with the reason that it gave."""
    # The shell sends everything to the pipe: mmdebstrap writes to stderr, dpkg to stdout.
    child = spawn(["sh", "-c", 'exec "$@" 2>&1', "sh", *argv], pipe=True)
    lines = []
    with _ended_after(child, BUILD_S):
        for line in child.stdout:
            lines.append(line.strip())
            if line.startswith(PROGRESS):
                report(f"base: {line.removeprefix('I: ').strip().rstrip('.')}")
    if child.wait(BUILD_S) != 0:
        raise LabFailed(
            f"mmdebstrap could not build the hosts' root: {_cause(lines)}",
            "Check that the mirror answers and carries Debian 13 and unstable, or name another one "
            "in SOJOURN_LAB_MIRROR.",
        )


def _cause(lines: Sequence[str]) -> str:
    """Return the first error, which caused the others."""
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    return errors[0] if errors else (lines[-1] if lines else "it printed nothing")


@contextlib.contextmanager
def _ended_after(child: Child, deadline_s: float) -> Iterator[None]:
    """End the child at the deadline, and when the block is left by an error or Ctrl-C."""
    timer = threading.Timer(deadline_s, child.kill)
    timer.start()
    with contextlib.ExitStack() as undo:
        undo.callback(timer.cancel)
        with contextlib.ExitStack() as on_error:
            on_error.callback(child.kill)
            yield
            on_error.pop_all()


def main() -> None:
    """Build the base root unless it is there; a process that waits for it reports the progress."""
    layer().ready(lambda _: None)


if __name__ == "__main__":
    main()
