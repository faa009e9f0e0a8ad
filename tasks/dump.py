"""dump and resume, on the source: the freeze begins, and its way back.

``freezing`` is written before CRIU touches the tree; ``frozen`` when the tree is dumped and
stopped. In both, this host alone may resume it, whatever dies:

* CRIU hangs: at ``max_freeze_s`` the holder ends it with all it had started, and ``resume`` wakes
  the tree.
* CRIU or the holder dies: CRIU's ptrace ends with it and the tree runs on, or it is stopped and
  ``resume`` wakes it.
* The worker or Redis dies: the holder finishes; the tree stays stopped until ``resume`` runs.
  Images in which some system calls are mended and others are not are never used.
* The destination or the network dies: CRIU's dump fails and lets the tree run on.
* This host dies: the process dies with it, as it would have without us.
* The flush of what the tree has written to shared storage, or the packing of its files in memory
  fails, such as for lack of space: the step fails too; neither has changed anything.
* The frozen tree holds what a restore would lose: the step fails, and ``resume`` wakes the tree.

``resume`` may run any number of times. From ``released`` on it needs the destination's durable
``refused``; with ``restored`` in hand it goes forward instead and retires the original.
"""

from __future__ import annotations

import json
from typing import cast

from sojourn import units
from sojourn.criu import failure
from sojourn.errors import ChannelFailed, FreezeTooLong, Refused, SojournError
from sojourn.migration import (
    carried,
    freeze,
    frozen,
    interrupted,
    names,
    permission,
    signal_masks,
    written,
)
from sojourn.migration.context import Migration
from sojourn.migration.source import fate, resume_original, retire_original, tree_as_it_was
from sojourn.model import Json, Phase, Role, Verdict
from sojourn.preflight import same_file
from sojourn.state.facts import DumpFacts, Facts
from sojourn.state.message import Outcome
from sojourn.system import process
from sojourn.system.run import Child
from sojourn.transfer import holder
from tasks.step import step


@step(deadline_s=60, begins_in={Phase.OPEN}, in_freeze=True)
def dump(migration: Migration) -> Outcome:
    """Dump the tree's memory through the page channel and leave it stopped."""
    permission.check(migration)
    frozen.prepare()
    written.flush(member.identity.pid for member in process.tree(migration.plan.pid))
    _claim(migration)
    signal_masks.remember(migration)
    # After the claim: whoever finds ``freezing`` must find in the journal which processes to wake.
    migration.become(Phase.FREEZING)
    ended = _run_criu(migration)
    freeze_started, frozen_at = freeze.instants(migration, ended)
    # Before ``frozen``: whoever resumes the tree needs to know which processes were stopped before.
    migration.record_tree(tree_as_it_was(migration))
    interrupted.mend_images(migration, freeze_started)
    frozen.check(migration)
    kept = names.keep(migration)
    migration.become(Phase.FROZEN)
    # Only now: no process of the tree writes them any more.
    digests = same_file.digests(migration.facts.get("compared", []))
    written.flush(member.identity.pid for member in migration.entry.tree)
    carried.pack(migration)
    pages_bytes, mbit = ended["pages_bytes"], migration.plan.bandwidth_mbit
    paced = f", at {mbit} Mbit/s at most" if mbit else ""
    what = "all but its memory" if migration.plan.post_copy else units.size(pages_bytes)
    took = f"{what} in {ended['dump_ended'] - frozen_at:.2f} s{paced}"
    facts: Facts = {
        "freeze_started": freeze_started,
        "frozen_at": frozen_at,
        # By these the destination can tell later what its restore has made.
        "pids": [member.identity.pid for member in migration.entry.tree],
        "digests": digests,
        "names": kept,
        "kept": None,
    }
    if not migration.plan.post_copy:  # there the pager counts them, and must not be overruled
        facts["pages_bytes"] = pages_bytes
    return Outcome(f"{took}; the tree is stopped", facts)


@step(deadline_s=60, undo=True)
def resume(migration: Migration) -> Outcome:
    """Resume the process if this host may; from ``released`` on the verdict decides.

    In place of one that will never come stands an operator's decision.
    """
    verdict = migration.facts.get("verdict")
    if migration.is_declared_dead(Role.DESTINATION):
        verdict = Verdict.REFUSED
    if verdict == Verdict.RESTORED and migration.must_keep_original():
        there = migration.plan.destination
        return Outcome(
            f"the original stays frozen: {there} does not have all of its memory yet",
            {"unsettled": True},
        )
    if migration.phase is Phase.RETIRED or verdict == Verdict.RESTORED:
        return Outcome(retire_original(migration), {"source_phase": Phase.RETIRED})
    if migration.phase is Phase.RELEASED and verdict != Verdict.REFUSED:
        raise SojournError(
            f"The tree stays frozen on {migration.host.name}: "
            "it is not known yet whether the destination took it.",
            f"Ask again with `sojourn show {migration.id}`.",
        )
    sentence = resume_original(migration)
    return Outcome(sentence, Facts(source_phase=Phase.RESUMED) | fate(migration))


# Without a lock, which the step that it interrupts holds.
@step(deadline_s=30, undo=True, locks=False)
def interrupt(migration: Migration) -> Outcome:
    """End a dump that is under way, at once; its own step then sees it fail.

    Nothing is decided here. From ``released`` on there is nothing to interrupt.
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
            f"Process {migration.plan.pid} is being migrated already, by {other}.",
            f"See `sojourn show {other}`.",
        )
    migration.refresh()


def _run_criu(migration: Migration) -> DumpFacts:
    """Let the holder do the dump, and return its last report.

    Raises FreezeTooLong, ChannelFailed, or CriuFailed with the first errors of CRIU's log.
    """
    assignment = migration.assignment(
        address=migration.facts["page_address"],
        port=migration.facts["page_port"],
        purposes=("pages",),
        deadline_s=migration.plan.max_freeze_s,
    )
    child = holder.start(assignment, migration.directory.work / "holder.log")
    report = _relay(migration, child)
    if report.get("code") == FreezeTooLong.code:
        raise FreezeTooLong(
            report["message"], "Allow more with `--max-freeze`, or find out what delayed CRIU."
        )
    if "code" in report:
        raise ChannelFailed(report["message"], report["hint"])
    if report.get("dump_exit") != 0:
        migration.refresh()  # the holder has written CRIU's command line to the journal
        command = migration.facts.get("dump_command", "")
        log = migration.directory.work / "dump.log"
        raise failure.of("dump", report.get("dump_exit"), command, log)
    return cast("DumpFacts", report)


def _relay(migration: Migration, child: Child) -> Json:
    """Copy the holder's progress to the ledger; return its report of the end, or its last one."""
    report: Json = {}
    # The output ends with the holder, so this loop ends too if that is killed: CRIU does not
    # inherit it.
    for line in child.stdout:
        report = json.loads(line)
        if "bytes" not in report:
            break
        migration.host.ledger.record_progress(
            migration.id, bytes=report["bytes"], total=migration.facts["tree_bytes"]
        )
    return report
