"""The likelihood of choices under a model, and simulation of a model in the task of a participant."""

from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit.behavior.base import ChoiceData, ChoiceModel, Parameters, ParticipantTrials, option_index
from ontogeny.types import Key, PyTree


def estimate_transitions(choices: ChoiceData) -> np.ndarray:
    """Estimates the probability of each state given the first choice, [S, 2, 2]; 0.5 in a bandit."""
    transition_probs = np.full((len(choices.participants), 2, 2), 0.5, np.float32)
    if choices.task == "two_step":
        share = np.mean(choices.is_common, axis=1, where=choices.trials.is_complete)[:, None, None]
        transition_probs[:] = np.where(np.arange(2) == choices.common_state[:, :, None], share, 1 - share)
    return transition_probs


def to_parameters(model: ChoiceModel, unbounded_parameters: Array) -> dict[str, Array]:
    """Maps unbounded numbers to parameters within their bounds.

    Args:
        model: The model with K parameters.
        unbounded_parameters: [K].
    """
    return {
        p.name: p.scale * (jnp.tanh(x) if p.signed else jax.nn.sigmoid(x))
        for p, x in zip(model.parameters, unbounded_parameters, strict=True)
    }


def sample_parameters(seed: int, model: ChoiceModel, number: int) -> np.ndarray:
    """Samples parameters uniformly from their ranges.

    Args:
        seed: Determines the sample.
        model: The model with K parameters.
        number: N, how many sets of parameters to sample.

    Returns:
        Unbounded parameters [N, K], as `to_parameters` takes them.
    """
    low, high, scale = (np.array([getattr(p, name) for p in model.parameters]) for name in ("low", "high", "scale"))
    signed = np.array([p.signed for p in model.parameters])
    share = np.random.default_rng(seed).uniform(low, high, (number, len(low))) / scale
    # Strictly inside the range, so that the unbounded parameters are finite.
    inside = np.clip(share, np.where(signed, -0.999, 1e-3), 0.999)
    return np.where(signed, np.arctanh(inside), np.log(np.maximum(inside, 1e-6)) - np.log1p(-inside)).astype(np.float32)


def log_likelihoods(
    model: ChoiceModel, unbounded_parameters: Array, transition_probs: Array, trials: ParticipantTrials
) -> Array:
    """The log-likelihood of each trial's choices.

    Args:
        model: The model with K parameters.
        unbounded_parameters: [K], as `to_parameters` takes them.
        transition_probs: [2, 2], of each state given the first choice.
        trials: [T], the trials of one participant.

    Returns:
        [T] in nats; zero where a trial is incomplete.
    """
    p = to_parameters(model, unbounded_parameters)
    memories, _ = scan_memory(model, p, transition_probs, trials, model.init(p, transition_probs))
    previous_choice = jnp.roll(trials.choice, 1, axis=0)  # of the first trial the last one: no previous trial
    is_first = jnp.arange(len(trials.choice)) == 0
    trials = trials._replace(is_consecutive=trials.is_consecutive & ~is_first)
    return jax.vmap(partial(trial_log_likelihood, model, p, transition_probs))(memories, trials, previous_choice)


def scan_memory(
    model: ChoiceModel, p: Parameters, transition_probs: Array, trials: ParticipantTrials, memory: PyTree
) -> tuple[PyTree, PyTree]:
    """Follows the memory of a model over trials; parameters and the axes after trials may have lanes, `...`.

    Args:
        model: The model, of any task.
        p: Its parameters, [...] each.
        transition_probs: [2, 2, ...], of each state given the first choice.
        trials: [T, ...].
        memory: Before the first trial, unless this starts a session.

    Returns:
        The memory before each trial, with a leading axis [T], and the memory after the last one.
    """
    first = model.init(p, transition_probs)

    def step(memory: PyTree, trial: ParticipantTrials) -> tuple[PyTree, PyTree]:
        memory = _select(trial.starts_session, first, memory)
        return _select(trial.is_complete, model.update(p, memory, trial), memory), memory

    memory, memories = jax.lax.scan(step, memory, trials)
    return memories, memory


