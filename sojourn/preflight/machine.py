"""The two machines: processor, CRIU, and what the mode needs of both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sojourn.criu import Criu
from sojourn.preflight.finding import Finding, blocks, named

#: What ``/proc/cpuinfo`` calls the instructions and registers that programs use by themselves. The other flags of x86
#: are for the kernel, or say how well something works: a program does not fail without them.
INSTRUCTIONS = frozenset(
    """
    fpu cx8 sep cmov mmx fxsr sse sse2 syscall lm rdtscp mmxext 3dnow 3dnowext pni pclmulqdq ssse3 fma cx16 sse4_1
    sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm sse4a 3dnowprefetch xop fma4 tbm fsgsbase bmi1 hle avx2
    bmi2 rtm mpx avx512f avx512dq rdseed adx avx512ifma clflush clflushopt clwb avx512pf avx512er avx512cd sha_ni
    avx512bw avx512vl xsaveopt xsavec xgetbv1 avx_vnni avx512_bf16 clzero wbnoinvd avx512vbmi pku ospke waitpkg
    avx512_vbmi2 gfni vaes vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid cldemote movdiri movdir64b enqcmd
    avx512_4vnniw avx512_4fmaps avx512_vp2intersect serialize tsxldtrk amx_bf16 avx512_fp16 amx_tile amx_int8 amx_fp16
    avx_ifma cmpccxadd user_shstk sha512 sm3 sm4 avx_vnni_int8 avx_ne_convert avx_vnni_int16
    """.split()  # noqa: SIM905  (a list of words is one word per line)
)

#: What kernel and CRIU must have for a mode, as ``criu check --feature`` names it.
FEATURES = {"pre-copy": ("mem_dirty_track",), "post-copy": ("uffd-noncoop", "lazy_pages")}

#: From this kernel on, CRIU before 4.2 can not dump inet sockets: the kernel refuses an option that it asks for.
STRICT_KERNEL, TOLERANT_CRIU = (6, 16), (4, 2)


def cpu_flags() -> list[str]:
    """Return what this host's processor can do for programs, as the kernel names it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return sorted(INSTRUCTIONS.intersection(value.split()))
        if key.strip() == "Features":
            return sorted(value.split())
    return []


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
    missing = sorted(set(flags) - set(cpu_flags()))
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
