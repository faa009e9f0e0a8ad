"""``spin`` checks the safety rule in every order of events; tests/model/protocol.pml has both."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from sojourn.system.run import run

MODEL = Path(__file__).parents[1] / "model/protocol.pml"

#: A search takes some seconds; the rest is for a busy machine.
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
    "never_retired_while_pages_are_missing",
    "never_reads_zeros",
    "nobody_waits_in_vain",
    "it_never_arrives",
)


@pytest.fixture(autouse=True)
def _tools() -> None:
    missing = [program for program in ("spin", "gcc") if not shutil.which(program)]
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"{' and '.join(missing)} must be there in CI")
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed: bin/setup, as root, installs it")


def check(place: Path, *macros: str, optimize: str) -> str:
    """Search every state of the model with these macros; return the checker's output.

    What is found at once is found sooner by a checker that was not optimized.
    """
    run(
        ["spin", *(f"-D{macro}" for macro in macros), "-a", MODEL], deadline_s=DEADLINE_S, cwd=place
    )
    # No stuttering: the model itself judges a run that ends, which the checker would otherwise take
    # for an endless one.
    run(
        ["gcc", optimize, "-w", "-DNOFAIR", "-DNOSTUTTER", "-o", "pan", "pan.c"],
        deadline_s=DEADLINE_S,
        cwd=place,
    )
    return run([place / "pan", "-a", "-m200000", "-w23"], deadline_s=DEADLINE_S, cwd=place).stdout


@pytest.mark.parametrize(
    "macros",
    [(), ("KEEP_IMAGES",), ("POST_COPY",)],
    ids=["auto_dedup", "images kept", "post-copy"],
)
def test_no_order_of_events_breaks_a_rule(tmp_path: Path, macros: tuple[str, ...]) -> None:
    """Every state is searched, no rule is broken, and no run is endless once faults cease."""
    output = check(tmp_path, *macros, optimize="-O1")
    assert "errors: 0\n" in output, output
    assert "acceptance   cycles \t+" in output
    assert not re.search(r"Search not completed|max search depth too small", output), output
    states = re.search(r"(\d+) states, stored", output)
    assert states
    assert int(states[1]) > 100_000, "the search was too small to mean anything"


@pytest.mark.parametrize(
    ("macros", "rule"),
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
        # The price of an operator's resolution, where it cannot be known how far the copy had come.
        ("NOT_EVEN_THEN", "nothing_that_ran_is_taken_back"),
        ("POST_COPY RETIRE_BEFORE_FILLED", "never_retired_while_pages_are_missing"),
        ("POST_COPY RETIRE_BEFORE_ENDED", "never_retired_while_pages_are_missing"),
        ("POST_COPY RETIRE_BEFORE_ENDED", "never_reads_zeros"),
        ("POST_COPY RESUME_WHAT_IS_LOST", "nothing_that_ran_is_taken_back"),
        ("POST_COPY RUN_WITHOUT_PAGER", "never_reads_zeros"),
        ("POST_COPY GO_ON_WITHOUT_PAGER", "nobody_waits_in_vain"),
        ("POST_COPY GO_ON_WITHOUT_ORIGINAL", "never_reads_zeros"),
        ("POST_COPY WAIT_WITHOUT_ORIGINAL", "nobody_waits_in_vain"),
        ("POST_COPY END_PAGER_BEFORE_TREE", "never_reads_zeros"),
        ("POST_COPY END_WHAT_IS_WHOLE", "one_runs_in_the_end"),
        # Not a breach: in a model so strict that no process arrives, unbroken rules would mean
        # nothing.
        ("", "it_never_arrives"),
        ("POST_COPY", "it_never_arrives"),
    ],
)
def test_a_broken_rule_is_caught(tmp_path: Path, macros: str, rule: str) -> None:
    """Every variant of the protocol is caught, by the rule that it would break."""
    only = f"ONLY={RULES.index(rule) + 1}"
    output = check(tmp_path, *macros.split(), only, optimize="-O0")
    assert re.search(rf"assertion violated .*{rule}\b", output), output
