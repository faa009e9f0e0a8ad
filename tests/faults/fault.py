"""What can go wrong at an instant: how it is done to a real host, and how it is made good again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.host import Host
from sojourn.model import Role
from tests.faults.instant import Instant
from tests.faults.site import Stage

#: How long what is broken stays so before it is repaired; and how long a cut lasts that the reconcilers must live with.
BROKEN_S, LONG_S, MINUTE_S = 5, 20, 60

#: A worker's own wait for a message begins anew each second: after that ours is the oldest, and gets the next one.
OLDEST_S = 1.3

#: How long a message may take to come once the migration goes on.
MESSAGE_S = 15

DATABASE = "/var/lib/sojourn/journal.db"

#: The journal's log of writes is emptied first, else there would be room in it. A limit just above what is used, and a
#: file that takes the rest: nobody's memory suffers.
FILL = f"""
python3 -c "import sqlite3; sqlite3.connect('{DATABASE}').execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()"
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

Act = Callable[["Struck"], None]


@dataclass
class Struck:
    """A cell under way, as its fault sees it; a fault leaves here what its repair must know."""

    stage: Stage
    instant: Instant
    threads: list[threading.Thread] = field(default_factory=list)
    caught: list[bytes] = field(default_factory=list)


def _nothing(struck: Struck) -> None:
    """There is nothing to repair: a supervisor does it, or nobody."""


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong: ``strike`` does it while all stands still, ``repair`` makes it good."""

    #: How long it stays, in seconds, is ``stays_s``; ``happens`` says at which instants it makes sense.
    name: str
    strike: Act
    repair: Act = _nothing
    stays_s: float = 0
    happens: Callable[[Instant], bool] = lambda _: True

    @property
    def crashes(self) -> Role | None:
        """The role of the host that it crashes."""
        return next((role for role in Role if self.name == f"{role} crashed"), None)


def _kill_worker(struck: Struck) -> None:
    """Kill the whole worker of the instant's host; its supervisor starts it again."""
    struck.stage.here.run(["sh", "-c", "kill -KILL $(pgrep -f '[s]ojourn worker')"], check=False)


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
    """Forget everything in Redis: messages, results, the ledger."""
    struck.stage.site.redis.flushall()


def _fill_disk(struck: Struck) -> None:
    """Leave no byte where the instant's host keeps its journal, and none in /run."""
    struck.stage.here.run(["sh", "-ec", FILL])


def _empty_disk(struck: Struck) -> None:
    struck.stage.here.run(["sh", "-ec", EMPTY])


def _wait_for_message(struck: Struck) -> None:
    """Stand first in the line for the next message to the instant's queue, and take it instead of the worker."""
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
    """Hand it on twice."""
    _lose(struck)
    queue = struck.stage.queue(struck.instant.queue)
    struck.stage.site.redis.lpush(queue, *struck.caught, *struck.caught)


def _hub(struck: Struck) -> Host:
    return struck.stage.site.lab.host("hub")


def _has_criu(instant: Instant) -> bool:
    return instant.criu


def _lasts(instant: Instant) -> bool:
    """Whether a fault that lasts long is worth its time there: before the freeze, within it, and after the commit."""
    return instant.point in {"preflight.end", "frozen.after", "copy_images.end", "restore.end"}


def _sends(instant: Instant) -> bool:
    return bool(instant.queue)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("worker killed", _kill_worker),
        Fault("CRIU killed", _kill_criu, happens=_has_criu),
        Fault("source crashed", _crash(Role.SOURCE), _boot(Role.SOURCE), BROKEN_S),
        Fault("destination crashed", _crash(Role.DESTINATION), _boot(Role.DESTINATION), BROKEN_S),
        Fault("network cut for 5 s", _cut, _heal, BROKEN_S),
        Fault("network cut until healed", _cut, _heal, LONG_S),
        Fault("Redis killed", _kill_redis),
        Fault("Redis emptied", _empty_redis),
        Fault("Redis gone for a minute", _stop_redis, _start_redis, MINUTE_S, happens=_lasts),
        Fault("disk full", _fill_disk, _empty_disk, BROKEN_S),
        Fault("message doubled", _wait_for_message, _double, happens=_sends),
        Fault("message lost", _wait_for_message, _lose, happens=_sends),
    )
}
