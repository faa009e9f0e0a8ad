"""Memory that crosses while the process is frozen, in any mode: of real programs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from sojourn.preflight import never_lazy

MB = 2**20

#: How far an interpreter with nothing of the kind may be from zero: what it has written of the
#: libraries that it maps.
OWN = 2 * MB

#: Programs that fill eight megabytes, by what these are.
PROGRAMS = {
    "plain": "m = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); fill(m)",
    "shared": "m = mmap.mmap(-1, SIZE); fill(m)",
    "shared by two": "m = mmap.mmap(-1, SIZE); fill(m); os.fork() or time.sleep(60)",
    "in a memfd": "d = os.memfd_create('x'); os.write(d, bytes([1]) * SIZE)",
    "of a file, changed": (
        "f = tempfile.TemporaryFile(); f.truncate(SIZE); "
        "m = mmap.mmap(f.fileno(), SIZE, flags=mmap.MAP_PRIVATE); fill(m)"
    ),
    "of a file, read": (
        "f = tempfile.TemporaryFile(); f.write(bytes([1]) * SIZE); f.flush(); "
        "m = mmap.mmap(f.fileno(), SIZE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ); m.read()"
    ),
    "locked": (
        "m = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS); fill(m); "
        "here = ctypes.addressof(ctypes.c_char.from_buffer(m)); "
        "assert ctypes.CDLL(None).mlock(ctypes.c_void_p(here), ctypes.c_size_t(SIZE)) == 0"
    ),
}

BEGIN = f"""
import ctypes, mmap, os, tempfile, time
SIZE = {8 * MB}
def fill(area):
    for at in range(0, SIZE, 4096):
        area[at] = 1
"""

NEVER = ["shared", "shared by two", "in a memfd", "of a file, changed", "locked"]


@pytest.fixture
def pids(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """Start a program, and give out its PIDs."""
    text = f"{BEGIN}{PROGRAMS[request.param]}\nprint('ready', flush=True)\ntime.sleep(60)\n"
    with subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        children = subprocess.run(
            ["pgrep", "-P", str(child.pid)], capture_output=True, text=True, check=False
        )
        found = [child.pid, *map(int, children.stdout.split())]
        yield found
        subprocess.run(["kill", "-KILL", *map(str, found)], check=False)


@pytest.mark.parametrize("pids", NEVER, indirect=True)
def test_what_can_never_come_later(pids: list[int]) -> None:
    """It is counted once, whoever shares it."""
    assert 8 * MB <= never_lazy.size_of(pids) < 8 * MB + len(pids) * OWN


@pytest.mark.parametrize("pids", ["plain", "of a file, read"], indirect=True)
def test_what_can(pids: list[int]) -> None:
    """A program's own memory, and files that the destination has too."""
    assert 0 < never_lazy.size_of(pids) < OWN


def test_processes_that_have_ended() -> None:
    """They have no memory any more."""
    with subprocess.Popen(["true"]) as ended:
        pass
    assert never_lazy.size_of([ended.pid]) == 0


def test_a_path_with_blanks() -> None:
    """It stays with its mapping, and the figures with theirs."""
    smaps = (
        "00400000-00401000 rw-p 00000000 00:15 77     /srv/with blanks: and colons:\n"
        "Anonymous:             4 kB\nSwap:                  8 kB\nVmFlags: rd wr lo\n"
        "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
        "Anonymous:             4 kB\nVmFlags: rd wr lo\n"
        "7f0000001000-7f0000002000 rw-p 00000000 00:00 0                  [heap]\n"
        "Anonymous:             4 kB\nVmFlags: rd wr mr mw me ac sd\n"
    )
    first, locked, heap = never_lazy.areas(smaps)
    assert (first.path, first.own_bytes) == ("/srv/with blanks: and colons:", 12288)
    assert not first.is_left_for_later
    assert not locked.is_left_for_later
    assert heap.is_left_for_later
