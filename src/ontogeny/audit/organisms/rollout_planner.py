"""Plans by simulation: draws imagined trials from a learned model of links and takes the action with the best mean.

It searches by sampling, where `planner` backs up exact expectations. All in activations.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.base import empty_genome, fixed_weights_agent
from ontogeny.audit.organisms import base
from ontogeny.environments.base import choose_tree
from ontogeny.rng import random_argmax
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering

GROUND_TRUTH = {"learns": "yes", "plans": "yes", "pattern": "111"}
HELD_OUT = True


def build(spec: EnvSpec, steering: Steering, *, rate: float = base.LEARNING_RATE, num_samples: int = 8) -> Agent:
    """Builds the organism.

    Args:
        rate: Learning rate of the model, 0 to 1.
        num_samples: Imagined trials per action, at least 1.
    """
    base.require_choice_env("rollout_planner", spec)
    W, A = base.num_positions(spec), spec.num_actions

    def imagine(key: Key, model: base.LinkModel, action: Array) -> Array:
        """Returns the payout of one imagined trial; probabilities that are missing in the model end it."""

        def step(carry: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], None]:
            position, payout = carry
            payout = payout + jnp.where(position < W, model.rewards[jnp.minimum(position, W - 1)], 0.0)
            cumulative = jnp.cumsum(model.transitions[jnp.minimum(position, W - 1)])
            successor = jnp.sum(jax.random.uniform(key) >= cumulative)
            return (jnp.where(position < W, successor, W).astype(jnp.int32), payout), None

        start = (action.astype(jnp.int32), jnp.float32(0))
        return jax.lax.scan(step, start, jax.random.split(key, spec.horizon))[0][1]

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        place, model = state.activations
        updated = base.update_model(model, base.to_trial_step(spec, place, percept), rate)
        model = choose_tree(percept.action >= 0, updated, model)
        tie_key, sample_key = jax.random.split(key)
        keys = jax.random.split(sample_key, num_samples)
        over_actions = jax.vmap(imagine, in_axes=(None, None, 0))
        payouts = jax.vmap(lambda key: over_actions(key, model, jnp.arange(A)))(keys)
        action = jnp.where(percept.observation == 0, random_argmax(tie_key, jnp.mean(payouts, axis=0)), 0)
        return action.astype(jnp.int32), State(state.weights, base.ChooserActivations(percept.observation, model))

    return fixed_weights_agent(
        empty_genome, lambda: base.ChooserActivations(jnp.int32(0), base.initial_model(spec)), act
    )
