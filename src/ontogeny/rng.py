"""Random streams of the stages: no life of one stage can be drawn in another.

A life is determined by its key (which draws the task and all chance in it). The two highest bits of the
key's first word name the stage, so the sets of keys of two stages are disjoint by construction, not by luck.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ontogeny.types import Key

STAGES = ("training", "evaluation", "use", "validation")


class LifetimeKeys(NamedTuple):
    """The keys of all that is random in one life: independent, so that none can be foretold from another."""

    init: Key  # of the agent
    task: Key
    env: Key  # one key per step is drawn from each of these three
    act: Key
    learn: Key


def sample_lifetime_keys(key: Key, num_lifetimes: int, stage: str) -> Key:
    """`num_lives` keys, [B], each of which determines one life of `stage`. `validation` is for choosing settings."""
    data = jax.random.key_data(jax.random.split(key, num_lifetimes))
    tag = jnp.uint32(STAGES.index(stage) << 30)
    first = (data[:, 0] & jnp.uint32(0x3FFFFFFF)) | tag
    return jax.random.wrap_key_data(jnp.concatenate([first[:, None], data[:, 1:]], axis=1))


def split_lifetime_key(key: Key) -> LifetimeKeys:
    """What a life's key determines. The only place where such a key is taken apart: two ways of doing it could meet."""
    return LifetimeKeys(*jax.random.split(key, len(LifetimeKeys._fields)))


def stage_of(key: Key) -> str:
    """The stage to which a life's key belongs."""
    return STAGES[int(jax.random.key_data(key)[..., 0].ravel()[0]) >> 30]
