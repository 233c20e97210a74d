"""A text read byte by byte: an action is a guess at the next byte, an episode a passage, a life consecutive passages.

The task is the place at which a life begins. Without a file it is the text that Python's own `help` shows (its module
`pydoc_data.topics`), which every installation has and which differs a little between versions. Lives of all stages are
drawn from the same text, so a score here is not of held-out text: that is what `ontogeny evaluate RUN --text` is for.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.errors import require_at_least
from ontogeny.types import BadInput, Environment, EnvSpec, Key, TimeStep


class Task(NamedTuple):
    start: Array  # [] int32, where in the text the life begins


class State(NamedTuple):
    task: Task
    position: Array  # [] int32, of the byte that is shown


def build(*, file: str = "", passage: int = 64, passages: int = 8) -> Environment:
    require_at_least(1, passage=passage, passages=passages)
    return stream(np.frombuffer(_read(file), np.uint8), 256, passage, passages)


def stream(tokens: np.ndarray, vocabulary: int, passage: int, passages: int) -> Environment:
    """The environment of any sequence of whole numbers [N] below `vocabulary`; one too short for a life raises `BadInput`."""
    trajectory = passage * passages
    if len(tokens) <= trajectory:
        raise BadInput(f"a text of {len(tokens):,} tokens is too short for a life of {trajectory:,}")
    text = jnp.asarray(tokens, jnp.int32)
    spec = EnvSpec(
        name="text",
        num_actions=vocabulary,
        num_observations=vocabulary,
        observation_shape=(),
        outcome_features=("right",),
        num_steps=trajectory,
        horizon=passage,
        drives=(("right", 1.0),),
    )

    def reset(key: Key) -> tuple[State, TimeStep]:
        start = jax.random.randint(key, (), 0, len(tokens) - trajectory)
        return State(Task(start), start), TimeStep(text[start], jnp.zeros(1), jnp.bool_(True), jnp.float32(1))

    def step(key: Key, state: State, action: Array) -> tuple[State, TimeStep]:
        del key
        position = (state.position + 1) % len(tokens)
        shown = text[position]
        right = (action == shown).astype(jnp.float32)[None]
        first = (position - state.task.start) % passage == 0
        return State(state.task, position), TimeStep(shown, right, first, jnp.float32(1))

    def score(outcome: Array) -> Array:
        return outcome[0]

    return Environment(spec, reset, step, score)


def _read(file: str) -> bytes:
    if not file:
        from pydoc_data import topics  # half a megabyte that no other environment needs

        return "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    try:
        data = Path(file).read_bytes()
        data.decode()
    except OSError as error:
        raise BadInput(f"'{file}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"'{file}' is not text in UTF-8") from None
    if b"\0" in data:
        raise BadInput(f"'{file}' is not text: it holds the byte 0")
    return data
