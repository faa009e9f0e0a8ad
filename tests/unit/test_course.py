"""The course of a run of CRIU: its log, line by line as CRIU 4.2 writes it, becomes parts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sojourn.criu import course
from sojourn.criu.course import MOST_PARTS, PIECE, PROCESS, RUN, Part

DUMP = """\
(00.000000) Version: 4.2 (gitid 0)
(00.003121) ========================================
(00.003130) Dumping processes (pid: 4242 comm: python3)
(00.004000) Detected cgroup V2 freezer
(00.004900) SEIZE 4242 (comm python3): success
(00.005000) Seized task 4242, state 0
(00.006000) Lock network
(00.009000) ========================================
(00.009000) Dumping task (pid: 4242 comm: python3)
(00.009010) ========================================
(00.009100) Collecting mappings (pid: 4242)
(00.010000) Set up parasite blob using memfd
(00.010100) Putting parasite blob into 0x7f0000000000->0x7f0000010000
(00.011000) Dumping opened files (pid: 4242)
(00.012000) Dumping pages (type: 57 pid: 4242)
(00.052000) Dumping core (pid: 4242)
(00.053000) Waiting for 4242 to trap
(00.053900) Daemon 4242 exited trapping
(00.054000) Dumping mm (pid: 4242)
(00.055000) Dumping task (pid: 4243 comm: python3)
(00.055100) Collecting mappings (pid: 4243)
(00.058000) Dumping pstree (pid: 4242)
(00.060000) Disconnect from the page server
(00.064000) Unfreezing tasks into 3
(00.065000) Writing stats
(00.065500) Dumping finished successfully
"""

RESTORE = """\
(00.000000) CRIU run id = 60feaa84-b74f-4109-88ba-ff4d3e108a22
(00.001000) Reading image tree
(00.002000) Running pre-restore scripts
(00.002010) \tRPC
(00.004000) No mountpoints-10.img image
(00.005000) Forking task with 4242 pid (flags 0x0)
(00.006000)   4242: Forking task with 4243 pid (flags 0x0)
(00.007000)   4242: Restoring resources
(00.007500)   4243: Restoring resources
(00.007400)   4243: Opening fdinfo-s
(00.009000)   4242: Restore via sigreturn
(00.010000) pie: 4242: Switched to the restorer 4242
(00.011000) pie: 4242: seccomp: Restored mode 0 on tid 4242
(00.030000) pie: 4242: 4242: Restored
(00.031000) Running post-restore scripts
(00.031010) \tRPC
(00.056000) Unlock network
(00.058000) Run late stage hook from criu master for external devices
(00.059000) Running pre-resume scripts
(00.059010) \tRPC
(00.062000) Detaching from 4242
(00.063000) Restore finished successfully. Tasks resumed.
(00.063100) Writing stats
(00.064000) Running post-resume scripts
(00.064010) \tRPC
"""


def tree(parts: tuple[Part, ...]) -> list[str]:
    """Return parts as lines: moved in by depth, with begin and length in tenths of a ms."""
    return [
        f"{'  ' * part.depth}{part.name} {part.begin_s * 1e4:.0f}+"
        f"{(part.end_s - part.begin_s) * 1e4:.0f}{' ours' if part.ours else ''}"
        for part in parts
    ]


def test_a_dump() -> None:
    """It begins where the threads are stopped, and takes one process after another."""
    assert tree(course.read("dump", DUMP.splitlines(keepends=True)).parts) == [
        "stop every thread 40+20",
        "find locks and namespaces 60+30",
        "dump the processes 90+490",
        "  process 4242 90+460",
        "    mappings and descriptors 91+9",
        "    put the parasite in 100+10",
        "    files and connections 110+10",
        "    send memory 120+400",
        "    registers and signals 520+10",
        "    take the parasite out 530+10",
        "    write down mappings 540+10",
        "  process 4243 550+30",
        "    mappings and descriptors 551+29",
        "what the processes share 580+20",
        "wait for the page server 600+40",
        "leave threads stopped 640+10",
        "end 650+5",
    ]


def test_a_restore() -> None:
    """Processes are rebuilt side by side, and the answers are ours up to the next line."""
    assert tree(course.read("restore", RESTORE.splitlines(keepends=True)).parts) == [
        "read the images 0+20",
        "prepare 20+30",
        "rebuild the processes 50+260",
        "  process 4242 50+260",
        "    files and connections 70+20",
        "    put the restorer in 90+10",
        "    move mappings, read memory 100+200",
        "    wait for the others 300+10",
        "  process 4243 60+250",
        "    files and connections 75+235",
        "the commit 310+250 ours",
        "unlock network, catch threads 560+20",
        "get ready to let go 580+10",
        "let the tree go 590+40",
        "write the statistics 630+10",
        "write down that it runs 640+0 ours",
    ]


def test_a_page_server() -> None:
    """From the first process's memory to its end."""
    lines = ["(00.1) Reusing ps socket 4\n", "(00.2) Opening 57/4242\n", "(00.9) Session over\n"]
    assert course.read("page-server", lines).parts == (Part(RUN, "receive memory", 0.2, 0.9),)


def test_a_dump_that_lets_the_tree_run_on() -> None:
    """The log of a failed dump shows when; that of another does not."""
    failed = DUMP.replace("tasks into 3", "tasks into 1")
    assert course.read("dump", failed.splitlines()).let_go_s == 0.064
    assert course.read("dump", DUMP.splitlines()).let_go_s is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no stamp at all\n\n(x) Lock network\n",
        "Dumping task (pid: 1)\n(00.1) Collecting mappings\n(00.2)   7: Restoring resources\n",
        "(00.000001) Dumping task (pid: \n",
        "(00.2) Lock network\n(00.1) Lock network\n(00.1) Dumping pstree\n",
    ],
    ids=["empty", "no stamps", "pieces of no process", "no number", "back in time"],
)
@pytest.mark.parametrize("verb", ["dump", "restore", "page-server"])
def test_any_log_can_be_read(text: str, verb: str) -> None:
    """Lines that another version writes, or a process has forged, do no harm."""
    for part in course.read(verb, text.splitlines(keepends=True)).parts:
        assert part.begin_s <= part.end_s


def test_when_a_log_was_opened(tmp_path: Path) -> None:
    """The last line was written when the file changed last: so its first instant is known."""
    log = tmp_path / "dump.log"
    log.write_text(DUMP)
    os.utime(log, (1000.0, 1000.0655))
    found = course.of(tmp_path, "dump")
    assert found is not None
    assert found.opened == pytest.approx(1000.0, abs=1e-5)
    assert len(found.parts) == 17


@pytest.mark.parametrize("text", [None, "", "nothing with a stamp\n"])
def test_without_a_log(tmp_path: Path, text: str | None) -> None:
    """A log that is missing, empty or not one has no course."""
    if text is not None:
        (tmp_path / "dump.log").write_text(text)
    assert course.of(tmp_path, "dump") is None


def test_of_very_many_processes_the_pieces_do_not_travel(tmp_path: Path) -> None:
    """What is sent through the broker stays within bounds."""
    lines = ["(00.1) Detected cgroup V2 freezer\n"]
    for pid in range(MOST_PARTS):
        lines += [f"(00.2) Dumping task (pid: {pid} comm: x)\n", "(00.2) Collecting mappings\n"]
    (tmp_path / "dump.log").write_text("".join(lines))
    found = course.of(tmp_path, "dump")
    assert found is not None
    assert len(found.parts) == MOST_PARTS
    assert {part.depth for part in found.parts} == {RUN, PROCESS}
    assert PIECE in {part.depth for part in course.read("dump", lines).parts}
