"""The quick check of an agent: its signatures, what its functions read and return, and its first steps.

JAX records the program of each function. Where a program returns an array as it was received, a rule such as "`act`
changes activations only" holds for all values. Where it does not, whole lifetimes show whether the values change. The
check takes a fraction of a second, so that every agent from outside of the package is checked where it is loaded.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import trees
from ontogeny.contracts.base import (
    QUICK_COMPILATION,
    RecordedProgram,
    Recorder,
    is_passed_through,
    is_used,
    require,
    require_same_types,
)
from ontogeny.rollouts import Carry, perceive
from ontogeny.types import Agent, Environment, Key, State, Steering, Transition, Weights

NUM_LIFETIMES = 2
NUM_STEPS = 64  # where no rule depends on values
MAX_STEPS = 2000  # where a rule depends on values
RULES = {  # what an agent must not do, by the name of the check
    "act_weights": "`act` changed weights; it may change activations only: move what it remembers within a lifetime to "
    "the activations, and what it learns to `learn`",
    "act_scratch": "`act` read `weights.scratch`, which is for `learn` only: what `act` needs belongs into "
    "`weights.content`",
    "learn_activations": "`learn` changed activations; it may change weights only: move that update to `act`",
    "learn_weights": "`learn` changed weights although `learning` is False: build the agent with `learning=True`, so "
    "that it is trained, evaluated and audited as an agent that learns by its weights",
    "reset_weights": "`reset` changed weights; it may restore activations only: return `state.weights` as they are",
    "reset_activations": "`reset` did not restore the initial activations, those that `init` returns",
}


class AgentPrograms(NamedTuple):
    """What JAX recorded of the functions of an agent."""

    reset: RecordedProgram
    act: RecordedProgram
    learn: RecordedProgram


class LifetimeChecks(NamedTuple):
    """What was observed in the first steps of lifetimes."""

    actions: Array  # [B, T]
    by_step: Mapping[str, Array]  # whether a rule holds at each step, [B, T]
    at_end: Mapping[str, Array]  # whether a rule holds of `reset` after the last step, [B]
    state: State  # at the end


def check_agent_first_steps(
    agent: Agent,
    env: Environment,
    steering: Steering,
    files: Sequence[str] = (),
    *,
    seed: int = 0,
    every_rule: bool = False,
) -> None:
    """Checks signatures, the flag `learning`, and what `act`, `learn` and `reset` may read and change.

    Args:
        env: An environment in which it can act.
        files: The user's files, which messages about errors inside of them name.
        seed: Draws genome, tasks and all chance.
        every_rule: Whether values are compared also for rules that the programs show to hold.

    Raises:
        ContractViolation: The agent violates the contract.
    """
    for flag in ("learning", "privileged"):
        state = getattr(agent, flag)
        require(isinstance(state, bool), f"`{flag}` of an agent must be True or False, not {state!r}")
    recorder = Recorder(files)
    programs = _record_agent(agent, env, steering, recorder)
    _, state, _ = programs.learn.arguments
    if agent.learning and is_passed_through(state.weights, programs.learn.results[0].weights):
        message = "`learning` is True, but `learn` returns the weights as it received them: an agent that does not "
        require(False, message + "learn by its weights is built with `learning=False`")
    open_rules = _rules_that_depend_on_values(agent, programs)
    num_steps = min(env.spec.num_steps, MAX_STEPS if open_rules else NUM_STEPS)
    if every_rule:
        open_rules = tuple(rule for rule in RULES if rule != "learn_weights" or not agent.learning)
    run_lifetime = partial(_run_lifetime, agent, env, steering, num_steps, open_rules)
    run = jax.jit(jax.vmap(run_lifetime), compiler_options=QUICK_COMPILATION)
    keys = jax.random.split(jax.random.key(seed), NUM_LIFETIMES)
    with recorder.explain("the first steps of the agent fail"):
        checks, repeated = (jax.device_get(run(keys)) for _ in range(2))
    _require_actions(checks.actions, env.spec.num_actions)
    for rule, holds in (checks.by_step | checks.at_end).items():
        require(bool(np.all(holds)), RULES[rule])
    require(
        trees.bitwise_equal(checks, repeated),
        "`init`, `act` or `learn` is not a function of its key: the same keys gave two different lifetimes",
    )


def _record_agent(agent: Agent, env: Environment, steering: Steering, recorder: Recorder) -> AgentPrograms:
    """The programs of the functions of an agent, which return what they must and keep all shapes and types."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    with recorder.explain("`reset` fails"):
        env_state, time_step = jax.eval_shape(env.reset, key)
    genome = recorder.record("genome", agent.genome, key).shapes
    state = recorder.record("init", agent.init, key, genome).shapes
    require(
        isinstance(state, State) and isinstance(state.weights, Weights),
        f"`init` must return State(Weights(...), activations), not {type(state).__name__}",
    )
    reset = recorder.record("reset", agent.reset, state)
    _require_state("reset", reset.shapes)
    require_same_types("reset", state, reset.shapes)
    perceive_step = partial(perceive, agent, env, steering)
    percept = recorder.record("steering", partial(perceive_step, action=None), env_state, time_step).shapes
    act = recorder.record_pair("act", agent.act, key, state, percept)
    action, acted = act.shapes
    is_whole_number = jnp.shape(action) == () and jnp.issubdtype(action.dtype, jnp.integer)
    require(is_whole_number, f"`act` must return one whole number, not {action.dtype}{list(action.shape)}")
    _require_state("act", acted)
    require_same_types("act", state, acted)
    with recorder.explain("`step` fails"):
        env_state, time_step = jax.eval_shape(env.step, key, env_state, action)
    next_percept = recorder.record("steering", perceive_step, env_state, time_step, action).shapes
    transition = Transition(percept, action, next_percept, time_step.final_observation)
    learn = recorder.record_pair("learn", agent.learn, key, acted, transition)
    _require_state("learn", learn.shapes[0])
    require_same_types("learn", state, learn.shapes[0])
    return AgentPrograms(reset, act, learn)


