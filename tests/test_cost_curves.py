"""The benchmark of cost curves: slopes of planted curves, resumption, and the lines and the chart that it leaves."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
KEYS = {"name", "value", "unit", "se", "peer", "peer_value", "ratio", "seconds", "setting"}


@pytest.fixture
def cost_curves(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of the benchmark, which imports a sibling."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "outer_loop", raising=False)
    spec = importlib.util.spec_from_file_location("cost_curves", BENCHMARKS / "cost_curves.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_power_has_its_exponent_as_slope(cost_curves: Any):
    sizes = [2.0**k for k in range(8)]
    slope = cost_curves.find_straight_part(sizes, [3 * size**1.5 for size in sizes])
    assert slope.exponent == pytest.approx(1.5) and len(slope.sizes) == 8
    assert slope.interval[0] <= 1.5 + 1e-6 and slope.interval[1] >= 1.5 - 1e-6
    assert slope.seconds(1024) == pytest.approx(3 * 1024**1.5)


def test_a_fixed_part_is_outside_of_the_straight_part_and_is_estimated(cost_curves: Any):
    sizes = [2.0**k for k in range(12)]
    seconds = [30 + size for size in sizes]
    slope = cost_curves.find_straight_part(sizes, seconds)
    assert slope.sizes[0] > sizes[0] and 0.8 < slope.exponent < 1 and slope.sizes[-1] == sizes[-1]
    assert cost_curves.fit_fixed_part(sizes, seconds) == pytest.approx((30, 1))


def test_every_interval_covers_a_slope_as_often_as_it_promises(cost_curves: Any):
    import numpy as np

    generator, sizes = np.random.default_rng(0), [2.0**k for k in range(6)]
    covered = 0
    for _ in range(400):
        noise = np.exp(0.05 * generator.standard_normal(6))
        low, high = cost_curves.fit_slope(sizes, np.array(sizes) * noise).interval
        covered += low <= 1 <= high
    assert 0.91 < covered / 400 < 0.98


def plant_lines(module: Any) -> list[dict[str, Any]]:
    """A line for every point of the quick curves, which are linear in their sizes."""
    lines = []
    for name, setting in module.list_points(module.CURVES, True):
        seconds = setting[module.CURVES[name].factor] / 100 if name in module.CURVES else 0.01
        facts = {"processor_seconds": seconds, "repeats": 3} | ({"flops": 1e9} if name == "matrix product" else {})
        lines.append(module.make_line(name, seconds, "s", setting=setting | facts))
    return lines


def test_it_resumes_and_writes_lines_and_a_chart(cost_curves: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    planted = plant_lines(cost_curves)
    missing = next(line for line in planted if line["name"] == "cost_curves/population")
    slower = planted[-1] | {"value": 9.0}
    records, chart = tmp_path / "records.jsonl", tmp_path / "chart.svg"
    records.write_text("".join(json.dumps(line) + "\n" for line in [slower, *planted] if line is not missing))
    cost_curves.main(["--quick", "--records", str(records), "--chart", str(chart)])
    lines = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert all(line.keys() >= KEYS for line in lines)
    measured = [line for line in lines if line["setting"].get("repeats")]
    assert [line["setting"]["population"] for line in measured] == [4] and measured[0]["value"] > 0
    slopes = {line["setting"]["curve"]: line for line in lines if line["name"] == "cost_curves/slope"}  # processor
    assert set(slopes) == set(cost_curves.CURVES)
    assert all(slopes[name]["value"] == pytest.approx(1) for name in slopes if name != "population")
    stored = records.read_text().splitlines()
    assert [json.loads(text) for text in stored[-len(lines) + 1 :]] == lines[1:]
    svg = chart.read_text()
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "slope 1.00" in svg and "var(" not in svg
    cost_curves.main(["--quick", "--records", str(records), "--chart", str(chart)])
    assert records.read_text().splitlines() == stored and chart.read_text() == svg


def test_the_page_states_the_recorded_slopes(cost_curves: Any):
    results = Path(__file__).parents[1] / "docs" / "results"
    lines = [json.loads(text) for text in (results / "cost-curves.jsonl").read_text().splitlines()]
    page = (results / "cost-curves.md").read_text()
    slopes = [line for line in lines if line["name"] == "cost_curves/slope"]
    slopes = [line for line in slopes if line["setting"]["clock"] == "processor time"]
    assert len(slopes) >= 4
    for line in slopes:
        low, high = line["setting"]["interval"]
        assert re.search(rf"{line['value']:.2f}\s*\({low:.2f} to {high:.2f}\)", page), line
