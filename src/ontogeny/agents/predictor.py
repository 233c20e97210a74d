"""Reports its learned content's prediction of the next item; no steering and no score enters its learning.

For the environment `stream`. The genome is ML code: the predictor starts untrained and is trained by prediction within
one lifetime. `act` gives the step to the predictor and reports the level nearest to the predicted probability; `learn`
stores the steps in sequences and trains the predictor after each of them with experience replay (`agents.replay`).

With `evolved=true` the same predictor is the whole genome, and `learn` changes nothing.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.base import fixed_weights_agent
from ontogeny.agents.replay import Example, ReplayConfig, init_activations, replay_agent
from ontogeny.content.base import build_predictor
from ontogeny.environments import stream
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import Agent, EnvSpec, Key, Percept, Steering, Transition

NUM_INPUTS, LAST_ITEM = 4, 2  # predictability, direction, last item, whether a segment begins
BUFFER_CAPACITY = 64  # sequences


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    content: str = "gru",
    size: int = 0,
    evolved: bool = False,
    sequence_length: int = 50,
    num_updates: int = 1,
    replay_batch: int = 15,
) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of the environment `stream`.
        steering: Reward function; the agent does not use it.
        content: Name of the predictor.
        size: Hidden units or width of the predictor, 0 for its default.
        evolved: Whether the weights of the predictor are the genome, which does not change within a lifetime.
        sequence_length: Steps after which the predictor is trained, at least 1.
        num_updates: Updates after each sequence, at least 1.
        replay_batch: Older sequences in each update, at least 0.

    Raises:
        BadInput: If the environment is not `stream`, or the content no predictor.
    """
    del steering
    if spec.name != "stream":
        raise BadInput(f"agent 'predictor' is for the environment 'stream', not for '{spec.name}'")
    require_at_least(0, size=size, replay_batch=replay_batch)
    require_at_least(1, sequence_length=sequence_length, num_updates=num_updates)
    predictor = build_predictor(content, NUM_INPUTS, 1, size, input_index=LAST_ITEM)

    def choose(key: Key, percept: Percept, logits: Float[Array, "1"]) -> Int32[Array, ""]:
        del key, percept
        return jnp.round(jax.nn.sigmoid(logits[0]) * (spec.num_actions - 1)).astype(jnp.int32)

    config = ReplayConfig(BUFFER_CAPACITY, sequence_length, num_updates, replay_batch, spec.num_steps)
    agent = replay_agent(predictor, NUM_INPUTS, config, encode_percept, choose, _extract_example)
    if evolved:
        return fixed_weights_agent(predictor.init, lambda: init_activations(predictor, NUM_INPUTS), agent.act)
    return agent


def encode_percept(percept: Percept) -> Float[Array, "I"]:
    """Returns the inputs of the predictor."""
    predictability, direction, is_start = percept.observation
    return jnp.stack([predictability - 1, direction, stream.last_item(percept), is_start])


def _extract_example(transition: Transition) -> Example:
    """Every step is an example, and its target is the item that follows."""
    return Example(jnp.bool_(True), jnp.int32(0), transition.next_percept.outcome[0], jnp.float32(1))
