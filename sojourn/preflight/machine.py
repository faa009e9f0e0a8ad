"""The two machines: their processors, their CRIU, and what the mode needs of both."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sojourn.cluster.compatibility import Endpoint, incompatibilities, series
from sojourn.criu.commands import Criu
from sojourn.preflight.finding import Finding, blocks, named
from sojourn.system import cpu

#: The features of kernel and CRIU that a mode needs, as ``criu check --feature`` names them.
FEATURES = {"pre-copy": ("mem_dirty_track",), "post-copy": ("uffd-noncoop",)}

#: From this kernel on, CRIU before 4.2 cannot dump TCP and UDP sockets: the kernel refuses a socket
#: option that it reads.
STRICT_KERNEL, TOLERANT_CRIU = (6, 16), (4, 2)


def missing_features(criu: Criu, mode: str) -> Iterator[Finding]:
    """Yield the features that this host lacks for a mode."""
    for feature in FEATURES.get(mode, ()):
        if not criu.has(feature):
            yield blocks(
                "CRIU_FEATURE",
                f"Kernel and CRIU lack {feature}, which {mode} needs.",
                "Choose another mode.",
            )


def too_old(criu: str, kernel: str) -> bool:
    """Return whether this CRIU cannot dump TCP and UDP sockets on this kernel."""
    return series(kernel) >= STRICT_KERNEL and series(criu) < TOLERANT_CRIU


def differences(machine: str, flags: list[str], criu: str, here: Criu) -> Iterator[Finding]:
    """Yield why the tree could not run on this host, the destination."""
    ours = os.uname().machine
    if machine != ours:
        yield blocks(
            "MACHINE",
            f"The source is a {machine} machine and this host is {ours}.",
            f"Choose a destination that is {machine} too.",
        )
        return
    missing = sorted(set(flags) - set(cpu.flags()))
    if missing:
        yield blocks(
            "CPU_FLAGS",
            f"The processor lacks {named(missing, 8)}, which the source's processor has.",
            "Choose a destination with the same or a newer processor.",
        )
    # Keys and certificates need no check here: the two hosts have talked to each other already.
    source = Endpoint("The source", criu=criu)
    for reason in incompatibilities(source, Endpoint("this host", criu=here.version())):
        yield blocks(reason.code, reason.sentence, reason.hint)
