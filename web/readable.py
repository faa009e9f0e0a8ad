"""What Flower shows of a task: the migration it belongs to and its result, in a few words.

Arguments and results of our tasks are nested dictionaries, with command lines and descriptions of
kernel objects in them. They are replaced before Flower keeps them, so that neither its pages nor
its API nor its file hold anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sojourn.model import Json
from sojourn.text import printable

#: How many characters are shown of a text that is not from one of our own tasks.
LONGEST = 300

#: The facts that are shown, in this order; all others stay hidden.
FACTS = (
    "processes",
    "tree_bytes",
    "pages_bytes",
    "images_bytes",
    "source_phase",
    "verdict",
    "gone",
)

ID = re.compile(r"'id': '([0-9a-f-]{8,40})'")
ROUTE = re.compile(r"'pid': (\d+), 'source': '([a-z0-9-]+)', 'destination': '([a-z0-9-]+)'")
STATE = re.compile(r"'state': '([a-z ,-]+)'")
OWNER = re.compile(r"'owner': '([a-z0-9-]+)'")
FACT = re.compile(rf"'({'|'.join(FACTS)})': '?([\w. -]+)")
TREES = re.compile(r"^(\{'host': '[a-z0-9-]+', 'trees'|\[\{'(pid|path)'|\[\])")

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")
SECRET = re.compile(
    r"(?i)([\w-]*(?:key|password|passwd|secret|token)[\w-]*'?\s*[:=]\s*)('[^']*'|[^\s,'})]+)"
)

TEXTS = ("args", "kwargs", "result", "exception", "traceback")
LONG_TEXTS = {"exception", "traceback"}


def event(fields: Json) -> Json:
    """Return the fields of a Celery event with readable texts."""
    texts = {name: fields[name] for name in TEXTS if isinstance(fields.get(name), str)}
    return fields | {
        name: printable(without_secrets(text) if name in LONG_TEXTS else summary(text))
        for name, text in texts.items()
    }


def tasks(listed: Iterable[Json]) -> list[Json]:
    """Return the tasks that a worker lists, with readable arguments."""
    return [_listed(task) for task in listed]


def summary(text: str) -> str:
    """Return a summary of arguments or of a result, given as their ``repr``."""
    # Steps pass on JSON in a text, while results of migrations are mappings of Python.
    text = text.replace('"', "'")
    about = [*_migration(text), *_outcome(text), *_facts(text)]
    if about:
        return "; ".join(about)
    if TREES.match(text):
        return "processes or logs of a host"
    short = without_secrets(text)
    return short if len(short) <= LONGEST else f"{short[:LONGEST]}…"


def without_secrets(text: str) -> str:
    """Return a text without memory addresses, passwords and keys."""
    return SECRET.sub(r"\1'…'", PASSWORD.sub(r"\1…@", ADDRESS.sub("", text)))


def _listed(task: Json) -> Json:
    request: Any = task.get("request", task)  # scheduled tasks are wrapped
    texts = {
        name: printable(summary(repr(request[name])))
        for name in ("args", "kwargs")
        if name in request
    }
    return task | {"request": request | texts} if "request" in task else task | texts


def _migration(text: str) -> list[str]:
    found, route = ID.search(text), ROUTE.search(text)
    plan = ["pid {} from {} to {}".format(*route.groups())] if route else []
    return plan + ([f"migration {found[1]}"] if found else [])


def _outcome(text: str) -> list[str]:
    state, owner = STATE.search(text), OWNER.search(text)
    return (
        [f"{state[1]}, owner {owner[1] if owner else 'unknown'}"]
        if state and ID.search(text)
        else []
    )


def _facts(text: str) -> list[str]:
    _, _, facts = text.partition("'facts': {")
    return [f"{name} {value}" for name, value in FACT.findall(facts)]
