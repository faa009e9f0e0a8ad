"""The safety rule, checked by ``spin`` in every order of events: tests/model/protocol.pml says what is in it."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from sojourn.run import run

MODEL = Path(__file__).parents[1] / "model/protocol.pml"

#: A search takes some seconds; this is for a machine that is busy with other things.
DEADLINE_S = 120

#: The rules by their numbers in the model.
RULES = (
    "never_two_run",
    "never_resumed_and_taken",
    "never_retired_and_refused",
    "never_restored_and_gone",
    "nothing_that_ran_is_taken_back",
    "both_rows_are_final",
    "one_runs_in_the_end",
    "nothing_is_left_behind",
    "it_never_arrives",
)


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [program for program in ("spin", "gcc") if not shutil.which(program)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{' and '.join(missing)} must be there in CI")
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed: bin/setup, as root, installs it")


def check(place: Path, *macros: str) -> str:
    """Search every state of the model with these macros; return what the checker said."""
    run(["spin", *(f"-D{macro}" for macro in macros), "-a", MODEL], deadline_s=DEADLINE_S, cwd=place)
    # No stuttering: a run that ends is judged by the model itself, not taken for one that goes round for ever.
    run(["gcc", "-O1", "-w", "-DNOFAIR", "-DNOSTUTTER", "-o", "pan", "pan.c"], deadline_s=DEADLINE_S, cwd=place)
    return run([place / "pan", "-a", "-m200000", "-w23"], deadline_s=DEADLINE_S, cwd=place).stdout


@pytest.mark.parametrize("macros", [(), ("KEEP_IMAGES",)], ids=["auto_dedup", "images kept"])
def test_no_order_of_events_breaks_a_rule(tmp_path: Path, macros: tuple[str, ...]) -> None:
    """Every state is searched, no rule is broken, and no run goes on for ever once faults cease."""
    said = check(tmp_path, *macros)
    assert "errors: 0\n" in said, said
    assert "acceptance   cycles \t+" in said
    assert not re.search(r"Search not completed|max search depth too small", said), said
    states = re.search(r"(\d+) states, stored", said)
    assert states
    assert int(states[1]) > 100_000, "so small a search has seen nothing"


@pytest.mark.parametrize(
    ("macro", "rule"),
    [
        ("RESUME_WITHOUT_VERDICT", "never_two_run"),
        ("RESTORE_WITHOUT_CHECKING_JOURNAL", "nothing_that_ran_is_taken_back"),
        ("ACCEPT_AFTER_REFUSE", "never_resumed_and_taken"),
        ("KILL_BEFORE_ACCEPT", "one_runs_in_the_end"),
        ("RETIRE_ON_ACCEPTED", "one_runs_in_the_end"),
        ("CLEAR_AWAY_BEFORE_REFUSED", "one_runs_in_the_end"),
        ("TAKE_BACK_A_RUNNING_TREE", "nothing_that_ran_is_taken_back"),
        ("RESTORE_BEFORE_HELD", "nothing_that_ran_is_taken_back"),
        ("DUMP_BEFORE_HELD", "one_runs_in_the_end"),
        ("RESTORE_AGAINST_THE_WORD", "never_two_run"),
        ("TAKE_BACK_AFTER_A_CRASH", "nothing_that_ran_is_taken_back"),
        # The price of an operator's word, where nobody can know how far it had come.
        ("NOT_EVEN_THEN", "nothing_that_ran_is_taken_back"),
        # Not a breach: were the model too strict to let a process arrive, its silence would mean nothing.
        ("", "it_never_arrives"),
    ],
)
def test_a_broken_rule_is_caught(tmp_path: Path, macro: str, rule: str) -> None:
    """Each variant is found out, and by the rule that says what it would have cost."""
    said = check(tmp_path, *filter(None, [macro, f"ONLY={RULES.index(rule) + 1}"]))
    assert re.search(rf"assertion violated .*{rule}\b", said), said
