"""The checks of environments: each detects a planted fault that no other check detects."""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import contracts, plugins
from ontogeny.contracts.environments import NOTES, RULES
from ontogeny.contracts.provider_checks import COLUMNS, check_provider, format_row
from ontogeny.environments.base import choose_tree, first_feature
from ontogeny.errors import ContractViolation
from ontogeny.types import Environment, EnvSpec, HostEnvironment, TabularTask, TimeStep

LENGTH, LIMIT = 5, 6
SPEC = EnvSpec(
    name="corridor", num_actions=2, num_observations=LENGTH, observation_shape=(), outcome_features=("exit",),
    num_steps=30, horizon=LIMIT, drives=(("exit", 1.0),),
)  # fmt: skip


class CorridorTask(NamedTuple):
    """Whether the first action leads to the right."""

    is_mirrored: jax.Array


class CorridorState(NamedTuple):
    """The state of the corridor."""

    task: CorridorTask
    cell: jax.Array
    steps: jax.Array


def reset(key):
    task_key, start_key = jax.random.split(key)
    task = CorridorTask(jax.random.bernoulli(task_key))
    state = CorridorState(task, jax.random.randint(start_key, (), 0, LENGTH - 1), jnp.int32(0))
    return state, TimeStep(state.cell, state.cell, jnp.zeros(1), jnp.bool_(True), jnp.float32(1))


def step(key, state, action):
    change = jnp.where(action == state.task.is_mirrored, -1, 1)
    cell, steps = jnp.maximum(state.cell + change, 0), state.steps + 1
    is_exit = cell == LENGTH - 1
    is_over = is_exit | (steps == LIMIT)
    begun = CorridorState(state.task, jax.random.randint(key, (), 0, LENGTH - 1), jnp.int32(0))
    next_state = choose_tree(is_over, begun, CorridorState(state.task, cell, steps))
    outcome = is_exit.astype(jnp.float32)[None]
    return next_state, TimeStep(next_state.cell, cell, outcome, is_over, 1 - outcome[0])


def reveal_task(state):
    move = jnp.where(state.task.is_mirrored, jnp.array([1, -1]), jnp.array([-1, 1]))
    target = jnp.clip(jnp.arange(LENGTH)[:, None] + move, 0, LENGTH - 1)
    ends = (target == LENGTH - 1).astype(jnp.float32)
    return TabularTask(jax.nn.one_hot(target, LENGTH), ends[..., None], ends, LIMIT - state.steps)


CORRIDOR = Environment(SPEC, reset, step, first_feature, reveal_task)


class HostCorridor:
    """The corridor as Python objects, [N]; subclasses plant faults."""

    history = 0  # of a fault: the last six actions of all objects

    def __init__(self, seeds, *, strict=False):
        self.random = [np.random.default_rng(seed) for seed in seeds]
        self.strict = strict
        self.is_mirrored = np.array([random.integers(2) for random in self.random])
        self.is_over = np.zeros(len(seeds), bool)

    def reset(self):
        self.steps = np.zeros(len(self.random), np.int32)
        self.cell = self.draw_starts()
        nothing = np.zeros((len(self.cell), 1), np.float32)
        return self.after_reset(TimeStep(self.cell, self.cell, nothing, *self.flags(True, 1), -np.ones_like(self.cell)))

    def step(self, actions):
        change = np.where(actions == self.is_mirrored, -1, 1).astype(np.int32)
        final = np.maximum(self.cell + change, 0)
        self.steps = self.steps + 1
        is_exit = final == LENGTH - 1
        is_over = is_exit | (self.steps == LIMIT)
        self.cell = np.where(is_over, self.draw_starts(), final)
        self.steps = np.where(is_over, 0, self.steps)
        outcome = is_exit.astype(np.float32)
        return self.after_step(
            TimeStep(self.cell, final, outcome[:, None], is_over, 1 - outcome, -np.ones_like(self.cell)), actions
        )

    def draw_starts(self):
        return np.array([random.integers(LENGTH - 1) for random in self.random], np.int32)

    def flags(self, first, discount):
        return np.full(len(self.cell), first), np.full(len(self.cell), discount, np.float32)

    def after_reset(self, time_step):
        return time_step

    def after_step(self, time_step, actions):
        return time_step

    def close(self):
        pass


