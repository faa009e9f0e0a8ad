"""The host's own places: its settings, its address, and the directory of its journal."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
import time
from pathlib import Path

from sojourn.channel import Listener, connect
from sojourn.doctor.finding import Finding, failure, ok, warning
from sojourn.errors import ChannelFailed
from sojourn.settings import Settings
from sojourn.tls import Certificates, Party, until

#: The cluster's key is of at least so many characters (``workflows.app`` refuses a shorter one).
SHORTEST_KEY = 16

#: How the key of examples/sojourn.toml begins.
NOT_A_KEY = "the same on every host"

#: Gone with a reboot or a crash; and those on which SQLite's write-ahead log does not work (https://sqlite.org/wal.html).
IN_MEMORY = {"tmpfs", "ramfs"}
BY_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse.sshfs", "fuse.glusterfs"}

#: How long before its end a certificate is to be renewed.
RENEW_DAYS = 30

#: Below this the journal may soon be unable to take a phase.
LITTLE_BYTES = 64 * 2**20


def settings_file(path: Path) -> Finding:
    """Look at the file that holds the cluster's key."""
    if not path.exists():
        return warning(
            "settings", f"There is no {path}.", "Write it, or say everything by SOJOURN_… in the environment."
        )
    found = path.stat()
    if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid not in {0, os.geteuid()}:
        return failure(
            "settings",
            f"{path} has mode {stat.S_IMODE(found.st_mode):04o} and belongs to user {found.st_uid}: "
            "others could read the cluster's key, or change it.",
            f"chown root {path}; chmod 0600 {path}",
        )
    return ok("settings", f"{path} can be read by its owner only")


def key(secret: str) -> Finding:
    """Look at the cluster's key; it is never told."""
    if len(secret) < SHORTEST_KEY or secret.startswith(NOT_A_KEY):
        said = "is the example's" if len(secret) >= SHORTEST_KEY else "is missing or too short"
        return failure("key", f"The cluster's key {said}.", "Set the same `key` on every host: openssl rand -hex 32")
    return ok("key", f"it has {len(secret)} characters")


def address(settings: Settings) -> Finding:
    """Look whether page channels can listen where others look for them. Raises ChannelFailed if they can not."""
    Listener(settings.address, b"").close()
    if _is_loopback(settings.address):
        return warning(
            "address",
            f"`address` is {settings.address}, where no other host reaches this one.",
            "Set `address` to this host's address in the network of the hosts.",
        )
    return ok("address", f"page channels can listen on {settings.address}")


def certificates(settings: Settings) -> Finding:
    """Look whether others can know this host by its certificates, by talking to itself with them."""
    if settings.certificates is None:
        return _without_certificates(settings.address)
    ours = Certificates(settings.certificates)
    try:
        readable = ours.host.stat().st_mode & 0o077
        ends = _proved(settings, Party(ours, settings.host))
    except (ChannelFailed, OSError) as error:
        return failure(
            "certificates",
            f"This host can not prove its name: {error}",
            f"Issue new ones: sojourn pki issue {settings.host}; put both files into {settings.certificates}.",
        )
    if readable:
        sentence = f"Others than root can read {ours.host}, and so pass for this host."
        return failure("certificates", sentence, f"chmod 0600 {ours.host}")
    days = int((ends - time.time()) // 86_400)
    if days < RENEW_DAYS:
        advice = f"Issue new ones: sojourn pki issue {settings.host}. They count at once."
        return warning("certificates", f"This host's certificate ends in {days} days.", advice)
    return ok("certificates", f"they prove that this is {settings.host}, for {days} days")


def _without_certificates(address: str) -> Finding:
    if _is_loopback(address):
        return ok("certificates", "none, and nothing leaves this machine")
    return warning(
        "certificates",
        "Memory crosses the network readable for whoever listens in: this host has no certificates.",
        "Make them for all hosts with `sojourn pki`, or let `address` be that of a tunnel.",
    )


def _proved(settings: Settings, us: Party) -> float:
    """Return until when our certificate holds, after a conversation with ourselves. Raises ChannelFailed."""
    listener = Listener(settings.address, b"", us)
    with contextlib.closing(listener), connect(settings.address, listener.port, b"", "images", us) as peer:
        return until(peer)


def state(directory: Path) -> Finding:
    """Look whether the journal lies on a disk that keeps it, and that can be written."""
    place = _nearest(directory)
    kind, options = mount_of(place, Path("/proc/self/mountinfo").read_text())
    return _unfit(directory, place, kind, options) or _doubtful(directory, place, kind) or ok("state", _well(place))


def mount_of(path: Path, mountinfo: str) -> tuple[str, set[str]]:
    """Return type and options of the file system of a path (proc_pid_mountinfo(5)); of two mounts the last counts."""
    rows = [(line.split(" - ")[0].split(), line.split(" - ")[1].split()) for line in mountinfo.splitlines()]
    above = [(Path(_plain(row[4])), row, rest) for row, rest in rows if path.is_relative_to(_plain(row[4]))]
    _, row, rest = max(reversed(above), key=lambda each: len(each[0].parts))
    return rest[0], {*row[5].split(","), *rest[2].split(",")}


def _unfit(directory: Path, place: Path, kind: str, options: set[str]) -> Finding | None:
    if kind in IN_MEMORY:
        why = f"lies in memory ({kind}): a reboot would lose who owns which process"
    elif kind in BY_NETWORK:
        why = f"lies on {kind}, on which SQLite's journal does not work"
    elif "ro" in options or not os.access(place, os.W_OK):
        why = "can not be written"
    elif "noexec" in options:
        why = "is mounted noexec, so CRIU could not run the action script in it"
    else:
        return None
    return failure("state", f"{directory} {why}.", "Set `state_dir` to a directory on a disk of this host.")


def _doubtful(directory: Path, place: Path, kind: str) -> Finding | None:
    if kind == "overlay":
        advice = "Put a volume there, unless the root of this machine is such an overlay and is kept."
        return warning("state", f"{directory} lies on an overlay: in a container it goes with it.", advice)
    free = os.statvfs(place)
    if free.f_bavail * free.f_frsize < LITTLE_BYTES:
        return warning("state", f"The disk of {directory} is nearly full.", "Make room for the journal.")
    if directory.exists() and directory.stat().st_mode & 0o077:
        return warning("state", f"Others than root can look into {directory}.", f"chmod 0700 {directory}")
    armed = sorted(each.name for each in (directory / "failpoints").glob("*"))
    if armed:
        advice = f"Remove {directory / 'failpoints'}."
        return warning("state", f"Fail points are set, at which migrations stand still: {', '.join(armed)}.", advice)
    return None


def _well(place: Path) -> str:
    free = os.statvfs(place)
    return f"a disk that keeps it, with {free.f_bavail * free.f_frsize // 10**6} MB free"


def _nearest(directory: Path) -> Path:
    """Return the directory, or what is there of its parents: a worker makes it at its first start."""
    return next(each for each in (directory.resolve(), *directory.resolve().parents) if each.is_dir())


def _plain(path: str) -> str:
    """Undo how mountinfo writes blanks."""
    return path.replace(r"\040", " ")


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
