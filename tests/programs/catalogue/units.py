"""Services as the packages' units of systemd start them."""

from __future__ import annotations

from tests.programs.program import Program, Way
from tests.programs.starts import Unit

PROGRAMS = [
    Program(
        "Redis",
        ("redis-server",),
        Unit("redis-server"),
        works="redis-cli ping | grep -q PONG",
        fill="redis-cli set key value",
        state="redis-cli get key; redis-cli info server | grep run_id",
        refused=("NAMESPACE", "SUPERVISED", "RESTRAINT", "UNIX_PEER_OUTSIDE", "CONTROL_GROUP"),
    ),
    Program(
        "nginx",
        ("nginx-light",),
        Unit("nginx"),
        prepare="sed -i 's/^user .*/user root;/' /etc/nginx/nginx.conf",
        works="curl -sI http://127.0.0.1/ | grep -q nginx",
        state="pgrep -f '[n]ginx: worker'",
        refused=("FILE_MISSING",),
    ),
    Program(
        "cron",
        ("cron",),
        Unit("cron"),
        works="kill -0 $(pgrep -x cron)",
        refused=("UNIX_PEER_OUTSIDE", "SUPERVISED", "FILE_LOCKS", "MEMORY_FILE"),
    ),
    Program(
        "sshd",
        ("openssh-server",),
        Unit("ssh"),
        works="ssh-keyscan 127.0.0.1 | grep -q ssh-ed25519",
        refused=("UNIX_PEER_OUTSIDE", "SUPERVISED"),
        way=Way(
            "`StandardOutput=null`, `StandardError=null` in its unit",
            start=Unit("ssh", "StandardOutput=null\nStandardError=null"),
        ),
    ),
    Program(
        "memcached",
        ("memcached",),
        Unit("memcached"),
        prepare="sed -i 's/^-u .*/-u root/' /etc/memcached.conf",
        works="printf 'version\\r\\nquit\\r\\n' | nc 127.0.0.1 11211 | grep -q VERSION",
        fill="printf 'set key 0 0 5\\r\\nvalue\\r\\nquit\\r\\n' | nc 127.0.0.1 11211",
        state="printf 'get key\\r\\nquit\\r\\n' | nc 127.0.0.1 11211",
        refused=("NAMESPACE", "SUPERVISED", "RESTRAINT", "UNIX_PEER_OUTSIDE", "CONTROL_GROUP"),
    ),
]