def trial_log_likelihood(
    model: ChoiceModel,
    p: Parameters,
    transition_probs: Array,
    memory: PyTree,
    trial: ParticipantTrials,
    previous_choice: Array,
) -> Array:
    """The log-likelihood [...] of the choices of one trial.

    Args:
        model: The model, of any task.
        p: Its parameters, [...] each.
        transition_probs: [2, 2, ...], of each state given the first choice.
        memory: Before the trial.
        trial: [...], of which the choices are explained.
        previous_choice: [...], of the trial before, which counts where the two are consecutive.
    """
    previous = jax.nn.one_hot(previous_choice, model.num_arms, axis=0) * trial.is_consecutive
    logits = model.first_logits(p, transition_probs, memory, previous)
    log_likelihood = _log_prob(logits, trial.choice)
    if model.second_logits is not None:
        log_likelihood += _log_prob(model.second_logits(p, memory, trial.state), trial.second_choice)
    return jnp.where(trial.is_complete, log_likelihood, 0.0)


def _log_prob(logits: Array, choice: Array) -> Array:
    """The log-probability [...] of a choice under logits [A, ...]; XLA fuses slices better than reductions."""
    options = [logits[i] for i in range(len(logits))]
    highest = jax.lax.stop_gradient(reduce(jnp.maximum, options))
    chosen = sum(jnp.where(choice == i, option, 0.0) for i, option in enumerate(options))
    return chosen - highest - jnp.log(sum(jnp.exp(option - highest) for option in options))


@partial(jax.jit, static_argnames=("model",))
def simulate_participants(
    keys: Key,
    model: ChoiceModel,
    unbounded_parameters: Array,
    transition_probs: Array,
    trials: ParticipantTrials,
    rewards: Array,
) -> ParticipantTrials:
    """Simulates a model in the tasks of participants: the same trials are missed, and transitions are drawn.

    Args:
        keys: [N].
        model: The model with K parameters.
        unbounded_parameters: [N, K], as `to_parameters` takes them.
        transition_probs: [N, 2, 2], of each state given the first choice.
        trials: [N, T].
        rewards: [N, T, options], what each option pays in each trial.

    Returns:
        Simulated trials [N, T].
    """
    return jax.vmap(partial(_simulate_participant, model))(
        keys, unbounded_parameters, transition_probs, trials, rewards
    )


def _simulate_participant(
    model: ChoiceModel,
    key: Key,
    unbounded_parameters: Array,
    transition_probs: Array,
    trials: ParticipantTrials,
    rewards: Array,
) -> ParticipantTrials:
    """`simulate_participants` for one participant."""
    p = to_parameters(model, unbounded_parameters)

    def step(
        carry: tuple[PyTree, Array], inputs: tuple[Key, ParticipantTrials, Array]
    ) -> tuple[tuple[PyTree, Array], ParticipantTrials]:
        memory, previous_choice = carry
        key, trial, reward_of_option = inputs
        keys = jax.random.split(key, 3)
        memory = _select(trial.starts_session, model.init(p, transition_probs), memory)
        logits = model.first_logits(p, transition_probs, memory, jnp.where(trial.is_consecutive, previous_choice, 0.0))
        choice = jax.random.categorical(keys[0], logits).astype(jnp.int32)
        state, second_choice = jnp.int32(0), jnp.int32(0)
        if model.task == "two_step":
            state = (jax.random.uniform(keys[1]) < transition_probs[choice, 1]).astype(jnp.int32)
        if model.second_logits is not None:
            second_logits = model.second_logits(p, memory, state)
            second_choice = jax.random.categorical(keys[2], second_logits).astype(jnp.int32)
        simulated = trial._replace(choice=choice, state=state, second_choice=second_choice)
        option = option_index(model.task, model.second_logits is not None, simulated)
        simulated = simulated._replace(reward=reward_of_option[option])
        memory = _select(trial.is_complete, model.update(p, memory, simulated), memory)
        return (memory, jax.nn.one_hot(choice, model.num_arms)), simulated

    keys = jax.random.split(key, len(trials.choice))
    init = (model.init(p, transition_probs), jnp.zeros(model.num_arms))
    return jax.lax.scan(step, init, (keys, trials, rewards))[1]


def _select(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """One of two trees of equal structure."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)
