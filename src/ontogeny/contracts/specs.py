"""The check of the spec of an environment: its sizes, its names and its drives."""

import math
from numbers import Integral, Real
from typing import Any

from ontogeny import plugins
from ontogeny.contracts.base import require
from ontogeny.types import EnvSpec, Prior
from ontogeny.validation import shorten

MIN_SIZES = {"num_actions": 1, "num_observations": 0, "num_steps": 1, "horizon": 1}
EXAMPLE_OF_DRIVES = "(('food', 1.0),)"


def check_spec(spec: EnvSpec) -> None:
    """Checks that the entries of a spec have their types and ranges, and that its drives name outcome features.

    Raises:
        ContractViolation: An entry cannot be used.
    """
    require(isinstance(spec, EnvSpec), f"`spec` of an environment must be an `EnvSpec`, not {shorten(spec)}")
    is_name = isinstance(spec.name, str) and bool(spec.name)
    require(is_name, f"`name` of the spec must be a text, not {shorten(spec.name)}")
    for size, minimum in MIN_SIZES.items():
        number = getattr(spec, size)
        require(_is_whole_number(number), f"{_entry(spec, size)} must be a whole number, not {shorten(number)}")
        require(
            minimum <= number <= plugins.MAX_INT,
            f"{_entry(spec, size)} must be at least {minimum} and at most {plugins.MAX_INT}, not {number}",
        )
    _check_observation_shape(spec)
    _check_observation_bounds(spec)
    _check_outcome_features(spec)
    _check_drives(spec)
    if spec.prior is not None:
        is_prior = isinstance(spec.prior, Prior) and len(spec.prior.outcome_features) == len(spec.outcome_features)
        require(is_prior, f"{_entry(spec, 'prior')} must be a `Prior` with one `FeaturePrior` for each outcome feature")


def _check_observation_shape(spec: EnvSpec) -> None:
    """The shape of observations: empty where they are numbered."""
    shape = spec.observation_shape
    is_shape = isinstance(shape, tuple) and all(_is_whole_number(length) and length >= 1 for length in shape)
    entry = _entry(spec, "observation_shape")
    require(is_shape, f"{entry} must be a tuple of whole numbers from 1 on, such as (3,), not {shorten(shape)}")
    if spec.num_observations:
        rule = f"must be () where observations are numbered (`num_observations` is {spec.num_observations})"
        require(shape == (), f"{entry} {rule}, not {shape}")
    else:
        require(
            shape != (),
            f"{entry} must be the shape of a vector, such as (1,), where `num_observations` is 0; for observations "
            "that are whole numbers, state their number as `num_observations`",
        )


def _check_observation_bounds(spec: EnvSpec) -> None:
    """The bounds of the numbers of a vector: a pair, lower bound first."""
    bounds = spec.observation_bounds
    is_pair = isinstance(bounds, tuple) and len(bounds) == 2 and all(isinstance(bound, Real) for bound in bounds)
    entry = _entry(spec, "observation_bounds")
    require(
        is_pair and bounds[0] <= bounds[1],
        f"{entry} must be a lower and an upper bound, such as (0.0, 1.0), not {shorten(bounds)}",
    )


def _check_outcome_features(spec: EnvSpec) -> None:
    """The names of the outcome features: a tuple of at least one, without repetitions."""
    names = spec.outcome_features
    is_tuple = isinstance(names, tuple) and bool(names) and all(isinstance(name, str) and name for name in names)
    entry = _entry(spec, "outcome_features")
    require(is_tuple, f"{entry} must be a tuple of names, such as ('food',), not {shorten(names)}")
    repeated = next((name for name in names if names.count(name) > 1), "")
    require(not repeated, f"{entry} names '{repeated}' twice")


def _check_drives(spec: EnvSpec) -> None:
    """The drives: pairs of an outcome feature and a finite weight."""
    entry = _entry(spec, "drives")
    message = f"{entry} must be a tuple of pairs of an outcome feature and its weight, such as {EXAMPLE_OF_DRIVES}"
    require(isinstance(spec.drives, tuple), f"{message}, not {shorten(spec.drives)}")
    names = []
    for pair in spec.drives:
        require(isinstance(pair, tuple) and len(pair) == 2, f"{message}; {shorten(pair)} is no pair")
        name, weight = pair
        hint = plugins.suggest_names(str(name), spec.outcome_features)
        require(name in spec.outcome_features, f"{entry} names {name!r}, which is no outcome feature{hint}")
        require(name not in names, f"{entry} names '{name}' twice")
        is_number = isinstance(weight, Real) and not isinstance(weight, bool) and math.isfinite(weight)
        require(
            is_number and abs(weight) <= plugins.MAX_FLOAT,
            f"the weight of '{name}' in {entry} must be a finite number, not {shorten(weight)}",
        )
        names.append(name)


def _entry(spec: EnvSpec, name: str) -> str:
    """An entry of a spec, as messages name it."""
    return f"`{name}` in the spec of '{spec.name}'"


def _is_whole_number(number: Any) -> bool:
    """Whether this is an integer of Python or numpy."""
    return isinstance(number, Integral) and not isinstance(number, bool)
