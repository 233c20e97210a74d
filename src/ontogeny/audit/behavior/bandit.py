"""Models of choice in a bandit: the five of Wilson & Collins 2019 (eLife 8:e49547), box 2; values are forgotten."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit.behavior.base import (
    FORGETTING_RATE,
    ChoiceModel,
    ContainedModel,
    ModelParameter,
    Parameters,
    ParticipantTrials,
    update_values,
)

LAPSE_RATE = ModelParameter("lapse_rate", low=0.05, high=0.4)
LEARNING_RATE = ModelParameter("learning_rate", low=0.1, high=0.6)
INVERSE_TEMPERATURE = ModelParameter("inverse_temperature", low=3.0, high=8.0, scale=20.0)
VALUE_PARAMETERS = (LEARNING_RATE, FORGETTING_RATE, INVERSE_TEMPERATURE)
KERNEL_PARAMETERS = (
    ModelParameter("kernel_learning_rate", low=0.1, high=0.6),
    ModelParameter("kernel_inverse_temperature", low=1.0, high=4.0, scale=20.0),
)
INITIAL_VALUE = 0.5
OF_Q_LEARNING_CHOICE_KERNEL = (
    ContainedModel("q_learning", zeros=("kernel_inverse_temperature",)),
    ContainedModel("choice_kernel", zeros=("inverse_temperature",)),
)
NOT_FITTED = (  # explanations that no model of the set has
    "uncertainty bonuses and other directed exploration",
    "different learning rates for better and for worse outcomes than expected",
    "inference about reversals of the arms",
    "lapses beside learned values",
    "parameters that change with time",
)


class ValuesAndKernel(NamedTuple):
    """The memory of the model that learns values and repeats recent choices."""

    values: Array  # [A], of the arms
    kernel: Array  # [A], a moving average of the choices


@cache  # the same functions each time, so that they are compiled once
def build_models(num_arms: int) -> tuple[ChoiceModel, ...]:
    """Returns the models of choice among arms.

    Args:
        num_arms: At least 2.
    """
    biases = tuple(
        ModelParameter(f"bias_{arm}", low=-0.7, high=0.7, scale=5.0, signed=True) for arm in range(1, num_arms)
    )
    build = partial(ChoiceModel, "bandit", num_arms)
    init_values, init_kernel = (partial(_init_arms, num_arms, start) for start in (INITIAL_VALUE, 0.0))

    return (
        build(
            "random_responding",
            "prefers some arms, independently of reward",
            biases,
            learns=False,
            init=lambda p, transitions: (),
            first_logits=lambda p, transitions, memory, previous: jnp.stack(
                [jnp.zeros(transitions.shape[2:]), *(p[bias.name] for bias in biases)]
            ),
            update=lambda p, memory, trial: memory,
        ),
        build(
            "win_stay_lose_shift",
            "repeats a rewarded choice and changes an unrewarded one",
            (LAPSE_RATE,),
            learns=False,
            init=lambda p, transitions: jnp.zeros(transitions.shape[2:]),
            first_logits=_win_stay_logits,
            update=lambda p, memory, trial: trial.reward,
        ),
        build(
            "q_learning",
            "learns the value of each arm",
            VALUE_PARAMETERS,
            init=init_values,
            first_logits=lambda p, transitions, memory, previous: p["inverse_temperature"] * memory,
            update=_update_values,
        ),
        build(
            "choice_kernel",
            "repeats recent choices",
            KERNEL_PARAMETERS,
            learns=False,
            init=init_kernel,
            first_logits=lambda p, transitions, memory, previous: p["kernel_inverse_temperature"] * memory,
            update=_update_kernel,
        ),
        build(
            "q_learning_choice_kernel",
            "learns the value of each arm and repeats recent choices",
            (*VALUE_PARAMETERS, *KERNEL_PARAMETERS),
            init=lambda p, transitions: ValuesAndKernel(init_values(p, transitions), init_kernel(p, transitions)),
            first_logits=lambda p, transitions, memory, previous: (
                p["inverse_temperature"] * memory.values + p["kernel_inverse_temperature"] * memory.kernel
            ),
            update=lambda p, memory, trial: ValuesAndKernel(
                _update_values(p, memory.values, trial), _update_kernel(p, memory.kernel, trial)
            ),
            contains=OF_Q_LEARNING_CHOICE_KERNEL,
        ),
    )


def _init_arms(num_arms: int, initial_value: float, p: Parameters, transitions: Array) -> Array:
    """The same value for each arm."""
    return jnp.full((num_arms, *transitions.shape[2:]), initial_value)


def _update_values(p: Parameters, values: Array, trial: ParticipantTrials) -> Array:
    """Moves the value of the chosen arm towards the reward."""
    chosen = jax.nn.one_hot(trial.choice, len(values), axis=0)
    return update_values(p, values, chosen, p["learning_rate"] * (trial.reward - values), INITIAL_VALUE)


def _update_kernel(p: Parameters, kernel: Array, trial: ParticipantTrials) -> Array:
    """Moves the choice kernel towards the choice."""
    return kernel + p["kernel_learning_rate"] * (jax.nn.one_hot(trial.choice, len(kernel), axis=0) - kernel)


def _win_stay_logits(p: Parameters, transitions: Array, reward: Array, previous: Array) -> Array:
    """Logits of noisy win-stay-lose-shift; the memory is the last reward, the probability to stay without lapses."""
    num_arms, lapse_rate = len(previous), p["lapse_rate"]
    probs = reward * previous + (1 - reward) * (1 - previous) / (num_arms - 1)
    has_previous = jnp.sum(previous, axis=0) > 0
    probs = jnp.where(has_previous, (1 - lapse_rate) * probs + lapse_rate / num_arms, 1.0 / num_arms)
    return jnp.log(probs + 1e-9)
