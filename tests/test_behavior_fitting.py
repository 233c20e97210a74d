"""Fits of choice models: derivatives, contained models, the race of starting points, and the starts of recovery."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from ontogeny.audit.behavior import bandit, reading, two_step
from ontogeny.audit.behavior.base import ChoiceModel, ParticipantTrials
from ontogeny.audit.behavior.comparison import compare_models
from ontogeny.audit.behavior.fitting import ROUNDS, ModelFit, embed_fit, fit_model, fit_models, zero_parameters
from ontogeny.audit.behavior.gradients import BLOCK_SIZES, evaluate_likelihood, pad_trials
from ontogeny.audit.behavior.likelihood import estimate_transitions, log_likelihoods, simulate_participants

pytestmark = pytest.mark.computes

MODELS = (*two_step.build_models(False), *two_step.build_models(True), *bandit.build_models(3))
DIFFERENTIATED = (3, 11, 13)  # latent_state, hybrid with second choices, and one of a bandit; all others are slow
COMPILATION = "/jax/core/compile/backend_compile_duration"
TRANSITIONS = np.float32([[0.7, 0.3], [0.3, 0.7]])


def make_trials(model: ChoiceModel, num_trials: int, num_participants: int = 3, seed: int = 0) -> ParticipantTrials:
    """Random trials of a model's task with missed trials and several sessions; one participant has fewer trials."""
    random, shape = np.random.default_rng(seed), (num_participants, num_trials)
    choice = random.integers(model.num_arms, size=shape).astype(np.int32)
    state, second_choice = (random.integers(2, size=(2, *shape)) * (model.task == "two_step")).astype(np.int32)
    second_choice *= model.second_logits is not None
    is_complete, starts_session = random.random(shape) > 0.1, random.random(shape) < 0.02
    is_complete[0, num_trials // 2 :], starts_session[:, 0] = False, True
    is_consecutive = is_complete & np.roll(is_complete, 1, axis=1) & ~starts_session
    reward = random.random(shape, np.float32)
    return ParticipantTrials(choice, state, second_choice, reward, is_complete, is_consecutive, starts_session)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model,
            id=f"{model.task}-{model.name}-{bool(model.second_logits)}",
            marks=() if i in DIFFERENTIATED else pytest.mark.slow,
        )
        for i, model in enumerate(MODELS)
    ],
)
def test_derivatives_in_blocks_agree_with_automatic_differentiation(model):
    trials = make_trials(model, 2 * max(BLOCK_SIZES) + 20)
    transition_probs = np.tile(TRANSITIONS, (3, 1, 1))
    x = np.random.default_rng(1).normal(0, 1, (3, len(model.parameters))).astype(np.float32)
    participant = np.array([2, 0, 1])
    padded = pad_trials(trials, transition_probs)
    evaluation = evaluate_likelihood(model, x, participant, padded, max_trials=10**6)
    of_set = ParticipantTrials(*(part[participant] for part in trials))
    evaluate = partial(log_likelihoods, model)
    values = jax.vmap(evaluate)(x, transition_probs, of_set)
    gradients = np.asarray(jax.vmap(jax.jacfwd(evaluate))(x, transition_probs, of_set), np.float64)  # [N, T, K]
    np.testing.assert_allclose(evaluation.log_likelihood, np.asarray(values).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(evaluation.gradient, gradients.sum(axis=1), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        evaluation.curvature, np.einsum("ntk,ntl->nkl", gradients, gradients), rtol=1e-3, atol=1e-3
    )
    # Later blocks do not count where the number of trials is limited.
    first = evaluate_likelihood(model, x, participant, padded, max_trials=1)
    np.testing.assert_allclose(first.log_likelihood, np.asarray(values)[:, : max(BLOCK_SIZES)].sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "contained"),
    [(model, part) for model in MODELS for part in model.contains],
    ids=lambda part: part.name,
)
def test_a_contained_model_is_the_larger_one_with_some_parameters_at_zero(model, contained):
    smaller = next(
        candidate
        for candidate in MODELS
        if candidate.name == contained.name and bool(candidate.second_logits) == bool(model.second_logits)
    )
    x = np.random.default_rng(0).normal(0, 1, (3, len(smaller.parameters))).astype(np.float32)
    fit = ModelFit(smaller.name, x, {p.name: x for p in smaller.parameters}, *np.zeros((3, 3)))
    padded = pad_trials(make_trials(model, 300), np.tile(TRANSITIONS, (3, 1, 1)))
    values = [
        evaluate_likelihood(of, parameters, np.arange(3), padded, max_trials=300).log_likelihood
        for of, parameters in (
            (smaller, x),
            (model, embed_fit(model, contained, fit, zero_parameters(model, contained))),
        )
    ]
    np.testing.assert_allclose(*values, atol=0.02)


