"""All checks of one host in one call: of the tree on the source, of its needs on the destination.

Every check is made and reported, not only the first one that finds something. Nothing is touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sojourn.criu.commands import Criu
from sojourn.errors import ProcessGone, Refused
from sojourn.model import Plan, Role
from sojourn.preflight import (
    alone,
    bandwidth,
    candidate,
    confinement,
    control_group,
    data_directories,
    files,
    injection,
    lazy_dump,
    lazy_restore,
    leases,
    limits,
    locks,
    machine,
    members,
    memory_files,
    names,
    never_lazy,
    objects,
    pids,
    policy,
    room,
    shape,
    sockets,
    supervisor,
    sysv,
    unread,
    wanted,
)
from sojourn.preflight.alone import Closure
from sojourn.preflight.finding import Finding, blocks, complete
from sojourn.preflight.holders import outside
from sojourn.preflight.needs import Needs
from sojourn.preflight.scan import Tree, namespaces, scan
from sojourn.settings import Settings
from sojourn.system import cpu, memory, process


@dataclass(frozen=True)
class Report:
    """What the source reports: its findings, the tree's needs and closure; None without a tree."""

    findings: list[Finding]
    needs: Needs | None = None
    closure: Closure | None = None


def of_source(
    plan: Plan, criu: Criu, worker: int | None, claimant: str | None, settings: Settings
) -> Report:
    """Check the tree on this host; ``claimant`` is another migration that holds a process of it."""
    refusal = candidate.refusal(plan.pid, worker)
    if refusal:
        return Report([replace(refusal, host=plan.source)])
    try:
        tree = scan(plan.pid)
    except ProcessGone as gone:
        return Report([replace(blocks("PROCESS_GONE", gone.message), host=plan.source)])
    version = criu.version()
    found_outside = outside(tree)
    closure = alone.closure_of(tree, found_outside, worker)
    needs = needs_of(tree, plan, version)
    found = [
        *policy.may_leave(plan, candidate.members_of(plan.pid), settings),
        *_migrating(plan, claimant),
        *alone.check(found_outside, closure),
        *_of_tree(tree, plan, criu, version),
        *bandwidth.check(tree, plan, needs.never_lazy_bytes),
        *(lazy_dump.check(tree, _images(needs), lazy_dump.allowed()) if plan.post_copy else ()),
    ]
    return Report(complete(found, Role.SOURCE, plan.source), needs, closure)


def of_destination(plan: Plan, needs: Needs, criu: Criu, settings: Settings) -> list[Finding]:
    """Check this host against what the tree needs."""
    found = [
        *policy.may_come(plan, settings),
        *pids.taken(needs.pids),
        *pids.out_of_range(needs.pids),
        *files.missing_or_different(memory_files.left(needs.files, needs.memory)),
        *memory_files.check(needs.memory, plan.source),
        *wanted.missing(needs.wanted, plan),
        *locks.unavailable(needs.locks),
        *leases.in_the_way(needs.leases),
        *sockets.taken(needs.bound),
        *names.taken(needs.names),
        *alone.in_use(tuple(fifo.path for fifo in needs.fifos)),
        *unread.doubled(needs.fifos),
        *machine.differences(needs.machine, list(needs.cpu_flags), needs.criu, criu),
        *machine.missing_features(criu, plan.mode),
        *limits.exceeded(needs.limits, limits.here()),
        *_room(needs, plan, settings),
        *lazy_restore.check(needs, criu, wanted=bool(settings.lazy_restore), plan=plan),
    ]
    return complete(found, Role.DESTINATION, plan.destination)


def _room(needs: Needs, plan: Plan, settings: Settings) -> Iterator[Finding]:
    """Check the room for the tree and its images; in post-copy these are without the memory."""
    tree_bytes, images = needs.tree_bytes, needs.private_bytes
    if plan.post_copy:
        tree_bytes, images = tree_bytes + needs.forked_bytes, _images(needs)
    return room.check(tree_bytes, images, needs.tasks, cap_bytes=settings.images_bytes)


def _images(needs: Needs) -> int:
    """Return how large the images are in post-copy, without those that are always small."""
    return needs.never_lazy_bytes + memory_files.bytes_of(needs.memory)


def refuse(findings: Iterable[Finding], plan: Plan) -> None:
    """Raise Refused if findings stop the migration: with the first one, and how many more."""
    stopping = [finding for finding in findings if finding.stops]
    if not stopping:
        return
    first, others = stopping[0], stopping[1:]
    hosts = sorted({finding.host for finding in others})
    more = f" And {len(others)} more on {' and '.join(hosts)}: see `{command(plan)}`."
    message = f"On {first.host}: {first.sentence}{more if others else ''}"
    raise Refused(message, first.hint, first.code)


