"""Whether CRIU can put its own code into the processes of a tree, on the source.

It writes that where the first executable mapping begins (``get_exec_start`` of its
parasite-syscall.c), by ptrace. The kernel lets a tracer write into private memory whatever its
protection, but into shared memory only if that is writable (``check_vma_flags`` of its mm/gup.c).
Just-in-time compilers that share their code between processes, such as PHP's, have such memory, and
place it below everything else.
"""

from __future__ import annotations

from collections.abc import Iterator

from sojourn.preflight.finding import Finding, blocks
from sojourn.preflight.scan import Tree


def check(tree: Tree) -> Iterator[Finding]:
    """Yield the processes into which CRIU could not write."""
    for task in tree.tasks:
        rights = tree.code.get(task.pid, "")
        if rights.endswith("s") and "w" not in rights:
            yield blocks(
                "SHARED_CODE",
                f"The first executable memory of process {task.pid} ({task.name}) is shared and "
                "not writable: CRIU could not put its own code there.",
                "For PHP, set opcache.jit_buffer_size=0; else switch off what compiles at run time "
                "for several processes.",
            )
            return
