"""Processes of containers and namespaces."""

from __future__ import annotations

from tests.programs.catalogue.jobs import GROWS, NO_GAP
from tests.programs.program import Program, Way
from tests.programs.starts import Forking

LOOP = "bash -c 'while sleep 0.05; do echo $((++count)); done'"

#: A container of runc's, whose root is a few programs of the host.
BUNDLE = """
mkdir -p $D/rootfs/bin $D/rootfs/proc $D/rootfs/dev $D/rootfs/sys
for file in /bin/busybox $(ldd /bin/busybox | grep -o '/[^ ]*'); do
  cp --parents $file $D/rootfs
done
runc delete --force test 2>/dev/null
cd $D && runc spec
python3 - <<'END'
import json
spec = json.load(open("config.json"))
spec["process"].update(terminal=False, args=["/bin/busybox", "sleep", "86400"])
spec["root"]["readonly"] = False
json.dump(spec, open("config.json", "w"))
END
"""

PROGRAMS = [
    Program(
        "a loop of Bash, in a PID namespace",
        ("bash", "util-linux"),
        Forking(
            f"exec unshare --pid --fork {LOOP}",
            "pgrep -P $(pgrep -f '^unshare --pid') -x bash",
            "`unshare --pid --fork`",
        ),
        works=GROWS,
        state=NO_GAP,
        refused=("SHELL_JOB",),
        way=Way(
            "`unshare --pid --fork setsid`",
            start=Forking(
                f"exec unshare --pid --fork setsid {LOOP}",
                "pgrep -P $(pgrep -f '^unshare --pid') -x bash",
            ),
        ),
    ),
    Program(
        "a loop of Bash, with a /proc of its own",
        ("bash", "util-linux"),
        Forking(
            f"exec unshare --pid --fork --mount-proc setsid {LOOP}",
            "pgrep -P $(pgrep -f '^unshare --pid') -x bash",
            "`unshare --pid --mount-proc`",
        ),
        works=GROWS,
        state=NO_GAP,
        refused=("NAMESPACE",),
        way=Way(
            "without `--mount-proc`",
            start=Forking(
                f"exec unshare --pid --fork setsid {LOOP}",
                "pgrep -P $(pgrep -f '^unshare --pid') -x bash",
            ),
        ),
    ),
    Program(
        "BusyBox, in a container of runc's",
        ("runc", "busybox"),
        Forking(
            "mkdir -p /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; cd $D; "
            "runc run -d --pid-file $D/pid test </dev/null",
            "cat $D/pid",
            "container of runc",
        ),
        prepare=BUNDLE,
        works="kill -0 $(cat $D/pid)",
        refused=("NAMESPACE", "CONTROL_GROUP"),
    ),
]
