"""The published tables are whole, and the benchmark over them prints what it promises."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ontogeny import plugins
from ontogeny.studies import published

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "published.py"
KEYS = {"name", "value", "unit", "se", "tasks", "peer", "peer_value", "ratio", "seconds", "setting"}


def test_the_published_tables_are_complete_and_plausible():
    rows = list(published.list_rows())
    assert [row.table for row in rows] == [1] * 9 + [2] * 5
    for row in rows:
        assert len(row.scores) == 8 and set(published.MATCHING_AGENTS[row.table]) < set(row.scores)
        maximum = row.n if row.table == 1 else 25 * row.n
        assert all(0 < value < maximum for value in row.scores.values())
        assert row.scores["Random"] == min(row.scores.values())
        chance = 0.5 * row.n if row.table == 1 else 10 * row.n
        assert row.scores["Random"] == pytest.approx(chance, rel=0.02)


def test_published_scores_depend_on_the_settings_of_an_environment():
    every = plugins.default_settings("environments", "random_mdp")
    assert published.find_published_scores("random_mdp", every | {"num_episodes": 100})["OPSRL"] == 1973.9
    assert published.find_published_scores("random_mdp", every | {"num_episodes": 100, "num_states": 4}) == {}
    assert published.find_published_scores("bandit", {"num_arms": 5, "num_pulls": 100})["Gittins"] == 78.3
    assert published.find_published_scores("bandit", {"num_arms": 7, "num_pulls": 100}) == {}
    assert published.find_published_scores("foraging", {}) == {}


def test_every_agent_that_matches_a_published_strategy_can_be_built():
    from ontogeny import steering

    for row in published.list_rows():
        if row.n != 10:
            continue
        name, settings = plugins.parse(row.env)
        spec = plugins.build("environments", name, **settings).spec
        for agent in published.MATCHING_AGENTS[row.table].values():
            name, settings = plugins.parse(agent)
            plugins.build("agents", name, spec, steering.build(spec), **settings)


def test_agreement_is_three_standard_errors_or_four_per_cent():
    assert published.is_consistent(103.9, 0.1, 100) and not published.is_consistent(104.1, 0.1, 100)
    assert published.is_consistent(110, 4, 100) and not published.is_consistent(90, 3, 100)


def test_the_benchmark_prints_a_line_per_row_and_agent(capsys: pytest.CaptureFixture[str]):
    main = runpy.run_path(str(BENCHMARK))["main"]
    main(["--tables", "1", "--rows", "n=10,k=5", "n=10,k=10", "--agents", "greedy", "thompson", "--tasks", "40"])
    for wrong in (["--rows", "n=1O"], ["--agents", "gredy"]):
        with pytest.raises(SystemExit) as left:
            main(wrong)
        assert left.value.code == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 * 3
    for line in lines:
        assert set(line) - {"why"} == KEYS
        assert {"table", "n", "k", "agent"} <= set(line["setting"])
        assert line["tasks"] == 40 and line["ratio"] == pytest.approx(line["value"] / line["peer_value"], abs=1e-3)
    assert [line["setting"]["k"] for line in lines] == [5, 5, 5, 10, 10, 10]


def test_developed_agents_are_scored_and_averaged_over_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    bench = runpy.run_path(str(BENCHMARK))
    small = (
        "recurrent_cells:hidden_size=2,readout_size=2",
        "bandit:num_arms=5,num_pulls=10",
        "evolution:population_size=8,num_lifetimes=4,num_generations=2",
    )
    monkeypatch.setitem(bench["RECIPES"], "bandit-10", small)
    settings = [
        "--rows",
        "n=10,k=5",
        "--agents",
        "none",
        "--recipes",
        "bandit-10",
        "--seeds",
        "0",
        "1",
        "--tasks",
        "40",
    ]
    bench["main"](["--tables", "1", "--evolve", str(tmp_path / "runs"), *settings])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 4 and all(set(line) == KEYS for line in lines)
    assert lines[2]["value"] == pytest.approx((lines[0]["value"] + lines[1]["value"]) / 2, abs=1e-3)
    assert lines[2]["setting"]["values"] == [line["value"] for line in lines[:2]]
    assert [line["setting"]["developed_from_seed"] for line in lines[:2]] == [0, 1]
    assert lines[2]["se"] > lines[0]["se"] / 2, "the seeds share their tasks"
    assert lines[3]["name"].endswith("difference to gittins") and lines[3]["setting"]["num_seeds"] == 2
    assert lines[3]["value"] == pytest.approx(lines[2]["value"] - lines[3]["peer_value"], abs=2e-3)


def test_published_errors_contain_the_error_over_tasks():
    """Seeds that agree in their mean have the error of the tasks that they share; a paired difference cancels it."""
    bench, random = runpy.run_path(str(BENCHMARK)), np.random.default_rng(0)
    difficulty = random.normal(0.0, 2.25, 40_000)
    setting = {"table": 1, "n": 10, "k": 5, "agent": "cells", "seed": 0, "developed_in": {}, "development_seconds": 1.0}
    record = {"name": "cells", "value": 6.65, "peer": "RL²", "peer_value": 6.7, "seconds": 1.0, "setting": setting}
    of_seeds = [bench["Scored"](record, 6.65 + shift + difficulty) for shift in (-5e-4, 0.0, 5e-4)]
    mean = bench["mean_over_seeds"](of_seeds)
    assert mean["se"] == pytest.approx(2.25 / 200, rel=0.02), "6.650 ± 0.011, not ± 0.0004"
    low, high = mean["setting"]["interval"]
    assert high - low == pytest.approx(2 * 4.303 * mean["se"], rel=0.05), "two degrees of freedom"
    optimum = bench["Scored"](record, 6.66 + difficulty + random.normal(0, 0.1, 40_000))
    gap = bench["difference_to_optimum"](of_seeds, optimum)
    assert gap["value"] == pytest.approx(-0.01, abs=2e-3) and gap["se"] < 1e-3 and gap["tasks"] == 40_000
