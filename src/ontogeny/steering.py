"""Steering: human-written reward functions over the facts of an outcome, combined by weighted drives.

A drive is a fact and a weight: positive seeks it, negative shuns it. The reward is the weighted sum. Steering
has no weights that are learned; its drives may be settings of a genome, so that a search can move them.
What the designers meant is `Environment.score`, kept apart, so that the two can come apart.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny import plugins
from ontogeny.types import BadInput, EnvSpec


class Drives(NamedTuple):
    """Weighted drives over the F facts of an outcome; calling it judges an outcome. Hashable: a static argument."""

    weights: tuple[float, ...]  # [F]

    def __call__(self, outcome: Array) -> Array:
        """outcome [..., F] -> reward [...]"""
        return judge(jnp.asarray(self.weights, jnp.float32), outcome)


def judge(weights: Array, outcome: Array) -> Array:
    """weights [F], outcome [..., F] -> reward [...]; linear, so the reward of expected facts is the expected reward."""
    return jnp.sum(weights * outcome, axis=-1)


def build(spec: EnvSpec, drives: Mapping[str, float] | None = None) -> Drives:
    """The steering that an environment's designers propose, with the given drives put over it."""
    weights = dict.fromkeys(spec.outcome_features, 0.0) | dict(spec.drives)
    for feature, weight in (drives or {}).items():
        if feature not in weights:
            raise plugins.unknown_name_error(f"fact of environment '{spec.name}' named", feature, list(spec.outcome_features))
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise BadInput(f"the drive '{feature}' must be a number, not {weight!r}")
        weights[feature] = plugins.finite_float(weight, f"the drive '{feature}'")
    return Drives(tuple(weights[feature] for feature in spec.outcome_features))
