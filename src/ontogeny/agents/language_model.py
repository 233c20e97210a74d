"""Predicts the next observation with a transformer, which it trains on every observation.

An action is a prediction of the next token, so the agent is for environments in which actions are predictions of
observations, such as `text`. `act` extends the key-value cache by one token (activations); `learn` takes one step of
Adam on the token that followed (weights; the moments of Adam are scratch) given the context window that the cache was
computed from. When the context window is full, its second half starts the next one. The genome is the initial weights.
The agent learns from predictions, not from reward.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.content import transformer
from ontogeny.content.optimizers import apply_gradient, build_optimizer
from ontogeny.content.transformer import KVCache, TransformerConfig, TransformerWeights
from ontogeny.errors import BadInput
from ontogeny.types import Agent, EnvSpec, Key, Percept, State, Steering, Transition, Weights


class TokenContext(NamedTuple):
    """The activations: the cache, and the tokens that it was computed from."""

    cache: KVCache  # of one sequence
    window: Int32[Array, "N"]  # the first `cache.length` tokens are valid


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    num_layers: int = 1,
    num_heads: int = 2,
    width: int = 32,
    context_length: int = 32,
    learning_rate: float = 3e-3,
    stochastic: bool = False,
) -> Agent:
    """Builds the agent with a transformer of the architecture GPT-2.

    Args:
        spec: Spec of an environment with as many actions as observations.
        steering: Reward function; the agent does not use it.
        num_layers: Transformer blocks, at least 1.
        num_heads: Attention heads; must divide `width`.
        width: Width of the residual stream.
        context_length: Tokens that a prediction may depend on, at least 2.
        learning_rate: Step size of Adam.
        stochastic: Whether the action is sampled from the prediction; otherwise it is the most probable token.

    Raises:
        BadInput: If actions are no predictions of observations.
    """
    del steering
    if not spec.num_observations or spec.num_observations != spec.num_actions:
        raise BadInput(
            f"agent 'language_model' predicts the next observation, which is no action of environment '{spec.name}'"
        )
    config = transformer.make_config(
        "gpt2", spec.num_observations, context_length, num_layers=num_layers, num_heads=num_heads, width=width
    )
    return language_model_agent(config, learning_rate=learning_rate, stochastic=stochastic)


def language_model_agent(config: TransformerConfig, *, learning_rate: float = 3e-3, stochastic: bool = False) -> Agent:
    """Builds the agent for a transformer of any config; arguments as in `build`."""
    optimizer = build_optimizer(learning_rate, max_gradient_norm=None)

    def genome(key: Key) -> TransformerWeights:
        return transformer.init_weights(key, config)

    def init(key: Key, genome: TransformerWeights) -> State:
        del key
        return State(Weights(genome, optimizer.init(genome)), _empty_context(config))  # type: ignore[arg-type]

    def reset(state: State) -> State:
        return State(state.weights, _empty_context(config))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        context = _restart_if_full(config, state.weights.content, state.activations)
        token = percept.observation[None].astype(jnp.int32)
        context, logits = _append_tokens(config, state.weights.content, context, token)
        action = jax.random.categorical(key, logits) if stochastic else jnp.argmax(logits)
        return action.astype(jnp.int32), State(state.weights, context)

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, dict[str, Array]]:
        """Learns nothing where an episode begins, because its first token does not follow the last one."""
        del key
        context, next_percept = state.activations, transition.next_percept

        def token_loss(content: TransformerWeights) -> Array:
            logits = transformer.forward(config, content, context.window[None])[0, context.cache.length[0] - 1]
            return -jax.nn.log_softmax(logits)[next_percept.observation]

        loss, gradient = jax.value_and_grad(token_loss)(state.weights.content)
        learned = apply_gradient(optimizer, gradient, state.weights)
        weights = jax.tree.map(lambda new, old: jnp.where(next_percept.first, old, new), learned, state.weights)
        return State(weights, context), {"loss": loss}

    return Agent(genome, init, reset, act, learn, learning=True)


def _empty_context(config: TransformerConfig) -> TokenContext:
    """The activations at the start of a lifetime."""
    return TokenContext(transformer.init_cache(config, 1), jnp.zeros(config.context_length, jnp.int32))


def _append_tokens(
    config: TransformerConfig, content: TransformerWeights, context: TokenContext, tokens: Int32[Array, "K"]
) -> tuple[TokenContext, Float[Array, "V"]]:
    """The context with further tokens, and the logits of the token that follows them."""
    window = jax.lax.dynamic_update_slice(context.window, tokens, (context.cache.length[0],))
    num_tokens = jnp.full(1, len(tokens))
    cache, logits = transformer.extend_cache(config, content, context.cache, tokens[None], num_tokens)
    return TokenContext(cache, window), logits[0]


def _restart_if_full(config: TransformerConfig, content: TransformerWeights, context: TokenContext) -> TokenContext:
    """The context itself, or where it is full a new one that begins with its second half."""
    C = config.context_length
    num_repeated = max(C // 2, 1)

    def restart(context: TokenContext) -> TokenContext:
        return _append_tokens(config, content, _empty_context(config), context.window[C - num_repeated :])[0]

    return jax.lax.cond(context.cache.length[0] >= C, restart, lambda context: context, context)
