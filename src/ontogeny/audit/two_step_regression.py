"""Tests for the interaction of reward and transition in the two-step task, beside learners that do not plan.

Secondary. Daw et al. 2011 (Neuron 69:1204), Wang et al. 2018 (Nat Neurosci 21:860): whether a choice is repeated is
regressed on reward x transition of the previous trial. The plain regression is accompanied by one with a further
regressor, whether that choice was the better one (Akam, Costa & Dayan 2015, PLoS Comput Biol 11:e1004648). It corrects
the interaction that value learners owe to the task; it corrects neither successor representations nor reward as a cue
nor learned latent states, and it removes the interaction from a planner that works in the background (Dyna). Simulated
learners of each kind therefore act in the same trials. Where transitions are fixed, a latent state with predetermined
responses chooses exactly as a planner does; the subject therefore also acts with transitions that are sampled per
lifetime, where such responses fall to chance.

Ordinary least squares on 0 and 1 with errors clustered by lifetimes; predictors are +-1/2, so that the coefficient of
the product is the contrast of the four stay probabilities. A place is a state of the second stage (observation 1 or
2), as in `environments.two_step`. Letters: p regressors, N lifetimes.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit import base, decisions, skewed_scores
from ontogeny.errors import BadInput
from ontogeny.stats import ZERO_SPREAD
from ontogeny.types import Environment, Key, TabularTask, TimeStep

TEST = ("two_step_regression", "plans", False)
MAX_COEFFICIENT = 2.0  # a sum of two differences of stay probabilities
REFERENCES = ("td_zero", "td_one", "successor", "latent_state_fixed", "latent_state_learner", "planner")
TRANSITIONS = ("fixed", "random")  # the transitions of all lifetimes are the same, or sampled per lifetime
CELLS = ("rewarded common", "rewarded rare", "unrewarded common", "unrewarded rare")
THRESHOLDS = decisions.Thresholds(
    z=2.33, min_effect=0.05
)  # the corrected difference of differences of stay probabilities
EXPECTED = base.expected_results(
    positive="planner successor latent_state_learner reward_as_cue",
    negative="dyna td_zero td_lambda td_one latent_state_fixed win_stay memoryless open_loop perseverator side_biased",
)


def build(*, num_lifetimes: int = 800) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit and kind of transitions.
    """
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, THRESHOLDS, EXPECTED)


def measure(subject: base.Subject, keys: Key) -> decisions.Measurements:
    """Returns the arrays of `sum_trials` per lifetime and kind of transitions, [N, 2, ...], for every subject."""
    train_env = subject.train_env
    env = train_env if train_env.spec.name == "two_step" else plugins.build("environments", "two_step")
    assert env.reveal_task is not None
    subjects = {"subject": subject} | {name: base.control_subject(name, env) for name in REFERENCES}

    def measure_subject(chooser: base.Subject, key: Key, is_sampled: Array) -> dict[str, Array]:
        prepared = base.prepare_subject(chooser, with_crossed_transitions(env, is_sampled))
        if prepared.agent.privileged:
            raise BadInput("the test requires planning, and the agent observes the task itself")
        recorded = base.with_recorder(prepared, lambda state, transition: transition.percept.revealed_task)
        # `privileged` reveals the task to the recorder; the agent does not read it.
        recorded = recorded._replace(agent=recorded.agent._replace(privileged=True))
        _, trajectory = base.rollout_subject(key, recorded)
        score = jax.vmap(env.score)(trajectory.outcome)
        return sum_trials(trajectory.observation, trajectory.action, score, trajectory.info)

    def measure_lifetime(key: Key) -> dict[str, Array]:
        sums = {}
        for name, chooser in subjects.items():
            is_sampled = jnp.array([False, True])  # in the order of `TRANSITIONS`
            of_subject = jax.vmap(partial(measure_subject, chooser, key))(is_sampled)
            sums |= {f"{name} {part}": array for part, array in of_subject.items()}
        return sums

    return base.map_lifetimes(measure_lifetime, keys)


def with_crossed_transitions(env: Environment, is_sampled: Array) -> Environment:
    """Returns the environment in which, where `is_sampled`, half of the lifetimes have crossed transitions."""

    def reset(key: Key) -> tuple[object, TimeStep]:
        state, time_step = env.reset(key)
        is_crossed = is_sampled & jax.random.bernoulli(jax.random.fold_in(key, 1))
        place = state.task.common_place
        return state._replace(task=state.task._replace(common_place=jnp.where(is_crossed, 1 - place, place))), time_step

    return env._replace(reset=reset)


