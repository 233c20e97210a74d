"""A few steps of a lifetime as the agent `neural_model_based` experienced them, for pictures.

For each step: what it observed, what its model predicted one step before, what the model imagined from the first of
these steps on without observing any further one, how uncertain both predictions are, which reward it expected, which
reward followed, and what it did with which probability.
Letters: L steps, N imagined trajectories, O observation.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.content import calibration, latent_model
from ontogeny.content.latent_model import LatentModelShape, LatentModelWeights, LatentPrediction, LatentState
from ontogeny.rollouts import Carry
from ontogeny.studies.neural.learners import build_agent, build_env, lifetime_key, model_noise_key, model_settings
from ontogeny.studies.neural.lifetime_segments import compile_segment
from ontogeny.studies.neural.measurements import run_steps
from ontogeny.types import Environment, Key, Steering, Trajectory

MAX_PICTURE_STEPS = 12  # L
NUM_SEARCHED_STEPS = 100  # among which the beginning of an episode is sought
NUM_TRAJECTORIES = 32  # N
DECIMALS = 4


class ExperiencedStep(NamedTuple):
    """What is kept of a step."""

    observation: Array
    is_first: Array
    action: Array
    probability: Array  # with which the agent chose it
    reward: Array
    state: LatentState  # after the observation


def record_experience(env: Environment, carry: Carry, step: Trajectory) -> ExperiencedStep:
    """Keeps what the agent experienced and inferred."""
    del env
    activations = carry.state.activations
    probability = jnp.exp(activations.log_probability)
    return ExperiencedStep(step.observation, step.first, step.action, probability, step.reward, activations.state)


def measure_pictures(agent_text: str, env_text: str, seed: int, times: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Pictures of one lifetime at several times.

    At each time the agent goes on for some steps with its weights as they are then; its lifetime continues from the
    same time, with learning.

    Args:
        agent_text: `neural_model_based` with settings.
        env_text: In JAX, without `steps`.
        seed: Of the lifetime, which is that of the learning curve with this seed and the number of steps of the last
            time.
        times: Names and steps of learning, in ascending order.

    Returns:
        One picture for each name, as plain lists.
    """
    env = build_env(env_text, steps=max(times.values()))
    agent, steering = build_agent(agent_text, env)
    shape = latent_model.model_shape(env.spec, **model_settings(agent_text))
    key, carry, num_done, pictures = lifetime_key(seed), None, 0, {}
    program = compile_segment(agent, env, steering, NUM_SEARCHED_STEPS, False, record_experience)
    for name, num_steps in times.items():
        carry, _ = run_steps(key, agent, env, steering, carry, num_done, num_steps - num_done, agent.learning)
        num_done = num_steps
        _, steps = program.run(key, jnp.int32(num_done), carry)
        chosen = choose_steps(np.asarray(steps.is_first))
        steps = jax.tree.map(lambda leaf, chosen=chosen: jnp.asarray(leaf)[chosen], steps)
        pictures[name] = draw_up(key, shape, carry.state.weights.content.model, steering, steps)
    return pictures


def choose_steps(is_first: np.ndarray) -> slice:
    """The first whole episode among steps [T], or as much of it as fits; the first steps where none begins."""
    starts = np.flatnonzero(is_first)
    start = int(starts[0]) if len(starts) else 0
    end = int(starts[1]) if len(starts) > 1 else len(is_first)
    return slice(start, min(end, start + MAX_PICTURE_STEPS))


def draw_up(
    key: Key, shape: LatentModelShape, weights: LatentModelWeights, steering: Steering, steps: ExperiencedStep
) -> dict[str, Any]:
    """What the model predicted for steps [L] of one episode, one step ahead and from the first step on.

    Args:
        key: Of the lifetime.
    """
    predicted = _predict_steps(model_noise_key(key), shape, weights, steering, steps)
    experienced = {"observation": steps.observation, "reward": steps.reward, "probability": steps.probability}
    lists = {name: _plain(values) for name, values in (experienced | predicted).items()}
    return lists | {"action": np.asarray(steps.action).tolist()}