class Impure(HostCorridor):
    def after_step(self, time_step, actions):
        noise = np.random.default_rng().random(time_step.outcome.shape, np.float32)
        return time_step._replace(outcome=time_step.outcome + noise)


class Remembering(HostCorridor):
    """Starts where the last actions of earlier objects say."""

    def reset(self):
        time_step = super().reset()
        self.cell = (self.cell + HostCorridor.history % 7) % (LENGTH - 1)
        return time_step._replace(observation=self.cell, final_observation=self.cell)

    def after_step(self, time_step, actions):
        HostCorridor.history = (2 * HostCorridor.history + int(actions[0])) % 64
        return time_step


class Sharing(HostCorridor):
    def after_step(self, time_step, actions):
        return time_step._replace(outcome=time_step.outcome + len(actions))


class Seedless(HostCorridor):
    def __init__(self, seeds, *, strict=False):
        super().__init__([3] * len(seeds), strict=strict)


class Deaf(HostCorridor):
    def step(self, actions):
        return super().step(self.steps % 2)


class Late(HostCorridor):
    def after_reset(self, time_step):
        return time_step._replace(first=~time_step.first)


class Generous(HostCorridor):
    def after_reset(self, time_step):
        return time_step._replace(outcome=time_step.outcome + 1)


class Undefined(HostCorridor):
    def after_step(self, time_step, actions):
        outcome = np.where(time_step.first[:, None], time_step.outcome, np.nan)
        return time_step._replace(outcome=outcome.astype(np.float32))


class Disagreeing(HostCorridor):
    def after_step(self, time_step, actions):
        return time_step._replace(final_observation=(time_step.final_observation + 1) % LENGTH)


class Forgetful(HostCorridor):
    def after_step(self, time_step, actions):
        is_terminated = time_step.discount == 0
        final = np.where(is_terminated, time_step.final_observation, time_step.observation)
        return time_step._replace(final_observation=final)


class Discounting(HostCorridor):
    def after_step(self, time_step, actions):
        return time_step._replace(discount=time_step.discount * np.float32(0.9))


class Unending(HostCorridor):
    def after_step(self, time_step, actions):
        return time_step._replace(discount=np.where(time_step.first, time_step.discount, 0).astype(np.float32))


class Forcing(HostCorridor):
    def after_step(self, time_step, actions):
        return time_step._replace(forced_action=actions + 2)


class Retyping(HostCorridor):
    def after_step(self, time_step, actions):
        return time_step._replace(first=time_step.first.astype(np.int32))


class Undeclared(HostCorridor):
    """Declares a smaller space than its spec."""

    def after_step(self, time_step, actions):
        if self.strict and (time_step.final_observation == LENGTH - 1).any():
            raise ContractViolation("returned an observation outside of its observation space")
        return time_step


HOST_FAULTS = [  # the check, the fault, a change of the spec, a part of the message
    ("spec", HostCorridor, {"drives": (("exist", 1.0),)}, "did you mean exit"),
    ("spec", HostCorridor, {"observation_bounds": (1.0, 0.0)}, "must be a lower and an upper bound"),
    ("types", Retyping, {}, "`first` of the time step that `step` returns must be one truth value"),
    ("types", HostCorridor, {"outcome_features": ("exit", "food")}, "names 2 outcome features"),
    ("same_seed", Impure, {}, "the same keys gave two different lifetimes"),
    ("history", Remembering, {}, "depends on what happened before its `reset`"),
    ("batch", Sharing, {}, "depends on the others in its batch"),
    ("different_seeds", Seedless, {}, "is deterministic, or it ignores its seed"),
    ("actions", Deaf, {}, "actions have no effect"),
    ("initial_step", Late, {}, "`reset` must begin with `first`"),
    ("initial_outcome", Generous, {}, "'exit' happened before the first action"),
    ("observation_space", Undeclared, {}, "outside of its observation space"),
    ("numbers", Undefined, {}, "the outcome after step 1 holds a number that is not finite"),
    ("final_observation", Disagreeing, {}, "is not the observation, but no episode begins there"),
    ("truncation", Forgetful, {}, "truncated episodes the final observation is the first one of the next episode"),
    ("termination", Discounting, {}, "it says whether the episode has terminated"),
    ("termination", Unending, {}, "a discount of 0 must come with `first`"),
    ("forced_actions", Forcing, {}, "which is neither -1 nor an action"),
    ("episode_limit", HostCorridor, {"horizon": LIMIT - 1}, "more than the 5 steps of `horizon`"),
]


