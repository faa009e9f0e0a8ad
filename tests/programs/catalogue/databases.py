"""Databases, caches and brokers."""

from __future__ import annotations

from tests.programs.program import Program, Way
from tests.programs.starts import Daemon, Forking

POSTGRES = "/usr/lib/postgresql/17/bin"

#: As the user whose cluster it is.
AS_POSTGRES = "setpriv --reuid postgres --regid postgres --clear-groups"

#: A cluster on storage that both hosts see, with its socket where clients look for it.
CLUSTER = (
    f"chown postgres $D; {AS_POSTGRES} {POSTGRES}/initdb -D $D/data >/dev/null; "
    "echo \"dynamic_shared_memory_type = '{dynamic}'\" >>$D/data/postgresql.conf"
)
SERVE = f"{AS_POSTGRES} {POSTGRES}/postgres -D $D/data"
ASK = f"{AS_POSTGRES} psql -Atc"

SLAPD = """
mkdir $D/data
cat >$D/conf <<END
include /etc/ldap/schema/core.schema
moduleload back_mdb
database mdb
suffix "o=x"
rootdn "o=x"
rootpw s
directory $D/data
END
"""

PROGRAMS = [
    Program(
        "Redis",
        ("redis-server",),
        Daemon("redis-server --port 7301 --save '' --dir $D"),
        works="redis-cli -p 7301 ping | grep -q PONG",
        fill="redis-cli -p 7301 set key value",
        state="redis-cli -p 7301 get key; redis-cli -p 7301 info server | grep run_id",
    ),
    Program(
        "Redis, with an append-only file",
        ("redis-server",),
        Forking(
            "redis-server --port 7301 --appendonly yes --dir $D --daemonize yes --pidfile $D/pid",
            "cat $D/pid",
        ),
        works="redis-cli -p 7301 incr counter",
        fill="redis-cli -p 7301 set key value",
        state="redis-cli -p 7301 get key; redis-cli -p 7301 info server | grep run_id",
    ),
    Program(
        "PostgreSQL",
        ("postgresql", "postgresql-client"),
        Daemon(SERVE),
        both="install -d -o postgres /run/postgresql",
        prepare=CLUSTER.format(dynamic="posix"),
        works=f"{ASK} 'select 1'",
        fill=f"{ASK} 'create table t as select generate_series(1, 1000) as n'",
        state=f"{ASK} 'select sum(n), pg_postmaster_start_time() from t'",
        refused=("SYSV_SHM", "FILE_MISSING"),
        way=Way(
            "started by `unshare --ipc`, with `dynamic_shared_memory_type = mmap`",
            start=Daemon(
                f"unshare --ipc {SERVE} -c dynamic_shared_memory_type=mmap", "`unshare --ipc`"
            ),
        ),
    ),
    Program(
        "MariaDB",
        ("mariadb-server", "mariadb-client"),
        Daemon("mariadbd --user=$U --datadir=$D/data --socket=/run/mysqld/mysqld.sock"),
        both="install -d -o $U /run/mysqld",
        prepare="mariadb-install-db --user=$U --datadir=$D/data >/dev/null",
        works="mariadb -e 'select 1'",
        fill="mariadb -e 'create database d; create table d.t as select 42 as n'",
        state="mariadb -Ne 'select n from d.t'",
        refused=("FILE_LOCKS", "IO_URING"),
        user="mysql",
    ),
    Program(
        "SQLite's shell, in the middle of a transaction",
        ("sqlite3",),
        Daemon("sh -c 'mkfifo $D/in; exec sqlite3 $D/data.db <>$D/in'"),
        works="kill -0 $(pgrep -x sqlite3)",
        fill="echo 'create table t (n); begin; insert into t values (42);' >$D/in",
        state="echo 'select n from t;' >$D/in; sleep 0.5; tail -n 1 $D/log",
        refused=("FILE_LOCKS",),
        way=Way(
            "the transaction committed",
            alpha="echo 'commit; select 42;' >$D/in; sleep 0.5",
        ),
    ),
    Program(
        "memcached",
        ("memcached",),
        Daemon("memcached -u $U -p 7303 -l 127.0.0.1 -U 0"),
        user="nobody",
        works="printf 'version\\r\\nquit\\r\\n' | nc 127.0.0.1 7303 | grep -q VERSION",
        fill="printf 'set key 0 0 5\\r\\nvalue\\r\\nquit\\r\\n' | nc 127.0.0.1 7303",
        state="printf 'get key\\r\\nquit\\r\\n' | nc 127.0.0.1 7303",
    ),
    Program(
        "etcd",
        ("etcd-server", "etcd-client"),
        Daemon("etcd --data-dir $D/data --log-level error"),
        works="etcdctl endpoint health",
        fill="etcdctl put key value",
        state="etcdctl get key; etcdctl endpoint status -w json | grep -o 'raftTerm[^,]*'",
        refused=("TCP_ESTABLISHED", "FILE_LOCKS"),
    ),
    Program(
        "RabbitMQ",
        ("rabbitmq-server",),
        Daemon("env RABBITMQ_MNESIA_BASE=$D/mnesia RABBITMQ_LOG_BASE=$D rabbitmq-server"),
        prepare="install -d -o rabbitmq $D/mnesia; chown rabbitmq $D",
        works="rabbitmqctl -q list_queues",
        fill='rabbitmqctl -q eval \'rabbit_amqqueue:declare({resource,<<"/">>,queue,<<"q">>},false,'
        'false,[],none,<<"u">>).\'',
        state="rabbitmqctl -q list_queues name pid",
        refused=("HELD_OUTSIDE", "TCP_ESTABLISHED"),
    ),
    Program(
        "Mosquitto",
        ("mosquitto", "mosquitto-clients"),
        Daemon("mosquitto -c $D/conf"),
        prepare="printf 'listener 7305\\nallow_anonymous true\\nuser %s\\n' $U >$D/conf",
        user="mosquitto",
        works="mosquitto_pub -p 7305 -t other -m text",
        fill="mosquitto_pub -p 7305 -t topic -r -m kept",
        state="mosquitto_sub -p 7305 -t topic -C 1 -W 3",
    ),
    Program(
        "beanstalkd",
        ("beanstalkd",),
        Daemon("beanstalkd -l 127.0.0.1 -p 7306"),
        works="printf 'list-tubes\\r\\nquit\\r\\n' | nc 127.0.0.1 7306 | grep -q OK",
        fill="printf 'put 0 0 60 4\\r\\ntask\\r\\nquit\\r\\n' | nc 127.0.0.1 7306",
        state="printf 'peek-ready\\r\\nstats\\r\\nquit\\r\\n' | nc 127.0.0.1 7306 | "
        "grep -a -e task -e '^id'",
    ),
    Program(
        "OpenLDAP",
        ("slapd", "ldap-utils"),
        Daemon("slapd -h ldap://127.0.0.1:7307 -f $D/conf -d 0"),
        prepare=SLAPD,
        works="ldapsearch -x -H ldap://127.0.0.1:7307 -b '' -s base",
        fill="printf 'dn: o=x\\nobjectClass: organization\\no: x\\n' | "
        "ldapadd -x -H ldap://127.0.0.1:7307 -D o=x -w s",
        state="ldapsearch -x -LLL -H ldap://127.0.0.1:7307 -b o=x",
        refused=("FILE_LOCKS",),
    ),
]
