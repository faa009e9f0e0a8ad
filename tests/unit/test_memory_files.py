"""Files in memory, on the file system of the test: what is found, made, and removed again."""

from __future__ import annotations

import json
import os
import stat as modes
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sojourn.errors import CriuFailed
from sojourn.migration import carried
from sojourn.migration.context import Host, Migration
from sojourn.model import Phase, Plan, Role
from sojourn.preflight import memory_files
from sojourn.preflight.files import Needed
from sojourn.preflight.memory_files import MemoryFile
from sojourn.preflight.scan import scan
from sojourn.settings import Settings
from sojourn.system import places, process

ID = "11111111-2222-3333-4444-555555555555"

#: Keeps a file open for writing, one for reading, one without a name, and a directory.
KEEPS = """
import os, sys
os.chdir(sys.argv[1])
os.umask(0o022)
kept = open("written", "w+b", 0), open("read", "rb"), open("gone", "wb", 0), open("log", "ab")
kept[0].write(b"w" * 5000), kept[2].write(b"g" * 9000)
os.unlink("gone")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    """Return a directory on the tmpfs of this machine."""
    place = Path("/dev/shm", f"sojourn-test-{os.getpid()}")
    place.mkdir(mode=0o755)
    (place / "read").write_bytes(b"r")
    yield place
    for path in place.iterdir():
        path.unlink()
    place.rmdir()


@pytest.fixture
def keeper(memory: Path) -> Iterator[int]:
    """Start a program that keeps files in memory open, and return its PID."""
    command = [sys.executable, "-c", KEEPS, str(memory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        yield running.pid
        running.kill()


def used(pid: int) -> dict[str, MemoryFile]:
    """Return what a program uses in memory, by name."""
    return {Path(file.path).name: file for file in memory_files.used(scan(pid), [])}


def test_what_a_tree_uses_in_memory(keeper: int, memory: Path) -> None:
    """Files with what becomes of them, and all directories down to them."""
    found = used(keeper)
    assert [*found] == ["shm", memory.name, "gone", "log", "read", "written"]
    flags = {name: (one.written, one.log, one.deleted) for name, one in found.items()}
    assert flags["written"] == (True, False, False)
    assert flags["read"] == (False, False, False)
    assert flags["log"] == (True, True, False)
    assert flags["gone"] == (True, False, True)
    assert not any(one.stays for one in found.values())
    assert memory_files.bytes_of(found.values()) >= 8192 + 12288 + 4096


def test_what_is_not_of_the_tree_alone(keeper: int, memory: Path) -> None:
    """Somebody else's use of a file, its other names, and what else is in a directory."""
    (memory / "other name").hardlink_to(memory / "read")
    with (memory / "written").open("rb"), subprocess.Popen(["sleep", "9"], close_fds=False) as user:
        found = used(keeper)
        user.kill()
    assert found["written"].stays == ""  # its descriptor was not inherited
    assert found["read"].stays == "it has 2 names"
    assert found[memory.name].stays == "it has more in it than the tree uses, like other name"
    with (memory / "written").open("rb") as opened:
        holder = subprocess.Popen(["sleep", "9"], stdin=opened)
        found = used(keeper)
        holder.kill()
        holder.wait()
    assert found["written"].stays == f"process {holder.pid} (sleep) uses it too"


def file(path: Path, **other: Any) -> MemoryFile:
    """Return a file of another host, with a path on this one."""
    fields = {"size": 3, "taken": 4096, "written": True, **other}
    owner = (os.getuid(), os.getgid())
    return MemoryFile(str(path), str(path.parent), 0o100644, owner, **fields)


def directory(path: Path, **other: Any) -> MemoryFile:
    """Return a directory of another host that is like this one."""
    stat = path.stat()
    return MemoryFile(str(path), str(path), stat.st_mode, (stat.st_uid, stat.st_gid), **other)


def sentences(files: list[MemoryFile]) -> list[str]:
    """Return what speaks against files in memory, on the destination."""
    return [finding.sentence for finding in memory_files.check(files, "alpha") if finding.stops]


def test_what_travels_and_what_stays(tmp_path: Path) -> None:
    """Every sentence names the file and what is wrong with it."""
    here, missing = tmp_path / "here", tmp_path / "missing"
    here.write_text("abc")
    place = directory(tmp_path)
    assert MemoryFile.from_json(json.loads(json.dumps(place.to_json()))) == place
    (note,) = memory_files.check([place, file(missing)], "alpha")
    assert note.sentence == f"{missing} (0.0 MB in memory) will be carried along"
    assert memory_files.kept([place, file(missing)]) == [str(tmp_path)]
    (taken,) = sentences([place, file(here)])
    assert taken.startswith(f"{here} is a file in memory that the tree writes, and another file")
    assert sentences([place, file(here, written=False), file(here, log=True)]) == []
    (stays,) = sentences([place, file(missing, stays="it has 2 names")])
    assert stays.endswith("cannot be carried along: it has 2 names.")
    (room,) = sentences([place, file(missing, taken=2**62)])
    assert room.endswith("of files in memory would come.")
    (mode,) = sentences([replace(place, mode=0o040711), file(missing)])
    assert "has mode 040700 here and 040711 on the source" in mode
    gone = replace(place, path=str(missing), place=str(missing))
    (root,) = sentences([gone, file(missing / "file")])
    assert root == f"{missing}, for files in memory that are carried along, is missing."