def sum_trials(observation: Array, action: Array, score: Array, task: TabularTask) -> dict[str, Array]:
    """Returns sums over the pairs of successive trials of one lifetime.

    Args:
        observation: Observations [T], two steps per trial.
        action: Actions [T].
        score: Scores [T].
        task: The revealed task at each step, leading axis T.

    Returns:
        Sums of products of the five regressors with each other (`xx`), with staying (`xy`) and of staying (`yy`), and
        the numbers of trials by cell (`trials`) and of those with a repeated choice (`stays`).
    """
    choice, place = action[0::2], observation[1::2]
    trials = jnp.arange(len(choice))
    is_rewarded = score[1::2] > 0.5
    transitions = task.transitions[0::2, 0, :, 1:3]  # [trials, action, place]
    values = jnp.max(task.outcomes[0::2, 1:3, :, 0], axis=-1)  # [trials, place]
    probability = jnp.take_along_axis(transitions[trials, choice], place[:, None] - 1, axis=1)[:, 0]
    is_common = probability > 0.5
    action_values = jnp.einsum("tap,tp->ta", transitions, values)
    advantage = action_values[trials, choice] - action_values[trials, 1 - choice]
    stays = (choice[1:] == choice[:-1]).astype(jnp.float32)
    reward, transition = is_rewarded[:-1] - 0.5, is_common[:-1] - 0.5
    was_better = 0.5 * jnp.sign(advantage[:-1])
    X = jnp.stack([jnp.ones_like(reward), reward, transition, reward * transition, was_better], axis=1)
    cell = jax.nn.one_hot(2 * (1 - is_rewarded[:-1]) + (1 - is_common[:-1]), 4)
    return {"xx": X.T @ X, "xy": X.T @ stays, "yy": stays @ stays, "stays": stays @ cell, "trials": jnp.sum(cell, 0)}


def clustered_regression(xx: np.ndarray, xy: np.ndarray, columns: list[int]) -> list[decisions.Effect]:
    """Estimates coefficients with errors clustered by lifetimes.

    Args:
        xx: Sums of products of regressors per lifetime, [N, p, p].
        xy: Sums of products of regressors and response per lifetime, [N, p].
        columns: The regressors that enter.
    """
    xx, xy = xx[:, columns][:, :, columns].astype(np.float64), xy[:, columns].astype(np.float64)
    N = len(xx)
    bread = np.linalg.pinv(xx.sum(axis=0))
    coefficients = bread @ xy.sum(axis=0)
    scores = xy - xx @ coefficients
    errors = np.sqrt(np.maximum(np.diag(bread @ scores.T @ scores @ bread) * N / (N - 1), 0.0))
    z = np.where(errors > 1e-9, coefficients / np.maximum(errors, 1e-9), 0.0)
    moments = [
        skewed_scores.Moments(float(b), float(error), 0.0, N, max(MAX_COEFFICIENT, abs(float(b))))
        for b, error in zip(coefficients, np.where(errors > ZERO_SPREAD, errors, 0.0), strict=True)
    ]
    return [
        decisions.Effect(part.mean, *skewed_scores.mean_bounds(part), float(standardized), N, part)
        for part, standardized in zip(moments, z, strict=True)
    ]


def estimate_interaction(
    measurements: decisions.Measurements, name: str, transitions: str, *, corrected: bool
) -> decisions.Effect:
    """Estimates the coefficient of reward x transition.

    Args:
        measurements: Arrays of `measure`.
        name: `subject` or one of `REFERENCES`.
        transitions: One of `TRANSITIONS`.
        corrected: Whether the regression includes which choice was the better one.
    """
    p = TRANSITIONS.index(transitions)
    columns = [0, 1, 2, 3, 4] if corrected else [0, 1, 2, 3]
    return clustered_regression(measurements[f"{name} xx"][:, p], measurements[f"{name} xy"][:, p], columns)[3]


def stay_probabilities(measurements: decisions.Measurements, name: str, transitions: str) -> dict[str, float]:
    """Returns the probability that a choice is repeated, by cell; arguments as of `estimate_interaction`."""
    p = TRANSITIONS.index(transitions)
    stays, trials = (measurements[f"{name} {part}"][:, p].sum(axis=0) for part in ("stays", "trials"))
    return {cell: float(share) for cell, share in zip(CELLS, stays / np.maximum(trials, 1), strict=True)}


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where the corrected interaction is significant and large with transitions sampled per lifetime."""
    effects = {
        f"{kind}, transitions {transitions}": estimate_interaction(
            measurements, "subject", transitions, corrected=kind == "corrected"
        )
        for transitions in TRANSITIONS
        for kind in ("plain", "corrected")
    }
    controls = {
        f"{name}, corrected, random": estimate_interaction(measurements, name, "random", corrected=True)
        for name in REFERENCES
    }
    names = ("subject", *REFERENCES)
    details = {
        "stay": {
            transitions: {name: stay_probabilities(measurements, name, transitions) for name in names}
            for transitions in TRANSITIONS
        }
    }
    verdict, p_value = decisions.decide_all({"random": effects["corrected, transitions random"]}, thresholds)
    if verdict == "yes":
        non_planners = [
            name
            for name in REFERENCES
            if name != "planner" and thresholds.is_met(controls[f"{name}, corrected, random"])
        ]
        summary = "it shows the interaction of reward and transition, also with transitions sampled per lifetime"
        summary += (
            f"; so do, in the same trials, these references that do not plan: {', '.join(non_planners) or 'none'}"
        )
    elif verdict == "no" and thresholds.is_met(effects["corrected, transitions fixed"]):
        summary = "it shows the interaction with fixed transitions but not with sampled ones: predetermined responses"
    elif verdict == "no":
        summary = "it does not show the interaction of reward and transition"
    else:
        summary = "whether it shows the interaction of reward and transition is undetermined"
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls, details=details)
