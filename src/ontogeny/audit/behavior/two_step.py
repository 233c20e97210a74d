"""Models of choice in the two-step task: repetition, model-free, successor representation, latent state, model-based,
and a hybrid.

Sources: Daw et al. 2011 (Neuron 69:1204) for model-free SARSA(lambda), model-based values and their mixture, with one
learning rate for both stages; Dayan 1993 (Neural Computation 5:613) for the successor representation; Akam, Costa &
Dayan 2015 (PLoS Comput Biol 11:e1004648) for the latent-state model: a belief about which state is rewarded, from which
the choice follows without planning. All models share perseveration, a side bias and the values of second choices, so
they differ in the first choice alone; all values are forgotten in the same way (`base.update_values`). With known,
fixed transitions a successor representation is equivalent to the model-based agent: the two models agree in the limit
of `transition_learning_rate` 0, and differ only because the successor representation follows the most recent
transitions.
"""

from collections.abc import Callable
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
from ontogeny.types import PyTree

SHARED_PARAMETERS = (
    ModelParameter("perseveration", low=0.0, high=0.5, scale=5.0, signed=True),
    ModelParameter("side_bias", low=-0.3, high=0.3, scale=5.0, signed=True),
)
LEARNING_RATE = ModelParameter("learning_rate", low=0.2, high=0.7)
ELIGIBILITY_TRACE = ModelParameter("eligibility_trace", low=0.0, high=1.0)
TRANSITION_LEARNING_RATE = ModelParameter("transition_learning_rate", low=0.2, high=0.6)
INVERSE_TEMPERATURE = ModelParameter("inverse_temperature", low=3.0, high=8.0, scale=20.0)
HYBRID_WEIGHTS = (
    ModelParameter("model_free_weight", low=2.0, high=5.0, scale=20.0),
    ModelParameter("model_based_weight", low=2.0, high=5.0, scale=20.0),
)
SECOND_INVERSE_TEMPERATURE = ModelParameter("second_inverse_temperature", low=2.0, high=5.0, scale=20.0)
HAZARD_RATE = ModelParameter("hazard_rate", low=0.02, high=0.2, scale=0.5)
REWARD_RELIABILITY = ModelParameter("reward_reliability", low=0.7, high=0.95)
INITIAL_VALUE = 0.5
REPETITION = ContainedModel("repetition", zeros=("inverse_temperature",))
CONTAINED_MODELS = {
    "model_free": (REPETITION,),
    "successor": (REPETITION, ContainedModel("model_based", zeros=("transition_learning_rate",))),
    "latent_state": (REPETITION,),
    "model_based": (REPETITION,),
    "hybrid": (
        ContainedModel("repetition", zeros=("model_free_weight", "model_based_weight")),
        ContainedModel("model_free", ("model_based_weight",), (("model_free_weight", "inverse_temperature"),)),
        ContainedModel("model_based", ("model_free_weight",), (("model_based_weight", "inverse_temperature"),)),
    ),
}
NOT_FITTED = (  # explanations that no model of the set has
    "inference about a change of the common transition",
    "different learning rates for better and for worse outcomes than expected",
    "win-stay-lose-shift on the last outcome alone",
    "habits of repeating choices over more than one trial",
    "lapses beside learned values",
    "parameters that change with time",
)


class TwoStepMemory(NamedTuple):
    """The memory of a model: values of second choices, and a part that each model defines for itself."""

    option_values: Array  # [2, second choices], by state; a single one where states are rewarded by themselves
    model_memory: PyTree


FirstValues = Callable[[Parameters, Array, TwoStepMemory], Array]
"""Values [2] of the first choices, from parameters, transition probabilities [2, 2] and `TwoStepMemory`."""

UpdateModelMemory = Callable[[Parameters, TwoStepMemory, ParticipantTrials, Array], PyTree]
"""`TwoStepMemory.model_memory` after a trial with a given reward prediction error."""


