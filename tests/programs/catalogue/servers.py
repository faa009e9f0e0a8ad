"""Servers of the web, of names, of mail and of files."""

from __future__ import annotations

from tests.programs.catalogue.uring import FILTER, WITHOUT_HOW, WITHOUT_URING
from tests.programs.program import Program, Way
from tests.programs.starts import Daemon, Forking

#: A page to be served, in the directory of the program.
PAGE = "echo served >$D/page; chmod 644 $D/page"

NGINX = """
cat >$D/conf <<END
pid $D/pid; user $U; error_log $D/error;
events {}
http { access_log $D/access; server { listen 7311; root $D; location /status { stub_status; } } }
END
"""

HAPROXY = """
cat >$D/conf <<END
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend f
  bind 127.0.0.1:7313
  http-request return status 200 content-type text/plain string served
END
"""

LIGHTTPD = """
cat >$D/conf <<END
server.document-root = "$D"
server.port = 7314
END
"""

UNBOUND = """
cat >$D/conf <<END
server:
  interface: 127.0.0.1@7317
  username: ""
  chroot: ""
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  local-data: "name.test. A 192.0.2.1"
remote-control:
  control-enable: no
END
"""

NAMED = """
cat >$D/conf <<END
options { directory "$D"; listen-on port 7318 { 127.0.0.1; }; listen-on-v6 { none; };
  recursion no; pid-file none; };
controls { };
zone "test" { type primary; file "$D/zone"; };
END
cat >$D/zone <<'END'
$TTL 60
@ SOA ns.test. root.test. 1 60 60 60 60
  NS ns
ns A 192.0.2.2
name A 192.0.2.1
END
"""

STUNNEL = """
openssl req -x509 -newkey rsa:2048 -nodes -keyout $D/key -out $D/cert -subj /CN=x 2>/dev/null
cat >$D/conf <<END
foreground=yes
pid=
[s]
accept=127.0.0.1:7320
connect=127.0.0.1:7399
cert=$D/cert
key=$D/key
END
"""

VSFTPD = """
chmod 755 $D
cat >$D/conf <<END
listen=YES
listen_port=7321
background=NO
anonymous_enable=YES
secure_chroot_dir=/run/vsftpd/empty
anon_root=$D
END
"""

RSYNCD = """
cat >$D/conf <<END
port = 7322
address = 127.0.0.1
use chroot = no
[module]
path = $D
END
"""

SQUID = """
chown $U $D
cat >$D/conf <<END
http_port 127.0.0.1:7323
pid_filename none
cache_log $D/cache.log
access_log none
http_access allow all
netdb_filename none
pinger_enable off
END
"""

DOVECOT = """
cat >$D/conf <<END
dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
protocols = imap
base_dir = /run/dovecot
listen = 127.0.0.1
log_path = $D/log
ssl = no
auth_allow_cleartext = yes
passdb static {
  password = s
}
service imap-login {
  inet_listener imap {
    port = 7325
  }
}
END
"""

