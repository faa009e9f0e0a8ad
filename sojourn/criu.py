"""CRIU: one function per verb, its version and features, and what its logs say (https://criu.org/CLI).

The dump and the page server run under a holder (``sojourn.holder``), which owns their socket; so those
verbs give the command line only. All logs go to the work directory, never into the images.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn import diagnosis
from sojourn.diagnosis import Diagnosis
from sojourn.errors import CriuFailed
from sojourn.model import Plan
from sojourn.run import Argument, run

#: CRIU's own levels: 4 is the last one before its debug output changes its speed.
LOG_LEVEL = "-v4"

VERSION_DEADLINE_S = 5

#: The first line of a log: ``(00.000000) CRIU run id = 60feaa84-b74f-4109-88ba-ff4d3e108a22``.
RUN_ID_LINE = re.compile(r"CRIU run id = (\S+)")

#: How many error lines make the message: the first names the cause, the next ones say where.
ERRORS_SHOWN = 3


@dataclass(frozen=True)
class Criu:
    """The CRIU program of this host."""

    path: Path

    def version(self) -> str:
        """Return the version, like ``4.2.1``. Raises CommandMissing, CommandFailed."""
        said = run([self.path, "--version"], deadline_s=VERSION_DEADLINE_S).stdout
        found = re.search(r"Version:\s*(\S+)", said)
        if not found:
            raise CriuFailed(f"{self.path} does not say its version.", f"Try: {self.path} --version")
        return found[1]

    def check(self) -> None:
        """Let CRIU look whether it can work on this kernel. Raises CommandFailed with its last complaint."""
        run([self.path, "check"], deadline_s=VERSION_DEADLINE_S)

    def has(self, feature: str) -> bool:
        """Whether kernel and CRIU have a feature of ``criu check --feature``, such as ``mem_dirty_track``."""
        check: list[Argument] = [self.path, "check", "--feature", feature]
        return run(check, deadline_s=VERSION_DEADLINE_S, check=False).returncode == 0

    def dump(self, plan: Plan, *, images: Path, work: Path, socket_fd: int) -> list[Argument]:
        """Return the command that dumps a tree: memory through the socket, the rest into ``images``.

        The tree is left stopped: it neither runs nor depends on CRIU's life until it is retired or resumed.
        """
        return [
            *(self.path, "dump", "--tree", str(plan.pid), "--leave-stopped"),
            *("--page-server", "--ps-socket", str(socket_fd)),
            *_common(plan, images, work, "dump.log"),
        ]

    def page_server(self, *, images: Path, work: Path, socket_fd: int) -> list[Argument]:
        """Return the command that receives the memory of one dump from the socket into ``images``."""
        return [
            *(self.path, "page-server", "--ps-socket", str(socket_fd)),
            *_directories(images, work, "page-server.log"),
        ]

    def restore(self, plan: Plan, *, images: Path, work: Path, script: Path, auto_dedup: bool) -> list[Argument]:
        """Return the command that rebuilds the tree, asks ``script`` whether it may run, and lets it go."""
        return [
            *(self.path, "restore", "--restore-detached", "--action-script", script),
            *(["--auto-dedup"] if auto_dedup else []),
            *_common(plan, images, work, "restore.log"),
        ]


def _common(plan: Plan, images: Path, work: Path, log_file: str) -> Iterator[Argument]:
    yield from _directories(images, work, log_file)
    # Cgroups differ from host to host; the process joins those of the destination's worker.
    yield "--manage-cgroups=ignore"
    if plan.tcp_established:
        # One table of its own per dump, which can be removed as a whole; iptables rules would mix with a site's.
        yield from ("--tcp-established", "--network-lock", "nftables")
    if plan.shell_job:
        yield "--shell-job"
    if plan.file_locks:
        yield "--file-locks"


def _directories(images: Path, work: Path, log_file: str) -> Iterator[Argument]:
    # A site's /etc/criu/default.conf must not change what a migration does on one of two hosts.
    yield "--no-default-config"
    yield from ("--images-dir", images, "--work-dir", work, "--log-file", log_file, LOG_LEVEL)


def errors(log: Path) -> list[str]:
    """Return the errors of a log, the first ones, without the noise; empty if there is no log."""
    return diagnosis.errors(_text(log))[:ERRORS_SHOWN]


def cause(log: Path) -> CriuFailed | None:
    """Return what a log complains about, as far as it is known what that means; None if it names no error."""
    said, found = _understood(log)
    if found:
        return CriuFailed(f"{found.sentence} {said}", found.hint, found.code)
    return CriuFailed(said) if said else None


def failure(verb: str, returncode: int | None, command: str, log: Path) -> CriuFailed:
    """Return the error for a run of CRIU that ended badly: what its log means, its first errors, its command line."""
    said, found = _understood(log)
    ended = f"criu {verb} {_ended(returncode)}: {said or 'its log names no error'}"
    replay = f"The whole log is {log}. To replay by hand: {command}"
    if found is None:
        return CriuFailed(ended, replay)
    return CriuFailed(f"{found.sentence} {ended}", f"{found.hint} {replay}", found.code)


def _understood(log: Path) -> tuple[str, Diagnosis | None]:
    """Return CRIU's own words, the error that is known and the first ones, and what they mean.

    The log is read once and searched once: a frozen tree may be waiting for the rollback.
    """
    text = _text(log)
    first, found = diagnosis.errors(text)[:ERRORS_SHOWN], diagnosis.diagnose(text)
    known = [found.error] if found and found.error not in first else []
    return "; ".join([*known, *first][:ERRORS_SHOWN]), found


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _ended(returncode: int | None) -> str:
    if returncode is None:
        return "ended and nobody saw how"
    return f"was killed by signal {-returncode}" if returncode < 0 else f"ended with exit code {returncode}"


@dataclass(frozen=True)
class DumpStats:
    """What CRIU measured of one dump; times in microseconds, sizes in pages of 4096 bytes."""

    freezing_us: int
    frozen_us: int
    pages_written: int


def dump_stats(work: Path) -> DumpStats:
    """Read ``stats-dump`` (images/stats.proto in CRIU's source: fields 1, 2 and 7 of its first message).

    They are for people, so what is not there is zero.
    """
    stats = work / "stats-dump"
    message = _first_message(stats).get(1) if stats.exists() else None
    numbers = dict(_fields(message)) if isinstance(message, bytes) else {}
    return DumpStats(*(int(numbers.get(field, 0)) for field in (1, 2, 7)))


def run_id(log: Path) -> str | None:
    """Return the id by which a run of CRIU names its network lock: its log begins with it. None without a log."""
    if not log.exists():
        return None
    with log.open(errors="replace") as lines:
        found = RUN_ID_LINE.search(lines.readline())
    return found[1] if found else None


def _first_message(image: Path) -> dict[int, int | bytes]:
    """Read an image's first message: behind two magic numbers and its length, four bytes each (criu.org/Images)."""
    raw = image.read_bytes()
    if len(raw) < 12:
        return {}
    (length,) = struct.unpack_from("<I", raw, 8)
    return dict(_fields(raw[12 : 12 + length]))


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Walk a protobuf message that has only numbers and nested messages."""
    rest = memoryview(message)
    while rest:
        key, rest = _varint(rest)
        value, rest = _varint(rest)
        if key & 7 == 2:
            yield key >> 3, bytes(rest[:value])
            rest = rest[value:]
        else:
            yield key >> 3, value


def _varint(data: memoryview) -> tuple[int, memoryview]:
    number = 0
    for index, byte in enumerate(data):
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return number, data[index + 1 :]
    raise CriuFailed("CRIU's statistics are cut short.")
