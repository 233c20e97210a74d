"""Chooses the action for which its learned content predicts a payout: a value-like prediction, queried by code.

For the environment `chain`. At the start of a trial the predictor says for each action how likely it leads to a payout;
the code takes the likelier action, or with probability `exploration_rate` a random one. The content learns by
prediction alone: after each lifetime `learn` trains it with experience replay (`agents.replay`) on that lifetime and
older ones, where each trial that ended in a payout is one example. The agent experiences many chains one after the
other, each with new links; weights persist, activations do not.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import explore
from ontogeny.agents.replay import Example, ReplayConfig, replay_agent
from ontogeny.content.base import build_predictor
from ontogeny.errors import BadInput, require_at_least, require_probability
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering, Transition

BUFFER_CAPACITY = 256  # lifetimes


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    content: str = "gru",
    size: int = 0,
    exploration_rate: float = 0.1,
    num_lifetimes: int = 1,
    num_updates: int = 1,
    replay_batch: int = 15,
) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of the environment `chain`.
        steering: Reward function; the agent does not use it.
        content: Name of the predictor.
        size: Hidden units or width of the predictor, 0 for its default.
        exploration_rate: Probability of a random action at the start of a trial, from 0 to 1.
        num_lifetimes: Lifetimes over which the learning rate of the predictor falls to zero, at least 1.
        num_updates: Updates after each lifetime, at least 1.
        replay_batch: Older lifetimes in each update, at least 0.

    Raises:
        BadInput: If the environment is not `chain`, or the content no predictor.
    """
    del steering
    if spec.name != "chain":
        raise BadInput(f"agent 'payout_predictor' is for the environment 'chain', not for '{spec.name}'")
    require_at_least(0, size=size, replay_batch=replay_batch)
    require_probability(exploration_rate=exploration_rate)
    require_at_least(1, num_lifetimes=num_lifetimes, num_updates=num_updates)
    A, T = spec.num_actions, spec.num_steps
    num_inputs = spec.num_observations + A + 4  # see `encode_percept`
    payout_index = num_inputs - 2
    predictor = build_predictor(content, num_inputs, A, size, input_index=payout_index)

    def choose(key: Key, percept: Percept, logits: Float[Array, "A"]) -> Int32[Array, ""]:
        explore_key, action_key = jax.random.split(key)
        action = explore(explore_key, action_key, exploration_rate, A, jnp.argmax(logits)).astype(jnp.int32)
        return jnp.where(percept.observation == 0, action, 0)

    config = ReplayConfig(BUFFER_CAPACITY, T, num_updates, replay_batch, num_lifetimes * T)
    return replay_agent(predictor, num_inputs, config, partial(encode_percept, spec), choose, _extract_example)


def encode_percept(spec: EnvSpec, percept: Percept) -> Float[Array, "I"]:
    """Returns the inputs of the predictor.

    They are place and last action (both one-hot), whether an episode begins, whether the last one was truncated, the
    payout, and whether a lifetime begins.
    """
    is_lifetime_start = percept.action < 0
    is_truncated = percept.first & (percept.discount > 0) & ~is_lifetime_start
    place = jax.nn.one_hot(percept.observation, spec.num_observations)
    action = jax.nn.one_hot(percept.action, spec.num_actions)
    flags = jnp.stack([percept.first, is_truncated]).astype(jnp.float32)
    return jnp.concatenate([place, action, flags, percept.outcome[:1], is_lifetime_start[None].astype(jnp.float32)])


def _extract_example(transition: Transition) -> Example:
    """Every trial is an example, and its target is whether it ended in a positive payout."""
    percept, action, next_percept, _ = transition
    is_start = (percept.observation == 0) & percept.first
    payout = jnp.where(next_percept.first & (next_percept.discount == 0), next_percept.outcome[0], 0.0)
    return Example(is_start, action, (payout > 0).astype(jnp.float32), jnp.abs(payout))
