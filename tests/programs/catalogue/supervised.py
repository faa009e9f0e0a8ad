"""Services that a supervisor starts again."""

from __future__ import annotations

from tests.programs.catalogue.servers import NGINX, PAGE
from tests.programs.program import Program
from tests.programs.starts import Runit, Supervisord

PROGRAMS = [
    Program(
        "Redis",
        ("redis-server",),
        Runit("redis-server --port 7351 --save '' --dir $D"),
        works="redis-cli -p 7351 ping | grep -q PONG",
        fill="redis-cli -p 7351 set key value",
        state="redis-cli -p 7351 get key; redis-cli -p 7351 info server | grep run_id",
        refused=("SUPERVISED", "SHELL_JOB"),
    ),
    Program(
        "nginx",
        ("nginx-light",),
        Runit("nginx -c $D/conf -g 'daemon off;'"),
        both="install -d /var/lib/nginx /var/log/nginx",
        prepare=NGINX + PAGE,
        works="curl -sf http://127.0.0.1:7311/page | grep -q served",
        state="pgrep -f '[n]ginx: worker'",
        refused=("SUPERVISED", "SHELL_JOB"),
    ),
    Program(
        "Python's http.server",
        ("python3", "supervisor"),
        Supervisord("python3 -m http.server 7353 --directory /usr/share"),
        works="curl -sf http://127.0.0.1:7353/",
        refused=("SUPERVISED", "SHELL_JOB", "HELD_OUTSIDE"),
    ),
]
