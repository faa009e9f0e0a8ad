"""What Flower shows of a task: which migration it belongs to and what came of it, in words.

The arguments and results of our tasks are nested dictionaries with command lines and images of kernel objects in them.
They are put into words before Flower keeps them, so that neither its pages nor its API nor its file hold anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sojourn.model import Json
from tasks.step import THEN

#: So much is shown of a text that is none of those we know.
LONGEST = 300

#: Facts that mean something to people, in this order. Others stay out: what is not here is never shown.
FACTS = ("processes", "tree_bytes", "pages_bytes", "images_bytes", "source_phase", "verdict", "gone")

ID = re.compile(r"'id': '([0-9a-f-]{8,40})'")
ROUTE = re.compile(r"'pid': (\d+), 'source': '([a-z0-9-]+)', 'destination': '([a-z0-9-]+)'")
STATE = re.compile(r"'state': '([a-z ,-]+)'")
OWNER = re.compile(r"'owner': '([a-z0-9-]+)'")
FACT = re.compile(rf"'({'|'.join(FACTS)})': '?([\w. -]+)")
TREES = re.compile(r"^(\{'host': '[a-z0-9-]+', 'trees'|\[\{'(pid|path)'|\[\])")

ADDRESS = re.compile(r" at 0x[0-9a-f]+")
PASSWORD = re.compile(r"(://[^:/@\s]*:)[^@\s]+@")
SECRET = re.compile(r"(?i)([\w-]*(?:key|password|passwd|secret|token)[\w-]*'?\s*[:=]\s*)('[^']*'|[^\s,'})]+)")

TEXTS = ("args", "kwargs", "result", "exception", "traceback")
LONG_TEXTS = {"exception", "traceback"}


def event(told: Json) -> Json:
    """Return an event of Celery's with its texts as people read them."""
    texts = {name: told[name] for name in TEXTS if isinstance(told.get(name), str)}
    return told | {name: harmless(text) if name in LONG_TEXTS else words(text) for name, text in texts.items()}


def tasks(listed: Iterable[Json]) -> list[Json]:
    """Return the tasks that a worker lists, with their arguments as people read them."""
    return [_listed(task) for task in listed]


def following(kwargs: str | None) -> list[str]:
    """Return the steps that a task does behind the one that it is named after."""
    return kwargs.removeprefix(THEN).split(", ") if kwargs and kwargs.startswith(THEN) else []


def words(text: str) -> str:
    """Return the representation of arguments or of a result as people read it."""
    text = text.replace('"', "'")  # steps hand on JSON in a text, results of migrations are mappings of Python
    about = [*_migration(text), *_came_to(text), *_facts(text)]
    if about:
        return "; ".join(about)
    if TREES.match(text):
        return "processes or logs of a host"
    short = harmless(text)
    return short if len(short) <= LONGEST else f"{short[:LONGEST]}…"


def harmless(text: str) -> str:
    """Return a text without addresses in memory, passwords and keys."""
    return SECRET.sub(r"\1'…'", PASSWORD.sub(r"\1…@", ADDRESS.sub("", text)))


def _listed(task: Json) -> Json:
    request: Any = task.get("request", task)  # scheduled tasks are wrapped
    told = {name: words(repr(request[name])) for name in ("args", "kwargs") if name in request}
    return task | {"request": request | told} if "request" in task else task | told


def _migration(text: str) -> list[str]:
    found, route = ID.search(text), ROUTE.search(text)
    way = ["pid {} from {} to {}".format(*route.groups())] if route else []
    return way + ([f"migration {found[1]}"] if found else [])


def _came_to(text: str) -> list[str]:
    state, owner = STATE.search(text), OWNER.search(text)
    return [f"{state[1]}, owner {owner[1] if owner else 'unknown'}"] if state and ID.search(text) else []


def _facts(text: str) -> list[str]:
    _, _, facts = text.partition("'facts': {")
    return [f"{name} {value}" for name, value in FACT.findall(facts)]
