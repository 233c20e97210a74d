"""Tests whether activations carry what was learned: a lifetime starts with the activations of another lifetime.

Secondary. A donor acts for half a lifetime, in the same task with other random keys or in another task; a host starts
with initial weights and the donor's activations. What was learned and is held in activations raises the host's score in
the donor's own task and not in another. The whole of the activations is swapped, habits and clocks included, which is
why the donor of another task is the reference. One bit of memory for reward is carried too, but is soon overwritten:
over a quarter of a lifetime its effect stays below the smallest effect that counts, which was chosen for this.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.audit import base, decisions
from ontogeny.rng import split_lifetime_key
from ontogeny.rollouts import begin_lifetime
from ontogeny.types import Key, PyTree, State

TEST = ("activation_swap", "learns", False)
THRESHOLDS = decisions.Thresholds(z=2.33, min_effect=0.10)  # in standard deviations of the score of one step
EXPECTED = base.expected_results(
    positive="td_zero td_one planner successor dyna thompson",
    negative="memoryless open_loop perseverator side_biased win_stay planner_in_weights",
)


def build(*, num_lifetimes: int = 400) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Hosts per audit and kind of donor.
    """
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, THRESHOLDS, EXPECTED)


def measure(subject: base.Subject, keys: Key) -> decisions.Measurements:
    """Returns the mean score per step [N] of hosts in the first quarter of a lifetime, by donor.

    `mean_square` is the mean squared score of one step of a host with initial activations.
    """
    env = base.learning_env(subject.train_env)
    prepared_subject, num_steps = base.prepare_subject(subject, env), env.spec.num_steps // 2

    def measure_lifetime(key: Key) -> dict[str, Array]:
        prepared = base.with_sampled_state(key, prepared_subject)  # host and donors have the same weights
        same_task_env = env._replace(reset=lambda _: env.reset(split_lifetime_key(key).task))
        start = begin_lifetime(key, prepared.agent, prepared.genome)

        def host_scores(activations: PyTree) -> Array:
            host = prepared._replace(genome=State(start.weights, activations))
            _, trajectory = base.rollout_subject(key, host, num_steps=num_steps)
            return jax.vmap(env.score)(trajectory.outcome)[: max(1, num_steps // 2)]

        of_same, _ = base.rollout_subject(
            base.unrelated_key(key, 1), prepared._replace(env=same_task_env), num_steps=num_steps
        )
        of_other, _ = base.rollout_subject(base.unrelated_key(key, 2), prepared, num_steps=num_steps)
        same_task, other_task, initial = (host_scores(state.activations) for state in (of_same, of_other, start))
        means = {"same_task": jnp.mean(same_task), "other_task": jnp.mean(other_task), "initial": jnp.mean(initial)}
        return means | {"mean_square": jnp.mean(initial**2)}

    return base.map_lifetimes(measure_lifetime, keys)


@decisions.requires_lifetimes(TEST)
def decide(measurements: decisions.Measurements, thresholds: decisions.Thresholds) -> decisions.AuditResult:
    """Decides yes where a donor of the same task helps more than one of another task and than no donor."""
    same_task, other_task, initial = (measurements[name] for name in ("same_task", "other_task", "initial"))
    spreads = decisions.linearize_standard_deviation(initial, measurements["mean_square"])
    estimate = partial(decisions.estimate_effect, max_magnitude=decisions.MAX_EFFECT * float(spreads.mean()))
    effects = {
        "donor of the same task minus another": estimate(same_task - other_task),
        "donor of the same task minus none": estimate(same_task - initial),
    }
    controls = {"donor of another task minus none": estimate(other_task - initial)}
    excess = {
        "same minus other": estimate(same_task - other_task - thresholds.min_effect * spreads),
        "same minus none": estimate(same_task - initial - thresholds.min_effect * spreads),
    }
    verdict, p_value = decisions.decide_all(excess, replace(thresholds, min_effect=0.0))
    summary = {
        "yes": "its activations carry what it learned about the task",
        "no": "its activations carry nothing that raises its score in the task",
        "undetermined": "whether its activations carry what it learned about the task is undetermined",
    }[verdict]
    return decisions.AuditResult(*TEST, verdict, summary, p_value, effects, controls)
