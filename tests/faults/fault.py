"""What can go wrong at an instant: how it is done to a real host, and how it is repaired."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.host import Host
from sojourn.model import Role
from tests.faults.instant import Instant
from tests.faults.site import Stage

#: How long a fault lasts before it is repaired: by default; a cut that outlasts the reconcilers'
#: patience; and Redis when it stays away.
BROKEN_S, LONG_S, MINUTE_S = 5, 20, 60

#: A worker renews its wait for a message (BRPOP) every second. After that ours is the oldest one,
#: and Redis gives the next message to the oldest.
OLDEST_S = 1.3

#: How long a message may take to come once the migration continues.
MESSAGE_S = 15

#: How long a slow Redis lets a command wait, in milliseconds: less than anybody's patience.
PAUSE_MS = 1500

DATABASE = "/var/lib/sojourn/journal.db"

#: The journal's write-ahead log is emptied first, else there would be room in it. The limit of the
#: file system is set just above what is used and a file takes the rest, so that this needs hardly
#: any of the machine's memory.
FILL = f"""
python3 -c "
import sqlite3
sqlite3.connect('{DATABASE}').execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()"
for place in /var/lib/sojourn /run; do
    mount -o remount,size=$(($(df --output=used -k $place | tail -1) + 1024))k $place
    cat /dev/zero >$place/filler || test -s $place/filler
done 2>/dev/null
"""
EMPTY = """
rm -f /var/lib/sojourn/filler /run/filler
mount -o remount,size=64m /var/lib/sojourn
mount -o remount,size=50% /run
"""

#: Kills pager and guard, again and again: each can replace the other before it is killed itself.
PAGERS_AWAY = "while pkill -KILL -f '[s]ojourn.transfer.pager'; do :; done"

Act = Callable[["Struck"], None]


@dataclass
class Struck:
    """A cell under way, as its fault sees it; a fault stores here what its repair needs."""

    stage: Stage
    instant: Instant
    pid: int
    threads: list[threading.Thread] = field(default_factory=list)
    caught: list[bytes] = field(default_factory=list)


def _nothing(struck: Struck) -> None:
    """Repair nothing: a supervisor does it, or it needs none."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: ``strike`` does it while a host pauses, ``repair`` repairs it.

    ``stays_s`` is how long it lasts; ``happens`` returns whether it makes sense at an instant. What
    does not happen on one host alone is the same from wherever the instant is seen.
    """

    name: str
    strike: Act
    repair: Act = _nothing
    stays_s: float = 0
    happens: Callable[[Instant], bool] = lambda instant: not instant.beside

    @property
    def crashes(self) -> Role | None:
        """The role of the host that it crashes."""
        return next((role for role in Role if self.name == f"{role} crashed"), None)


def _kill_worker(struck: Struck) -> None:
    """Kill the whole worker of the instant's host; its supervisor starts it again."""
    struck.stage.here.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"], check=False)


def _kill_pager(struck: Struck) -> None:
    struck.stage.here.run(["kill", "-KILL", _pager_and_guard(struck)[0]])


def _kill_guard(struck: Struck) -> None:
    struck.stage.here.run(["kill", "-KILL", _pager_and_guard(struck)[1]])


def _kill_both(struck: Struck) -> None:
    struck.stage.here.run(["sh", "-c", PAGERS_AWAY])


def _stop_pager(struck: Struck) -> None:
    """Stop the pager, which its guard does not take for its end."""
    struck.caught = [_pager_and_guard(struck)[0].encode()]
    struck.stage.here.run(["kill", "-STOP", struck.caught[0].decode()])


def _continue_pager(struck: Struck) -> None:
    struck.stage.here.run(["kill", "-CONT", struck.caught[0].decode()])


def _stop_pager_and_kill_worker(struck: Struck) -> None:
    """Let the memory take so long that the reconcilers ask for the verdict meanwhile."""
    _stop_pager(struck)
    _kill_worker(struck)


def _pager_and_guard(struck: Struck) -> list[str]:
    """Return their PIDs, which the migration that was begun last has left."""
    newest = "cat $(ls -t /run/sojourn/*/work/pager.pids | head -1)"
    return struck.stage.here.run(["sh", "-c", newest]).stdout.split()


