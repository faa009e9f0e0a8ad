"""Computations, loops and pipelines."""

from __future__ import annotations

from tests.programs.program import Program, Way
from tests.programs.starts import Daemon, ShellJob

#: Succeeds if the program's output grows.
GROWS = "before=$(wc -c <$D/log); sleep 0.5; test $(wc -c <$D/log) -gt $before"

#: Prints a line if the numbers in the log have no gap; the last one may be half written.
NO_GAP = (
    'head -n -1 $D/log | awk \'$1 != NR { gap = 1; print "gap at", NR, $0 } END { if (!gap) print '
    '"no gap" }\''
)

#: The children of the shell on the terminal.
JOB = "pgrep -P $(pgrep -f '^bash --norc -i') -x {name}"

NUMPY = """
cat >$D/job.py <<'END'
import numpy, time
rng = numpy.random.default_rng(1)
a = rng.random((300, 300))
for n in range(1, 10**6):
    a = a @ a
    a /= a.sum()
    print(n, flush=True)
    time.sleep(0.01)
END
"""

#: Enough to be compiled for a minute.
SOURCES = """
for i in $(seq 40); do
  for j in $(seq 300); do
    echo "int f_${i}_$j(int a) { return a * $j ^ (a >> 3) % 7; }"
  done >$D/f$i.c
done
cat >$D/Makefile <<'END'
.RECIPEPREFIX = >
OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))
all: $(OBJECTS)
%.o: %.c
> sleep 0.3; gcc -O2 -c -o $@ $<
END
"""

