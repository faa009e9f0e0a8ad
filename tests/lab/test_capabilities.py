"""Which capabilities a worker needs: all that there are, since what arrives inherits its limits.

CRIU restores the sets of a process by capset(2) and prctl(2), neither of which can add what the
restoring process does not have. So without one capability in the bounding set of the worker a
root's process would come back with less, or not at all. `deploy/systemd/sojourn-worker.service`
sets no bounds for that reason.
"""

from __future__ import annotations

import pytest

from lab.host import Host

pytestmark = pytest.mark.lab

PLACE = "/run/capabilities"

#: Dumps a process, then restores it once for each capability, and once with all, without that one;
#: writes the number, the exit code, and what the process has then.
TRIES = f"""
mkdir -p {PLACE}/images && cd {PLACE}
setsid sleep 1000 < /dev/null > /dev/null 2>&1 &
pid=$!
sets() {{ grep -E '^Cap(Prm|Eff|Bnd)' /proc/$pid/status | cut -f 2 | tr '\\n' ' '; }}
echo before 0 $(sets)
criu dump --tree $pid --images-dir images --log-file dump.log || exit 1
attempt() {{
    number=$1; shift
    "$@" criu restore --images-dir images --log-file restore.log --restore-detached 2> /dev/null
    code=$?
    echo $number $code $(sets 2> /dev/null)
    kill -KILL $pid 2> /dev/null
    while [ -d /proc/$pid ]; do sleep 0.01; done
}}
attempt all env
for number in $(seq 0 $(cat /proc/sys/kernel/cap_last_cap)); do
    attempt $number setpriv --bounding-set=-cap_$number
done
"""


def test_each_capability_is_needed(alpha: Host) -> None:
    """Without it CRIU fails, or the process comes back with less than it had."""
    try:
        lines = alpha.run(["sh", "-c", TRIES], deadline_s=120).stdout.splitlines()
    finally:
        alpha.run(["rm", "-r", PLACE], check=False)
    tried = {name: (int(code), sets) for name, code, *sets in map(str.split, lines)}
    before = tried.pop("before")
    assert len(before[1]) == 3
    assert tried.pop("all") == before
    bounds = int(before[1][2], 16)
    held = {name: end for name, end in tried.items() if bounds >> int(name) & 1}
    # This machine itself may lack some.
    assert len(held) > 30
    assert [name for name, end in held.items() if end == before] == []
