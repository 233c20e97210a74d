"""Does `neural_model_based` go on learning over a long lifetime in which the environment changes again and again?

The actions of the environment are reversed at equal intervals. Returns, and the signs of a loss of plasticity
(`content.plasticity`), are measured by twentieth of the lifetime.

Letters: N replayed steps, W hidden units, B sequences of L steps.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.agents.experience import SampledExperience, sample_experience
from ontogeny.agents.neural_updates import SEQUENCE_LENGTH, NeuralContent, NeuralScratch
from ontogeny.content import latent_model
from ontogeny.content.latent_model import LatentModelShape
from ontogeny.content.outcome_ensemble import MemberWeights
from ontogeny.content.perceptron import apply_hidden
from ontogeny.content.plasticity import measure_layer, weight_distance, weight_norm
from ontogeny.content.transformer_block import Linear
from ontogeny.errors import BadInput
from ontogeny.rollouts import Carry
from ontogeny.studies.neural.learners import (
    LifetimeIdentity,
    OnProgress,
    build_env,
    lifetime_key,
    model_noise_key,
    model_settings,
    run_lifetime,
)
from ontogeny.studies.neural.learning_curves import mean_by_part
from ontogeny.studies.neural.measurements import AGENT, NUM_PARTS, reverse_repeatedly
from ontogeny.types import Key, PyTree, State

NUM_SEQUENCES = 64  # of replayed steps, in which hidden layers are measured
STATISTICS = ("observation_mean", "observation_variance", "num_updates")  # of the model, which no gradient changes


def measure_stability(
    env_text: str,
    interval: int,
    seed: int,
    num_steps: int,
    agent_text: str = AGENT,
    *,
    checkpoint_folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Returns and signs of a loss of plasticity by twentieth of a lifetime.

    Args:
        env_text: Such as `gymnax:Catch-bsuite`, without the settings `steps` and `episodes`.
        interval: Even number of steps after which the actions are reversed, again and again.
        seed: Determines the lifetime.
        num_steps: Of the lifetime, a multiple of 20 and of the interval.
        agent_text: `neural_model_based` with settings.
        checkpoint_folder: As of `learners.run_learner`.
        on_progress: Receives environment steps done and all.

    Returns:
        `curve`: mean return by twentieth; `adapted`: mean return in the second half of each interval; `plasticity`:
        what `measure_plasticity` returns, at the end of each twentieth; and processor seconds.

    Raises:
        BadInput: The lifetime does not consist of whole intervals and of twentieths of whole steps.
        LearningDiverged: What the agent computed is not finite.
    """
    if interval < 2 or interval % 2 or num_steps % NUM_PARTS or num_steps % interval:
        raise BadInput(
            f"steps={num_steps} and interval={interval}: the interval must be even and positive, and the steps a"
            f" multiple of {NUM_PARTS} and of the interval"
        )
    env = reverse_repeatedly(build_env(env_text, steps=num_steps), interval)
    lifetime = LifetimeIdentity(agent_text, f"{env_text}, actions reversed every {interval} steps", seed, num_steps)
    sample_key = model_noise_key(lifetime_key(seed))
    shape = latent_model.model_shape(env.spec, **model_settings(agent_text))

    def measure(initial: Carry, carry: Carry) -> dict[str, Any]:
        return measure_plasticity(sample_key, shape, initial.state, carry.state)

    run, plasticity = run_lifetime(
        lifetime, env, checkpoint_folder, on_progress, num_segments=NUM_PARTS, measure=measure
    )
    return {
        "curve": mean_by_part(run.episodes, num_steps, NUM_PARTS),
        "adapted": mean_by_part(run.episodes, num_steps, 2 * num_steps // interval)[1::2],
        "plasticity": plasticity,
        "learning_cpu_seconds": round(run.cpu_seconds, 2),
        "compile_cpu_seconds": round(run.compile_seconds, 2),
    }


def measure_plasticity(key: Key, shape: LatentModelShape, initial: State, state: State) -> dict[str, Any]:
    """The signs of a loss of plasticity in a state of the agent, on steps drawn from its replay.

    Args:
        key: Draws the steps.
        shape: Sizes of the hidden layers, and which kind of latents a state holds.
        initial: State at the beginning of the lifetime.
        state: Present state, after at least one step.

    Returns:
        `layers`: by hidden layer, the fields of `LayerPlasticity`; `dormant_share` and `constant_share` of all hidden
        units; `weight_norm` and `weight_distance` (from the initial weights) by part of the content.
    """
    scratch: NeuralScratch = state.weights.scratch
    content: NeuralContent = state.weights.content
    sample_key, state_key = jax.random.split(key)
    sampled = sample_experience(sample_key, scratch.experience, NUM_SEQUENCES, SEQUENCE_LENGTH)
    activations = hidden_activations(shape, state_key, content, sampled)
    exists = np.asarray(sampled.sequences.mask).reshape(-1) > 0
    layers = {name: measure_layer(np.asarray(units)[exists]) for name, units in activations.items()}
    trained, trained_before = trained_weights(content), trained_weights(initial.weights.content)
    return {
        "layers": {name: layer._asdict() for name, layer in layers.items()},
        "dormant_share": _share([(layer.num_dormant, layer.num_units) for layer in layers.values()]),
        "constant_share": _share([(layer.num_constant, layer.num_units) for layer in layers.values()]),
        "weight_norm": {part: weight_norm(weights) for part, weights in trained.items()},
        "weight_distance": {part: weight_distance(weights, trained_before[part]) for part, weights in trained.items()},
    }


@partial(jax.jit, static_argnums=0)
def hidden_activations(
    shape: LatentModelShape, key: Key, content: NeuralContent, sampled: SampledExperience
) -> dict[str, Array]:
    """The activations [N, W] of all hidden layers of the content in replayed steps [B, L], N = B L.

    The recurrent layer is that after the action, from which outcomes are predicted. The units of all members of the
    ensemble are one layer.
    """
    model, sequences = content.model, sampled.sequences
    states = latent_model.infer_states(shape, key, model, sequences)
    states, sequences = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), (states, sequences))
    encoded = jax.vmap(partial(latent_model.encode_percept, shape, model))(
        sequences.observation, sequences.is_first, sequences.outcome
    )
    recurrent = jax.vmap(partial(latent_model.advance, shape, model))(states, sequences.action)
    flat, action = latent_model.flatten_state(states), jax.nn.one_hot(sequences.action, shape.num_actions)

    def apply_member(member: MemberWeights) -> Array:
        return apply_hidden(Linear(member.hidden, member.hidden_bias), jnp.concatenate([flat, action], axis=-1))

    members = jax.vmap(apply_member)(content.ensemble.trained)
    return {
        "encoder": encoded,
        "posterior": apply_hidden(model.posterior.hidden, jnp.concatenate([states.hidden, encoded], axis=-1)),
        "action": apply_hidden(model.action, jnp.concatenate([states.latent, action], axis=-1)),
        "recurrent": recurrent,
        "prior": apply_hidden(model.prior.hidden, states.hidden),
        "decoder": apply_hidden(model.decoder.hidden, flat),
        "outcome": apply_hidden(model.outcome.hidden, recurrent),
        "actor": apply_hidden(content.actor.hidden, flat),
        "critic": apply_hidden(content.critic.hidden, flat),
        "ensemble": jnp.moveaxis(members, 0, 1).reshape(len(flat), -1),
    }


def trained_weights(content: NeuralContent) -> dict[str, PyTree]:
    """What gradients change, by part: without the statistics of the observations, and the priors of the ensemble."""
    model = {name: part for name, part in content.model._asdict().items() if name not in STATISTICS}
    return {"model": model, "actor": content.actor, "critic": content.critic, "ensemble": content.ensemble.trained}


def _share(counts: Sequence[tuple[int, int]]) -> float:
    """The share of all units, from numbers (of some units, of all units) by layer."""
    return sum(number for number, _ in counts) / sum(num_units for _, num_units in counts)
