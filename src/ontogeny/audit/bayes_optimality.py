"""Tests how near an agent is to the Bayes-optimal agent of a bandit, along its own histories and in its score.

Secondary. Mikulik et al. 2020 (NeurIPS, arXiv 2010.11223) compare meta-learned agents with Bayes-optimal ones. The
optimum here is the finite-horizon Gittins index (`content.gittins_index`: within 0.02 % of optimal). Along the
subject's own histories, where the best index leads by a margin, its action is compared with the optimal one; its score
is placed on a scale from a random agent (0) to the optimum (1), in the same tasks with the same random keys. Two rivals
calibrate the agreement: the optimal agent of a wrong prior, and a greedy agent. Where a rival and the optimum differ,
the subject must follow the optimum. A good heuristic (UCB1) is as near and passes: near-optimality does not identify
the computation. Learners need not be near the optimum, so a no is no evidence against learning.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit import base, decisions
from ontogeny.content import beta_bernoulli, gittins_index
from ontogeny.rollouts import rollout_lifetime
from ontogeny.stats import linearized_ratio, share_interval
from ontogeny.types import EnvSpec, Key, Steering, Trajectory

TEST = ("bayes_optimality", "learns", False)
MARGIN = 0.01  # lead of the best index over the second that a comparison requires
WRONG_PRIOR = (1.0, 9.0)  # the Beta prior of an agent that expects most arms to be poor
REFERENCES = ("random", "greedy", "gittins")
RIVALS = ("wrong prior", "greedy")
EXPECTED = base.expected_results(
    positive="gittins ucb1",
    negative="greedy thompson td_zero win_stay memoryless open_loop perseverator side_biased reward_as_cue",
)


@dataclass(frozen=True)
class BayesOptimalityThresholds(decisions.Thresholds):
    """Thresholds of the test.

    Attributes:
        min_relative_score: Score that counts as near-optimal, on the scale from random (0) to optimal (1).
    """

    min_relative_score: float = 0.95


def build(*, num_lifetimes: int = 600) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit.
    """
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, BayesOptimalityThresholds(z=2.33), EXPECTED)


def measure(subject: base.Subject, keys: Key) -> decisions.Measurements:
    """Returns scores, agreements with the optimum and numbers of compared steps, each [N].

    `score`, `agreements` and `comparisons` exist for the subject and each reference agent. For the subject there are
    also, for each rival, the agreements with the optimum minus those with the rival, over the steps at which optimum
    and rival differ.
    """
    env = base.bandit_env(subject)
    prepared = base.prepare_subject(subject, env)
    steering = prepared.steering
    references = {name: plugins.build("agents", name, env.spec, steering) for name in REFERENCES}
    values_along = _build_valuation(env.spec, steering)

    def measure_lifetime(key: Key) -> dict[str, Array]:
        _, trajectory = base.rollout_subject(key, prepared)
        trajectories = {"subject": trajectory}
        for name, reference in references.items():
            _, trajectories[name] = rollout_lifetime(key, reference, env, steering, (), learning=False)
        counts = {}
        for name, trajectory in trajectories.items():
            counts[f"score {name}"] = jnp.mean(jax.vmap(env.score)(trajectory.outcome))
            optimal, rivals = values_along(trajectory)
            best, is_clear = _best_arm(optimal)
            counts[f"agreements {name}"] = jnp.sum(is_clear * (trajectory.action == best))
            counts[f"comparisons {name}"] = jnp.sum(is_clear)
            if name == "subject":
                for rival, values in rivals.items():
                    rival_best, is_rival_clear = _best_arm(values)
                    differ = is_clear & is_rival_clear & (best != rival_best)
                    follows = (trajectory.action == best).astype(float) - (trajectory.action == rival_best)
                    counts[f"agreements, not {rival}"] = jnp.sum(differ * follows)
                    counts[f"comparisons, not {rival}"] = jnp.sum(differ)
        return counts

    return base.map_lifetimes(measure_lifetime, keys)


