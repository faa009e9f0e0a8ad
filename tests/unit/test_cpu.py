"""The features of the processor, as the kernel lists them."""

from __future__ import annotations

from sojourn.system import cpu

ALIKE = "processor\t: {}\nflags\t\t: fpu sse sse4_2 avx avx512f aes {}\nbugs\t\t: spectre_v1\n\n"


def test_flags_of_programs_only() -> None:
    """Flags of the machine and of errata are left out: programs do not depend on them."""
    text = ALIKE.format(
        0, "hypervisor constant_tsc la57 arch_perfmon vmx tsc_known_freq ibrs xsaves xsaveerptr"
    )
    assert cpu.flags_in(text) == ("aes", "avx", "avx512f", "fpu", "sse", "sse4_2")


def test_processors_that_differ() -> None:
    """A program may run on any of them, so only features that all have count."""
    assert "sha_ni" not in cpu.flags_in(ALIKE.format(0, "sha_ni") + ALIKE.format(1, ""))
    assert "sha_ni" in cpu.flags_in(ALIKE.format(0, "sha_ni") + ALIKE.format(1, "sha_ni"))


def test_arm() -> None:
    """On ARM the line has another name, and all its flags count."""
    assert cpu.flags_in("processor\t: 0\nFeatures\t: fp asimd sve\n") == ("asimd", "fp", "sve")


def test_a_kernel_that_lists_none() -> None:
    """Without a list there are no features."""
    assert cpu.flags_in("processor\t: 0\n") == ()


def test_this_host() -> None:
    """The real file can be read, and the load is a number."""
    assert cpu.flags()
    assert cpu.load() >= 0