def _require_state(name: str, state: object) -> None:
    """A function must return a `State` with `Weights` in it."""
    is_state = isinstance(state, State) and isinstance(state.weights, Weights)
    require(is_state, f"`{name}` must return a `State` with `Weights` and activations, not {type(state).__name__}")


def _rules_that_depend_on_values(agent: Agent, programs: AgentPrograms) -> tuple[str, ...]:
    """The rules that the programs do not show to hold for all values."""
    (reset_state,), (_, act_state, _), (_, learn_state, _) = (program.arguments for program in programs)
    action, acted = programs.act.results
    learned, _ = programs.learn.results
    is_read = is_used(programs.act, act_state.weights.scratch, (action, acted.activations, acted.weights.content))
    proofs = {
        "act_weights": is_passed_through(act_state.weights, acted.weights),
        "act_scratch": not is_read,
        "learn_activations": is_passed_through(learn_state.activations, learned.activations),
        "learn_weights": agent.learning or is_passed_through(learn_state.weights, learned.weights),
        "reset_weights": is_passed_through(reset_state.weights, programs.reset.results.weights),
    }
    return tuple(rule for rule, is_proved in proofs.items() if not is_proved)


def _run_lifetime(
    agent: Agent, env: Environment, steering: Steering, num_steps: int, open_rules: tuple[str, ...], key: Key
) -> LifetimeChecks:
    """The first steps of one lifetime, in which `learn` is called where the agent learns; without the axis B."""
    task_key, genome_key, init_key, scramble_key, steps_key = jax.random.split(key, 5)
    initial = agent.init(init_key, agent.genome(genome_key))
    env_state, time_step = env.reset(task_key)
    percept = perceive(agent, env, steering, env_state, time_step, None)

    def step(carry: Carry, key: Key) -> tuple[Carry, tuple[Array, dict[str, Array]]]:
        state, env_state, percept = carry
        env_key, act_key, learn_key = jax.random.split(key, 3)
        action, acted = agent.act(act_key, state, percept)
        env_state, time_step = env.step(env_key, env_state, action)
        carried_out = jnp.where(jnp.greater_equal(time_step.forced_action, 0), time_step.forced_action, action)
        next_percept = perceive(agent, env, steering, env_state, time_step, carried_out)
        transition = Transition(percept, carried_out, next_percept, time_step.final_observation)
        learned, _ = agent.learn(learn_key, acted, transition)

        def is_independent_of_scratch() -> Array:
            scratch = trees.scramble(scramble_key, state.weights.scratch)
            scrambled = state._replace(weights=state.weights._replace(scratch=scratch))
            other_action, other_acted = agent.act(act_key, scrambled, percept)
            return trees.has_same_bits((action, acted.activations), (other_action, other_acted.activations))

        tests: dict[str, Callable[[], Array]] = {
            "act_weights": lambda: trees.has_same_bits(acted.weights, state.weights),
            "act_scratch": is_independent_of_scratch,
            "learn_activations": lambda: trees.has_same_bits(learned.activations, acted.activations),
            "learn_weights": lambda: trees.has_same_bits(learned.weights, acted.weights),
        }
        holds = {rule: test() for rule, test in tests.items() if rule in open_rules}
        state = learned if agent.learning else acted
        return Carry(state, env_state, next_percept), (action, holds)

    carry = Carry(initial, env_state, percept)
    carry, (actions, holds) = jax.lax.scan(step, carry, jax.random.split(steps_key, num_steps))
    final = last = carry.state
    if "reset_activations" in open_rules:  # these lifetimes may have left the activations as they were
        last = final._replace(activations=trees.scramble(scramble_key, final.activations))
    at_end = {"reset_activations": trees.has_same_bits(agent.reset(last).activations, initial.activations)}
    if "reset_weights" in open_rules:
        weights = trees.scramble(scramble_key, final.weights)  # these lifetimes may have left the weights as they were
        at_end["reset_weights"] = trees.has_same_bits(agent.reset(final._replace(weights=weights)).weights, weights)
    return LifetimeChecks(actions, holds, at_end, final)


def _require_actions(actions: np.ndarray, num_actions: int) -> None:
    """Every action must be one that the environment has."""
    outside = actions[(actions < 0) | (actions >= num_actions)]
    message = f"`act` returned the action {outside[0] if len(outside) else ''}, there are 0 to {num_actions - 1}: it "
    require(len(outside) == 0, message + "must return a whole number below `num_actions` of the spec")
