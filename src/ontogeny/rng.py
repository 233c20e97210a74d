"""Random keys: independent streams for the stages, the keys of one lifetime, and random tie-breaking.

A lifetime is determined by its key, which draws the task and all chance in it. The two highest bits of the key's first
word hold the index of the stage, so the sets of keys of two stages are disjoint by construction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from ontogeny.errors import BadInput
from ontogeny.seeds import check_seed
from ontogeny.types import Key

STAGES = ("training", "evaluation", "deployment", "validation")  # the index enters the key: never reorder


class LifetimeKeys(NamedTuple):
    """The independent keys of everything random in one lifetime."""

    init: Key  # the agent's initial state
    task: Key  # the environment's task
    env: Key  # split into one key per step, as are the next two
    act: Key
    learn: Key


class StepKeys(NamedTuple):
    """The keys of one step; with a leading axis T, those of all steps."""

    env: Key
    act: Key
    learn: Key


def key_from_seed(seed: object) -> Key:
    """The random key of a seed.

    Raises:
        BadInput: The seed is out of its range, or JAX computes in 64 bits, for which nothing here is written.
    """
    require_32_bits()
    return jax.random.key(check_seed(seed))


def require_32_bits() -> None:
    """Raises `BadInput` where JAX computes in 64 bits."""
    if jnp.result_type(float) == jnp.float64:
        raise BadInput("ontogeny computes in 32 bits: unset JAX_ENABLE_X64, or set jax_enable_x64 to False")


def sample_lifetime_keys(key: Key, num_lifetimes: int, stage: str) -> Key:
    """Keys that each determine one lifetime of a stage.

    Args:
        key: A single random key.
        num_lifetimes: B, at least 1.
        stage: One of `STAGES`; `validation` is for choosing settings.

    Returns:
        Keys of shape [B].
    """
    words = jax.random.key_data(jax.random.split(key, num_lifetimes))
    tag = jnp.uint32(STAGES.index(stage) << 30)
    first_word = (words[:, 0] & jnp.uint32(0x3FFFFFFF)) | tag
    return jax.random.wrap_key_data(jnp.concatenate([first_word[:, None], words[:, 1:]], axis=1))


def split_lifetime_key(key: Key) -> LifetimeKeys:
    """Splits a lifetime's key. Every caller must split here, so that no two uses share a key."""
    return LifetimeKeys(*jax.random.split(key, len(LifetimeKeys._fields)))


def split_step_keys(keys: LifetimeKeys, num_steps: int) -> StepKeys:
    """The keys of the steps of one lifetime, leading axis T = `num_steps`."""
    # One split of three keys takes a third of the time to compile of three splits, and gives the same keys.
    step_keys = jax.vmap(lambda key: jax.random.split(key, num_steps))(jnp.stack([keys.env, keys.act, keys.learn]))
    return StepKeys(*step_keys)


def fold_step_keys(keys: LifetimeKeys, numbers: Int32[Array, "C"]) -> StepKeys:
    """The keys of some steps of one lifetime, leading axis C; equal to those of `split_step_keys`.

    Args:
        numbers: The numbers of these steps, counted from 0.
    """
    fold = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))
    return StepKeys(*fold(jnp.stack([keys.env, keys.act, keys.learn]), numbers))


def stage_of(key: Key) -> str:
    """The stage to which the key of a lifetime belongs."""
    return STAGES[int(jax.random.key_data(key)[..., 0].ravel()[0]) >> 30]


def random_index(key: Key, allowed: Bool[Array, "*rest N"]) -> Int32[Array, "*rest"]:
    """An index along the last axis, drawn uniformly among the allowed ones; 0 where none is allowed."""
    draws = jnp.where(allowed, jax.random.uniform(key, allowed.shape), -1.0)
    return jnp.argmax(draws, axis=-1).astype(jnp.int32)


def random_argmax(key: Key, values: Float[Array, "*rest N"]) -> Int32[Array, "*rest"]:
    """The index of the largest value along the last axis; ties are broken uniformly at random."""
    return random_index(key, values == jnp.max(values, axis=-1, keepdims=True))