def _kill_rebuilder(struck: Struck) -> None:
    """Kill what has CRIU restore, or waits for that; a CRIU at work finds nobody to ask."""
    struck.stage.here.run(["pkill", "-KILL", "-f", "[s]ojourn.transfer.rebuilder"])


def _kill_sender(struck: Struck) -> None:
    """Kill what hands out the memory; the reconciler starts another one."""
    struck.stage.here.run(["pkill", "-KILL", "-f", "[s]ojourn.transfer.sender"])


def _kill_original(struck: Struck) -> None:
    """Kill the frozen original."""
    struck.stage.host(Role.SOURCE).run(["kill", "-KILL", str(struck.pid)])


def _kill_criu(struck: Struck) -> None:
    struck.stage.here.run(["pkill", "-KILL", "-x", "criu"])


def _crash(role: Role) -> Act:
    return lambda struck: struck.stage.site.lab.crash(struck.stage.name(role))


def _boot(role: Role) -> Act:
    return lambda struck: struck.stage.site.lab.boot(struck.stage.name(role))


def _cut(struck: Struck) -> None:
    struck.stage.site.lab.cut(struck.stage.source)


def _heal(struck: Struck) -> None:
    struck.stage.site.lab.heal(struck.stage.source)


def _kill_redis(struck: Struck) -> None:
    """Kill Redis; its supervisor starts it again, from its append-only file."""
    _hub(struck).run(["pkill", "-KILL", "redis-server"])


def _stop_redis(struck: Struck) -> None:
    """Stop Redis, and its supervisor does not start it again."""
    _hub(struck).service("redis", "down")


def _start_redis(struck: Struck) -> None:
    _hub(struck).service("redis", "up")


def _empty_redis(struck: Struck) -> None:
    """Delete everything in Redis: messages, results, the ledger."""
    struck.stage.site.redis.flushall()


def _refuse_writes(struck: Struck) -> None:
    """Let Redis refuse everything that writes, as one whose replicas are gone may."""
    struck.stage.site.redis.config_set("min-replicas-to-write", 1)


def _permit_writes(struck: Struck) -> None:
    struck.stage.site.redis.config_set("min-replicas-to-write", 0)


def _fill_redis(struck: Struck) -> None:
    """Leave Redis no memory: it refuses what needs more."""
    struck.stage.site.redis.config_set("maxmemory", 1)


def _evict(struck: Struck) -> None:
    """Leave Redis no memory, for which it removes whatever it has, one key after another."""
    struck.stage.site.redis.config_set("maxmemory-policy", "allkeys-random")
    _fill_redis(struck)


def _widen_redis(struck: Struck) -> None:
    struck.stage.site.redis.config_set("maxmemory", 0)
    struck.stage.site.redis.config_set("maxmemory-policy", "noeviction")


def _slow_down(struck: Struck) -> None:
    """Let Redis answer only now and then: each command waits for up to 1.5 s."""
    until = time.monotonic() + LONG_S

    def pause() -> None:
        while time.monotonic() < until:
            struck.stage.site.redis.execute_command("CLIENT PAUSE", PAUSE_MS, "ALL")
            time.sleep(PAUSE_MS / 1000 + 0.1)

    struck.threads.append(threading.Thread(target=pause))
    struck.threads[0].start()


def _let_answer(struck: Struck) -> None:
    struck.threads[0].join()


def _lie(struck: Struck) -> None:
    """Have the ledger report of every migration that it has ended elsewhere, by a forged word."""
    redis = struck.stage.site.redis
    word = {"resolved": "destination", "resolved_at": time.time(), "resolved_by": "nobody"}
    lies = {"state": "rolled back", "owner": struck.stage.source, "resolved": word}
    for key in redis.scan_iter("sojourn:migration:*"):
        redis.hset(key, mapping={name: json.dumps(value) for name, value in lies.items()})


def _fill_disk(struck: Struck) -> None:
    """Leave no byte free where the instant's host keeps its journal, and none in /run."""
    struck.stage.here.run(["sh", "-ec", FILL])


def _empty_disk(struck: Struck) -> None:
    struck.stage.here.run(["sh", "-ec", EMPTY])


