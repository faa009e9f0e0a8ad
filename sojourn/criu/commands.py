"""What CRIU is asked for: its command lines (https://criu.org/CLI), and the request of a restore.

The dump and the page server run under a holder (``sojourn.transfer.holder``), which owns their
socket, and a restore under a rebuilder (``sojourn.transfer.rebuilder``); what is here only returns
the words. All logs go to the work directory, never into the images.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.criu.protobuf import encoded
from sojourn.errors import CriuFailed
from sojourn.model import Plan
from sojourn.system.network import has_own_network
from sojourn.system.run import Argument, run

#: CRIU's own levels: 4 is the last one before its debug output changes its speed.
LOG_LEVEL = 4

VERSION_DEADLINE_S = 5

#: The log of a restore, in its work directory.
RESTORE_LOG = "restore.log"

#: Fields of ``criu_opts`` in CRIU's ``images/rpc.proto``, and a value of ``criu_cg_mode``.
IMAGES_DIR_FD, TCP_ESTABLISHED, SHELL_JOB, FILE_LOCKS = 1, 5, 7, 8
LOG_LEVEL_FIELD, LOG_FILE, NOTIFY_SCRIPTS, AUTO_DEDUP, WORK_DIR_FD = 9, 10, 12, 16, 17
MANAGE_CGROUPS_MODE, LAZY_PAGES = 34, 48
CGROUPS_IGNORED = 0

#: The default for ``--ghost-limit``: how much room a deleted file may use to be dumped.
GHOST_LIMIT_BYTES = 2**20


@dataclass(frozen=True)
class Criu:
    """The CRIU program of this host."""

    path: Path

    def version(self) -> str:
        """Return the version, like ``4.2.1``. Raises CommandMissing, CommandFailed."""
        output = run([self.path, "--version"], deadline_s=VERSION_DEADLINE_S).stdout
        found = re.search(r"Version:\s*(\S+)", output)
        if not found:
            raise CriuFailed(
                f"{self.path} does not report its version.", f"Try: {self.path} --version"
            )
        return found[1]

    def check(self) -> None:
        """Have CRIU check this kernel. Raises CommandFailed with the last line of its output."""
        run([self.path, "check"], deadline_s=VERSION_DEADLINE_S)

    def has(self, feature: str) -> bool:
        """Return whether kernel and CRIU have a feature of ``criu check --feature``."""
        check: list[Argument] = [self.path, "check", "--feature", feature]
        return run(check, deadline_s=VERSION_DEADLINE_S, check=False).returncode == 0

    def dump(
        self, plan: Plan, *, images: Path, work: Path, socket_fd: int, ghost_bytes: int = 0
    ) -> list[Argument]:
        """Return the command that dumps a tree: memory to the socket, the rest into ``images``.

        In post-copy CRIU leaves in the tree what may come later, and serves it at the socket until
        that ends; the rest of the memory goes into ``images``.

        ``ghost_bytes``: how much memory its deleted files took when it was examined.

        The tree is left stopped: it does not run, and does not depend on CRIU's life, until it is
        retired or resumed.
        """
        return [
            *(self.path, "dump", "--tree", str(plan.pid), "--leave-stopped"),
            *("--lazy-pages" if plan.post_copy else "--page-server", "--ps-socket", str(socket_fd)),
            *(["--tcp-established"] if plan.tcp_established else []),
            *("--network-lock", network_lock(plan)),
            # They may have grown since, and others may have come.
            *("--ghost-limit", str(max(GHOST_LIMIT_BYTES, 2 * ghost_bytes))),
            *_common(plan, images, work, "dump.log"),
        ]

    def page_server(self, *, images: Path, work: Path, socket_fd: int) -> list[Argument]:
        """Return the command that receives one dump's memory from the socket into ``images``."""
        return [
            *(self.path, "page-server", "--ps-socket", str(socket_fd)),
            *_directories(images, work, "page-server.log"),
        ]


@dataclass(frozen=True)
class Restore:
    """A restore: of which images, with its logs in which directory, and how.

    With ``lazy`` a pager listens in ``work``, and puts the memory into place. The plan's option for
    connections is not asked: a socket whose connection has ended, and that the program has not
    closed yet, counts as one here, and not in a dump.
    """

    images: str
    work: str
    auto_dedup: bool
    lazy: bool
    shell_job: bool
    file_locks: bool

    def by_hand(self, criu: Path) -> list[Argument]:
        """Return the command that does the same, for people: it does not ask who owns the tree."""
        return [
            # Without ``--restore-detached`` CRIU would stay as the parent of the tree until that
            # ends.
            *(criu, "restore", "--restore-detached", "--tcp-established"),
            *(["--auto-dedup"] if self.auto_dedup else []),
            *(["--lazy-pages"] if self.lazy else []),
            *(["--shell-job"] if self.shell_job else []),
            *(["--file-locks"] if self.file_locks else []),
            "--manage-cgroups=ignore",
            *_directories(Path(self.images), Path(self.work), RESTORE_LOG),
        ]

    def options(self, images_fd: int, work_fd: int) -> bytes:
        """Return a ``criu_opts`` (images/rpc.proto), with the directories as descriptors of ours.

        By such a request a restore is always detached.
        """
        flags = {
            TCP_ESTABLISHED: True,
            SHELL_JOB: self.shell_job,
            FILE_LOCKS: self.file_locks,
            NOTIFY_SCRIPTS: True,
            AUTO_DEDUP: self.auto_dedup,
            LAZY_PAGES: self.lazy,
        }
        return b"".join(
            [
                encoded(IMAGES_DIR_FD, images_fd),
                encoded(WORK_DIR_FD, work_fd),
                encoded(LOG_LEVEL_FIELD, LOG_LEVEL),
                encoded(LOG_FILE, RESTORE_LOG.encode()),
                encoded(MANAGE_CGROUPS_MODE, CGROUPS_IGNORED),
                *(encoded(number, int(value)) for number, value in flags.items()),
            ]
        )


def network_lock(plan: Plan) -> str:
    """Return how CRIU keeps packets from the tree's sockets in a dump; ``skip`` if there are none.

    nftables gives each dump a table of its own, which can be removed as a whole; iptables rules
    would mix with the site's. The restore finds in the images what the dump has done.
    """
    return "nftables" if plan.tcp_established or has_own_network(plan.pid) else "skip"


def _common(plan: Plan, images: Path, work: Path, log_file: str) -> Iterator[Argument]:
    yield from _directories(images, work, log_file)
    # Cgroups differ from host to host; the tree joins those of the destination's worker.
    yield "--manage-cgroups=ignore"
    if plan.shell_job:
        yield "--shell-job"
    if plan.file_locks:
        yield "--file-locks"


def _directories(images: Path, work: Path, log_file: str) -> Iterator[Argument]:
    # /etc/criu/default.conf of one host must not change what a migration does.
    yield "--no-default-config"
    yield from (
        "--images-dir",
        images,
        "--work-dir",
        work,
        "--log-file",
        log_file,
        f"-v{LOG_LEVEL}",
    )
