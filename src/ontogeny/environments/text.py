"""A text read byte by byte: an action predicts the next byte, an episode is a passage, a lifetime a run of passages.

The task is the position at which a lifetime begins. Without a file the environment reads the text of Python's own
`help` (its module `pydoc_data.topics`), which every installation has and which differs a little between versions.
Lifetimes of all stages are drawn from the same text, so a score here is not one on held-out text; `ontogeny lm
evaluate` measures that.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.environments.base import first_feature, initial_time_step
from ontogeny.errors import BadInput, require_at_least
from ontogeny.types import HIDDEN_OBSERVATION, Environment, EnvSpec, Key, TimeStep


class TextTask(NamedTuple):
    """The place in the text where the lifetime begins."""

    start: Array  # [] int32


class TextState(NamedTuple):
    """The state of the environment."""

    task: TextTask
    position: Array  # [] int32, of the token that is observed


class TextParams(NamedTuple):
    """The text and the settings that the dynamics need."""

    tokens: Array  # [N] int32
    passage_length: int
    num_steps: int


def reset(params: TextParams, key: Key) -> tuple[TextState, TimeStep]:
    """Draws the place where the lifetime begins."""
    start = jax.random.randint(key, (), 0, len(params.tokens) - params.num_steps)
    return TextState(TextTask(start), start), initial_time_step(params.tokens[start], 1)


def step(params: TextParams, key: Key, state: TextState, action: Array) -> tuple[TextState, TimeStep]:
    """Shows the next token and compares it with the prediction."""
    del key
    position = (state.position + 1) % len(params.tokens)
    token = params.tokens[position]
    is_correct = (action == token).astype(jnp.float32)[None]
    first = (position - state.task.start) % params.passage_length == 0
    # The first token of a passage is no successor of the last token of the one before.
    final_observation = jnp.where(first, HIDDEN_OBSERVATION, token)
    return TextState(state.task, position), TimeStep(token, final_observation, is_correct, first, jnp.float32(1))


def from_tokens(tokens: np.ndarray, vocabulary_size: int, passage_length: int, num_passages: int) -> Environment:
    """The environment of any sequence of tokens.

    Args:
        tokens: [N], whole numbers below `vocabulary_size`.
        vocabulary_size: Number of actions and of observations.
        passage_length: Tokens per episode.
        num_passages: Episodes per lifetime.

    Raises:
        BadInput: The text is too short for one lifetime.
    """
    num_steps = passage_length * num_passages
    if len(tokens) <= num_steps:
        raise BadInput(f"a text of {len(tokens):,} tokens is too short for a lifetime of {num_steps:,}")
    params = TextParams(jnp.asarray(tokens, jnp.int32), passage_length, num_steps)
    spec = EnvSpec(
        name="text", num_actions=vocabulary_size, num_observations=vocabulary_size, observation_shape=(),
        outcome_features=("correct",), num_steps=num_steps, horizon=passage_length, drives=(("correct", 1.0),),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), partial(step, params), first_feature)


def build(*, file: str = "", passage_length: int = 64, num_passages: int = 8) -> Environment:
    """Builds the environment.

    Args:
        file: Path of a text in UTF-8; empty for the text of Python's `help`.
        passage_length: Bytes per episode, at least 1.
        num_passages: Episodes per lifetime, at least 1.
    """
    require_at_least(1, passage_length=passage_length, num_passages=num_passages)
    return from_tokens(np.frombuffer(_read_text(file), np.uint8), 256, passage_length, num_passages)


def _read_text(file: str) -> bytes:
    """The bytes of a UTF-8 file, or of Python's help where no file is named."""
    if not file:
        from pydoc_data import topics  # half a megabyte that no other environment needs

        return "\n\n".join(topics.topics[name] for name in sorted(topics.topics)).encode()
    try:
        content = Path(file).read_bytes()
        content.decode()
    except OSError as error:
        raise BadInput(f"'{file}' cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadInput(f"'{file}' is not text in UTF-8") from None
    if b"\0" in content:
        raise BadInput(f"'{file}' is not text: it holds the byte 0")
    return content
