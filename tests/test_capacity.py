"""The capacity model computes what its page states, and follows its inputs."""

import capacity
from serving import ROOT

PAGE = ROOT / "docs" / "results" / "server-capacity.md"


def compute(num_keys: int, **settings: float) -> capacity.Demand:
    """The demand with the measured inputs and some other settings."""
    arguments = capacity.parse_arguments([])
    for name, setting in settings.items():
        assert hasattr(arguments, name)
        setattr(arguments, name, setting)
    return capacity.compute(num_keys, capacity.read_inputs(), arguments)


def test_the_page_has_the_table_of_the_script():
    table = capacity.format_table([compute(num_keys) for num_keys in capacity.KEYS])
    assert table in PAGE.read_text()
    changed = capacity.format_table([compute(num_keys, active=0.02) for num_keys in capacity.KEYS])
    assert changed not in PAGE.read_text()


def test_the_demand_follows_the_number_of_keys():
    few, many = compute(10**5), compute(10**6)
    for name in ("requests", "texts", "cores", "stored_bytes", "table_bytes"):
        assert abs(getattr(many, name) / getattr(few, name) - 10) < 1e-6
    assert few.transactions < many.transactions < 10 * few.transactions + 1
    assert compute(10**5, active=0.0001).snapshot_reads == 0  # all active branches are in memory
    assert compute(10**7).limits["transactions of one database"] > 1
