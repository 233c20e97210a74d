"""Chooses actions by tree search in the latent model: Gumbel MuZero (Danihelka et al. 2022), by the library `mctx`.

The tree holds states that the model imagines. The reward of an edge is what steering computes from the predicted
outcome features, and leaves are valued by the critic. Letters: A actions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.actor_critic import policy_logits
from ontogeny.agents.neural_updates import NeuralContent, NeuralParams, add_exploration_bonus
from ontogeny.content import latent_model
from ontogeny.content.latent_model import LatentState
from ontogeny.optional_packages import import_optional
from ontogeny.types import Key

NUM_SIMULATIONS = 16  # imagined steps per action
Search = Callable[[Key, NeuralContent, LatentState], tuple[Int32[Array, ""], Float[Array, "A"]]]


def build_search(params: NeuralParams) -> Search:
    """Builds a function that returns an action and the log probabilities of the improved policy, from a latent state.

    Raises:
        BadInput: The optional package `mctx` is not installed.
    """
    mctx = import_optional("mctx", "search", "tree searches (planner=search)")
    return partial(_search, mctx, params)


def _search(
    mctx: Any, params: NeuralParams, key: Key, content: NeuralContent, state: LatentState
) -> tuple[Int32[Array, ""], Float[Array, "A"]]:
    """A search from one state; `mctx` expects an axis of searches, which has the length 1 here."""
    root_state = jax.tree.map(lambda leaf: leaf[None], state)
    flat = latent_model.flatten_state(root_state)
    root = mctx.RootFnOutput(
        prior_logits=policy_logits(content.actor, flat),
        value=params.actor_critic.values.query(content.critic, flat),
        embedding=root_state,
    )
    root_policy = mctx.gumbel_muzero_policy(content, key, root, partial(_imagine_edge, mctx, params), NUM_SIMULATIONS)
    return root_policy.action[0].astype(jnp.int32), jnp.log(jnp.maximum(root_policy.action_weights[0], 1e-8))


def _imagine_edge(
    mctx: Any, params: NeuralParams, content: NeuralContent, key: Key, action: Int32[Array, "1"], state: LatentState
) -> tuple[Any, LatentState]:
    """One step of the model, as an edge of the tree and the state at its end."""
    shape, model = params.shape, content.model
    hidden = jax.vmap(partial(latent_model.advance, shape, model))(state, action)
    noise = jax.random.uniform(key, (1, shape.num_latents))
    next_state = jax.vmap(partial(latent_model.imagine, shape, model))(hidden, noise)
    outcome, discount = latent_model.predict_outcome(shape, model, hidden)
    reward = add_exploration_bonus(
        params, content.ensemble, params.steering(outcome), latent_model.flatten_state(state), action
    )
    flat = latent_model.flatten_state(next_state)
    edge = mctx.RecurrentFnOutput(
        reward=reward,
        discount=params.settings.discount * discount,
        prior_logits=policy_logits(content.actor, flat),
        value=params.actor_critic.values.query(content.critic, flat),
    )
    return edge, next_state