@cache  # the same functions each time, so that they are compiled once
def build_models(has_second_choice: bool) -> tuple[ChoiceModel, ...]:
    """Returns the models of the two-step task.

    Args:
        has_second_choice: Whether there are second choices to explain, or each state is rewarded by itself.
    """
    build = partial(_build_model, has_second_choice)

    def state_values(memory: TwoStepMemory) -> Array:
        return jnp.max(memory.option_values, axis=1) if has_second_choice else memory.option_values[:, 0]

    def hybrid_values(p: Parameters, transitions: Array, memory: TwoStepMemory) -> Array:
        planned = p["model_based_weight"] * _expect(transitions, state_values(memory))
        return p["model_free_weight"] * memory.model_memory + planned

    return (
        build(
            "repetition",
            "repeats its choices and prefers one side, independently of reward",
            (),
            first_values=lambda p, transitions, memory: jnp.zeros(transitions.shape[1:]),
        ),
        build(
            "model_free",
            "repeats rewarded choices: SARSA(lambda)",
            (LEARNING_RATE, ELIGIBILITY_TRACE, INVERSE_TEMPERATURE),
            first_values=lambda p, transitions, memory: p["inverse_temperature"] * memory.model_memory,
            init_model_memory=_init_choice_values,
            update_model_memory=_update_choice_values,
        ),
        build(
            "successor",
            "learns by temporal differences which states follow its choices: successor representation",
            (LEARNING_RATE, TRANSITION_LEARNING_RATE, INVERSE_TEMPERATURE),
            planning="equivalent",
            first_values=lambda p, _, memory: (
                p["inverse_temperature"] * _expect(memory.model_memory, state_values(memory))
            ),
            init_model_memory=lambda p, transitions: transitions,
            update_model_memory=_update_transitions,
        ),
        build(
            "latent_state",
            "infers which state is rewarded and chooses by habit on this belief",
            (HAZARD_RATE, REWARD_RELIABILITY, INVERSE_TEMPERATURE),
            planning="mimics",
            first_values=_latent_state_values,
            init_model_memory=lambda p, transitions: jnp.zeros(transitions.shape[2:]),
            update_model_memory=_update_belief,
        ),
        build(
            "model_based",
            "plans with known transitions",
            (LEARNING_RATE, INVERSE_TEMPERATURE),
            planning="plans",
            first_values=lambda p, probs, memory: p["inverse_temperature"] * _expect(probs, state_values(memory)),
        ),
        build(
            "hybrid",
            "adds model-free and model-based values",
            (LEARNING_RATE, ELIGIBILITY_TRACE, *HYBRID_WEIGHTS),
            planning="plans",
            first_values=hybrid_values,
            init_model_memory=_init_choice_values,
            update_model_memory=_update_choice_values,
        ),
    )


def _build_model(
    has_second_choice: bool,
    name: str,
    description: str,
    parameters: tuple[ModelParameter, ...],
    first_values: FirstValues,
    planning: str = "none",
    init_model_memory: Callable[[Parameters, Array], PyTree] = lambda p, transitions: (),
    update_model_memory: UpdateModelMemory = lambda p, memory, *_: memory.model_memory,
) -> ChoiceModel:
    """A model from the values of its first choices, with the parts that all models share.

    `init_model_memory` returns `TwoStepMemory.model_memory` before the first trial.
    """
    learns, num_second_choices = bool(parameters), 2 if has_second_choice else 1
    if has_second_choice:
        value_parameters = () if LEARNING_RATE in parameters else (LEARNING_RATE,)
        parameters += (*value_parameters, SECOND_INVERSE_TEMPERATURE)
    if LEARNING_RATE in parameters:
        parameters += (FORGETTING_RATE,)

    def first_logits(p: Parameters, transitions: Array, memory: TwoStepMemory, previous: Array) -> Array:
        values = first_values(p, transitions, memory)
        biases = jnp.stack([-0.5 * p["side_bias"], 0.5 * p["side_bias"]])
        return values + p["perseveration"] * previous + biases

    def second_logits(p: Parameters, memory: TwoStepMemory, state: Array) -> Array:
        return p["second_inverse_temperature"] * jnp.sum(
            jax.nn.one_hot(state, 2, axis=0)[:, None] * memory.option_values, axis=0
        )

    def update(p: Parameters, memory: TwoStepMemory, trial: ParticipantTrials) -> TwoStepMemory:
        error = trial.reward - _reached_value(memory, trial)
        change = p.get("learning_rate", 0.0) * error
        is_chosen = _option_one_hot(trial, memory.option_values.shape[1])
        option_values = update_values(p, memory.option_values, is_chosen, change, INITIAL_VALUE)
        return TwoStepMemory(option_values, update_model_memory(p, memory, trial, error))

    return ChoiceModel(
        "two_step",
        2,
        name,
        description,
        parameters + SHARED_PARAMETERS,
        lambda p, transitions: TwoStepMemory(
            jnp.full((2, num_second_choices, *transitions.shape[2:]), INITIAL_VALUE), init_model_memory(p, transitions)
        ),
        first_logits,
        update,
        second_logits if has_second_choice else None,
        learns,
        planning,
        CONTAINED_MODELS.get(name, ()),
    )


