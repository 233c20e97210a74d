"""Devaluation of an outcome in the middle of a lifetime: whose behavior changes without new experience?

The classical test of goal-directed behavior (Adams and Dickinson 1981): after learning, an outcome loses its value
without being connected with the actions that bring it. An agent with a model can change its actions at once; an agent
with action values alone must first act and experience the outcome anew. Here the weight of a drive changes in the
human-written reward function.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.agents import neural_model_based
from ontogeny.agents.neural_updates import NeuralSettings
from ontogeny.errors import BadInput, require_finite_learning
from ontogeny.rollouts import Carry
from ontogeny.stages.assembly import make_agent, make_steering
from ontogeny.studies.neural.learners import MAX_SEGMENTS, build_agent, build_env, lifetime_key, model_noise_key
from ontogeny.studies.neural.learning_curves import episodes_of_lifetime
from ontogeny.studies.neural.lifetime_segments import begin, compile_segment, concatenate, split_steps
from ontogeny.trees import finite_by_name
from ontogeny.types import Agent, Environment, Key, Steering, Trajectory

AGENT, MODEL_FREE = "neural_model_based", "q_learning"
NUM_UPDATES = 500  # of actor and critic in imagination, between the change of the drive and the next action


class RecordedOutcome(NamedTuple):
    """What is kept of a step."""

    outcome: Array
    ends_episode: Array


class Lifetime(NamedTuple):
    """A lifetime up to the change of the drive."""

    key: Key
    env: Environment
    carry: Carry
    num_steps: int


def record_outcome(env: Environment, carry: Carry, step: Trajectory) -> RecordedOutcome:
    """Keeps the outcome features of a step, and whether an episode ended with it."""
    del env
    return RecordedOutcome(step.outcome, carry.percept.first)


def measure_devaluation(
    env_text: str,
    seed: int,
    num_steps: int,
    feature: str,
    weight: float,
    *,
    num_test_steps: int = 400,
    num_updates: int = NUM_UPDATES,
    **settings: Any,
) -> dict[str, float]:
    """How much of an outcome agents bring about per episode, before and after its drive changes.

    The agent learns for one lifetime, with the drives that the environment proposes, and so does a tabular model-free
    agent where observations are numbers. Then the drive of one outcome feature changes. In all conditions but the last,
    nothing is learned from then on from steps in the environment.

    Args:
        env_text: Such as `foraging:num_episodes=250` or `gymnax:Catch-bsuite,steps=9000`.
        seed: Determines the lifetime; both agents have the same task.
        num_steps: Of the lifetime before the change, at most those of the environment.
        feature: The outcome feature.
        weight: Its drive after the change.
        num_test_steps: After the change; the episode that it interrupts is not counted.
        num_updates: Of actor and critic, in the two conditions in which they are trained for the new drives.
        settings: Of `neural_model_based`.

    Returns:
        The amount of the feature per episode: `before`, of the policy in the last steps before the change; `as before`,
        of the same policy after it; `retrained in imagination`; `retrained on replayed steps`, whose rewards are those
        of the new drives, without imagination; `search`, in which a tree search with the new drives begins with the old
        policy; and for the model-free agent `model-free, before`, `model-free, frozen`, and
        `model-free, online`, in which it learns from new steps.

    Raises:
        BadInput: The environment has no such feature.
    """
    env = build_env(env_text)
    if feature not in env.spec.outcome_features:
        raise BadInput(f"the environment '{env.spec.name}' has no outcome feature '{feature}'")
    amount = partial(_amount_per_episode, env.spec.outcome_features.index(feature))
    drives = make_steering(env, **{feature: weight})
    choice = plugins.format_choice(AGENT, settings)
    lifetime, before = _learn(choice, env, seed, num_steps)
    agent = make_agent(AGENT, env, drives, **settings)
    planner = make_agent(AGENT, env, drives, **settings | {"planner": "search"})
    retrain = partial(_retrain, env, drives, lifetime, num_updates)
    test = partial(_continue, drives=drives, num_steps=num_test_steps)
    amounts = {
        "before": amount(before, num_test_steps),
        "as before": amount(test(lifetime, agent, learning=False)),
        "retrained in imagination": amount(test(retrain(settings), agent, learning=False)),
        "retrained on replayed steps": amount(
            test(retrain(settings | {"ablation": "no_imagination"}), agent, learning=False)
        ),
        "search": amount(test(lifetime, planner, learning=False)),
    }
    if not env.spec.num_observations:
        return amounts
    free_lifetime, free_before = _learn(MODEL_FREE, env, seed, num_steps)
    free_agent = make_agent(MODEL_FREE, env, drives)
    return amounts | {
        "model-free, before": amount(free_before, num_test_steps),
        "model-free, frozen": amount(test(free_lifetime, free_agent, learning=False)),
        "model-free, online": amount(test(free_lifetime, free_agent, learning=True)),
    }


def _learn(agent_text: str, env: Environment, seed: int, num_steps: int) -> tuple[Lifetime, RecordedOutcome]:
    """A lifetime in which an agent learns with the proposed drives, and the outcomes of its steps."""
    agent, steering = build_agent(agent_text, env)
    key = lifetime_key(seed)
    num_segments, length = split_steps(num_steps, MAX_SEGMENTS)
    carry = jax.jit(lambda key: begin(key, agent, env, steering, agent.genome(key)))(key)
    program = compile_segment(agent, env, steering, length, True, record_outcome)
    records = []
    for segment in range(num_segments):
        carry, recorded = program.run(key, jnp.int32(segment * length), carry)
        records.append(recorded)
    return Lifetime(key, env, carry, num_steps), concatenate(records)


def _continue(lifetime: Lifetime, agent: Agent, *, drives: Steering, num_steps: int, learning: bool) -> RecordedOutcome:
    """The outcomes of the steps after the change."""
    program = compile_segment(agent, lifetime.env, drives, num_steps, learning, record_outcome)
    return program.run(lifetime.key, jnp.int32(lifetime.num_steps), lifetime.carry)[1]


def _retrain(
    env: Environment, drives: Steering, lifetime: Lifetime, num_updates: int, settings: dict[str, Any]
) -> Lifetime:
    """The lifetime with a policy that was trained for the new drives, without a step in the environment."""
    complete = plugins.default_settings("agents", AGENT) | settings
    params = neural_model_based.make_params(env.spec, drives, NeuralSettings(**complete))
    retrain = jax.jit(partial(neural_model_based.retrain_policy, params), static_argnums=2)
    state = retrain(model_noise_key(lifetime.key), lifetime.carry.state, num_updates)
    is_finite = finite_by_name({"weights": state.weights.content})
    num_finite_steps = {name: lifetime.num_steps - (not holds) for name, holds in is_finite.items()}
    require_finite_learning(num_finite_steps, lifetime.num_steps)
    return lifetime._replace(carry=lifetime.carry._replace(state=state))


def _amount_per_episode(index: int, recorded: RecordedOutcome, num_last_steps: int | None = None) -> float:
    """The mean amount of an outcome feature in the episodes after the first, which is incomplete."""
    last = slice(None if num_last_steps is None else -num_last_steps, None)
    amounts, ends = np.asarray(recorded.outcome)[last, index], np.asarray(recorded.ends_episode)[last]
    return float(np.mean(episodes_of_lifetime(amounts, ends).returns[1:]))
