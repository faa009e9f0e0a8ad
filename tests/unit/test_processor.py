"""What the processor can do, as the kernel lists it."""

from __future__ import annotations

from sojourn import processor

ALIKE = "processor\t: {}\nflags\t\t: fpu sse sse4_2 avx avx512f aes {}\nbugs\t\t: spectre_v1\n\n"


def test_flags_of_programs_only() -> None:
    """What tells of the machine or of errata is left out: it differs between hosts that are alike to programs."""
    text = ALIKE.format(0, "hypervisor constant_tsc la57 arch_perfmon vmx tsc_known_freq ibrs xsaves xsaveerptr")
    assert processor.flags_in(text) == ("aes", "avx", "avx512f", "fpu", "sse", "sse4_2")


def test_processors_that_differ() -> None:
    """A program may run on any of them, so what counts is what all have."""
    assert "sha_ni" not in processor.flags_in(ALIKE.format(0, "sha_ni") + ALIKE.format(1, ""))
    assert "sha_ni" in processor.flags_in(ALIKE.format(0, "sha_ni") + ALIKE.format(1, "sha_ni"))


def test_arm() -> None:
    """There the line has another name, and all of it counts."""
    assert processor.flags_in("processor\t: 0\nFeatures\t: fp asimd sve\n") == ("asimd", "fp", "sve")


def test_a_kernel_that_lists_none() -> None:
    """Nothing listed is nothing known."""
    assert processor.flags_in("processor\t: 0\n") == ()


def test_this_host() -> None:
    """The real file can be read, and the load is a number."""
    assert processor.flags()
    assert processor.load() >= 0