def test_recovery_fits_simulated_participants_from_the_starting_points_of_participants():
    """Nothing but the simulated trials enters, so that recovery cannot profit from the true parameters."""
    models = [model for model in MODELS[:6] if model.name in ("repetition", "model_based")]
    random, lines = np.random.default_rng(0), ["subject,trial,choice,state,reward"]
    for participant, trial in np.ndindex(3, 60):
        lines.append(f"s{participant},{trial},{random.integers(2)},{random.integers(2)},{random.integers(2)}")
    choices = reading.read_choices(Path("choices.csv"), text="\n".join(lines) + "\n")
    result = compare_models(models, choices, num_groups=1, num_starts=2)
    parts = [result.simulations[model.name] for model in models]
    trials = jax.tree.map(lambda *trials: np.concatenate(trials), *(part.trials for part in parts))
    participant = np.concatenate([part.participant for part in parts])
    fits = fit_models(models, trials, estimate_transitions(choices)[participant], num_starts=2)
    np.testing.assert_array_equal(
        np.stack([fit.bic for fit in fits]).ravel(), np.moveaxis(result.simulation_bic, 1, 0).ravel()
    )


def test_more_trials_need_no_further_program():
    """Programs depend on neither the number of trials nor that of participants: only the number of calls grows."""
    model = two_step.build_models(False)[4]
    fit_model(model, make_trials(model, 100), np.tile(TRANSITIONS, (3, 1, 1)), num_starts=12)
    events = []

    def listen(event: str, duration_secs: float, **kwargs: object) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit_model(model, make_trials(model, 3000, 2), np.tile(TRANSITIONS, (2, 1, 1)), num_starts=12)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert COMPILATION not in events


@pytest.mark.slow
@pytest.mark.parametrize("num_trials", [200, 3000])
def test_the_race_of_starting_points_finds_the_optimum_of_all_of_them(num_trials):
    """Participants of each model with parameters from wide ranges, fitted by each model."""
    models = two_step.build_models(False)
    start = make_trials(models[0], num_trials, 4)
    probs = np.tile(TRANSITIONS, (4, 1, 1))
    parts = []
    for i, model in enumerate(models):
        x = np.random.default_rng(i).normal(0, 1.5, (4, len(model.parameters))).astype(np.float32)
        rewards = np.random.default_rng(i).integers(2, size=(4, num_trials, 2)).astype(np.float32)
        parts.append(simulate_participants(jax.random.split(jax.random.key(i), 4), model, x, probs, start, rewards))
    trials = jax.tree.map(lambda *parts: np.concatenate(parts), *parts)
    of_race, of_all = (
        fit_models(models, trials, np.tile(TRANSITIONS, (24, 1, 1)), rounds=rounds) for rounds in (ROUNDS, ())
    )
    loss = np.stack([b.log_likelihood - a.log_likelihood for a, b in zip(of_race, of_all, strict=True)])
    assert np.mean(loss > 0.1) < 0.02 and loss.mean() < 0.05