def violated(report):
    return {result.check: result.violation for result in report.results if result.violation}


@pytest.mark.parametrize(
    ("check", "fault", "changes", "message"), HOST_FAULTS, ids=[f"{row[0]}-{row[1].__name__}" for row in HOST_FAULTS]
)
def test_only_its_own_check_detects_a_planted_fault(check, fault, changes, message):
    HostCorridor.history = 0
    report = contracts.run_env_checks(HostEnvironment(SPEC._replace(**changes), fault, first_feature))
    violations = violated(report)
    assert list(violations) == [check] and message in violations[check]
    assert bool(report.violations) == (check not in NOTES)
    if report.violations:
        with pytest.raises(ContractViolation, match=re.escape(message)):
            contracts.check_env(HostEnvironment(SPEC._replace(**changes), fault, first_feature))


def with_moving_task(key, state, action):
    state, time_step = step(key, state, action)
    return state._replace(task=CorridorTask(state.task.is_mirrored ^ time_step.first)), time_step


def with_other_types(key, state, action):
    state, time_step = step(key, state, action)
    return state._replace(steps=state.steps.astype(float)), time_step


@jax.custom_batching.custom_vmap
def number_of_lifetimes(number):
    return number


@number_of_lifetimes.def_vmap
def _(axis_size, in_batched, number):
    del in_batched
    return number * axis_size, True


def with_shared_steps(key, state, action):
    state, time_step = step(key, state, action)
    shared = number_of_lifetimes(time_step.outcome + 1)
    return state, time_step._replace(outcome=time_step.outcome + shared)


def reveal_too_little(state):
    tables = reveal_task(state)
    return tables._replace(transitions=tables.transitions[:-1])


JAX_FAULTS = [
    ("task", {"step": with_moving_task}, "the task changed within a lifetime"),
    ("types", {"step": with_other_types}, "`step` returns a state of another structure"),
    ("batch", {"step": with_shared_steps}, "depends on the others in its batch"),
    ("numbers", {"score": lambda outcome: outcome[0] + jnp.inf}, "the score after step 1 is not finite"),
    ("observation_space", {"spec": SPEC._replace(num_observations=4), "reveal_task": None}, "there are 0 to 3"),
    ("revealed_task", {"reveal_task": reveal_too_little}, "have other shapes than the spec"),
]


@pytest.mark.parametrize(("check", "changes", "message"), JAX_FAULTS, ids=[row[0] for row in JAX_FAULTS])
def test_only_its_own_check_detects_a_fault_planted_in_jax(check, changes, message):
    violations = violated(contracts.run_env_checks(CORRIDOR._replace(**changes)))
    assert list(violations) == [check] and message in violations[check]


def test_an_environment_without_a_fault_passes_every_check():
    in_jax = contracts.run_env_checks(CORRIDOR)
    on_host = contracts.run_env_checks(HostEnvironment(SPEC, HostCorridor, first_feature))
    assert [result.check for result in in_jax.results] == list(RULES) and len(RULES) >= 12
    assert [result.check for result in on_host.results] == [name for name in RULES if name != "revealed_task"]
    assert not violated(in_jax) and not violated(on_host)
    assert in_jax.steps_per_second > 0 < on_host.steps_per_second


