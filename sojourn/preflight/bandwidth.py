"""A limit of the bandwidth at which the memory cannot cross within the longest freeze.

Without this check the tree would be frozen for as long as a freeze may last, for nothing: then it
would be rolled back. In post-copy only what can never come later crosses in the freeze.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sojourn import units
from sojourn.model import LONGEST_FREEZE_S, Plan
from sojourn.preflight.finding import Finding, blocks, needs_option
from sojourn.preflight.scan import Tree

CODE = "BANDWIDTH"

#: What a freeze takes beyond the way of the memory, as a share of that and in seconds: the restore,
#: and what the tree allocates until then.
MORE, MORE_S = 0.25, 10


def check(tree: Tree, plan: Plan, never_lazy_bytes: int = 0) -> Iterator[Finding]:
    """Yield a finding if the memory that surely crosses takes longer than a freeze may."""
    if plan.bytes_per_s is None:
        return
    size = never_lazy_bytes if plan.post_copy else sure_bytes(tree)
    needed_s = size / plan.bytes_per_s
    if needed_s <= plan.max_freeze_s:
        return
    sentence = (
        f"At {plan.bandwidth_mbit} Mbit/s, {units.size(size)} of memory take "
        f"{units.span(needed_s * 1000)}, and a freeze may last {plan.max_freeze_s:g} s."
    )
    allowed_s = math.ceil(needed_s * (1 + MORE) + MORE_S)
    if allowed_s > LONGEST_FREEZE_S:
        yield blocks(CODE, sentence, "Migrate with a higher --bandwidth.")
    else:
        option = f"--max-freeze {allowed_s}, or with a higher --bandwidth"
        yield needs_option(CODE, sentence, option, given=False)


def sure_bytes(tree: Tree) -> int:
    """Return how much memory crosses whatever happens: what CRIU dumps of each process alone.

    Not shared memory and files in memory: of these the destination may have some already.
    """
    own = ("RssAnon", "VmSwap")
    return sum(task.memory_bytes[kind] for task in tree.tasks for kind in own)
