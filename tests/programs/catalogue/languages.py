"""Interpreters and their application servers."""

from __future__ import annotations

from dataclasses import replace

from tests.programs.catalogue.uring import FILTER, WITHOUT_HOW, WITHOUT_URING
from tests.programs.program import Program, Way
from tests.programs.starts import Daemon

#: Counts requests in its memory.
NODE = """
cat >$D/app.js <<'END'
let n = 0;
const answer = (q, a) => a.end(q.url == "/add" ? `${++n}` : `n=${n}`);
require("http").createServer(answer).listen(7341, "127.0.0.1");
END
"""

FLASK = """
cat >$D/app.py <<'END'
from flask import Flask
app, n = Flask("app"), [0]
@app.route("/add")
def add():
    n[0] += 1
    return str(n[0])
@app.route("/")
def show():
    return f"n={n[0]}"
END
"""

RACK = """
cat >$D/config.ru <<'END'
n = 0
run ->(env) { n += 1 if env["PATH_INFO"] == "/add"; [200, {}, ["n=#{n}"]] }
END
"""

JAVA = """
cat >$D/app.bsh <<'END'
n = 0;
server = new java.net.ServerSocket(7344, 50, java.net.InetAddress.getByName("127.0.0.1"));
while (true) {
    c = server.accept();
    line = new java.io.BufferedReader(new java.io.InputStreamReader(c.getInputStream())).readLine();
    if (line.startsWith("GET /add")) n++;
    c.getOutputStream().write(("HTTP/1.0 200 OK\\r\\n\\r\\nn=" + n).getBytes());
    c.close();
}
END
"""

PHP = """
cat >$D/conf <<END
[global]
error_log = $D/log
[www]
user = $U
listen = $D/php.sock
pm = static
pm.max_children = 2
pm.status_path = /status
END
"""

CELERY = """
cat >$D/jobs.py <<'END'
import celery, os, time
app = celery.Celery("jobs", broker="redis://127.0.0.1:7346/0", backend="redis://127.0.0.1:7346/1")
@app.task
def add(a, b):
    return a + b
END
"""
CELERY_WORKS = (
    "cd $D && timeout 20 python3 -c 'import jobs; print(jobs.add.delay(1, 2).get(timeout=15))' | "
    "grep -q 3"
)


def counting(program: Program, port: int) -> Program:
    """Return a server of the web that counts requests for ``/add``."""
    place = f"http://127.0.0.1:{port}"
    return replace(
        program,
        works=f"curl -sf {place}/",
        fill=f"for i in 1 2 3; do curl -sf {place}/add; done",
        state=f"curl -sf {place}/",
    )


PROGRAMS = [
    Program(
        "Python's http.server",
        ("python3",),
        Daemon("python3 -m http.server 7303 --directory /usr/share"),
        works="python3 -c 'import urllib.request as u; "
        'u.urlopen("http://127.0.0.1:7303/").read()\'',
    ),
    counting(
        Program(
            "Node.js",
            ("nodejs",),
            Daemon("node $D/app.js"),
            prepare=FILTER + NODE,
            refused=("IO_URING",),
            way=Way(
                "without io_uring", start=Daemon(f"{WITHOUT_URING} node $D/app.js", WITHOUT_HOW)
            ),
        ),
        7341,
    ),
    counting(
        Program(
            "Gunicorn, with Flask",
            ("gunicorn", "python3-flask"),
            Daemon("gunicorn --workers 1 --bind 127.0.0.1:7342 --chdir $D app:app"),
            prepare=FLASK,
        ),
        7342,
    ),
    counting(
        Program(
            "uWSGI, with Flask",
            ("uwsgi-core", "uwsgi-plugin-python3", "python3-flask"),
            Daemon(
                "uwsgi --plugin python3 --master --http-socket 127.0.0.1:7347 --chdir $D "
                "--module app:app"
            ),
            prepare=FLASK,
        ),
        7347,
    ),
    counting(
        Program(
            "Puma",
            ("puma", "ruby"),
            Daemon("puma --bind tcp://127.0.0.1:7343 $D/config.ru"),
            prepare=RACK,
        ),
        7343,
    ),
    counting(
        Program(
            "Java, with BeanShell",
            ("openjdk-21-jre-headless", "bsh"),
            Daemon("java -Xmx128m -cp /usr/share/java/bsh.jar bsh.Interpreter $D/app.bsh"),
            prepare=JAVA,
            refused=("FILE_MISSING",),
            way=Way(
                "`-XX:-UsePerfData`: no file in `/tmp`",
                start=Daemon(
                    "java -XX:-UsePerfData -Xmx128m -cp /usr/share/java/bsh.jar bsh.Interpreter "
                    "$D/app.bsh"
                ),
            ),
        ),
        7344,
    ),
    Program(
        "PHP-FPM",
        ("php-fpm", "libfcgi-bin"),
        Daemon("php-fpm8.4 --allow-to-run-as-root --nodaemonize --fpm-config $D/conf"),
        prepare=PHP,
        refused=("SHARED_CODE",),
        way=Way(
            "`opcache.jit_buffer_size=0`",
            start=Daemon(
                "php-fpm8.4 --allow-to-run-as-root --nodaemonize --fpm-config $D/conf "
                "-d opcache.jit_buffer_size=0"
            ),
        ),
        works="REQUEST_METHOD=GET SCRIPT_NAME=/status SCRIPT_FILENAME=/status "
        "cgi-fcgi -bind -connect $D/php.sock | grep -q pool",
        state="REQUEST_METHOD=GET SCRIPT_NAME=/status SCRIPT_FILENAME=/status "
        "cgi-fcgi -bind -connect $D/php.sock | grep 'start time'",
    ),
    Program(
        "Erlang",
        ("erlang-base",),
        Daemon(
            "erl -noinput -eval 'register(c, self()), F = fun(G, N) -> "
            "file:write_file(\"'$D'/count\", integer_to_list(N)), timer:sleep(20), G(G, N + 1) "
            "end, F(F, 1).'"
        ),
        works="before=$(cat $D/count); sleep 0.5; test $(cat $D/count) -gt $before",
    ),
    Program(
        "Celery's worker, its broker a Redis of the same host",
        ("celery", "python3-redis", "redis-server"),
        Daemon(
            'sh -c \'redis-server --port 7346 --save "" --daemonize yes; '
            "exec celery --app jobs --workdir $D worker --concurrency 2 --loglevel WARNING'"
        ),
        prepare=CELERY,
        works=CELERY_WORKS,
        refused=("HELD_OUTSIDE", "TCP_ESTABLISHED"),
        way=Way(
            "started with its broker as one tree",
            start=Daemon(
                'sh -c \'redis-server --port 7346 --save "" & '
                "celery --app jobs --workdir $D worker --concurrency 2 --loglevel WARNING'",
                "`setsid sh -c 'BROKER & WORKER'`",
            ),
        ),
    ),
]
