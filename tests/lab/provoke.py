"""Use features of the kernel by their names, then sleep: ``python3 provoke.py WHAT[=ARGUMENT]...``.

Runs inside a host with the standard library only. Prints ``ready`` and the names of what it uses
now, without the features that the kernel does not have.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pty
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Objects that must stay open.
KEPT: list[Any] = []

_libc = ctypes.CDLL(None, use_errno=True)

#: Numbers of system calls on x86_64 that Python has no functions for.
IO_URING_SETUP, PERF_EVENT_OPEN, BPF, USERFAULTFD, MEMFD_SECRET = 425, 298, 321, 323, 447


def syscall(number: int, *arguments: Any) -> int:
    """Call the kernel and keep the descriptor that it returns."""
    answer = _libc.syscall(number, *arguments)
    if answer < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    KEPT.append(answer)
    return answer


def io_uring() -> None:
    syscall(IO_URING_SETUP, 8, ctypes.create_string_buffer(120))


def io_uring_mapped() -> None:
    ring = syscall(IO_URING_SETUP, 8, ctypes.create_string_buffer(120))
    KEPT.append(mmap.mmap(ring, 4096, mmap.MAP_SHARED | 0x8000, mmap.PROT_READ | mmap.PROT_WRITE))
    os.close(ring)


def perf() -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 112, 1) + bytes(96), 112)
    syscall(PERF_EVENT_OPEN, attributes, 0, -1, -1, 0)


def bpf_map() -> None:
    syscall(
        BPF, 0, ctypes.create_string_buffer(struct.pack("=IIIII", 2, 4, 4, 1, 0) + bytes(52)), 72
    )


def bpf_prog() -> None:
    code = ctypes.create_string_buffer(
        struct.pack("=BBhi", 0xB7, 0, 0, 0) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    )
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ", 1, 2, ctypes.addressof(code), ctypes.addressof(licence)
    ) + bytes(120)
    syscall(BPF, 5, ctypes.create_string_buffer(attributes), 128)


def userfaultfd() -> None:
    syscall(USERFAULTFD, 1)


def _inotify(path: str) -> None:
    descriptor = syscall(294, 0)
    if _libc.inotify_add_watch(descriptor, path.encode(), 2) < 0:
        raise OSError(ctypes.get_errno(), path)


def inotify(path: str) -> None:
    _inotify(path)


def sysv_shm() -> None:
    _libc.shmat.restype = ctypes.c_void_p
    identifier = _libc.shmget(0, 8192, 0o1600)
    KEPT.append(_libc.shmat(identifier, None, 0))


def sysv_semaphore() -> None:
    identifier = _libc.semget(0, 1, 0o1600)
    _libc.semop(identifier, ctypes.create_string_buffer(struct.pack("=Hhh", 0, 1, 0)), 1)


def sysv_queue() -> None:
    identifier = _libc.msgget(0, 0o1600)
    _libc.msgsnd(identifier, ctypes.create_string_buffer(struct.pack("=q", 1) + b"text"), 4, 0)


def shared_code() -> None:
    """Executable memory below everything else, as PHP's compiler shares it between processes."""
    _libc.mmap.restype = ctypes.c_void_p
    _libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    KEPT.append(_libc.mmap(0x10000, 4096, 5, 0x100021, -1, 0))


def hugetlb() -> None:
    KEPT.append(mmap.mmap(-1, 2**21, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000))
    KEPT[-1][0] = 1


def unix_stream(path: str) -> None:
    KEPT.append(socket.socket(socket.AF_UNIX))
    KEPT[-1].connect(path if path[0] == "/" else "\0" + path)


def unix_dgram(path: str) -> None:
    KEPT.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    KEPT[-1].connect(path)


def unix_server(path: str) -> None:
    server = socket.socket(socket.AF_UNIX)
    server.bind(path if path[0] == "/" else "\0" + path)
    server.listen()
    KEPT.append(server)
    threading.Thread(
        target=lambda: [KEPT.append(server.accept()) for _ in range(100)], daemon=True
    ).start()


def unix_dgram_server(path: str) -> None:
    KEPT.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    KEPT[-1].bind(path)


def unix_pair() -> None:
    KEPT.append(socket.socketpair())


