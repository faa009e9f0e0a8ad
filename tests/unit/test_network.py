"""Which of CRIU's nftables tables is whose; that removing one frees connections is shown on the lab."""

from __future__ import annotations

from sojourn import network


def test_the_table_of_a_dump_has_a_cut_name() -> None:
    """CRIU's buffer has room for 26 characters of it, as seen in the lab."""
    assert network.table_of("290eabfc-3e4e-40a7-a5d1-0c4f5b1f2a3e") == "CRIU-290eabfc-3e4e-40a7-a5"


def test_two_dumps_have_two_tables() -> None:
    """What is left of the ids keeps them apart."""
    ids = ("6f0f3c1e-8d0b-4c55-9d27-0c4f5b1f2a3e", "6f0f3c1e-8d0b-4c56-9d27-0c4f5b1f2a3e")
    assert len({network.table_of(run_id) for run_id in ids}) == 2
