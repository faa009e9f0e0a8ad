"""Where Celery keeps results: in Redis, as its own backend does, but sealed; a worker awaits none.

Results are acted upon: what the parts of a chord returned travels on in the next message, which the
worker signs that sends it, and the answer of a host's check or survey decides what is asked for
next. So each carries the seal of the host that wrote it (``sojourn.security.seal``); what carries
none counts as no result. It stays JSON that other applications read.

Celery subscribes the process that sends a chord to every result of the chord's header, in case
somebody there should call ``.get()``. In a worker nobody does, our header tasks store no results,
and so the subscriptions would pile up for as long as the worker lives. It also keeps its
connection: each chord takes eight commands.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cached_property

from celery import states
from celery.backends.redis import RedisBackend

from sojourn.cluster.kept import Kept
from sojourn.cluster.sealed import ADVICE, Sealed
from sojourn.model import Json, Untyped
from sojourn.security.seal import NotSealed

#: The prefix of ``result_backend`` that makes Celery use this class.
URL_PREFIX = f"{__name__}:Results+"


#: What seals name a result, and what it is about where it is no part of a chord.
RESULT, ALONE = "result", "a task"

#: What there is of a result that nobody with the cluster's key wrote: Celery waits on.
NONE_YET = {"status": states.PENDING, "result": None}


class Results(RedisBackend):  # type: ignore[misc, unused-ignore]  # Celery has no types
    """Celery's Redis backend; ``sojourn_awaits_results`` of the configuration turns waiting off."""

    @property
    def client(self) -> Untyped:
        """The client that results, and the ends of a chord's parts, are written with."""
        return self._kept.client() if not self.app.conf.sojourn_awaits_results else super().client

    @cached_property
    def _kept(self) -> Kept:
        return Kept(super().client)

    #: The chord whose parts are read and written now; each process does one task at a time.
    _about = ALONE

    @property
    def _sealed(self) -> Sealed:
        sealed: Sealed = self.app.conf.sojourn_sealed
        return sealed

    def encode(self, data: Untyped) -> Untyped:
        """Return a result, or the part of a chord, as sealed JSON."""
        # A part is a list, and what is sealed is an object.
        text = super().encode(data if isinstance(data, dict) else {"part": data})
        return self._sealed.seal.close_text(RESULT, self._about, _text(text))

    def decode(self, payload: Untyped) -> Untyped:
        """Return what was sealed. Raises NotSealed, which makes a chord fail."""
        if payload is None:
            return None
        try:
            text, _, _ = self._sealed.seal.open_text(RESULT, self._about, _text(payload))
        except NotSealed as error:
            self._sealed.refuse(RESULT, self._about, _text(payload), f"{error.message} {ADVICE}")
            raise
        data = super().decode(text)
        return data["part"] if set(data) == {"part"} else data

    def decode_result(self, payload: Untyped) -> Json:
        """Return the record of a result; one that is not sealed is none yet."""
        try:
            return dict(super().decode_result(payload))
        except NotSealed:
            return dict(NONE_YET)

    def get_task_meta(self, task_id: str, cache: bool = True) -> Json:
        """Return the record of a task's result, and not of another one that was put in its place.

        The signature is Celery's.
        """
        meta = dict(super().get_task_meta(task_id, cache=cache))
        return meta if meta.get("task_id", task_id) == task_id else dict(NONE_YET)

    def on_chord_part_return(self, request: Untyped, *args: Untyped, **options: Untyped) -> Untyped:
        """Keep what a part of a chord returned; with the last one, send the chord's body."""
        with self._of_chord(request.group):
            return super().on_chord_part_return(request, *args, **options)

    @contextlib.contextmanager
    def _of_chord(self, group: str | None) -> Iterator[None]:
        # Else the part of one chord could be put into another.
        self._about = f"chord {group}"
        try:
            yield
        finally:
            self._about = ALONE

    def add_pending_result(self, result: Untyped, *args: Untyped, **options: Untyped) -> Untyped:
        """Prepare to wait for a result; called for each ``.get()`` and each part of a chord."""
        if not self.app.conf.sojourn_awaits_results:
            return result
        return super().add_pending_result(result, *args, **options)


def await_none(app: Untyped) -> None:
    """Let this process, and what it forks, await no results: it is a worker."""
    app.conf.update(sojourn_awaits_results=False)


def _text(payload: str | bytes) -> str:
    # What is no UTF-8 is no text of ours; its seal is wrong whatever is made of it.
    return payload if isinstance(payload, str) else payload.decode(errors="replace")
