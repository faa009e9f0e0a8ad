"""dump and resume, on the source: the freeze begins, and its way back.

``freezing`` is written before CRIU touches the tree; ``frozen`` when the tree is dumped and stopped. In both,
this host alone may resume it, whatever dies:

* CRIU hangs: at ``max_freeze_s`` the holder ends it with all it had started, and ``resume`` wakes the tree.
* CRIU or the holder dies: CRIU's ptrace ends with it and the tree runs on, or it is stopped and ``resume`` wakes it.
* The worker or Redis dies: the holder finishes; the tree stays stopped until ``resume`` runs.
* The destination or the network dies: CRIU's dump fails and lets the tree run on.
* This host dies: the process dies with it, as it would have without us.

``resume`` may run any number of times. From ``released`` on it needs the destination's durable ``refused``;
with ``restored`` in hand it goes forward instead and retires the original.
"""

from __future__ import annotations

import json

from sojourn import criu, holder, process
from sojourn.errors import ChannelFailed, FreezeTooLong, Refused, SojournError
from sojourn.host import Migration
from sojourn.model import Json, Outcome, Phase, Verdict
from sojourn.original import resume_original, retire_original, tree_as_it_was
from sojourn.run import Child
from tasks.step import step


@step(deadline_s=60, begins_in={Phase.OPEN}, in_freeze=True)
def dump(migration: Migration) -> Outcome:
    """Dump the tree's memory through the page channel and leave it stopped."""
    _claim(migration)
    migration.become(Phase.FREEZING)
    ended = _run_criu(migration)
    stats = criu.dump_stats(migration.directory.work)
    frozen_at = ended["dump_ended"] - stats.frozen_us / 1e6
    migration.record_tree(tree_as_it_was(migration))
    migration.become(Phase.FROZEN)
    pages_bytes = ended["pages_bytes"]
    return Outcome(
        f"{pages_bytes / 1e6:.0f} MB in {stats.frozen_us / 1e6:.2f} s; the tree is stopped",
        {
            "pages_bytes": pages_bytes,
            "freeze_started": frozen_at - stats.freezing_us / 1e6,
            "frozen_at": frozen_at,
            "pids": [member.identity.pid for member in migration.entry.tree],
        },
    )


@step(deadline_s=60, undo=True)
def resume(migration: Migration) -> Outcome:
    """Give the process back to this host, if this host may; the verdict decides from ``released`` on."""
    verdict = migration.facts.get("verdict")
    if migration.phase is Phase.RETIRED or verdict == Verdict.RESTORED:
        return Outcome(retire_original(migration), {"source_phase": Phase.RETIRED})
    if migration.phase is Phase.RELEASED and verdict != Verdict.REFUSED:
        raise SojournError(
            f"The tree stays frozen on {migration.host.name}: nobody knows yet whether the destination took it.",
            f"Ask again with `sojourn show {migration.id}`.",
        )
    sentence = resume_original(migration)
    return Outcome(sentence, {"source_phase": Phase.RESUMED, "gone": migration.facts.get("gone", False)})


@step(deadline_s=30, undo=True, locks=False)
def interrupt(migration: Migration) -> Outcome:
    """End a dump that is under way, at once; its own step then sees it fail. Nothing is decided here.

    Takes no lock, since the step that it interrupts holds it. From ``released`` on there is nothing to interrupt.
    """
    if migration.phase not in {Phase.OPEN, Phase.FREEZING}:
        return Outcome("no dump is under way")
    migration.end_processes()
    return Outcome("the dump was ended")


def _claim(migration: Migration) -> None:
    """Hold the tree, so that no other migration can freeze or resume a process of it."""
    other = migration.host.journal.claim_tree(migration.entry, process.tree(migration.plan.pid))
    if other:
        raise Refused(
            f"Process {migration.plan.pid} is being migrated already, by {other}.", f"See `sojourn show {other}`."
        )
    migration.refresh()


def _run_criu(migration: Migration) -> Json:
    """Let the holder do the dump and return what it says of its end; raise what CRIU said if it failed."""
    errand = migration.errand(
        address=migration.facts["page_address"],
        port=migration.facts["page_port"],
        purposes=("pages",),
        deadline_s=migration.plan.max_freeze_s,
    )
    child = holder.start(errand, migration.directory.work / "holder.log")
    said = _relay(migration, child)
    if said.get("code") == FreezeTooLong.code:
        raise FreezeTooLong(said["message"], "Allow more with `--max-freeze`, or look what kept CRIU.")
    if "code" in said:
        raise ChannelFailed(said["message"], said["hint"])
    if said.get("dump_exit") != 0:
        migration.refresh()
        command, log = migration.facts.get("dump_command", ""), migration.directory.work / "dump.log"
        raise criu.failure("dump", said.get("dump_exit"), command, log)
    return said


def _relay(migration: Migration, child: Child) -> Json:
    """Pass the holder's progress on to the ledger; return what it says when CRIU has ended, or last of all."""
    said: Json = {}
    for line in child.stdout:
        said = json.loads(line)
        if "bytes" not in said:
            break
        migration.host.ledger.tell_progress(migration.id, bytes=said["bytes"], total=migration.facts["tree_bytes"])
    return said
