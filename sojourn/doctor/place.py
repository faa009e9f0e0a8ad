"""What a host has of its own: settings, key, address, certificates, and the journal's directory."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from sojourn import units
from sojourn.cluster import age
from sojourn.doctor.finding import Finding, failure, ok, warning
from sojourn.errors import ChannelFailed
from sojourn.notices.target import Target, unsafe
from sojourn.security.tls import Certificates, TlsIdentity, until
from sojourn.settings import SHORTEST_KEY, Settings
from sojourn.state import mark as marks
from sojourn.transfer.channel import Listener, connect

#: How the key of examples/sojourn.toml begins.
NOT_A_KEY = "the same on every host"

#: File systems that are gone with a reboot, and those on which SQLite's write-ahead log does not
#: work (https://sqlite.org/wal.html).
IN_MEMORY = {"tmpfs", "ramfs"}
BY_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs"}

#: How long before its end a certificate should be renewed.
RENEW_DAYS = 30

#: With less room than this, the journal may soon be unable to record a phase.
LITTLE_BYTES = 64 * 2**20


def settings_file(path: Path) -> Finding:
    """Check the mode of the file that holds the cluster's key."""
    if not path.exists():
        return warning(
            "settings",
            f"There is no {path}.",
            "Write it, or set everything with SOJOURN_… in the environment.",
        )
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077 or found.st_uid not in {0, os.geteuid()}:
        return failure(
            "settings",
            f"{path} has mode {mode:04o} and belongs to user {found.st_uid}: "
            "others could read the cluster's key, or change it.",
            f"chown root {path}; chmod 0600 {path}",
        )
    return ok("settings", f"{path} can be read by its owner only")


def key(secret: str) -> Finding:
    """Check the cluster's key, which no finding shows."""
    if len(secret) < SHORTEST_KEY or secret.startswith(NOT_A_KEY):
        flaw = "is the example's" if len(secret) >= SHORTEST_KEY else "is missing or too short"
        return failure(
            "key",
            f"The cluster's key {flaw}.",
            "Set the same `key` on every host: openssl rand -hex 32",
        )
    return ok("key", f"it has {len(secret)} characters")


def address(settings: Settings) -> Finding:
    """Check whether page channels can listen on our address. Raises ChannelFailed if not."""
    # A real listener, as a page channel has: the address may belong to no interface of this host.
    Listener(settings.address, b"").close()
    if _is_loopback(settings.address):
        return warning(
            "address",
            f"`address` is {settings.address}, at which no other host reaches this one.",
            "Set `address` to this host's address in the network of the hosts.",
        )
    return ok("address", f"page channels can listen on {settings.address}")