PROGRAMS = [
    Program(
        "a loop of Bash",
        ("bash",),
        Daemon("bash -c 'while sleep 0.05; do echo $((++count)); done'"),
        works=GROWS,
        state=NO_GAP,
    ),
    Program(
        "a loop of Perl",
        ("perl",),
        Daemon(
            "perl -e '$| = 1; for (;;) { print ++$n, qq(\\n); select undef, undef, undef, 0.05 }'"
        ),
        works=GROWS,
        state=NO_GAP,
    ),
    Program(
        "NumPy",
        ("python3-numpy",),
        Daemon("python3 $D/job.py"),
        prepare=NUMPY,
        works=GROWS,
        state=NO_GAP,
    ),
    Program(
        "ping",
        ("iputils-ping",),
        Daemon("ping -i 0.1 127.0.0.1"),
        works=GROWS,
        state="awk -F'[= ]' '/icmp_seq/ { if ($6 != ++n) print \"gap\", $0 } "
        'END { print "end" }\' $D/log',
    ),
    Program(
        "ip monitor",
        ("iproute2",),
        Daemon("ip monitor address"),
        works="before=$(wc -c <$D/log); ip address add 127.0.0.9/32 dev lo; "
        "ip address delete 127.0.0.9/32 dev lo; sleep 0.5; test $(wc -c <$D/log) -gt $before",
    ),
    Program(
        "tcpdump",
        ("tcpdump",),
        Daemon("tcpdump -l -n -Z $U -i lo icmp"),
        user="tcpdump",
        works="before=$(wc -c <$D/log); ping -c 3 -i 0.1 127.0.0.1; sleep 1; "
        "test $(wc -c <$D/log) -gt $before",
    ),
    Program(
        "tail -F, read by a shell's loop",
        ("coreutils",),
        Daemon("sh -c 'tail -F $D/input | while read line; do echo $line; done'"),
        prepare="echo 1 >$D/input",
        works="echo $(($(tail -n 1 $D/input) + 1)) >>$D/input; sleep 0.5; "
        "test $(tail -n 1 $D/input) = $(tail -n 1 $D/log)",
        state=NO_GAP,
    ),
    Program(
        "a filter, whose input is another program's output",
        ("coreutils", "gawk"),
        Daemon("sh -c '(while sleep 0.05; do echo x; done) | gawk \"{ print NR; fflush() }\"'"),
        works=GROWS,
        state=NO_GAP,
    ),
    Program(
        "gawk, as the reader of a pipeline",
        ("gawk",),
        ShellJob(
            "(while sleep 0.05; do echo x; done) | gawk '{ print NR; fflush() }' >$D/log 2>&1 &",
            JOB.format(name="gawk"),
            "member of a shell's pipeline",
        ),
        works=GROWS,
        state=NO_GAP,
        refused=("HELD_OUTSIDE", "SHELL_JOB"),
    ),
    Program(
        "xz, compressing into a pipe or file",
        ("xz-utils",),
        ShellJob(
            "head -c 300M /dev/urandom >$D/in; xz -T2 <$D/in >$D/out 2>/dev/null &",
            JOB.format(name="xz"),
            "background job of a shell",
        ),
        works="kill -0 $(pgrep -x xz)",
        refused=("LANDLOCK", "SHELL_JOB"),
    ),
    Program(
        "xz -T2 FILE",
        ("xz-utils",),
        ShellJob(
            "head -c 100M /dev/urandom >$D/in; xz -k -T2 $D/in </dev/null >/dev/null 2>&1 &",
            JOB.format(name="xz"),
            "background job of a shell",
        ),
        works="kill -0 $(pgrep -x xz) || xz -t $D/in.xz",
        refused=("LANDLOCK", "SHELL_JOB"),
    ),
    Program(
        "sox, making a file",
        ("sox",),
        ShellJob(
            "nohup sox -n -r 192000 $D/out.wav synth 3600 pinknoise reverb "
            "</dev/null >/dev/null 2>&1 &",
            JOB.format(name="sox"),
            "`nohup CMD &` in a shell",
        ),
        works="before=$(wc -c <$D/out.wav); sleep 1; test $(wc -c <$D/out.wav) -gt $before",
        refused=("SHELL_JOB",),
    ),
    Program(
        "make -j2, with gcc",
        ("make", "gcc", "libc6-dev"),
        Daemon("make -j2 -C $D"),
        prepare=SOURCES,
        refused=("FILE_MISSING",),
        way=Way(
            "`--jobserver-style=pipe`, and `TMPDIR` on storage that both hosts see",
            start=Daemon("env TMPDIR=$D make --jobserver-style=pipe -j2 -C $D"),
        ),
        works="before=$(ls $D/*.o | wc -l); sleep 2; test $(ls $D/*.o | wc -l) -gt $before",
    ),
    Program(
        "wget, in the middle of a download",
        ("wget",),
        Daemon("wget -q --limit-rate=100k -O $D/out http://127.0.0.1:7361/in"),
        prepare="head -c 100M /dev/urandom >$D/in; "
        "setsid python3 -m http.server 7361 --directory $D >/dev/null 2>&1 </dev/null & sleep 1",
        works="before=$(wc -c <$D/out); sleep 1.5; test $(wc -c <$D/out) -gt $before",
        refused=("HELD_OUTSIDE", "TCP_ESTABLISHED"),
    ),
    Program(
        "a program under strace",
        ("strace",),
        Daemon("sleep 3600"),
        prepare="true",
        works="kill -0 $(pgrep -f '^sleep 3600')",
        fill="setsid strace -o /dev/null -p $(pgrep -f '^sleep 3600') >/dev/null 2>&1 </dev/null & "
        "sleep 1",
        refused=("TRACED",),
        way=Way("strace ended", alpha="pkill -x strace; sleep 0.5"),
    ),
    Program(
        "a program under gdb",
        ("gdb",),
        Daemon("sleep 3601"),
        works="kill -0 $(pgrep -f '^sleep 3601')",
        fill="setsid gdb -q -batch -ex continue -p $(pgrep -f '^sleep 3601') >/dev/null 2>&1 "
        "</dev/null & sleep 4",
        refused=("TRACED",),
        way=Way("the debugger ended", alpha="pkill -x gdb; sleep 1"),
    ),
]