PROGRAMS = [
    Program(
        "nginx",
        ("nginx-light",),
        Forking("nginx -c $D/conf", "cat $D/pid"),
        both="install -d /var/lib/nginx /var/log/nginx",
        prepare=NGINX + PAGE,
        works="curl -sf http://127.0.0.1:7311/page | grep -q served",
        state="pgrep -f '[n]ginx: worker'",
    ),
    Program(
        "Apache",
        ("apache2",),
        Forking("apache2ctl start", "cat /run/apache2/apache2.pid"),
        both="install -d /run/apache2 /run/lock/apache2; mkdir -p /shared/programs/apache; "
        "sed -i 's/^Listen 80$/Listen 7312/' /etc/apache2/ports.conf; "
        "sed -i 's,^export APACHE_LOG_DIR=.*,export APACHE_LOG_DIR=/shared/programs/apache,' "
        "/etc/apache2/envvars",
        prepare="rm -f /run/apache2/apache2.pid",
        user="www-data",
        works="curl -sf http://127.0.0.1:7312/ | grep -q Debian",
        state="pgrep -P $(pgrep -o apache2)",
    ),
    Program(
        "HAProxy",
        ("haproxy",),
        Daemon("haproxy -W -f $D/conf"),
        prepare=HAPROXY,
        works="curl -sf http://127.0.0.1:7313/ | grep -q served",
        state="pgrep haproxy",
    ),
    Program(
        "lighttpd",
        ("lighttpd",),
        Daemon("lighttpd -D -f $D/conf"),
        prepare=LIGHTTPD + PAGE,
        works="curl -sf http://127.0.0.1:7314/page | grep -q served",
    ),
    Program(
        "Caddy",
        ("caddy",),
        Daemon("env HOME=$D caddy file-server --listen :7315 --root $D"),
        prepare=PAGE,
        works="curl -sf http://127.0.0.1:7315/page | grep -q served",
        refused=("SOCKET_UNSUPPORTED",),
        way=Way(
            "`GODEBUG=multipathtcp=0`",
            start=Daemon(
                "env GODEBUG=multipathtcp=0 HOME=$D caddy file-server --listen :7315 --root $D"
            ),
        ),
    ),
    Program(
        "Squid",
        ("squid",),
        Daemon("squid --foreground -N -f $D/conf"),
        prepare=SQUID,
        refused=("FILE_MISSING",),
        user="proxy",
        works="curl -s -x http://127.0.0.1:7323 http://127.0.0.1:1/ | grep -q squid",
    ),
    Program(
        "Varnish",
        ("varnish",),
        Daemon(
            "varnishd -F -j none -a 127.0.0.1:7324 -b 127.0.0.1:7399 -n $D/varnish -s malloc,16m"
        ),
        refused=("FILE_LOCKS",),
        works="curl -s http://127.0.0.1:7324/ | grep -q Varnish",
    ),
    Program(
        "BIND",
        ("bind9", "bind9-dnsutils"),
        Daemon("named -f -c $D/conf"),
        prepare=FILTER + NAMED,
        works="dig +short +tries=1 @127.0.0.1 -p 7318 name.test | grep -q 192.0.2.1",
        refused=("IO_URING",),
        way=Way(
            "without io_uring", start=Daemon(f"{WITHOUT_URING} named -f -c $D/conf", WITHOUT_HOW)
        ),
    ),
    Program(
        "Unbound",
        ("unbound", "bind9-dnsutils"),
        Daemon("unbound -d -c $D/conf"),
        prepare=UNBOUND,
        works="dig +short +tries=1 @127.0.0.1 -p 7317 name.test | grep -q 192.0.2.1",
    ),
    Program(
        "dnsmasq",
        ("dnsmasq", "bind9-dnsutils"),
        Forking(
            "dnsmasq --conf-file=/dev/null --port=7319 --listen-address=127.0.0.1 --no-resolv "
            "--bind-interfaces --user=$U --group=$(id -gn $U) --pid-file=$D/pid "
            "--address=/name.test/192.0.2.1",
            "cat $D/pid",
        ),
        refused=("SHELL_JOB",),
        user="dnsmasq",
        works="dig +short +tries=1 @127.0.0.1 -p 7319 name.test | grep -q 192.0.2.1",
    ),
    Program(
        "sshd",
        ("openssh-server",),
        Daemon("/usr/sbin/sshd -D -e -p 7302 -h $D/host-key"),
        both="mkdir -p /run/sshd",
        prepare="ssh-keygen -q -t ed25519 -N '' -f $D/host-key",
        works="ssh-keyscan -p 7302 127.0.0.1 | grep -q ssh-ed25519",
    ),
    Program(
        "stunnel",
        ("stunnel4",),
        Daemon("stunnel4 $D/conf"),
        prepare=STUNNEL,
        works="openssl s_client -connect 127.0.0.1:7320 </dev/null 2>&1 | grep -q CERTIFICATE",
    ),
    Program(
        "vsftpd",
        ("vsftpd",),
        Daemon("vsftpd $D/conf"),
        both="mkdir -p /run/vsftpd/empty",
        prepare=VSFTPD + PAGE,
        works="curl -sf ftp://127.0.0.1:7321/page | grep -q served",
    ),
    Program(
        "rsync's daemon",
        ("rsync",),
        Forking("rsync --daemon --config=$D/conf", "pgrep -o -x rsync"),
        prepare=RSYNCD,
        works="rsync --port=7322 127.0.0.1:: | grep -q module",
    ),
    Program(
        "Dovecot",
        ("dovecot-imapd",),
        Daemon("dovecot -F -c $D/conf"),
        both="mkdir -p /run/dovecot",
        prepare=DOVECOT,
        works="printf 'a logout\\r\\n' | nc -q 1 127.0.0.1 7325 | grep -q 'OK'",
        refused=("FILE_MISSING", "UNIX_PEER_OUTSIDE"),
    ),
    Program(
        "node exporter of Prometheus",
        ("prometheus-node-exporter",),
        Daemon("prometheus-node-exporter --web.listen-address=127.0.0.1:7326"),
        works="curl -sf http://127.0.0.1:7326/metrics | grep -q node_load1",
        fill="for i in 1 2 3 4 5 6; do curl -sf http://127.0.0.1:7326/metrics >/dev/null; done",
        state="curl -sf http://127.0.0.1:7326/metrics | "
        "awk '/^promhttp.*requests_total.*200/ && $2 > 5 { print \"counted on\" }'",
        refused=("SOCKET_UNSUPPORTED",),
        way=Way(
            "`GODEBUG=multipathtcp=0`",
            start=Daemon(
                "env GODEBUG=multipathtcp=0 prometheus-node-exporter "
                "--web.listen-address=127.0.0.1:7326"
            ),
        ),
    ),
    Program(
        "socat",
        ("socat",),
        Daemon("socat TCP-LISTEN:7327,fork,reuseaddr EXEC:cat"),
        works="echo served | nc -q 1 127.0.0.1 7327 | grep -q served",
    ),
    Program(
        "Ncat",
        ("ncat",),
        Daemon("ncat -lk 127.0.0.1 7328 --exec /bin/cat"),
        works="(echo served; sleep 1) | nc -q 1 -w 3 127.0.0.1 7328 | grep -q served",
    ),
    Program(
        "iperf3",
        ("iperf3",),
        Daemon("iperf3 -s -p 7329"),
        works="iperf3 -c 127.0.0.1 -p 7329 -n 1M",
    ),
    Program(
        "cron",
        ("cron",),
        Daemon("cron -f"),
        prepare="echo '* * * * * root true' >/etc/cron.d/test",
        works="kill -0 $(pgrep -x cron)",
        refused=("FILE_LOCKS", "FILE_MISSING"),
    ),
    Program(
        "rsyslog",
        ("rsyslog",),
        Daemon("rsyslogd -n -i NONE -f $D/conf"),
        prepare='printf \'module(load="imudp")\\ninput(type="imudp" port="7330")\\n'
        "*.* %s/messages\\n' $D >$D/conf",
        works="before=$(wc -c <$D/messages || echo 0); "
        "echo '<13>text' | nc -u -w 1 127.0.0.1 7330; test $(wc -c <$D/messages) -gt $before",
    ),
]