def netlink() -> None:
    KEPT.append(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0))
    KEPT[-1].bind((0, 0))


def packet() -> None:
    KEPT.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))


def raw() -> None:
    KEPT.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))


def mptcp() -> None:
    KEPT.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))


def vsock() -> None:
    KEPT.append(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))


def alg() -> None:
    KEPT.append(socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET))
    KEPT[-1].bind(("hash", "sha256"))


def tcp_unbound() -> None:
    KEPT.append(socket.socket())


def tcp_bound() -> None:
    KEPT.append(socket.socket())
    KEPT[-1].bind(("127.0.0.1", 7799))


def listen(place: str) -> None:
    address, port = place.rsplit(":", 1)
    KEPT.append(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    KEPT[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    KEPT[-1].bind((address, int(port)))
    KEPT[-1].listen()


def listen_both(port: str) -> None:
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        server = socket.socket(family)
        if family == socket.AF_INET6:
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((address, int(port)))
        server.listen()
        KEPT.append(server)


def udp(place: str) -> None:
    address, port = place.rsplit(":", 1)
    KEPT.append(
        socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    )
    KEPT[-1].bind((address, int(port)))


def udp_connected(place: str) -> None:
    address, port = place.rsplit(":", 1)
    KEPT.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    KEPT[-1].connect((address, int(port)))


def connected() -> None:
    """Both ends of one connection, over the loopback."""
    listen("127.0.0.1:7788")
    KEPT.append(socket.create_connection(("127.0.0.1", 7788)))
    KEPT.append(KEPT[-2].accept())


def connect(place: str) -> None:
    address, port = place.rsplit(":", 1)
    KEPT.append(socket.create_connection((address, int(port))))


def in_flight() -> None:
    """A connection that no program has accepted."""
    listen("127.0.0.1:7787")
    if os.fork() == 0:
        KEPT.append(socket.create_connection(("127.0.0.1", 7787)))
        signal.pause()


def deleted(size: str) -> None:
    file = tempfile.NamedTemporaryFile(dir="/var/tmp")
    file.write(bytes(int(size)))
    file.flush()
    Path(file.name).unlink()
    KEPT.append(file)


def deleted_mapped(size: str) -> None:
    deleted(size)
    KEPT.append(mmap.mmap(KEPT[-1].fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ))
    KEPT[-2].close()


def linked_elsewhere() -> None:
    path = Path(tempfile.mkdtemp(dir="/var/tmp")) / "file"
    KEPT.append(path.open("w"))
    os.link(path, path.with_suffix(".other"))
    path.unlink()


def replaced() -> None:
    linked_elsewhere()
    Path(KEPT[-1].name).write_text("new")


def renamed() -> None:
    path = Path(tempfile.mkdtemp(dir="/shared")) / "file"
    KEPT.append(path.open("w"))
    path.rename(path.with_suffix(".1"))


def open_file(path: str, mode: str = "r") -> None:
    KEPT.append(Path(path).open(mode))


def opened_for_appending(path: str) -> None:
    KEPT.append(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT))


def opened_for_writing(path: str) -> None:
    KEPT.append(os.open(path, os.O_RDWR | os.O_CREAT))


def growing(path: str) -> None:
    """A file to which the process writes all the time, without appending."""
    threading.Thread(target=_write, args=(path,), daemon=True).start()


def _write(path: str) -> None:
    with Path(path).open("w") as file:
        while True:
            file.write("x" * 500)
            file.flush()
            time.sleep(0.001)


def flock(path: str) -> None:
    KEPT.append(Path(path).open("w"))
    fcntl.flock(KEPT[-1], fcntl.LOCK_EX)


def posix_lock(path: str) -> None:
    KEPT.append(Path(path).open("w"))
    fcntl.lockf(KEPT[-1], fcntl.LOCK_EX)


def pidfd(pid: str) -> None:
    KEPT.append(os.pidfd_open(int(pid)))


def pidfd_own() -> None:
    KEPT.append(os.pidfd_open(os.getpid()))


def events() -> None:
    """An eventfd, an epoll, a memfd, a signalfd and a timerfd, all of which CRIU can dump."""
    KEPT.append(os.eventfd(3))
    KEPT.append(select.epoll())
    KEPT[-1].register(KEPT[-2], select.EPOLLIN)
    KEPT.append(os.memfd_create("memory"))
    os.ftruncate(KEPT[-1], 8192)
    KEPT.append(mmap.mmap(KEPT[-1], 8192))
    mask = ctypes.create_string_buffer(8)
    syscall(289, -1, mask, 8, 0)
    syscall(283, 1, 0)
    KEPT.append(mmap.mmap(-1, 8192))


def shm(path: str) -> None:
    """POSIX shared memory: a file in /dev/shm."""
    KEPT.append(Path(path).open("w+b"))
    KEPT[-1].truncate(8192)
    KEPT.append(mmap.mmap(KEPT[-1].fileno(), 8192))
    KEPT[-2].close()


def shm_unlinked(path: str) -> None:
    shm(path)
    Path(path).unlink()


def device(path: str) -> None:
    KEPT.append(os.open(path, os.O_RDWR))


def device_read(path: str) -> None:
    KEPT.append(os.open(path, os.O_RDONLY))


def fifo(path: str) -> None:
    os.mkfifo(path)
    KEPT.append(os.open(path, os.O_RDWR))


def zombie() -> None:
    if os.fork() == 0:
        os._exit(0)


def terminal_own() -> None:
    """A child on a terminal whose master side the parent has."""
    pid, master = pty.fork()
    KEPT.append(master)
    if pid == 0:
        signal.pause()


def terminal_of_other(path: str) -> None:
    KEPT.append(os.open(Path(path).read_text(), os.O_RDWR | os.O_NOCTTY))


def holder_of_terminal(path: str) -> None:
    """A terminal for a process outside the tree: write its name to a file."""
    master, slave = pty.openpty()
    KEPT.extend((master, slave))
    Path(path).write_text(os.ttyname(slave))


def traced() -> None:
    """A child that is traced by its parent."""
    if os.fork() == 0:
        _libc.ptrace(0, 0, 0, 0)
        signal.pause()


def namespace(flags: str) -> None:
    """A child in namespaces of its own, by the bits of unshare(2)."""
    if os.fork() == 0:
        if _libc.unshare(int(flags, 0)) < 0:
            raise OSError(ctypes.get_errno(), flags)
        if os.fork() == 0:
            signal.pause()
        signal.pause()


def groups() -> None:
    """A child in the process group and session of one that has ended."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(write, b"x")
            signal.pause()
        os._exit(0)
    os.read(read, 1)
    os.wait()
    os.close(read)
    os.close(write)


def vfork() -> None:
    """A parent that waits, uninterruptibly, for the child that it started by vfork."""
    # posix_spawn suspends its caller until the child has begun another program: opening a FIFO
    # never ends.
    path = tempfile.mkdtemp(dir="/var/tmp") + "/fifo"
    os.mkfifo(path)
    print("ready", flush=True)
    os.posix_spawn(
        "/bin/sleep",
        ["sleep", "1000"],
        {},
        file_actions=[(os.POSIX_SPAWN_OPEN, 5, path, os.O_RDONLY, 0)],
    )


def chdir(path: str) -> None:
    os.chdir(path)


def chroot(path: str) -> None:
    os.chroot(path)
    os.chdir("/")


def many(count: str) -> None:
    """Many different open files, in 50 processes."""
    place = Path("/shared/many")
    place.mkdir(exist_ok=True)
    for child in range(49):
        if os.fork() == 0:
            _open_many(place, child, int(count) // 50)
            signal.pause()
    _open_many(place, 49, int(count) // 50)


def _open_many(place: Path, child: int, count: int) -> None:
    for number in range(count):
        KEPT.append((place / f"file-with-a-name-of-some-length-{child}-{number}").open("w+"))


def plain() -> None:
    """Use nothing."""


def main() -> None:
    known: dict[str, Callable[..., None]] = globals()
    used = []
    for use in sys.argv[1:]:
        what, *argument = use.split("=", 1)
        try:
            known[what](*argument)
            used.append(what)
        except OSError as error:
            print(f"without {what}: {error}", file=sys.stderr, flush=True)
    print("ready", *used, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
