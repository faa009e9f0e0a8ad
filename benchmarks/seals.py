"""Measure what it costs a migration that nothing is believed: seals, signatures, answers, notes.

Counted is the processor's time of this one process, for as many records and messages as a migration
in stop-and-copy has. The notes of begun messages are files, so what they cost is the file system's:
they are shown by themselves. All of it is in a directory that is removed afterwards.

Usage: python benchmarks/seals.py [--rounds 2000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from workflows.signing import HEADER, is_signed, sign

from sojourn.migration import answers
from sojourn.migration.context import Host, Migration
from sojourn.model import Plan
from sojourn.settings import Settings
from workflows import freshness

KEY = "a key for benchmarks that is long enough"
PLAN = Plan(4242, "alpha", "beta")
MIGRATION = "11111111-2222-3333-4444-555555555555"

#: How many of each a migration in stop-and-copy has: its entry in the queue, its end, and the parts
#: of two chords; the messages of its steps, of the request and of the end; the steps of both hosts.
RECORDS, MESSAGES, ANSWERS = 8, 16, 13

#: What is a file.
NOTE = "to note that it was begun"

#: As many bytes as the body of a step's message has.
BODY = b"x" * 3000


def main() -> None:
    """Measure, print, and write what came of it where that was asked for."""
    options = _options()
    with tempfile.TemporaryDirectory() as place:
        costs = _costs(Path(place), options.rounds)
    whole_ms = sum(cost * count for name, (cost, count) in costs.items() if name != NOTE) / 1000
    for name, (cost, count) in costs.items():
        print(f"{name:32} {cost:6.1f} µs, {count} times in a migration")
    print(f"{'a migration, without the notes':32} {whole_ms:6.2f} ms of the processor")
    if options.json:
        options.json.write_text(json.dumps({"us": costs, "migration_ms": whole_ms}) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _costs(place: Path, rounds: int) -> dict[str, tuple[float, int]]:
    """Return microseconds of the processor for one of each, and how many a migration has."""
    alpha, beta = (_migration(place, name) for name in (PLAN.source, PLAN.destination))
    taken, said = freshness.Taken(place / "taken"), answers.given(beta)
    plan = PLAN.to_json()

    def record() -> None:
        beta.host.sealed.content(
            "queue entry", MIGRATION, alpha.host.sealed.text("queue entry", MIGRATION, plan)
        )

    def message() -> None:
        headers = {"id": MIGRATION, "task": "sojourn.examine", "argsrepr": PLAN.describe()}
        freshness.stamp(headers, "alpha", shared=False)
        headers[HEADER] = sign(KEY, headers, BODY)
        is_signed(KEY, headers, BODY)

    def note() -> None:
        taken.is_first(str(time.perf_counter_ns()), time.time() + 3600)

    return {
        "to seal and open a record": (_cost(record, rounds), RECORDS),
        "to sign and check a message": (_cost(message, rounds), MESSAGES),
        NOTE: (_cost(note, rounds), MESSAGES),
        "to give an answer": (_cost(lambda: answers.given(beta), rounds), ANSWERS),
        "to judge one": (_cost(lambda: answers.believed(alpha, said), rounds), ANSWERS),
    }


def _migration(place: Path, name: str) -> Migration:
    given = {"host": name, "key": KEY, "redis_url": "redis://127.0.0.1:1"}
    places = {"state_dir": place / name, "runtime_dir": place / name / "run"}
    host = Host(Settings.model_validate(given | places))
    return Migration(host, host.journal.open(MIGRATION, PLAN.role_of(name), PLAN))


def _cost(act: Callable[[], object], rounds: int) -> float:
    """Return how many microseconds of the processor it takes."""
    act()
    began = time.process_time()
    for _ in range(rounds):
        act()
    return (time.process_time() - began) / rounds * 1e6


if __name__ == "__main__":
    main()
