"""All checks of one host, in one call each: ``of_source`` looks at the tree, ``of_destination`` at what it needs.

Every check is done and told, never only the first that finds something. Nothing is touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sojourn import process, processor
from sojourn.criu import Criu
from sojourn.errors import ProcessGone, Refused
from sojourn.model import Plan, Role
from sojourn.preflight import candidate, files, limits, locks, machine, members, objects, pids, room, sockets
from sojourn.preflight.finding import Finding, blocks, complete
from sojourn.preflight.needs import Needs
from sojourn.preflight.scan import Tree, namespaces, scan


@dataclass(frozen=True)
class Report:
    """What the source says: its findings, and what the tree needs; no needs where there is no tree to look at."""

    findings: list[Finding]
    needs: Needs | None = None


def of_source(plan: Plan, criu: Criu, worker: int | None, claimant: str | None) -> Report:
    """Check the tree on this host; ``claimant`` is another migration that holds a process of it."""
    refusal = candidate.refusal(plan.pid, worker)
    if refusal:
        return Report([Finding(refusal.code, refusal.verdict, refusal.sentence, refusal.hint, plan.source)])
    try:
        tree = scan(plan.pid)
    except ProcessGone as gone:
        return Report([Finding("PROCESS_GONE", blocks("", "").verdict, gone.message, "", plan.source)])
    version = criu.version()
    found = [*_migrating(plan, claimant), *_of_tree(tree, plan, criu, version)]
    return Report(complete(found, Role.SOURCE, plan.source), needs_of(tree, plan, version))


def of_destination(plan: Plan, needs: Needs, criu: Criu, cap_bytes: int | None) -> list[Finding]:
    """Check this host against what the tree needs."""
    found = [
        *pids.taken(needs.pids),
        *pids.out_of_range(needs.pids),
        *files.missing_or_different(needs.files),
        *locks.not_to_be_had(needs.locks),
        *sockets.taken(needs.bound),
        *machine.differences(needs.machine, list(needs.cpu_flags), needs.criu, criu),
        *machine.missing_features(criu, plan.mode),
        *limits.exceeded(needs.limits, limits.here()),
        *room.check(needs.tree_bytes, needs.private_bytes, needs.tasks, cap_bytes=cap_bytes),
    ]
    return complete(found, Role.DESTINATION, plan.destination)


def refuse(findings: Iterable[Finding], plan: Plan) -> None:
    """Raise Refused if a finding stops the migration: the first is told whole, the others are counted."""
    stopping = [each for each in findings if each.stops]
    if not stopping:
        return
    first, others = stopping[0], stopping[1:]
    on = sorted({each.host for each in others})
    more = f" And {len(others)} more on {' and '.join(on)}: see `{command(plan)}`." if others else ""
    raise Refused(f"On {first.host}: {first.sentence}{more}", first.hint, first.code)


def command(plan: Plan) -> str:
    """Return the command that shows all findings."""
    return f"sojourn check {plan.pid} --from {plan.source} --to {plan.destination}"


def needs_of(tree: Tree, plan: Plan, criu: str) -> Needs:
    """Return what a tree needs of its destination."""
    ours = namespaces("self")
    # The tree's own mounts would be rebuilt from the images; its own network too.
    same_mounts = tree.root.namespaces.get("mnt") == ours.get("mnt")
    same_network = tree.root.namespaces.get("net") == ours.get("net")
    kernel = os.uname()
    return Needs(
        command=process.command_line(plan.pid)[:60],
        processes=len(tree.tasks),
        tasks=sum(len(task.ids) for task in tree.tasks),
        tree_bytes=sum(sum(task.memory_bytes.values()) for task in tree.tasks),
        private_bytes=sum(task.memory_bytes["RssAnon"] + task.memory_bytes["VmSwap"] for task in tree.tasks),
        pids=tuple(pids.needed(tree, shell_job=plan.shell_job)),
        files=_files(tree) if same_mounts else (),
        bound=tuple(sockets.bound(tree)) if same_network else (),
        locks=tuple(locks.held(tree)) if same_mounts else (),
        criu=criu,
        kernel=kernel.release,
        machine=kernel.machine,
        cpu_flags=processor.flags(),
        limits=limits.needed(tree),
    )


def _files(tree: Tree) -> tuple[files.Needed, ...]:
    return (*files.needed(tree), *(files.Needed(place) for place in sockets.places(tree)))


def _migrating(plan: Plan, claimant: str | None) -> Iterator[Finding]:
    if claimant:
        yield blocks(
            "MIGRATING",
            f"Process {plan.pid} is being migrated already, by {claimant}.",
            f"See `sojourn show {claimant}`.",
        )


def _of_tree(tree: Tree, plan: Plan, criu: Criu, version: str) -> Iterator[Finding]:
    ours = namespaces("self")
    same_network = tree.root.namespaces.get("net") == ours.get("net")
    yield from members.check(tree, plan, ours)
    if tree.root.namespaces.get("mnt") == ours.get("mnt"):
        yield from files.check(tree)
    yield from locks.check(tree, given=plan.file_locks)
    yield from sockets.check(tree, tcp_established=plan.tcp_established, same_network=same_network)
    yield from objects.check(
        tree, criu.path, own_ipc=tree.root.namespaces.get("ipc") != ours.get("ipc"), own_network=not same_network
    )
    if machine.too_old(version, os.uname().release) and any(each.inode for each in _inet(tree)):
        yield blocks("CRIU_VERSION", f"CRIU {version} can not dump inet sockets on this kernel.", "Install CRIU 4.2.")


def _inet(tree: Tree) -> list[sockets.Inet]:
    ours = sockets.inodes(tree)
    return [each for each in sockets.inet(tree.root.pid) if each.inode in ours] if ours else []
