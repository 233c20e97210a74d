"""Tests whether an agent learns within its lifetime: yoked outcomes, reset activations and accumulating gains.

Primary. Each task is met in three conditions: undisturbed; with activations reset at every episode; and yoked, where
the agent observes the outcomes of a lifetime in another task in place of its own (a yoked control: Church 1964,
Psychological Bulletin 62:122) while its own outcomes are scored. A learner loses score in both, and its score keeps
rising after the first steps. Win-stay lose-shift, one bit of memory for reward, also loses in both but accumulates
nothing, and is reported as such. Weights that learn are not reset, so an online subject is tested by the other two
parts alone.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit import base
from ontogeny.types import Key

TEST = ("learns", "learns", True)
EARLY, LATE = (0.05, 0.2), 0.75  # shares of a lifetime
THRESHOLDS = base.Thresholds(z=2.33, min_effect=0.05)  # in standard deviations of the score of one step


def build(*, num_lifetimes: int = 600) -> base.AuditTest:
    """Builds the test.

    Args:
        num_lifetimes: Lifetimes per audit. With 200, only half of the audits detect a gain of 0.05 standard
            deviations, the smallest that counts.
    """
    return base.AuditTest(*TEST, num_lifetimes, measure, decide, THRESHOLDS)


def measure(subject: base.Subject, keys: Key) -> base.Measurements:
    """Returns the arrays of `measure_lifetime` for all keys [N], and whether the subject is online."""
    prepared = base.prepare_subject(subject, base.learning_env(subject.train_env))
    measurements = base.map_lifetimes(lambda key: measure_lifetime(key, prepared), keys)
    return measurements | {"online": np.full(len(keys), subject.online)}


def measure_lifetime(key: Key, prepared: base.PreparedSubject) -> dict[str, Array]:
    """Returns the mean score per step in each condition of one task.

    Of the undisturbed lifetime it also returns the mean scores of its early and late steps, of its first step and the
    five after it, and the mean of its squared scores.
    """
    env = prepared.env
    progress = np.arange(env.spec.num_steps) / env.spec.num_steps
    early, late = (progress >= EARLY[0]) & (progress < EARLY[1]), progress >= LATE

    def scores_and_outcomes(key: Key, **options: Any) -> tuple[Array, Array]:
        _, trajectory = base.rollout_subject(key, prepared, **options)
        return jax.vmap(env.score)(trajectory.outcome), trajectory.outcome

    # One traced rollout for both lifetimes halves the compilation.
    scores, outcomes = jax.vmap(scores_and_outcomes)(jnp.stack([key, base.unrelated_key(key, 1)]))
    intact, unrelated_outcomes = scores[0], outcomes[1]
    reset, _ = scores_and_outcomes(key, reset_each_episode=True)
    yoked, _ = scores_and_outcomes(key, observation_override=base.yoke_to(unrelated_outcomes))
    return {
        "intact": jnp.mean(intact),
        "reset": jnp.mean(reset),
        "yoked": jnp.mean(yoked),
        "early": jnp.mean(intact[early]),
        "late": jnp.mean(intact[late]),
        "first": intact[0],
        "next": jnp.mean(intact[1:6]),
        "mean_square": jnp.mean(intact**2),
    }


@base.requires_lifetimes(TEST)
def decide(measurements: base.Measurements, thresholds: base.Thresholds) -> base.AuditResult:
    """Decides yes where every control condition costs score and the score of late steps exceeds that of early ones."""
    intact = measurements["intact"]
    spread = float(np.sqrt(max(measurements["mean_square"].mean() - intact.mean() ** 2, 0.0)))
    thresholds = replace(thresholds, min_effect=thresholds.min_effect * spread)
    effects = {
        "loss when yoked": base.estimate_effect(intact - measurements["yoked"]),
        "loss when activations are reset": base.estimate_effect(intact - measurements["reset"]),
        "late minus early steps": base.estimate_effect(measurements["late"] - measurements["early"]),
        "steps 2 to 6 minus step 1": base.estimate_effect(measurements["next"] - measurements["first"]),
    }
    yoked, reset, rise, _ = effects.values()
    parts = {"yoked": yoked} if measurements["online"][0] else {"yoked": yoked, "reset": reset}
    has_memory = all(thresholds.is_met(part) for part in parts.values())
    min_effects = dict.fromkeys(parts, thresholds.min_effect) | {"rise": 0.0}
    verdict, p_value = base.decide_all(parts | {"rise": rise}, thresholds, min_effects, refuting=parts)
    if verdict == "yes":
        summary = "it learns: the outcomes of another task lower its score, and its score keeps rising"
    elif verdict == "no" and thresholds.is_met(yoked):
        summary = "it uses the last reward alone, which it observes: one bit of memory, and nothing accumulates"
    elif verdict == "no":
        summary = "it does not learn: with the outcomes of another task it scores as high"
    elif has_memory:
        summary = "it has a memory for reward, but no significant accumulation"
    else:
        summary = base.NOT_SIGNIFICANT
    return base.AuditResult(*TEST, verdict, summary, p_value, effects, {})