def _init_choice_values(p: Parameters, transitions: Array) -> Array:
    """Model-free values of the first choices before the first trial."""
    return jnp.full(transitions.shape[1:], INITIAL_VALUE)


def _update_choice_values(p: Parameters, memory: TwoStepMemory, trial: ParticipantTrials, error: Array) -> Array:
    """Updates the model-free values of the first choices by the temporal-difference errors of both stages.

    `error` is that of the second stage, which the eligibility trace carries back.
    """
    choice_values = memory.model_memory
    is_chosen = jax.nn.one_hot(trial.choice, 2, axis=0)
    first_error = _reached_value(memory, trial) - jnp.sum(choice_values * is_chosen, axis=0)
    change = p["learning_rate"] * (first_error + p["eligibility_trace"] * error)
    return update_values(p, choice_values, is_chosen, change, INITIAL_VALUE)


def _update_transitions(p: Parameters, memory: TwoStepMemory, trial: ParticipantTrials, error: Array) -> Array:
    """Updates the learned transition probabilities [2, 2], by first choice and state."""
    chosen = jax.nn.one_hot(trial.choice, 2, axis=0)[:, None]
    return memory.model_memory + p["transition_learning_rate"] * chosen * (
        jax.nn.one_hot(trial.state, 2, axis=0) - memory.model_memory
    )


def _latent_state_values(p: Parameters, transitions: Array, memory: TwoStepMemory) -> Array:
    """Values of the first choices: the beliefs that the states are rewarded, weighted by the transitions to them."""
    beliefs = jax.nn.sigmoid(jnp.stack([-memory.model_memory, memory.model_memory]))
    return p["inverse_temperature"] * _expect(transitions, beliefs)


def _update_belief(p: Parameters, memory: TwoStepMemory, trial: ParticipantTrials, error: Array) -> Array:
    """Updates the log odds that state 1 is the rewarded one: by the reward (Bayes' rule), then for a reversal."""
    evidence = (2 * trial.reward - 1) * (2 * trial.state - 1) * _log_odds(p["reward_reliability"])
    belief = jax.nn.sigmoid(memory.model_memory + evidence)
    return _log_odds(belief * (1 - p["hazard_rate"]) + (1 - belief) * p["hazard_rate"])


def _option_one_hot(trial: ParticipantTrials, num_second_choices: int) -> Array:
    """[2, second choices]: products are faster than gathers where many models are fitted at once."""
    second = jax.nn.one_hot(trial.second_choice, num_second_choices, axis=0)
    return jax.nn.one_hot(trial.state, 2, axis=0)[:, None] * second


def _reached_value(memory: TwoStepMemory, trial: ParticipantTrials) -> Array:
    """The value of the second choice that was taken in the state that was reached."""
    return jnp.sum(memory.option_values * _option_one_hot(trial, memory.option_values.shape[1]), axis=(0, 1))


def _expect(transitions: Array, state_values: Array) -> Array:
    """The expected values [2] of the states to which the first choices lead."""
    return transitions[:, 0] * state_values[0] + transitions[:, 1] * state_values[1]


def _log_odds(probability: Array) -> Array:
    """The logit of a probability, which is kept away from 0 and 1."""
    probability = jnp.clip(probability, 1e-6, 1 - 1e-6)
    return jnp.log(probability) - jnp.log1p(-probability)
