"""Measurements of the agent `neural_model_based`: calibration of its world model, and drift within a lifetime."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.content import calibration, latent_model
from ontogeny.content.latent_model import LatentPrediction, LatentState
from ontogeny.rollouts import Carry
from ontogeny.studies.neural.learners import (
    MAX_SEGMENTS,
    build_agent,
    build_env,
    lifetime_key,
    model_noise_key,
    model_settings,
)
from ontogeny.studies.neural.learning_curves import (
    EpisodeReturns,
    episodes_of_lifetime,
    final_score,
    mean_by_part,
    steps_to_aim,
)
from ontogeny.studies.neural.lifetime_segments import begin, compile_segment, concatenate, record_score, split_steps
from ontogeny.types import Agent, Environment, EnvState, Key, PyTree, Steering, TimeStep, Trajectory

AGENT = "neural_model_based"
NUM_PARTS = 20
CONDITIONS = {"online": (True, False), "frozen": (False, False), "frozen, activations reset": (False, True)}


class PredictedStep(NamedTuple):
    """A step of a lifetime with what the agent inferred before its action."""

    state: LatentState
    action: Array
    next_observation: Array
    ends_episode: Array
    outcome: Array
    discount: Array


class ReversalState(NamedTuple):
    """The state of an environment whose actions are reversed in some steps."""

    env_state: EnvState
    num_steps: Array


def record_prediction(env: Environment, carry: Carry, step: Trajectory) -> PredictedStep:
    """Keeps the latent state in which the agent acted, and what followed."""
    del env
    state, next_percept = carry.state.activations.state, carry.percept
    return PredictedStep(state, step.action, next_percept.observation, next_percept.first, step.outcome, step.discount)


def measure_calibration(
    env_text: str, seed: int, num_steps: int, num_test_steps: int, width: int, **settings: Any
) -> dict[str, Any]:
    """The calibration of the world model on transitions that it was not trained on.

    The agent learns for one lifetime. It then goes on without learning, and the model predicts each of these steps.

    Args:
        num_steps: Steps in which it learns.
        num_test_steps: Steps that are predicted.
        width: Size of every layer.
        settings: Of the agent.

    Returns:
        Log-likelihoods in nats per step (`observation`, `outcome`, `discount`), calibration errors, and counts.
    """
    env = build_env(env_text, steps=num_steps + num_test_steps)
    agent_text = _agent_text(width=width, **settings)
    agent, steering = build_agent(agent_text, env)
    key = lifetime_key(seed)
    carry, _ = run_steps(key, agent, env, steering, None, 0, num_steps, agent.learning)
    program = compile_segment(agent, env, steering, num_test_steps, False, record_prediction)
    carry, steps = program.run(key, jnp.int32(num_steps), carry)
    weights = carry.state.weights.content.model
    predictions = predict_steps(key, latent_model.build(env.spec, **model_settings(agent_text)).query, weights, steps)
    return {"width": width, "num_test_steps": num_test_steps} | summarize_calibration(predictions, steps)


def predict_steps(key: Key, query: Callable[..., LatentPrediction], weights: PyTree, steps: PredictedStep) -> PyTree:
    """The predictions of a model for steps [M].

    Args:
        key: Of the lifetime.
        query: Of the model.
        weights: Of the model.
        steps: With the state and the action of each step.
    """
    noise_key = model_noise_key(key)

    def predict(number: Array, step: PredictedStep) -> LatentPrediction:
        return query(jax.random.fold_in(noise_key, number), weights, step.state, step.action)

    return jax.jit(jax.vmap(predict))(jnp.arange(len(steps.action)), steps)


def summarize_calibration(predictions: LatentPrediction, steps: PredictedStep) -> dict[str, float]:
    """Mean log-likelihoods and calibration errors of predictions [M]; observations only where the episode goes on."""
    goes_on = ~np.asarray(steps.ends_episode)
    observation = jax.vmap(calibration.observation_log_likelihood)(predictions, steps.next_observation)
    outcome = jax.vmap(calibration.outcome_log_likelihood)(predictions, steps.outcome)
    discount = jax.vmap(calibration.discount_log_likelihood)(predictions, steps.discount)
    expected = np.asarray(jax.vmap(calibration.expected_outcome)(predictions))
    bounds = float(expected.min()) - 1e-6, float(expected.max()) + 1e-6
    if steps.next_observation.ndim == 1:
        probabilities = np.asarray(predictions.observation).mean(axis=1)[goes_on]
        is_right = probabilities.argmax(axis=1) == np.asarray(steps.next_observation)[goes_on]
        observation_error = calibration.expected_calibration_error(probabilities.max(axis=1), is_right)
    else:
        quantiles = jax.vmap(calibration.observation_quantiles)(predictions, steps.next_observation)
        observation_error = calibration.quantile_calibration_error(np.asarray(quantiles)[goes_on])
    return {
        "observation_log_likelihood": float(np.asarray(observation)[goes_on].mean()),
        "outcome_log_likelihood": float(jnp.mean(outcome)),
        "discount_log_likelihood": float(jnp.mean(discount)),
        "observation_calibration_error": observation_error,
        "outcome_calibration_error": calibration.expected_calibration_error(
            expected, np.asarray(steps.outcome), bounds=bounds
        ),
        "discount_calibration_error": calibration.expected_calibration_error(
            np.asarray(predictions.discount), np.asarray(steps.discount)
        ),
    }


def measure_drift(
    env_text: str, drift: str, seed: int, num_steps: int, num_recent: int, agent_text: str = AGENT
) -> dict[str, Any]:
    """Loss and recovery after a change in the middle of a lifetime, online and frozen.

    All conditions share the first half, in which the agent learns. After the change it goes on learning (`online`), or
    its weights stay as they are (`frozen`), with activations that persist or are reset in every episode.

    Args:
        drift: `actions reversed`, or a parameter that changes, such as `length:0.5..1.5`.
        num_steps: Of the whole lifetime, even.
        num_recent: Episodes of the moving mean for the recovery.

    Returns:
        `before`: mean return of the last tenth before the change; and by condition the `loss` in the first `num_recent`
        episodes after it, `recovery_steps` until the moving mean lies no more than 10 % below `before`, None where it
        never does, and the score at the end (`final`).
    """
    half = num_steps // 2
    env = build_drifting_env(env_text, drift, num_steps)
    agent, steering = build_agent(agent_text, env)
    key = lifetime_key(seed)
    carry, before = run_steps(key, agent, env, steering, None, 0, half, agent.learning)
    reference = final_score(before, half)
    record: dict[str, Any] = {"before": reference, "curve_before": mean_by_part(before, half, NUM_PARTS)}
    for condition, (learning, resets) in CONDITIONS.items():
        _, episodes = run_steps(key, agent, env, steering, carry, half, half, learning, resets)
        after = EpisodeReturns(*(values[1:] for values in episodes))  # the first one began before the change
        first = EpisodeReturns(*(values[:num_recent] for values in after))
        loss = None if reference is None or not len(first.steps) else reference - float(first.returns.mean())
        aim = None if reference is None else reference - 0.1 * abs(reference)
        record[condition] = {
            "loss": loss,
            "recovery_steps": None if aim is None else steps_to_aim(after, aim, num_recent),
            "final": final_score(after, half),
            "curve": mean_by_part(after, half, NUM_PARTS),
        }
    return record


def run_steps(
    key: Key,
    agent: Agent,
    env: Environment,
    steering: Steering,
    carry: Carry | None,
    first_step: int,
    num_steps: int,
    learning: bool,
    reset_each_episode: bool = False,
) -> tuple[Carry, EpisodeReturns]:
    """Steps of a lifetime from a carry, or from its beginning; the first episode after a carry may be a part of one."""
    num_segments, length = split_steps(num_steps, MAX_SEGMENTS)
    state = carry or jax.jit(lambda key: begin(key, agent, env, steering, agent.genome(key)))(key)
    program = compile_segment(agent, env, steering, length, learning, record_score, reset_each_episode)
    records = []
    for segment in range(num_segments):
        state, recorded = program.run(key, jnp.int32(first_step + segment * length), state)
        records.append(recorded)
    scores = concatenate(records)
    return state, episodes_of_lifetime(scores.score, scores.ends_episode)


@cache
def build_drifting_env(env_text: str, drift: str, num_steps: int) -> Environment:
    """An environment that changes in the middle of a lifetime."""
    half = num_steps // 2
    if drift == "actions reversed":
        return reverse_actions(build_env(env_text, steps=num_steps), half)
    return build_env(env_text, steps=num_steps, drift=(f"{drift}:{half}..{half}",))


def reverse_actions(env: Environment, first_step: int) -> Environment:
    """An environment whose actions have the effect of the opposite ones, the last for the first, from a step on."""
    return _reverse_where(env, lambda num_steps: num_steps >= first_step)


def reverse_repeatedly(env: Environment, interval: int) -> Environment:
    """An environment whose actions have the effect of the opposite ones in every second interval of steps."""
    return _reverse_where(env, lambda num_steps: num_steps // interval % 2 == 1)


def _reverse_where(env: Environment, is_reversed: Callable[[Array], Array]) -> Environment:
    """An environment whose actions are reversed where a function of the number of steps before says so."""

    def reset(key: Key) -> tuple[ReversalState, TimeStep]:
        env_state, time_step = env.reset(key)
        return ReversalState(env_state, jnp.int32(0)), time_step

    def step(key: Key, state: ReversalState, action: Array) -> tuple[ReversalState, TimeStep]:
        effective = jnp.where(is_reversed(state.num_steps), env.spec.num_actions - 1 - action, action)
        env_state, time_step = env.step(key, state.env_state, effective)
        return ReversalState(env_state, state.num_steps + 1), time_step

    return env._replace(reset=reset, step=step, reveal_task=None)


def _agent_text(**settings: Any) -> str:
    """The agent with settings, as on the command line."""
    return f"{AGENT}:{','.join(f'{name}={chosen}' for name, chosen in settings.items())}"