def command(plan: Plan) -> str:
    """Return the command that shows all findings."""
    return f"sojourn check {plan.pid} --from {plan.source} --to {plan.destination}"


def needs_of(tree: Tree, plan: Plan, criu: str) -> Needs:
    """Return what a tree needs of its destination."""
    ours = namespaces("self")
    # A mount or network namespace of the tree's own would be restored from the images, so nothing
    # of the destination's is needed.
    same_mounts = tree.root.namespaces.get("mnt") == ours.get("mnt")
    same_network = tree.root.namespaces.get("net") == ours.get("net")
    kernel = os.uname()
    in_memory = memory_files.used(tree, sockets.directories(tree)) if same_mounts else []
    return Needs(
        command=process.command_line(plan.pid)[:60],
        processes=len(tree.tasks),
        tasks=sum(len(task.ids) for task in tree.tasks),
        tree_bytes=sum(sum(task.memory_bytes.values()) for task in tree.tasks)
        + memory_files.bytes_of(in_memory),
        private_bytes=sum(
            task.memory_bytes["RssAnon"] + task.memory_bytes["VmSwap"] for task in tree.tasks
        )
        + memory_files.bytes_of(in_memory),
        forked_bytes=_forked_bytes(tree),
        pids=tuple(pids.needed(tree, shell_job=plan.shell_job)),
        files=_files(tree) if same_mounts else (),
        memory=tuple(in_memory),
        bound=tuple(sockets.bound(tree)) if same_network else (),
        fifos=tuple(unread.of_tree(tree)) if same_mounts else (),
        locks=tuple(locks.held(tree)) if same_mounts else (),
        leases=tuple(leases.held(tree)) if same_mounts else (),
        names=tuple(names.of_tree(tree)) if same_mounts else (),
        criu=criu,
        kernel=kernel.release,
        machine=kernel.machine,
        cpu_flags=cpu.flags(),
        limits=limits.needed(tree),
        wanted=tuple(wanted.wanted(tree)) if same_mounts else (),
        never_lazy_bytes=never_lazy.size_of(tree.pids) if plan.post_copy else 0,
    )


def _forked_bytes(tree: Tree) -> int:
    """Return how much more memory the tree would take if no page of it were shared by a fork."""
    return sum(memory.shared_bytes(task.pid) for task in tree.tasks) if len(tree.tasks) > 1 else 0


def _files(tree: Tree) -> tuple[files.Needed, ...]:
    directories = (files.Needed(path) for path in sockets.directories(tree))
    return (*files.needed(tree), *data_directories.needed(tree), *directories)


def _migrating(plan: Plan, claimant: str | None) -> Iterator[Finding]:
    if claimant:
        yield blocks(
            "MIGRATING",
            f"Process {plan.pid} is already being migrated, by migration {claimant}.",
            f"See `sojourn show {claimant}`.",
        )


def _of_tree(tree: Tree, plan: Plan, criu: Criu, version: str) -> Iterator[Finding]:
    ours = namespaces("self")
    same_network = tree.root.namespaces.get("net") == ours.get("net")
    yield from members.check(tree, plan, ours)
    yield from limits.unreadable(tree)
    yield from supervisor.check(tree.root.pid, tree.pids, plan)
    yield from shape.check(tree)
    yield from injection.check(tree)
    yield from confinement.check(tree)
    yield from control_group.check(tree)
    if tree.root.namespaces.get("mnt") == ours.get("mnt"):
        yield from files.check(tree)
    yield from locks.check(tree, given=plan.file_locks)
    yield from sockets.check(tree, tcp_established=plan.tcp_established)
    own_ipc = tree.root.namespaces.get("ipc") != ours.get("ipc")
    yield from objects.check(tree, criu.path, own_ipc=own_ipc, own_network=not same_network)
    yield from sysv.check(tree, own_ipc=own_ipc)
    if machine.too_old(version, os.uname().release) and any(_inet(tree)):
        yield blocks(
            "CRIU_VERSION",
            f"CRIU {version} cannot dump TCP and UDP sockets on this kernel.",
            "Install CRIU 4.2 or later.",
        )


def _inet(tree: Tree) -> list[sockets.Inet]:
    ours = sockets.inodes(tree)
    found = sockets.inet(tree.root.pid) if ours else ()
    return [inet for inet in found if inet.inode in ours]