def _build_valuation(spec: EnvSpec, steering: Steering) -> Callable[[Trajectory], tuple[Array, dict[str, Array]]]:
    """Returns a function from a trajectory to the arm values [T, A] before each pull: optimal, and by rival."""
    T = spec.num_steps
    arms = beta_bernoulli.bandit_prior(spec, steering)
    optimal_table = gittins_index.compute_table(T, arms.a, arms.b)
    wrong_table = gittins_index.compute_table(T, *WRONG_PRIOR)
    index = jax.vmap(gittins_index.gittins_indices, in_axes=(None, 0, 0, 0))

    def values_along(trajectory: Trajectory) -> tuple[Array, dict[str, Array]]:
        rewards = jax.vmap(steering)(trajectory.outcome)
        counts = beta_bernoulli.counts_along(arms, trajectory.action, rewards)
        remaining = T - jnp.arange(T)
        rivals = index(wrong_table, *counts, remaining), beta_bernoulli.posterior_mean(arms, counts)
        return index(optimal_table, *counts, remaining), dict(zip(RIVALS, rivals, strict=True))

    return values_along


def _best_arm(values: Array) -> tuple[Array, Array]:
    """[T, A] -> the best arm, and whether it leads by the margin, [T]."""
    best, second = jax.lax.top_k(values, 2)[0].T
    return jnp.argmax(values, axis=1), best - second > MARGIN


def _estimate_ratio(numerators: np.ndarray, denominators: np.ndarray, largest: float) -> decisions.Effect:
    """A ratio of two sums over lifetimes; no term of the numerator is larger than `largest`."""
    ratios = linearized_ratio(numerators, denominators)
    return decisions.estimate_effect(ratios, max_magnitude=float(largest / max(denominators.mean(), 1e-9)))


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: BayesOptimalityThresholds) -> decisions.AuditResult:
    """Decides yes where the score is near-optimal and the subject follows the optimum rather than each rival."""
    random_score = measurements["score random"]
    scale = measurements["score gittins"] - random_score

    def relative_score(name: str) -> decisions.Effect:
        """On the scale from random to optimal; pairing by task with the optimum cancels most chance."""
        gain = measurements[f"score {name}"] - random_score
        return _estimate_ratio(gain, scale, max(np.abs(gain).max(), np.abs(scale).max()))

    def preference(name: str) -> decisions.Effect:
        """A ratio of sums over lifetimes, its error by linearization (Cochran 1977, section 6.3)."""
        agreements, comparisons = measurements[f"agreements{name}"], measurements[f"comparisons{name}"]
        return _estimate_ratio(agreements, comparisons, comparisons.max())

    def agreement(name: str) -> decisions.Effect:
        """The same for a share, whose interval stays within 0 to 1."""
        ratio = preference(name)
        N = ratio.num_lifetimes
        low, high = share_interval(ratio.mean, ratio.moments.standard_error, N, N - 1)
        return ratio._replace(low=low, high=high)

    subject_score = relative_score("subject")
    effects = {"score, random 0 to optimal 1": subject_score, "agreement with the optimum": agreement(" subject")}
    preferences = {f"follows the optimum, not {rival}": preference(f", not {rival}") for rival in RIVALS}
    controls = {"score of greedy": relative_score("greedy")}
    controls |= {f"agreement of {name}": agreement(f" {name}") for name in REFERENCES}
    min_effects = {"score, random 0 to optimal 1": thresholds.min_relative_score} | dict.fromkeys(preferences, 0.0)
    verdict, p_value = decisions.decide_all(effects | preferences, thresholds, min_effects)
    endings = {
        "yes": ", and follows it where rivals would not",
        "no": ": it is not Bayes-optimal, which is no evidence against learning",
        "undetermined": "; whether it follows it rather than its rivals is undetermined",
    }
    summary = f"its gain over a random agent is {subject_score.mean:.0%} of the Bayes-optimal agent's{endings[verdict]}"
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects | preferences, controls)
