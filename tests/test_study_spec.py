"""The spec of a study: its keys, and the place that a message names."""

import re
from pathlib import Path

import pytest

from ontogeny.errors import BadInput
from ontogeny.studies import plan, spec
from ontogeny.studies.mesa.budgets import budgets

SMALL = """
title = "Small"
question = "What?"
[[environments]]
name = "arms"
env = "bandit:num_arms=3,num_pulls=10"
num_tasks = 20
[[environments]]
name = "states"
env = "random_mdp:num_episodes=2"
num_tasks = 10
record_lifetime = false
[[agents]]
agent = "random"
environments = ["arms", "states"]
[[agents]]
agent = "recurrent:hidden_size=4"
approach = "evolution"
development = "evolution:num_generations=2"
train_env = "arms"
environments = ["arms"]
seeds = [0, 3]
"""


def test_the_values_of_a_small_spec():
    study = spec.parse_spec(SMALL)
    assert [row.name for row in study.environments] == ["arms", "states"]
    assert study.environments[0].record_lifetime and not study.environments[1].record_lifetime
    assert study.agents[0].approach == "baseline" and study.agents[0].development == "single_lifetime"
    assert study.agents[1].name == "recurrent" and study.agents[1].seeds == (0, 3)
    assert study.agents[0].train_env_for("states") == "states" and study.agents[1].train_env_for("states") == "arms"


def test_the_default_study_is_valid():
    study = spec.read_spec()
    assert {row.approach for row in study.agents} == {"evolution", "ml_code", "baseline"}
    assert study.question.endswith("?") and "\n" not in study.question


def test_the_seed_of_the_command_line_replaces_that_of_the_spec():
    assert spec.parse_spec(SMALL).seed == 0
    assert spec.parse_spec(SMALL, seed=7).seed == 7
    assert spec.parse_spec(SMALL, seed=7).digest != spec.parse_spec(SMALL).digest


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title =", "titel =", "unknown key 'titel' in [s.toml]; did you mean title?"),
        ('title = "Small"', "", "[s.toml] lacks the key 'title'"),
        ('title = "Small"', "title = 3", "'title' in [s.toml] must be a valid string, not 3"),
        (
            "record_lifetime = f",
            "recorded = f",
            "unknown key 'recorded' in [s.toml.environments.1]; did you mean record_",
        ),
        (
            "num_tasks = 10",
            "num_tasks = 1",
            "'num_tasks' in [s.toml.environments.1] must be greater than or equal to 2",
        ),
        (
            "num_tasks = 10",
            "num_tasks = true",
            "'num_tasks' in [s.toml.environments.1] must be a whole number, not True",
        ),
        (
            "bandit:num_arms",
            "bandid:num_arms",
            "'env' in [s.toml.environments.0] is invalid: there is no environment 'bandid'; did",
        ),
        ("num_arms=3", "num_arm=3", "there is no setting of 'bandit' named 'num_arm'; did you mean num_arms"),
        ('agent = "random"', 'agent = "randon"', "'agent' in [s.toml.agents.0] is invalid: there is no agent 'randon'"),
        (
            '"evolution"',
            '"evolved"',
            "'approach' in [s.toml.agents.1] must be 'evolution', 'ml_code' or 'baseline', not",
        ),
        (
            'train_env = "arms"',
            'train_env = "arm"',
            "[s.toml] names an unknown environment 'arm' in agents.1.train_env; did",
        ),
        ('["arms", "states"]', '["arms", "state"]', "names an unknown environment 'state' in agents.0.environments"),
        ('["arms", "states"]', "[]", "'environments' in [s.toml.agents.0]"),
        ("seeds = [0, 3]", "seeds = [3, 3]", "'seeds' in [s.toml.agents.1] contains 3 twice"),
        ("seeds = [0, 3]", "seeds = []", "'seeds' in [s.toml.agents.1] has too few entries: at least 1, not 0"),
        ("seeds = [0, 3]", "seeds = 3", "'seeds' in [s.toml.agents.1] must be a list, not 3"),
        ('name = "states"', 'name = "arms"', "[s.toml] names the environment 'arms' twice"),
        ("title =", "title", "s.toml is not valid TOML"),
        ("title =", f"x = {'[' * 9999}{']' * 9999}\ntitle =", "s.toml is not valid TOML"),
        ('title = "Small"', 'title = " "', "'title' in [s.toml] must not be empty"),
        ('question = "What?"', 'question = ""', "'question' in [s.toml] must not be empty"),
        (
            'question = "What?"',
            "question = 'Q'\nseed = -1",
            "'seed' in [s.toml] must be a whole number from 0 to 4294967295, not -1",
        ),
        (
            'question = "What?"',
            f"question = 'Q'\nseed = {'9' * 400}",
            "'seed' in [s.toml] must be a whole number from 0 to 4294967295, not a number that long",
        ),
        (
            "seeds = [0, 3]",
            "seeds = [0, -3]",
            "'1' in [s.toml.agents.1.seeds] must be a whole number from 0 to 4294967295, not -3",
        ),
        (
            "seeds = [0, 3]",
            "seeds = [0, 3.0]",
            "'1' in [s.toml.agents.1.seeds] must be a whole number from 0 to 4294967295, not 3.0",
        ),
        ("num_tasks = 10", "num_tasks = nan", "'num_tasks' in [s.toml.environments.1] must be a whole number, not nan"),
        ("num_tasks = 10", "num_tasks = 9999999999", "must be less than or equal to 2147483647, not 9999999999"),
        (
            "num_tasks = 10",
            "num_tasks = 10\ndrives = 3",
            "[s.toml.environments.1.drives] must be a table of keys, not 3",
        ),
        (
            "num_tasks = 10",
            "num_tasks = 10\ndrives = {reward = true}",
            "'reward' in [s.toml.environments.1.drives] must be",
        ),
        (
            "num_tasks = 10",
            "num_tasks = 10\ndrives = {reward = nan}",
            "'reward' in [s.toml.environments.1.drives] must be",
        ),
        ("num_tasks = 10", f"num_tasks = 10\ndrives = {{reward = 1{'0' * 400}}}", "must be finite"),
        ("seeds = [0, 3]", "drives = {payout = inf}", "'payout' in [s.toml.agents.1.drives] must be finite"),
        (
            'name = "states"',
            'name = "!"',
            "'name' in [s.toml.environments.1] must be one line that contains a letter or a",
        ),
        (
            'name = "states"',
            r'name = "a\nb"',
            "'name' in [s.toml.environments.1] must be one line that contains a letter",
        ),
        (
            'name = "states"',
            f'name = "{"x" * 101}"',
            "'name' in [s.toml.environments.1] must be at most 100 bytes long, not",
        ),
        (
            "num_arms=3",
            "num_arms=3,num_arms=4",
            "is invalid: 'bandit:num_arms=3,num_arms=4,num_pulls=10' names the setting 'num_arms'",
        ),
        (
            "num_tasks = 10",
            "tasks = 10",
            "unknown key 'tasks' in [s.toml.environments.1]: `tasks` was renamed `num_tasks`.",
        ),
        ('approach = "evolution"', 'model = "evolution"', "`model` was renamed `approach`."),
        (
            'approach = "evolution"',
            'approach = "code"',
            "'approach' in [s.toml.agents.1] is unknown: `code` was renamed",
        ),
        ("title =", 'mesa = "small"\ntitle =', "unknown key 'mesa' in [s.toml]: `mesa` was renamed `includes`."),
        (
            "title =",
            "includes = { mesa = 'tiny' }\ntitle =",
            "names an unknown size 'tiny' of the study 'mesa'; there are: full",
        ),
        ("title =", "includes = { mensa = 'small' }\ntitle =", "names an unknown study 'mensa'; did you mean mesa?"),
    ],
)
def test_a_message_names_the_place_of_the_mistake(old, new, expected):
    assert old in SMALL
    with pytest.raises(BadInput) as error:
        spec.parse_spec(SMALL.replace(old, new), "s.toml")
    assert expected in str(error.value)


