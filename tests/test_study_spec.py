"""A study is data: what it may say, and where a mistake in it is found."""

import pytest

from ontogeny.errors import BadInput
from ontogeny.studies import spec

SMALL = """
title = "Small"
question = "What?"
[[environments]]
name = "arms"
env = "bandit:num_arms=3,num_pulls=10"
tasks = 20
[[environments]]
name = "states"
env = "random_mdp:num_episodes=2"
tasks = 10
replay = false
[[agents]]
agent = "random"
environments = ["arms", "states"]
[[agents]]
agent = "recurrent:hidden_size=4"
model = "evolution"
development = "evolution:num_generations=2"
developed_on = "arms"
environments = ["arms"]
seeds = [0, 3]
"""


def test_a_small_spec_reads_as_it_is_written():
    study = spec.parse(SMALL)
    assert [row.name for row in study.environments] == ["arms", "states"]
    assert study.environments[0].replay and not study.environments[1].replay
    assert study.agents[0].model == "reference" and study.agents[0].development == "single_lifetime"
    assert study.agents[1].name == "recurrent" and study.agents[1].seeds == (0, 3)
    assert study.agents[0].home("states") == "states" and study.agents[1].home("states") == "arms"


def test_the_default_study_is_sound():
    study = spec.read()
    assert {row.model for row in study.agents} == {"evolution", "code", "reference"}
    assert study.question.endswith("?") and "\n" not in study.question


def test_the_seed_of_the_command_line_goes_over_that_of_the_spec():
    assert spec.parse(SMALL).seed == 0
    assert spec.parse(SMALL, seed=7).seed == 7
    assert spec.parse(SMALL, seed=7).digest != spec.parse(SMALL).digest


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title =", "titel =", "s.toml: there is no key 'titel'; did you mean title"),
        ('title = "Small"', "", "s.toml: the key 'title' is missing"),
        ('title = "Small"', "title = 3", "s.toml, title must be of type str"),
        ("replay = false", "reply = false", "s.toml, environments[1]: there is no key 'reply'; did you mean replay"),
        ("tasks = 10", "tasks = 1", "s.toml, environments[1], tasks must be at least 2"),
        ("tasks = 10", "tasks = true", "s.toml, environments[1], tasks must be of type int"),
        (
            "bandit:arms",
            "bandid:arms",
            "s.toml, environments[0], environment: there is no environment 'bandid'; did you mean bandit",
        ),
        (
            "arms=3",
            "arm=3",
            "s.toml, environments[0], environment: there is no setting of 'bandit' named 'arm'; did you mean arms",
        ),
        ('agent = "random"', 'agent = "randon"', "s.toml, agents[0], agent: there is no agent 'randon'"),
        ('"evolution"', '"evolved"', "s.toml, agents[1], model: there is no model of development 'evolved'"),
        (
            'developed_on = "arms"',
            'developed_on = "arm"',
            "s.toml, agents[1], developed_on: there is no environment in this",
        ),
        (
            '["arms", "states"]',
            '["arms", "state"]',
            "s.toml, agents[0], environments: there is no environment in this spec",
        ),
        ('["arms", "states"]', "[]", "s.toml, agents[0], environments must be a list of at least one str"),
        ("seeds = [0, 3]", "seeds = [3, 3]", "s.toml, agents[1]: the seed '3' is there twice"),
        ('name = "states"', 'name = "arms"', "s.toml: the environment 'arms' is there twice"),
        ("title =", "title", "s.toml is not valid TOML"),
        ("title =", f"x = {'[' * 9999}{']' * 9999}\ntitle =", "s.toml is not valid TOML"),
        ('title = "Small"', 'title = " "', "s.toml, title must not be empty"),
        ('question = "What?"', 'question = ""', "s.toml, question must not be empty"),
        ('question = "What?"', "question = 'Q'\nseed = -1", "s.toml, seed must be from 0 to 4294967295, not -1"),
        ('question = "What?"', f"question = 'Q'\nseed = {'9' * 400}", "seed must be from 0 to 4294967295, not 999"),
        ("seeds = [0, 3]", "seeds = [0, -3]", "s.toml, agents[1], seeds must be from 0 to 4294967295, not -3"),
        ("seeds = [0, 3]", "seeds = [0, 3.0]", "s.toml, agents[1], seeds must be a list of at least one int"),
        ("tasks = 10", "tasks = nan", "s.toml, environments[1], tasks must be of type int, not nan"),
        ("tasks = 10", "tasks = 9999999999", "s.toml, environments[1], tasks must be at most 2147483647"),
        ("tasks = 10", "tasks = 10\ndrives = 3", "environments[1], drives must be a table of facts and weights, not 3"),
        (
            "tasks = 10",
            "tasks = 10\ndrives = {reward = true}",
            "environments[1], drives: the weight of 'reward' must be a",
        ),
        ("tasks = 10", "tasks = 10\ndrives = {reward = nan}", "the weight of 'reward' must be finite, not nan"),
        ("tasks = 10", f"tasks = 10\ndrives = {{reward = 1{'0' * 400}}}", "the weight of 'reward' must be finite"),
        ("seeds = [0, 3]", "drives = {payout = inf}", "agents[1], drives: the weight of 'payout' must be finite"),
        (
            'name = "states"',
            'name = "!"',
            "s.toml, environments[1], name must be one line with a letter or a digit in it",
        ),
        (
            'name = "states"',
            r'name = "a\nb"',
            "s.toml, environments[1], name must be one line with a letter or a digit",
        ),
        (
            'name = "states"',
            f'name = "{"x" * 101}"',
            "s.toml, environments[1], name must be at most 100 bytes long, not 101",
        ),
        (
            "arms=3",
            "arms=3,arms=4",
            "s.toml, environments[0], environment: 'bandit:num_arms=3,num_arms=4,num_pulls=10' names the setting 'num_arms'",
        ),
    ],
)
def test_a_mistake_is_said_with_its_place(old, new, expected):
    assert old in SMALL
    with pytest.raises(BadInput) as error:
        spec.parse(SMALL.replace(old, new), "s.toml")
    assert expected in str(error.value)


def test_an_agent_measured_twice_in_a_env_is_refused():
    again = SMALL + '[[agents]]\nagent = "random"\nenvironments = ["arms"]\n'
    with pytest.raises(BadInput, match="measurement of 'random in arms' is there twice"):
        spec.parse(again)
    spec.parse(
        again.replace('agent = "random"\nenvironments = ["arms"]\n', 'agent = "random"\nname = "r"\nenvironments = ["arms"]\n')
    )


def test_the_envs_must_be_tables():
    with pytest.raises(BadInput, match=r"spec, environments: write at least one \[\[environments\]\] table"):
        spec.parse('title = "T"\nquestion = "Q"\nenvironments = [1]\nagents = []')


def test_rows_that_share_a_development_say_the_same_of_it():
    again = SMALL + SMALL[SMALL.index('[[agents]]\nagent = "recurrent') :].replace(
        'environments = ["arms"]', 'environments = ["states"]'
    )
    assert len(spec.parse(again).agents) == 3
    with pytest.raises(
        BadInput, match=r"agents\[2\]: 'recurrent' is developed in 'arms' by agents\[1\] too, .* development"
    ):
        spec.parse(again[::-1].replace("2=snoitareneg", "3=snoitareneg", 1)[::-1])


def test_a_spec_that_cannot_be_read(tmp_path):
    with pytest.raises(BadInput, match=r"'none.toml' cannot be read"):
        spec.read(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match=r"not UTF-8"):
        spec.read(tmp_path / "bytes.toml")