def _wait_for_message(struck: Struck) -> None:
    """Be the first to wait for the instant's queue, and take the next message from the worker."""
    queue = struck.stage.queue(struck.instant.queue)

    def take() -> None:
        found = struck.stage.site.redis.brpop([queue], timeout=MESSAGE_S)
        struck.caught += [found[1]] if found else []

    struck.threads.append(threading.Thread(target=take))
    struck.threads[0].start()
    time.sleep(OLDEST_S)


def _lose(struck: Struck) -> None:
    """Keep the message."""
    struck.threads[0].join()
    assert struck.caught, f"no message came to {struck.instant.queue}"


def _double(struck: Struck) -> None:
    """Deliver it twice."""
    _lose(struck)
    queue = struck.stage.queue(struck.instant.queue)
    struck.stage.site.redis.lpush(queue, *struck.caught, *struck.caught)


def _hub(struck: Struck) -> Host:
    return struck.stage.site.lab.host("hub")


def _anywhere(_: Instant) -> bool:
    return True


def _has_criu(instant: Instant) -> bool:
    return instant.criu


def _has_pager(instant: Instant) -> bool:
    return instant.pager and instant.where is Role.DESTINATION


def _has_sender(instant: Instant) -> bool:
    return instant.sender


def _has_rebuilder(instant: Instant) -> bool:
    return instant.where is Role.DESTINATION and instant.point in REBUILDING


def _needs_original(instant: Instant) -> bool:
    """Whether the process runs and its memory comes from the original on the instant's host."""
    return instant.in_window and instant.where is Role.SOURCE


def _lasts(instant: Instant) -> bool:
    """Whether a long fault is worth its time: before the freeze, within it, after the commit."""
    return instant.point in {"preflight.end", "frozen.after", "copy_images.end", "restore.end"}


def _sends(instant: Instant) -> bool:
    return bool(instant.queue)


#: Where the rebuilder waits, and where it answers CRIU.
REBUILDING = {
    *("page_server.end", "restoring.after"),
    *("accepted.before", "accepted.after", "restored.before", "restored.after"),
}

#: Both could put the rest of the memory into place; the memory itself, in post-copy.
BOTH, KILLED = "pager and guard killed", "original killed"


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("worker killed", _kill_worker, happens=_anywhere),
        Fault("CRIU killed", _kill_criu, happens=_has_criu),
        Fault("rebuilder killed", _kill_rebuilder, happens=_has_rebuilder),
        Fault("pager killed", _kill_pager, happens=_has_pager),
        Fault("guard killed", _kill_guard, happens=_has_pager),
        Fault(BOTH, _kill_both, happens=_has_pager),
        Fault("pager stopped", _stop_pager, _continue_pager, LONG_S, happens=_has_pager),
        Fault(
            "pager stopped, worker killed",
            _stop_pager_and_kill_worker,
            _continue_pager,
            LONG_S,
            happens=lambda instant: _has_pager(instant) and instant.in_window,
        ),
        Fault("sender killed", _kill_sender, happens=_has_sender),
        Fault(KILLED, _kill_original, happens=_needs_original),
        Fault("source crashed", _crash(Role.SOURCE), _boot(Role.SOURCE), BROKEN_S),
        Fault("destination crashed", _crash(Role.DESTINATION), _boot(Role.DESTINATION), BROKEN_S),
        Fault("network cut for 5 s", _cut, _heal, BROKEN_S),
        Fault("network cut until healed", _cut, _heal, LONG_S),
        Fault("Redis killed", _kill_redis),
        Fault("Redis emptied", _empty_redis),
        Fault("Redis read-only", _refuse_writes, _permit_writes, LONG_S, happens=_lasts),
        Fault("Redis full", _fill_redis, _widen_redis, LONG_S, happens=_lasts),
        Fault("Redis evicting", _evict, _widen_redis, BROKEN_S, happens=_lasts),
        Fault("Redis slow", _slow_down, _let_answer, LONG_S, happens=_lasts),
        Fault("Redis lying", _lie, happens=_lasts),
        Fault("Redis gone for a minute", _stop_redis, _start_redis, MINUTE_S, happens=_lasts),
        Fault("disk full", _fill_disk, _empty_disk, BROKEN_S, happens=_anywhere),
        Fault("message doubled", _wait_for_message, _double, happens=_sends),
        Fault("message lost", _wait_for_message, _lose, happens=_sends),
    )
}