def test_an_agent_is_evaluated_once_in_an_environment():
    repeated = SMALL + '[[agents]]\nagent = "random"\nenvironments = ["arms"]\n'
    with pytest.raises(BadInput, match="evaluates 'random' in 'arms' twice"):
        spec.parse_spec(repeated)
    spec.parse_spec(
        repeated.replace(
            'agent = "random"\nenvironments = ["arms"]\n', 'agent = "random"\nname = "r"\nenvironments = ["arms"]\n'
        )
    )


def test_environments_must_be_tables():
    with pytest.raises(BadInput, match=r"spec.environments.0\] must be a table of keys, not 1"):
        spec.parse_spec('title = "T"\nquestion = "Q"\nenvironments = [1]\nagents = []')


def test_entries_that_share_a_development_must_agree():
    repeated = SMALL + SMALL[SMALL.index('[[agents]]\nagent = "recurrent') :].replace(
        'environments = ["arms"]', 'environments = ["states"]'
    )
    assert len(spec.parse_spec(repeated).agents) == 3
    with pytest.raises(
        BadInput, match=r"gives another development in agents.2 than in agents.1 for 'recurrent', which both"
    ):
        spec.parse_spec(repeated[::-1].replace("2=snoitareneg", "3=snoitareneg", 1)[::-1])


def test_an_unreadable_file_is_reported(tmp_path):
    with pytest.raises(BadInput, match=r"'none.toml' cannot be read"):
        spec.read_spec(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"not UTF-8"):
        spec.read_spec(tmp_path / "bytes.toml")


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "windows.toml").write_text(SMALL, encoding="utf-8-sig")
    assert spec.read_spec(tmp_path / "windows.toml").title == "Small"


def test_the_documentation_lists_every_key_and_its_example_is_a_study():
    text = (Path(__file__).parents[1] / "docs" / "how-to" / "write-a-study.md").read_text(encoding="utf-8")
    for example in text.split("```toml")[1:]:
        plan.check_study(spec.parse_spec(example.split("```")[0]))
    documented = set(re.findall(r"^\| `?(top|\[+\w+\]+)`? \| `(\w+)`", text, re.MULTILINE))
    keys = {("top", key) for key in spec.StudyFile.model_fields if key not in ("environments", "agents", "sweep")}
    keys |= {("[[environments]]", key) for key in spec.StudyEnvironment.model_fields}
    keys |= {("[[agents]]", key) for key in spec.StudyAgent.model_fields}
    keys |= {("[sweep]", key) for key in spec.Sweep.model_fields}
    assert documented == keys


def test_the_default_study_has_five_seeds_wherever_development_is_random():
    agents = [agent for agent in spec.read_spec().agents if not agent.development.startswith("single_lifetime")]
    assert len(agents) >= 10 and all(len(agent.seeds) >= 5 for agent in agents)
    assert all(budget.num_runs >= 5 for budget in budgets().values())
