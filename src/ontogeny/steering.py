"""Steering: hand-written reward functions over outcome features, combined by weighted drives.

A drive is an outcome feature and its weight: a positive weight seeks the feature, a negative one avoids it. The reward
is the weighted sum. Steering has no learned weights; its drives may be settings of a genome, so that a search can
change them. The intended objective is `Environment.score`, a separate function, so that the two can diverge.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ontogeny import plugins
from ontogeny.contracts import check_spec
from ontogeny.errors import BadInput
from ontogeny.types import EnvSpec


class DriveSteering(NamedTuple):
    """The reward function of fixed drives: outcome [..., F] -> reward [...]. Hashable, so a static argument of jit."""

    weights: tuple[float, ...]  # [F]

    def __call__(self, outcome: Array) -> Array:
        """The reward of an outcome."""
        return compute_reward(jnp.asarray(self.weights, jnp.float32), outcome)


def compute_reward(drives: Array, outcome: Array) -> Array:
    """Drives [F] and outcome [..., F] -> reward [...]; linear, so the expected reward is that of expected features."""
    return jnp.sum(drives * outcome, axis=-1)


def build(spec: EnvSpec, drives: Mapping[str, float] | None = None) -> DriveSteering:
    """The default steering of an environment with some drives replaced.

    Args:
        drives: Finite weights by outcome feature; all other features keep their default weight.

    Raises:
        BadInput: A drive names no outcome feature, or its weight is not a finite number.
    """
    check_spec(spec)
    weights = dict.fromkeys(spec.outcome_features, 0.0) | dict(spec.drives)
    for feature, weight in (drives or {}).items():
        if feature not in weights:
            noun = f"outcome feature of environment '{spec.name}' named"
            raise plugins.unknown_name_error(noun, feature, list(spec.outcome_features))
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise BadInput(f"the drive '{feature}' must be a number, not {weight!r}")
        weights[feature] = plugins.finite_float(weight, f"the drive '{feature}'")
    return DriveSteering(tuple(weights[feature] for feature in spec.outcome_features))
