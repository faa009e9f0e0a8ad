"""The two machines: processor, CRIU, and what the mode needs of both."""

from __future__ import annotations

import os
from collections.abc import Iterator

from sojourn import processor
from sojourn.criu import Criu
from sojourn.preflight.finding import Finding, blocks, named

#: What kernel and CRIU must have for a mode, as ``criu check --feature`` names it.
FEATURES = {"pre-copy": ("mem_dirty_track",), "post-copy": ("uffd-noncoop", "lazy_pages")}

#: From this kernel on, CRIU before 4.2 can not dump inet sockets: the kernel refuses an option that it asks for.
STRICT_KERNEL, TOLERANT_CRIU = (6, 16), (4, 2)


def missing_features(criu: Criu, mode: str) -> Iterator[Finding]:
    """Yield what this host lacks for a mode."""
    for feature in FEATURES.get(mode, ()):
        if not criu.has(feature):
            yield blocks("CRIU_FEATURE", f"Kernel and CRIU lack {feature}, which {mode} needs.", "Choose another mode.")


def too_old(criu: str, kernel: str) -> bool:
    """Whether this CRIU can not dump inet sockets on this kernel."""
    return _series(kernel) >= STRICT_KERNEL and _series(criu) < TOLERANT_CRIU


def differences(machine: str, flags: list[str], criu: str, here: Criu) -> Iterator[Finding]:
    """Yield how this host, the destination, differs from the source so that the tree could not run here."""
    ours = os.uname().machine
    if machine != ours:
        yield blocks("MACHINE", f"The source is {machine} and this host is {ours}.", "Choose another destination.")
        return
    missing = sorted(set(flags) - set(processor.flags()))
    if missing:
        yield blocks(
            "CPU_FLAGS",
            f"The processor lacks {named(missing, 8)}, which the source's has.",
            "Choose a destination with the same or a newer processor.",
        )
    version = here.version()
    if _series(version) != _series(criu):
        yield blocks(
            "CRIU_VERSION",
            f"The source has CRIU {criu} and this host has {version}; they do not understand each other.",
            "Install the same major and minor version of CRIU on both hosts.",
        )


def _series(version: str) -> tuple[int, ...]:
    """Return major and minor version as numbers."""
    digits = ("".join(filter(str.isdigit, part)) for part in version.split(".")[:2])
    return tuple(int(part or 0) for part in digits)
