"""Flower's pages without a browser: doubts, batches, verdicts on processes, and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sojourn.cluster.account import Account
from sojourn.cluster.batches import BatchState, Record
from sojourn.cluster.planfile import SKIPPED
from sojourn.errors import UsageError
from sojourn.model import Json, Plan, State
from sojourn.preflight.finding import Finding, Verdict

pytest.importorskip("flower")

from web.batches import drained, look_of, title_of
from web.doubt import Doubt, doubt_of, pieces
from web.options import options_of, plan_of, skipped, times_of
from web.processes import judged
from web.templates import Templates

ID = "bc14c1d9-4380-43c8-b5dc-15f44498902a"
EVIL = "<script>hacked</script>"

DOUBT: Json = {
    "silent": "beta",
    "since": "2026-01-31T12:00:00+00:00",
    "by_itself": "alpha goes on asking beta.",
    "you_may": [{"do": f"Look: `sojourn watch {ID}`", "risk": "None."}],
    "how_to": "docs/how-to/recover-from-in-doubt.md",
}


@dataclass(frozen=True)
class Doubted(Account):
    """A migration with what is recorded of its doubt, whoever has recorded it."""

    told: object = None

    def to_json(self) -> Json:
        """Return of the migration as ``--json`` gives it what the page reads."""
        return {"doubt": self.told}


def doubted(told: object = DOUBT, state: State = State.IN_DOUBT) -> Account:
    """Return a migration in doubt."""
    return Doubted(ID, Plan(4242, "alpha", "beta"), state, 0.0, None, (), told=told)


def rendered(doubt: Doubt) -> str:
    """Return the part of the page that shows a doubt."""

    def address(*names: str) -> str:
        return "/".join(names)

    shown = Templates().load("doubt.html").generate(doubt=doubt, pieces=pieces, reverse_url=address)
    return " ".join(shown.decode().split())


def test_a_doubt_shows_who_is_silent_what_happens_and_what_one_may_do() -> None:
    """Commands stand as such, each risk beside its act, and the guide is linked."""
    doubt = doubt_of(doubted())
    assert doubt is not None
    shown = rendered(doubt)
    assert f"is silent since {doubt.moment}." in shown
    assert "sojourn-single/host/beta" in shown
    assert "alpha goes on asking beta." in shown
    assert f"Look: <code>sojourn watch {ID}</code>" in shown.replace(" </code>", "</code>")
    assert "<b>Risk:</b> None." in shown
    assert "sojourn-guide/how-to/recover-from-in-doubt.md" in shown


def test_a_doubt_without_a_silent_host() -> None:
    """Both answer, and one of them cannot tell what became of the process."""
    doubt = doubt_of(doubted(DOUBT | {"silent": None}))
    assert doubt is not None
    assert "Both hosts answer" in rendered(doubt)


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (None, State.IN_DOUBT),
        ("beta", State.IN_DOUBT),
        ({"silent": 7}, State.IN_DOUBT),
        ({"you_may": [{"risk": "x"}]}, State.IN_DOUBT),
        (DOUBT, State.COMPLETED),
    ],
    ids=str,
)
def test_what_is_no_doubt_is_not_shown(told: object, state: State) -> None:
    """A record of another shape, and one of a migration that has ended."""
    assert doubt_of(doubted(told, state)) is None


@pytest.mark.parametrize("how_to", ["javascript:alert(1)", "https://evil.example/x.md", "../x.md"])
def test_a_doubt_is_text(how_to: str) -> None:
    """Whoever writes to Redis can neither add HTML nor a link to elsewhere."""
    odd = DOUBT | {"by_itself": EVIL, "since": EVIL, "silent": EVIL, "how_to": how_to}
    doubt = doubt_of(doubted(odd | {"you_may": [{"do": f"`{EVIL}`", "risk": EVIL}]}))
    assert doubt is not None
    shown = rendered(doubt)
    assert "<script>" not in shown
    assert "sojourn-guide" not in shown


def batch(state: BatchState = BatchState.FINISHED, **more: Any) -> Record:
    """Return a batch."""
    fields: Json = {"kind": "drain", "asked": {"lines": [{"source": "alpha"}]}, **more}
    return Record(ID, by="ann", created=0.0, state=state, **fields)


STAY = {"pid": 7, "source": "gamma", "command": "sshd", "why": "It is supervised."}


@pytest.mark.parametrize(
    ("record", "states", "look"),
    [
        (batch(), ["completed"], "good"),
        (batch(), ["completed", "refused"], "stayed"),
        (batch(), ["completed", "completed, clean-up pending"], "turns"),
        (batch(), ["refused", "lost"], "bad"),
        (batch(stays=[STAY]), ["completed"], "stayed"),
        (batch(stays=[STAY | {"code": SKIPPED}]), ["completed"], "good"),
        (batch(BatchState.RUNNING), ["refused"], "runs"),
        (batch(BatchState.REFUSED), [], "stayed"),
    ],
    ids=str,
)
def test_a_batch_is_amber_when_lines_were_refused(
    record: Record, states: list[str], look: str
) -> None:
    """Green only if everything arrived; red if somebody must look."""
    assert look_of(record, states) == look


def test_a_batch_names_its_hosts() -> None:
    """A drain the host that it empties, a plan those of its lines, of many the first ones."""
    drain = batch()
    assert title_of(drain, drained(drain)) == "Drain of alpha"
    plan = batch(kind="plan", asked={"lines": 3})
    assert drained(plan) == []
    assert title_of(plan, ["beta", "alpha", "beta"]) == "Batch from alpha, beta"
    assert title_of(plan, "edcba") == "Batch from a, b, c and 2 more"
    assert title_of(batch(kind="plan", asked={}, stays=[STAY]), []) == "Batch from gamma"
    assert title_of(batch(asked={"lines": [EVIL]}), []) == "Drain bc14c1d9"


def test_the_verdict_on_a_process() -> None:
    """What blocks weighs more than an option that is missing; notes do not weigh."""
    fine = Finding("A", Verdict.OK, "It is there.", host="alpha")
    note = Finding("N", Verdict.NOTE, "It is large.", host="alpha")
    lacks = Finding("TCP", Verdict.NEEDS_OPTION, "It has connections.", "Add it.", "alpha")
    blocks = Finding("GONE", Verdict.BLOCKS, "It is gone.", host="beta")
    assert judged([fine, note])["verdict"] == "can be migrated"
    assert judged([fine, lacks, note])["look"] == "stayed"
    found = judged([note, lacks, fine, blocks])
    assert (found["look"], found["verdict"]) == ("bad", "cannot be migrated")
    assert [finding["code"] for finding in found["findings"]] == ["GONE", "TCP", "N"]
    assert found["findings"][1]["hint"] == "Add it."


def test_options_of_a_form() -> None:
    """An empty field gives no option; a number is one."""
    fields = {"mode": "post-copy", "file_locks": "1", "stop_unit": "", "max_freeze_s": "2.5"}
    assert options_of(fields) == {"mode": "post-copy", "file_locks": True, "max_freeze_s": 2.5}
    assert options_of({"bandwidth_mbit": "100"}) == {"bandwidth_mbit": 100}
    assert options_of({}) == {}
    for odd in ({"max_freeze_s": "long"}, {"bandwidth_mbit": "1.5"}):
        with pytest.raises(UsageError, match="is a number"):
            options_of(odd)


def test_what_a_drain_leaves_and_how_long_it_takes() -> None:
    """One condition a line, as the command takes each; empty fields are none."""
    assert skipped({"skip": " unit=nginx\n\n4242\r\n"}) == [{"unit": "nginx"}, {"pid": 4242}]
    assert times_of({"timeout_s": "60", "wait_s": ""}) == {"timeout_s": 60.0}
    assert (skipped({}), times_of({})) == ([], {})
    with pytest.raises(UsageError, match="wait_s is a number"):
        times_of({"wait_s": "long"})
    with pytest.raises(UsageError):
        skipped({"skip": "colour=red"})


@pytest.mark.parametrize("pid", ["", "x", "-1", "1", "\N{ARABIC-INDIC DIGIT THREE}", "9" * 30])
def test_a_process_is_named_by_its_pid(pid: str) -> None:
    """Nothing else is one."""
    with pytest.raises(UsageError, match="PID"):
        plan_of("alpha", {"pid": pid, "to": "beta"})
