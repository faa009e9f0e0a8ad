"""The root that all hosts stand on: a small Debian 13 with CRIU 4.2 out of Debian unstable.

CRIU 4.1 of Debian 13 can not dump inet sockets on kernels from 6.16 on, which is why that one package and
the libraries that it can not do without come from unstable, and nothing else does.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.errors import LabFailed
from lab.layer import Layer, Report
from sojourn.errors import CommandFailed
from sojourn.run import Argument, Child, run, spawn
from sojourn.settings import variable

SUITE = "trixie"
PACKAGES = (
    "iproute2",
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

PREFERENCES = f"""\
Package: *
Pin: release n={NEWER_SUITE}
Pin-Priority: 10

Package: {" ".join(NEWER_PACKAGES)}
Pin: release n={NEWER_SUITE}
Pin-Priority: 990
"""

#: Settings of the outside's apt that decide whether and how it reaches the mirror.
NETWORK_SETTINGS = (
    "Acquire::http",
    "Acquire::Check-",
    "Acquire::Retries",
    "Acquire::ForceIPv4",
)

BUILD_S = 1200
INSTALL_S = 300
ASK_S = 30

#: Everything that is built dies with its builder, and what it mounts is seen by nobody else.
APART = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"),
)


def layer() -> Layer:
    """Return the layer of the base root; its recipe does not depend on the mirror."""
    return Layer("base", "\n".join([SUITE, *PACKAGES, PREFERENCES]), _fill)


def mirror() -> str:
    """Return the address of a Debian mirror: SOJOURN_LAB_MIRROR, or the first one that our own apt uses."""
    chosen = variable("SOJOURN_LAB_MIRROR")
    if chosen:
        return chosen
    targets = run(
        ["apt-get", "indextargets", "--format", "$(SITE) $(ORIGIN) $(LABEL)", "Created-By: Packages"],
        deadline_s=ASK_S,
    )
    for line in targets.stdout.splitlines():
        site, *origin_and_label = line.split()
        if origin_and_label == ["Debian", "Debian"]:
            return site
    raise LabFailed(
        "This machine's apt knows no Debian mirror to build the hosts' root from.",
        "Set SOJOURN_LAB_MIRROR to the address of one, then try again.",
    )


def _fill(root: Path, report: Report) -> None:
    site = mirror()
    _debootstrap(root, site, report)
    report(f"base: CRIU out of {NEWER_SUITE}")
    _write_apt_settings(root, site)
    _in_root(root, ["apt-get", "--error-on=any", "update"])
    # dpkg calls it "install", but the versions that the pins allow are what is fetched.
    _in_root(root, ["apt-get", "install", "--yes", "--no-install-recommends", "criu"])
    _in_root(root, ["apt-get", "clean"])
    shutil.rmtree(root / "var/lib/apt/lists")


def _debootstrap(root: Path, site: str, report: Report) -> None:
    log = root.with_suffix(".log")
    include = "--include=" + ",".join(PACKAGES)
    argv: list[Argument] = [*APART, "debootstrap", "--variant=minbase", include, SUITE, root, site]
    child = spawn(argv, output=log, pipe=True)
    last = ""
    with _ended_after(child, BUILD_S):
        for line in child.stdout:
            last = line.strip()
            if last.startswith("I: "):
                report(f"base: {last.removeprefix('I: ').rstrip('.')}")
    said = [*log.read_text().splitlines(), last]
    log.unlink()
    if child.wait(BUILD_S) != 0:
        raise LabFailed(
            f"debootstrap could not build the hosts' root: {_cause(said)}",
            "Check that the mirror can be reached, or name another one in SOJOURN_LAB_MIRROR.",
        )


def _cause(lines: Sequence[str]) -> str:
    errors = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")]
    return errors[0] if errors else lines[-1] or "it said nothing"


@contextlib.contextmanager
def _ended_after(child: Child, deadline_s: float) -> Iterator[None]:
    """End the child at the deadline, and when the block is left by an error or Ctrl-C."""
    timer = threading.Timer(deadline_s, child.kill)
    timer.start()
    try:
        yield
    except BaseException:
        child.kill()
        raise
    finally:
        timer.cancel()


def _write_apt_settings(root: Path, site: str) -> None:
    suites = (SUITE, NEWER_SUITE)
    apt = root / "etc/apt"
    (apt / "sources.list").write_text("".join(f"deb {site} {suite} main\n" for suite in suites))
    (apt / "preferences.d/sojourn").write_text(PREFERENCES)
    (apt / "apt.conf.d/90outside").write_text(network_settings() + 'Acquire::Languages "none";\n')
    (root / "etc/resolv.conf").write_bytes(Path("/etc/resolv.conf").read_bytes())


def network_settings() -> str:
    """Return what the outside's apt needs to reach its mirror, for a root that is made here."""
    lines = run(["apt-config", "dump", "Acquire"], deadline_s=ASK_S).stdout.splitlines()
    return "".join(f"{line}\n" for line in lines if line.startswith(NETWORK_SETTINGS))


def _in_root(root: Path, argv: Sequence[str]) -> None:
    try:
        run([*APART, "chroot", root, *argv], deadline_s=INSTALL_S, env={"DEBIAN_FRONTEND": "noninteractive"})
    except CommandFailed as error:
        raise LabFailed(
            f"Could not install CRIU into the hosts' root. {error.message}",
            "Check that the mirror carries Debian unstable, or name another one in SOJOURN_LAB_MIRROR.",
        ) from error
