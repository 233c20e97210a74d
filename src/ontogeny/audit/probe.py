"""Tests with a linear probe whether activations hold what a Bayesian agent would know of the arms, against controls.

Secondary. A ridge regression from activations to the posterior means of a bandit's arms is fitted to other lifetimes
and evaluated at every step. Control tasks after Hewitt & Liang 2019 (EMNLP, arXiv 1909.03368), adapted to lifetimes:
the label is the posterior mean of ANOTHER lifetime at the same step, because steps of one lifetime resemble each other
and a clock must gain nothing. Selectivity is the explained variance of the task minus that of the control task. A
second control for agents with a genome is the same network before development, driven through the same history,
because random recurrent networks echo their inputs. Information that a probe decodes need not be used: only the test
`belief` examines use. Letters: M lifetimes of the fit, D numbers of activations, A arms.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import trees
from ontogeny.audit import base, decisions
from ontogeny.content import beta_bernoulli
from ontogeny.rollouts import begin_lifetime
from ontogeny.stats import linearized_ratio
from ontogeny.types import Environment, Key, TimeStep

TEST = ("probe", "learns", False)
NUM_FIT_LIFETIMES = 100
RIDGE = 1e-3  # of the mean variance of an activation
THRESHOLDS = decisions.Thresholds(z=2.33, min_effect=0.30)  # selectivity, a share of the variance
EXPECTED = base.expected_results(
    positive="gittins thompson td_zero td_one planner successor dyna",
    negative="memoryless open_loop perseverator side_biased win_stay",
)


class ProbeInputs(NamedTuple):
    """Inputs and labels of the probe at each step of a lifetime."""

    activations: Array  # [T, D]
    untrained: Array  # [T, D] of the network before development; zero where there is none
    means: Array  # [T, A] posterior means of the arms


class LinearProbe(NamedTuple):
    """A fitted probe: [T, D] -> [T, A]."""

    weights: Array  # [D, A]
    input_mean: Array  # [D]
    label_mean: Array  # [A]

    def __call__(self, inputs: Array) -> Array:
        """Returns the predicted labels."""
        return (inputs - self.input_mean) @ self.weights + self.label_mean


def build(*, num_lifetimes: int = 100) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit in which the probe is evaluated.
    """
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, THRESHOLDS, EXPECTED)


def measure(subject: base.Subject, keys: Key) -> decisions.Measurements:
    """Returns squared errors of each probe and of constant predictions, [N], summed over the steps of a lifetime."""
    env = base.bandit_env(subject)
    prepared = base.prepare_subject(subject, env)
    arms = beta_bernoulli.bandit_prior(env.spec, prepared.steering)
    untrained_genome = prepared.agent.genome(jax.random.key(0))
    has_untrained = trees.num_elements(untrained_genome) > 0 and not prepared.agent.learning
    recorded = base.with_recorder(prepared, lambda state, _: base.flatten_activations(state.activations))

    def record_inputs(key: Key) -> ProbeInputs:
        _, trajectory = base.rollout_subject(key, recorded)
        untrained = jnp.zeros((env.spec.num_steps, 1))
        if has_untrained:
            state = begin_lifetime(key, recorded.agent, untrained_genome)
            scripted = recorded._replace(env=scripted_env(env, trajectory.action), genome=state)
            untrained = base.rollout_subject(key, scripted)[1].info
        counts = beta_bernoulli.counts_along(arms, trajectory.action, trajectory.reward)
        means = beta_bernoulli.posterior_mean(arms, counts)
        return ProbeInputs(trajectory.info, untrained, means)

    fit = base.map_lifetimes(record_inputs, base.unrelated_keys(keys, NUM_FIT_LIFETIMES))
    probes = {
        "activations": fit_probe(fit.activations, fit.means),
        "control": fit_probe(fit.activations, np.roll(fit.means, 1, axis=0)),
        "untrained": fit_probe(fit.untrained, fit.means),
    }
    mean_label = fit.means.mean(axis=(0, 1))

    def measure_lifetime(key: Key, probes: dict[str, LinearProbe]) -> dict[str, Array]:
        inputs, unrelated = record_inputs(key), record_inputs(base.unrelated_key(key, 1))
        errors = {
            "total": inputs.means - mean_label,
            "control_total": unrelated.means - mean_label,
            "activations": probes["activations"](inputs.activations) - inputs.means,
            "control": probes["control"](inputs.activations) - unrelated.means,
            "untrained": probes["untrained"](inputs.untrained) - inputs.means,
        }
        return {name: jnp.sum(error**2) for name, error in errors.items()}

    return base.map_lifetimes(measure_lifetime, keys, probes) | {"has_untrained": np.full(len(keys), has_untrained)}