def test_every_check_has_a_planted_fault():
    assert {row[0] for row in (*HOST_FAULTS, *JAX_FAULTS)} == set(RULES)


def test_whether_a_lifetime_is_over_is_one_truth_value():
    contracts.check_env_first_steps(CORRIDOR._replace(is_over=lambda state: state.steps >= 3))
    with pytest.raises(ContractViolation, match="`is_over` must return one truth value"):
        contracts.check_env_first_steps(CORRIDOR._replace(is_over=lambda state: state.steps))


def test_observations_stay_within_declared_bounds():
    def observe(state, time_step):
        numbers = jnp.array([time_step.observation, time_step.final_observation], jnp.float32)[:, None] / 4
        return state, time_step._replace(observation=numbers[0], final_observation=numbers[1])

    env = Environment(
        SPEC._replace(num_observations=0, observation_shape=(1,), observation_bounds=(0.0, 1.0)),
        lambda key: observe(*reset(key)),
        lambda key, state, action: observe(*step(key, state, action)),
        first_feature,
    )
    assert not violated(contracts.run_env_checks(env))
    narrow = env._replace(spec=env.spec._replace(observation_bounds=(0.0, 0.9)))
    violations = violated(contracts.run_env_checks(narrow))
    assert list(violations) == ["observation_space"]
    assert "holds 1, outside of the spec, whose `observation_bounds` are 0 and 0.9" in violations["observation_space"]


PROVIDER = '''"""Corridors of another library, `corridors:ID`."""
from ontogeny.errors import BadInput
from test_environment_checks import CORRIDOR, SPEC, HostCorridor, Seedless, first_feature
from ontogeny.types import HostEnvironment

TAKES_ID = True

def build(*, id: str = ""):
    """Build the environment."""
    if id == "endless":
        raise BadInput("environment 'corridors:endless' has continuous actions")
    if id == "broken":
        return CORRIDOR._replace(spec=SPEC._replace(horizon=5))
    return HostEnvironment(SPEC, Seedless if id == "fixed" else HostCorridor, first_feature)

def list_ids():
    """The IDs."""
    return ["plain", "fixed", "broken", "endless"]
'''


@pytest.fixture
def provider(tmp_path):
    path = tmp_path / "corridors.py"
    path.write_text(PROVIDER, encoding="utf-8")
    return str(path)


def test_a_provider_is_checked_as_a_table(provider, call_cli):
    rows = list(check_provider(provider))
    assert [(row.num_passed, row.num_checks) for row in rows] == [(17, 17), (17, 17), (17, 18), (0, 0)]
    code, output, _ = call_cli("check", "env", provider)
    lines = output.splitlines()
    assert code == 0 and len(lines) == 6 and all(line.count("|") == len(COLUMNS) + 1 for line in lines)
    assert "| array of" not in output and "| 5 numbers | 2 | 6 | 17 of 17 |" in lines[2]
    assert "ignores its seed" in lines[3] and "17 of 18" in lines[4] and "continuous actions" in lines[5]
    assert format_row(rows[3]) == lines[5]


def test_the_command_prints_each_rule_notes_and_the_speed(provider, call_cli):
    code, output, _ = call_cli("check", "env", f"{provider}:fixed")
    lines = output.splitlines()
    assert code == 0 and len(lines) == 18 and lines[-1].startswith("speed: ")
    assert sum(line.startswith("passed: ") for line in lines) == 16
    assert [line for line in lines if line.startswith("note: different seeds")]
    code, output, error = call_cli("check", "env", f"{provider}:broken")
    assert code == 2 and "violated: no episode is longer than the horizon" in output
    assert error.count("\n") == 1 and "corridors.py', an episode took more than the 5 steps" in error


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in plugins.list_buildable("environments") if n != "relay"])
def test_own_environments_pass_every_check(name):
    assert not violated(contracts.run_env_checks(plugins.build("environments", name), seed=3))