def certificates(settings: Settings) -> Finding:
    """Check whether our certificates prove who we are, in a conversation with ourselves."""
    if settings.certificates is None:
        return _without_certificates(settings.address)
    ours = Certificates(settings.certificates)
    try:
        readable = ours.host.stat().st_mode & 0o077
        ends = _proved(settings, TlsIdentity(ours, settings.host))
    except (ChannelFailed, OSError) as error:
        return failure(
            "certificates",
            f"This host cannot prove its name: {error}",
            f"Issue new ones: sojourn pki issue {settings.host}; "
            f"put both files into {settings.certificates}.",
        )
    if readable:
        sentence = f"Others than root can read {ours.host}, and so impersonate this host."
        return failure("certificates", sentence, f"chmod 0600 {ours.host}")
    days = int((ends - time.time()) // 86_400)
    if days < RENEW_DAYS:
        advice = f"Issue new ones: sojourn pki issue {settings.host}. No restart is needed."
        return warning("certificates", f"This host's certificate ends in {days} days.", advice)
    return ok("certificates", f"they prove that this is {settings.host}, for {days} days")


def _without_certificates(address: str) -> Finding:
    if _is_loopback(address):
        return ok("certificates", "none, and nothing leaves this machine")
    return warning(
        "certificates",
        "Memory crosses the network unencrypted: this host has no certificates.",
        "Make them for all hosts with `sojourn pki`, or set `address` to that of a tunnel.",
    )


def _proved(settings: Settings, us: TlsIdentity) -> float:
    """Return when our certificate ends, by a conversation with ourselves. Raises ChannelFailed."""
    # The secret is empty on both sides: only the certificates are tried here.
    listener = Listener(settings.address, b"", us)
    with (
        contextlib.closing(listener),
        connect(settings.address, listener.port, b"", "images", us) as peer,
    ):
        return until(peer)


def on_end(settings: Settings) -> Iterator[Finding]:
    """Check whom this host calls after the end of a migration."""
    if not settings.end_targets:
        yield ok("on_end", "nobody is called after the end of a migration")
    for target in settings.end_targets:
        yield _webhook(target) if target.is_webhook else _executable(Path(target.where))


def _webhook(target: Target) -> Finding:
    if target.url.scheme == "http" and not _is_loopback(target.url.hostname or ""):
        sentence = f"{target.name} is called without encryption: what is sent can be read."
        return warning("on_end", sentence, "Use an address with https.")
    return ok("on_end", f"{target.name} is called, signed with `on_end_secret`")


def _executable(file: Path) -> Finding:
    try:
        why = unsafe(file)
    except OSError as error:
        why = f"{file} cannot be run: {error.strerror}."
    if why:
        return failure("on_end", why, f"chown root {file}; chmod 0755 {file}, and so above it.")
    return ok("on_end", f"{file} is root's, and is run as root")


def state(directory: Path) -> Finding:
    """Check whether the journal is on a disk that keeps it and can be written."""
    place = _nearest(directory)
    kind, options = mount_of(place, Path("/proc/self/mountinfo").read_text())
    return (
        _unfit(directory, place, kind, options)
        or _doubtful(directory, place, kind)
        or ok("state", _well(place))
    )


def journal(settings: Settings) -> Finding:
    """Check whether the journal can be read, and has all that this host recorded since the boot.

    Raises JournalFailed, JournalLost.
    """
    file = settings.state_dir / "journal.db"
    mark = marks.read(file)
    if mark is None:
        return ok("journal", "none yet: the worker makes it")
    age.check(settings.host, file, mark, age.kept(settings.runtime_dir))
    return ok("journal", f"it has recorded {mark.number} phases")


def mount_of(path: Path, mountinfo: str) -> tuple[str, set[str]]:
    """Return type and options of a path's file system (proc_pid_mountinfo(5))."""
    rows = [
        (line.split(" - ")[0].split(), line.split(" - ")[1].split())
        for line in mountinfo.splitlines()
    ]
    above = [
        (Path(_plain(row[4])), row, rest)
        for row, rest in rows
        if path.is_relative_to(_plain(row[4]))
    ]
    # The innermost mount counts, and of two at the same place the later one, which hides the other.
    _, row, rest = max(reversed(above), key=lambda mount: len(mount[0].parts))
    return rest[0], {*row[5].split(","), *rest[2].split(",")}


def _unfit(directory: Path, place: Path, kind: str, options: set[str]) -> Finding | None:
    if kind in IN_MEMORY:
        why = f"is in memory ({kind}): a reboot would lose who owns which process"
    elif kind in BY_NETWORK:
        why = f"is on {kind}, on which SQLite's write-ahead log does not work"
    elif "ro" in options or not os.access(place, os.W_OK):
        why = "cannot be written"
    else:
        return None
    return failure(
        "state", f"{directory} {why}.", "Set `state_dir` to a directory on a disk of this host."
    )


def _doubtful(directory: Path, place: Path, kind: str) -> Finding | None:
    if kind == "overlay":
        advice = "Mount a volume there, unless the root of this machine is an overlay that is kept."
        return warning(
            "state", f"{directory} is on an overlay: it is gone with its container.", advice
        )
    free = os.statvfs(place)
    if free.f_bavail * free.f_frsize < LITTLE_BYTES:
        return warning(
            "state", f"The disk of {directory} is nearly full.", "Free space for the journal."
        )
    if directory.exists() and directory.stat().st_mode & 0o077:
        return warning(
            "state", f"Others than root can read {directory}.", f"chmod 0700 {directory}"
        )
    armed = sorted(point.name for point in (directory / "failpoints").glob("*"))
    if armed:
        advice = f"Remove {directory / 'failpoints'}."
        return warning(
            "state",
            f"Fail points are set, at which migrations stop: {', '.join(armed)}.",
            advice,
        )
    return None


def _well(place: Path) -> str:
    free = os.statvfs(place)
    return f"a disk that keeps it, with {units.size(free.f_bavail * free.f_frsize)} free"


def _nearest(directory: Path) -> Path:
    """Return the directory or its nearest parent: a worker creates it at its first start."""
    return next(
        path for path in (directory.resolve(), *directory.resolve().parents) if path.is_dir()
    )


def _plain(path: str) -> str:
    """Return a path of mountinfo with its escaped blanks."""
    return path.replace(r"\040", " ")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