@partial(jax.jit, static_argnames=("shape", "steering"))
def _predict_steps(
    key: Key, shape: LatentModelShape, weights: LatentModelWeights, steering: Steering, steps: ExperiencedStep
) -> dict[str, Array]:
    """Predictions of the observations of steps 1 to L - 1, and of the rewards of all steps."""
    next_key, imagined_key = jax.random.split(key)

    def predict(number: Array, state: LatentState, action: Array) -> LatentPrediction:
        step_key = jax.random.fold_in(next_key, number)
        return latent_model.predict(shape, step_key, weights, state, action, NUM_TRAJECTORIES)

    predictions = jax.vmap(predict)(jnp.arange(len(steps.action)), steps.state, steps.action)
    start = jax.tree.map(lambda leaf: leaf[0], steps.state)
    observation_scale = predictions.observation_scale[:-1]  # weights alone determine it: imagined states have the same
    predicted_deviation = predictive_deviation(shape, predictions.observation[:-1], observation_scale)
    imagined, imagined_reward = imagine_observations(imagined_key, shape, weights, steering, start, steps.action)
    imagined_deviation = predictive_deviation(shape, imagined[:-1], observation_scale)
    return {
        "predicted": jnp.mean(predictions.observation[:-1], axis=1),
        "predicted_spread": _root_mean_square(predicted_deviation),
        "imagined": jnp.mean(imagined[:-1], axis=1),
        "imagined_spread": imagined_deviation,
        "imagined_total_spread": _root_mean_square(imagined_deviation),
        "expected_reward": jax.vmap(steering)(jax.vmap(calibration.expected_outcome)(predictions)),
        "imagined_reward": imagined_reward,
    }


def imagine_observations(
    key: Key,
    shape: LatentModelShape,
    weights: LatentModelWeights,
    steering: Steering,
    start: LatentState,
    actions: Array,
) -> tuple[Array, Array]:
    """Imagined trajectories under fixed actions: observations [L, N, O] after each action, and mean rewards [L]."""

    def imagine_one(key: Key) -> tuple[Array, Array]:
        def step(state: LatentState, inputs: tuple[Key, Array]) -> tuple[LatentState, tuple[Array, Array]]:
            step_key, action = inputs
            prediction = latent_model.predict(shape, step_key, weights, state, action, 1)
            # The same random numbers as in `predict`, so that the observation is that of this state.
            noise = jax.random.uniform(step_key, (1, shape.num_latents))[0]
            hidden = latent_model.advance(shape, weights, state, action)
            next_state = latent_model.imagine(shape, weights, hidden, noise)
            return next_state, (prediction.observation[0], steering(calibration.expected_outcome(prediction)))

        return jax.lax.scan(step, start, (jax.random.split(key, len(actions)), actions))[1]

    observations, rewards = jax.vmap(imagine_one)(jax.random.split(key, NUM_TRAJECTORIES))
    return observations.swapaxes(0, 1), jnp.mean(rewards, axis=0)


def predictive_deviation(shape: LatentModelShape, samples: Array, scale: Array) -> Array:
    """The standard deviation of each number of an observation under a predictive distribution, [L, O].

    It holds both how much the samples differ and how uncertain each of them is: the variance is the sum of the two. Of
    whole numbers, it is that of the indicator of each number.

    Args:
        shape: Says whether observations are whole numbers.
        samples: Probabilities of whole numbers, or means of Normals, [L, N, O].
        scale: Standard deviations of the Normals, [L, O].
    """
    if shape.num_observations:
        probability = jnp.mean(samples, axis=1)
        return jnp.sqrt(probability * (1 - probability))
    return jnp.sqrt(jnp.var(samples, axis=1) + jnp.square(scale))


def _root_mean_square(deviations: Array) -> Array:
    """The root mean square over the numbers of an observation."""
    return jnp.sqrt(jnp.mean(jnp.square(deviations), axis=-1))


def _plain(values: Array) -> list[Any]:
    """Rounded lists, which a file of records can hold."""
    return np.round(np.asarray(values, np.float64), DECIMALS).tolist()
