"""The features of this host's processor, and its load (proc_cpuinfo(5), getloadavg(3))."""

from __future__ import annotations

import os
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

#: The flags in ``/proc/cpuinfo`` of instructions and registers that programs use by themselves. The
#: other flags of x86 are for the kernel, or describe how well something works: a program does not
#: fail without them.
INSTRUCTIONS = frozenset(
    """
    fpu cx8 sep cmov mmx fxsr sse sse2 syscall lm rdtscp mmxext 3dnow 3dnowext pni pclmulqdq ssse3
    fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c rdrand lahf_lm abm sse4a 3dnowprefetch
    xop fma4 tbm fsgsbase bmi1 hle avx2 bmi2 rtm mpx avx512f avx512dq rdseed adx avx512ifma clflush
    clflushopt clwb avx512pf avx512er avx512cd sha_ni avx512bw avx512vl xsaveopt xsavec xgetbv1
    avx_vnni avx512_bf16 clzero wbnoinvd avx512vbmi pku ospke waitpkg avx512_vbmi2 gfni vaes
    vpclmulqdq avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid cldemote movdiri movdir64b enqcmd
    avx512_4vnniw avx512_4fmaps avx512_vp2intersect serialize tsxldtrk amx_bf16 avx512_fp16
    amx_tile amx_int8 amx_fp16 avx_ifma cmpccxadd user_shstk sha512 sm3 sm4 avx_vnni_int8
    avx_ne_convert avx_vnni_int16
    """.split()  # noqa: SIM905  (a list literal would have one flag per line)
)


def flags() -> tuple[str, ...]:
    """Return the features of this host's processor that programs can use, sorted."""
    return flags_in(CPUINFO.read_text())


def flags_in(cpuinfo: str) -> tuple[str, ...]:
    """Return the features in a text like ``/proc/cpuinfo`` that all processors have."""
    listed = re.findall(r"^(flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    # A program may run on any of them, so a feature counts only if all have it.
    by_cpu = [{flag for flag in line.split() if _counts(key, flag)} for key, line in listed]
    return tuple(sorted(set.intersection(*by_cpu))) if by_cpu else ()


def _counts(key: str, flag: str) -> bool:
    # ARM's line is named Features, and lists only what programs can use.
    return key == "Features" or flag in INSTRUCTIONS


def load() -> float:
    """Return how many tasks were runnable, on average over the last minute."""
    return round(os.getloadavg()[0], 2)
