"""The capacity model computes what its page states, and follows its inputs."""

import json

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


def test_figures_of_the_scale_benchmark_are_compared_and_absent_ones_named(tmp_path):
    def record(name: str, value: float, ratio: float | None = None, **setting: int) -> str:
        return json.dumps({"name": f"serve.scale.{name}", "value": value, "ratio": ratio, "setting": setting})

    path = tmp_path / "scale.jsonl"
    speeds = [record("processes.requests", 50.0 * n**0.5, processes=n, keys=100) for n in (1, 4)]
    path.write_text("\n".join([record("idle_key.disk", 900.0), record("many_keys.start", 2.0, 1.25), *speeds]))
    lines = {
        tuple(line.strip("| ").split(" | ")) for line in capacity.check(path, {"idle_key.disk": 800.0}).splitlines()
    }
    assert ("bytes of the tables per idle key", "800", "900") in lines
    assert ("time with 100,000 keys in ratio to 100: start", "1", "1.25") in lines
    assert ("time with 100,000 keys in ratio to 100: learned.p50", "1", "missing") in lines
    assert ("requests per second of 4 processes in ratio to one, 100 keys", "4", "2") in lines
    assert ("requests per second of 2 processes in ratio to one, 100 keys", "2", "missing") in lines