def scripted_env(env: Environment, actions: Array) -> Environment:
    """Returns the environment that carries out actions [T] in place of the agent's own."""

    def reset(key: Key) -> tuple[tuple[object, Array], TimeStep]:
        state, time_step = env.reset(key)
        return (state, jnp.int32(0)), time_step

    def step(key: Key, state: tuple[object, Array], action: Array) -> tuple[tuple[object, Array], TimeStep]:
        del action
        env_state, t = state
        env_state, time_step = env.step(key, env_state, actions[t])
        return (env_state, t + 1), time_step._replace(forced_action=actions[t])

    return env._replace(reset=reset, step=step)


def fit_probe(activations: np.ndarray, labels: np.ndarray) -> LinearProbe:
    """Fits a ridge regression to the steps of all lifetimes, [M, T, D] -> [M, T, A]."""
    inputs = activations.reshape(-1, activations.shape[-1]).astype(np.float64)
    targets = labels.reshape(-1, labels.shape[-1])
    input_mean, label_mean = inputs.mean(axis=0), targets.mean(axis=0)
    inputs, targets = inputs - input_mean, targets - label_mean
    ridge = RIDGE * float(np.mean(inputs**2)) * len(inputs) + 1e-12  # solvable for constant activations too
    weights = np.linalg.solve(inputs.T @ inputs + ridge * np.eye(inputs.shape[1]), inputs.T @ targets)
    return LinearProbe(*(jnp.asarray(array, jnp.float32) for array in (weights, input_mean, label_mean)))


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where selectivity is large enough and exceeds what the network before development explains."""

    def explained(name: str, total: str = "total") -> np.ndarray:
        """Returns [N] per lifetime, whose mean is the explained share of all variance."""
        return linearized_ratio(measurements[total] - measurements[name], measurements[total])

    of_activations, control = explained("activations"), explained("control", "control_total")
    totals = measurements["total"]
    estimate = partial(decisions.estimate_effect, max_magnitude=float(totals.max() / max(totals.mean(), 1e-9)))
    selectivity = estimate(of_activations - control)
    effects: dict[str, decisions.Effect] = {
        "selectivity": selectivity,
        "explained of the posterior means": estimate(of_activations),
    }
    controls = {"explained of another lifetime's": estimate(control)}
    parts, min_effects = {"selectivity": selectivity}, {"selectivity": thresholds.min_effect}
    if measurements["has_untrained"][0]:
        untrained = explained("untrained")
        controls["explained before development"] = estimate(untrained)
        name = "gain over before development"
        effects[name] = parts[name] = estimate(of_activations - untrained)
        min_effects[name] = 0.0
    verdict, p_value = decisions.decide_all(parts, thresholds, min_effects)
    share = max(of_activations.mean(), 0.0)
    if verdict == "yes" or selectivity.high < thresholds.min_effect:
        summary = f"a linear probe decodes {share:.0%} of the posterior means of the arms from its activations"
    elif verdict == "no":
        summary = "its activations hold no more about the arms than those of an undeveloped network with this history"
    else:
        summary = "whether its activations hold more about the arms than an undeveloped network's is undetermined"
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls)
