"""Sweeps: the cells of a study, their failures, their parts, and their processes."""

import pytest

from ontogeny.errors import BadInput
from ontogeny.studies import plan, spec

SWEEP = """
title = "Sweep"
question = "What?"
[[environments]]
name = "arms"
env = "bandit:num_arms=3,num_pulls=5"
num_tasks = 20
record_lifetime = false
[[environments]]
name = "other"
env = "bandit:num_arms=2,num_pulls=5"
num_tasks = 20
record_lifetime = false
[[agents]]
agent = "random"
environments = ["arms", "other"]
[[agents]]
name = "dense"
agent = "recurrent:hidden_size=4,input_scale=2.0"
approach = "evolution"
development = "evolution:population_size=4,num_lifetimes=2,num_generations=1"
environments = ["arms"]
seeds = [5]
"""


def parse(sweep, text=SWEEP):
    return spec.parse_spec(f"{text}\n[sweep]\n{sweep}", "s.toml")


def test_a_grid_of_settings_times_seeds_is_a_list_of_ordinary_agents():
    study = parse("agent.hidden_size = [2, 4]\ndevelopment.num_generations = [1, 3]\nnum_seeds = 2")
    names = [agent.name for agent in study.agents]
    assert names[0] == "random" and names[1:] == [
        f"dense hidden_size={size}, num_generations={number}" for size in (2, 4) for number in (1, 3)
    ]
    cell = study.agents[4]
    assert cell.agent == "recurrent:hidden_size=4,input_scale=2.0" and cell.seeds == (0, 1)
    assert cell.development == "evolution:population_size=4,num_lifetimes=2,num_generations=3"
    assert [c.settings["num_generations"] for c in study.cells] == [1, 3, 1, 3]
    ids = [measurement.id for measurement in plan.list_measurements(study)]
    assert len(set(ids)) == len(ids) and "development/arms/dense hidden_size=2, num_generations=3/1" in ids


def test_agents_follow_the_variants_of_their_environments():
    study = parse('env.num_arms = [2, 3, 4]\nenvironments = ["arms"]\nagents = ["dense"]\nseeds = [7]')
    assert [env.name for env in study.environments] == [*(f"arms num_arms={n}" for n in (2, 3, 4)), "other"]
    assert study.environments[2].env == "bandit:num_arms=4,num_pulls=5"
    random, dense = study.agents
    assert random.environments == ("arms num_arms=2", "arms num_arms=3", "arms num_arms=4", "other")
    assert random.seeds == (0,) and dense.seeds == (7,)
    assert len(study.cells) == 6 and all(cell.settings.keys() == {"num_arms"} for cell in study.cells)
    developed_once = SWEEP.replace("seeds = [5]", 'train_env = "other"')
    dense = parse('env.num_arms = [2, 3]\nenvironments = ["arms"]', developed_once).agents[1]
    assert dense.train_env == "other" and len(dense.environments) == 2
    in_each = parse("env.num_arms = [2, 3]", developed_once).agents[1:]
    assert [agent.train_env for agent in in_each] == ["other num_arms=2", "other num_arms=3"]
    assert [agent.environments for agent in in_each] == [("arms num_arms=2",), ("arms num_arms=3",)]