def test_what_must_be_here_all_the_same(tmp_path: Path) -> None:
    """What is carried need not be here, and one finding is enough for what is refused."""
    here, missing, other = (tmp_path / name for name in ("here", "missing", "other"))
    here.write_text("abc")
    needed = [Needed(str(path)) for path in (here, missing, other)]
    files = [file(here, written=False), file(missing)]
    assert memory_files.left(needed, files) == [needed[0], needed[2]]
    assert memory_files.left(needed, [file(here)]) == needed[1:]


@pytest.fixture
def migration(tmp_path: Path) -> Migration:
    """Return a migration to this host."""
    fields = {"host": "beta", "key": "k" * 32, "state_dir": tmp_path / "state"}
    host = Host(Settings.model_validate(fields | {"runtime_dir": tmp_path / "run"}))
    made = Migration(host, host.journal.open(ID, Role.DESTINATION, Plan(4242, "alpha", "beta")))
    made.directory.images.mkdir(parents=True)
    return made


def brought(migration: Migration, path: Path, **other: Any) -> None:
    """Write the images of a directory with a sparse file in it, and of a FIFO, as they arrive."""
    user = {"user": os.getuid(), "group": os.getgid()}
    times = {"accessed_ns": 10**18, "changed_ns": 10**18 + 7}
    fields = {**user, **times, **other}
    data = {"size": 1 << 20, "extents": [[0, 2], [500000, 3]], "attributes": {}}
    carried_files = [
        {"path": str(path), "mode": modes.S_IFDIR | 0o750, **fields},
        {"path": f"{path}/fifo", "mode": modes.S_IFIFO | 0o620, **fields},
        {"path": f"{path}/file", "mode": modes.S_IFREG | 0o640, **fields, **data},
    ]
    (migration.directory.images / carried.LIST).write_text(json.dumps(carried_files))
    (migration.directory.images / carried.CONTENT.format(2)).write_bytes(b"abcde")


def test_what_is_made_is_whole(migration: Migration, tmp_path: Path) -> None:
    """With holes and times; a second attempt makes it anew, and a refusal removes all of it."""
    place = tmp_path / "made"
    brought(migration, place)
    for _ in range(2):
        carried.place(migration)
        content = (place / "file").read_bytes()
        assert (content[:3], content[500000:500004], len(content)) == (b"ab\0", b"cde\0", 1 << 20)
        assert (place / "file").stat().st_blocks < 100
        assert (place / "file").stat().st_mtime_ns == 10**18 + 7
        found = {path.name: path.stat().st_mode for path in (place, *place.iterdir())}
        assert found == {"made": 0o040750, "fifo": 0o010620, "file": 0o100640}
    carried.remove(migration)
    assert not place.exists()
    assert migration.host.journal.unfinished()[0].phase is Phase.RESERVED
    assert migration.host.journal.held(migration.entry, carried.MADE) == []
    carried.remove(migration)


def test_nothing_of_others_is_replaced_or_removed(migration: Migration, tmp_path: Path) -> None:
    """Neither a file that is there, nor one that has come in place of ours."""
    place = tmp_path / "made"
    brought(migration, place)
    place.mkdir(mode=0o750)
    place.chmod(0o750)
    (place / "file").write_text("theirs")
    with pytest.raises(CriuFailed, match="made/file, a file in memory that process 4242 brings"):
        carried.place(migration)
    (place / "fifo").rename(place / "renamed")  # so that its inode is not given to another file
    (place / "fifo").write_text("theirs too")
    carried.remove(migration)
    assert sorted(path.name for path in place.iterdir()) == ["fifo", "file", "renamed"]
    assert (place / "file").read_text() == "theirs"


def test_no_link_is_followed(migration: Migration, tmp_path: Path) -> None:
    """Whoever can write to a directory on the way cannot lead us elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    brought(migration, tmp_path / "link" / "made")
    with pytest.raises(CriuFailed, match="Not a directory"):
        carried.place(migration)
    brought(migration, Path(f"{tmp_path}/../made"))
    with pytest.raises(CriuFailed, match="not a plain absolute path"):
        carried.place(migration)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_images_that_are_cut_short(migration: Migration, tmp_path: Path) -> None:
    """They are found out, and nothing stays."""
    brought(migration, tmp_path / "made")
    (migration.directory.images / carried.CONTENT.format(2)).write_bytes(b"abc")
    with pytest.raises(CriuFailed, match="its content is incomplete"):
        carried.place(migration)
    carried.remove(migration)
    assert not (tmp_path / "made").exists()


def test_what_moved_leaves_its_source(migration: Migration, tmp_path: Path) -> None:
    """By its inode and this boot: what has come in its place stays."""
    names = ("mine", "another", "before")
    for name in names:
        (tmp_path / name).write_text(name)
    found = {name: (tmp_path / name).stat() for name in names}
    moved = [
        {
            "path": str(tmp_path / name),
            "device": found[name].st_dev,
            "inode": found[name].st_ino + (name == "another"),
            "boot": "another boot" if name == "before" else process.boot_id(),
        }
        for name in names
    ]
    migration.learn(moved=moved)
    for _ in range(2):
        carried.leave(migration)
    assert not (tmp_path / "mine").exists()
    assert (tmp_path / "another").exists()
    assert (tmp_path / "before").exists()


def test_a_name_that_is_taken_is_not_replaced(tmp_path: Path) -> None:
    """Not even an empty directory, which rename(2) would replace."""
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    with places.directory_of(f"{tmp_path}/ours") as (descriptor, name):
        with pytest.raises(FileExistsError):
            places.rename(descriptor, name, "theirs")
        places.rename(descriptor, name, "free")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["free", "theirs"]
