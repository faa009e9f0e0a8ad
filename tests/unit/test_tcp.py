"""The names of CRIU's nftables tables; that removing one frees connections, the lab tests."""

from __future__ import annotations

from sojourn.system import tcp


def test_the_table_of_a_dump_has_a_truncated_name() -> None:
    """CRIU's buffer has space for 26 characters of it, as seen in the lab."""
    assert tcp.table_of("290eabfc-3e4e-40a7-a5d1-0c4f5b1f2a3e") == "CRIU-290eabfc-3e4e-40a7-a5"


def test_two_dumps_have_two_tables() -> None:
    """The rest of the ids distinguishes them."""
    ids = ("6f0f3c1e-8d0b-4c55-9d27-0c4f5b1f2a3e", "6f0f3c1e-8d0b-4c56-9d27-0c4f5b1f2a3e")
    assert len({tcp.table_of(run_id) for run_id in ids}) == 2