def test_settings_of_equal_name_have_labels_and_negative_values_have_paths_of_their_own(tmp_path):
    plugin = tmp_path / "mine.py"
    source = '"""Mine."""\nfrom ontogeny.agents.random import build as original\n\n'
    source += "def build(spec, steering, *, bias=0, num_pulls=1):\n    return original(spec, steering)\n"
    plugin.write_text(source, encoding="utf-8")
    text = SWEEP.replace('agent = "random"', f'agent = "{plugin}"')
    study = parse('agents = ["mine"]\nagent.bias = [-1, 1]\nagent.num_pulls = [1]\nenv.num_pulls = [5]', text)
    assert study.agents[0].name == "mine bias=-1, agent.num_pulls=1"
    assert {"bias", "agent.num_pulls", "env.num_pulls"} == study.cells[0].settings.keys()
    plan.check_study(study)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("", "'sweep' in [s.toml] must name settings in 'agent', 'development' or 'env', or 'seeds'"),
        ("sead = 1", "unknown key 'sead' in [s.toml.sweep]; did you mean seeds?"),
        ("agent.hidden_sise = [1]", "'hidden_sise' in [sweep.agent] is no setting of 'recurrent', which 'dense' uses"),
        ("agent.hidden_size = []", "'hidden_size' in [s.toml.sweep.agent] has too few entries: at least 1, not 0"),
        ("agent.hidden_size = 3", "'hidden_size' in [s.toml.sweep.agent] must be a list, not 3"),
        ("agent.hidden_size = [2, 2]", "'hidden_size' in [s.toml.sweep.agent] contains 2 twice"),
        ("agent.hidden_size = [{}]", "'hidden_size' in [s.toml.sweep.agent] must list texts, numbers, truth values"),
        ("agent.hidden_size = [1]\nagents = ['dens']", "'agents' in [sweep] names an unknown entry 'dens'; did you"),
        ("agents = ['dense']\nenv.num_arms = [2]", "[sweep] names 'agents' but no setting of them"),
        ("num_seeds = 3\nseeds = [1]", "'sweep' in [s.toml] must not have both 'seeds' and 'num_seeds'"),
        ("num_seeds = 3\nenvironments = ['arms']", "'sweep' in [s.toml] names 'environments' but no setting of them"),
        (f"agent.hidden_size = {list(range(1, 102))}\nnum_seeds = 100", "[sweep] describes 10,100 developments"),
        (f"agent.stochastic = ['{'x' * 101}']", "[sweep] makes the name 'dense stochastic=xxx"),
        ("agent.stochastic = ['a/b,c']", "[sweep] cannot write the value 'a/b,c' of 'stochastic' as a setting"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_sentence(sweep, message):
    with pytest.raises(BadInput) as error:
        parse(sweep)
    assert message in str(error.value)


def test_a_value_that_a_plugin_refuses_is_named_with_its_cell_before_anything_runs():
    with pytest.raises(BadInput, match=r"agent 'dense hidden_size=0' in 'arms': "):
        plan.check_study(parse("agent.hidden_size = [2, 0]"))


def test_cells_that_share_a_name_with_another_entry_are_refused():
    text = SWEEP + '[[agents]]\nagent = "random"\nname = "dense hidden_size=2"\nenvironments = ["arms"]\n'
    with pytest.raises(BadInput, match="makes a study that evaluates 'dense hidden_size=2' in 'arms' twice"):
        parse("agent.hidden_size = [2]", text)
    with pytest.raises(BadInput, match="would both be saved as"):
        plan.check_study(parse("agent.hidden_size = [2]\nnum_seeds = 1", text.replace("dense hidden", "dense-hidden")))


def test_an_agent_is_not_developed_in_a_varied_environment_and_evaluated_in_another():
    text = SWEEP.replace("seeds = [5]", 'train_env = "other"')
    with pytest.raises(BadInput, match="varies 'other', in which 'dense' is developed, but not 'arms'"):
        parse('env.num_arms = [2, 3]\nenvironments = ["other"]', text)


def test_baselines_vary_only_where_they_are_named():
    text = SWEEP.partition('[[agents]]\nname = "dense"')[0]
    with pytest.raises(BadInput, match="must name the 'agents' that vary, because all agents"):
        parse("num_seeds = 2", text)
    assert parse('num_seeds = 2\nagents = ["random"]', text).agents[0].seeds == (0, 1)


def test_of_very_many_cells_only_differences_from_other_agents_are_measured():
    study = parse(f"agent.hidden_size = {list(range(1, 31))}")
    differences = [m for m in plan.list_measurements(study) if m.kind == "difference"]
    assert len(differences) == 30 and all("/random" in m.id for m in differences)
