"""How near is it to the Bayes-optimal agent of a bandit? Along its own histories, and in what it gains.

Supporting. Mikulik et al. 2020 (NeurIPS, arXiv 2010.11223) compare meta-learned agents with Bayes-optimal ones. Here
the optimum is the finite-horizon Gittins index (`content.gittins_index`: within 0.02 % of optimal). Along the subject's
own histories, and only where the best index is the best by a margin, its action is compared with the optimal one; its
gain stands on a scale from a random agent (0) to the optimum (1), in the same tasks on the same tape. Rivals say what
such agreement is worth: the optimal agent of a wrong prior, and a greedy one. Where a rival and the optimum differ, the
subject must follow the optimum. A well-chosen rule of thumb (UCB1) is as near as that and passes: near is not the same
computation. Who learns need not be near the optimum: a no says nothing against learning.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit.base import (
    Effect,
    Finding,
    Subject,
    Test,
    bandit_of,
    effect,
    largest_p,
    lived,
    over_lives,
    predicted,
    three_way,
)
from ontogeny.content import arm_counts, gittins_index
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import Key

MARGIN = 0.01  # of the best index over the second: where it is smaller nothing is asked
WRONG = (1.0, 9.0)  # the Beta prior of an agent that believes most arms poor
REFERENCES = ("random", "greedy", "gittins")
PREDICTED = predicted(
    "gittins ucb1",
    "greedy thompson td_zero win_stay memoryless clockwork perseverator side_biased reward_as_cue",
)


class Thresholds(NamedTuple):
    z: float = 2.33
    gained: float = 0.95  # of the way from random to optimal


def build(*, num_lifetimes: int = 200) -> Test:
    return Test("learns", False, num_lifetimes, measure, judge, Thresholds(), PREDICTED)


def measure(subject: Subject, keys: Key) -> Mapping[str, np.ndarray]:
    """Scores per step of the subject and the references [N]; shares of steps at which actions agree, with how many
    steps were asked, of the subject and of the references with the optimum, and of the subject against the rivals."""
    env = bandit_of(subject)
    agent, steering = subject.build(env)
    genome, T = subject.genome(agent, env, steering), env.spec.num_steps
    arms = arm_counts.arms(env.spec, steering)
    optimal = gittins_index.table(T, arms.a, arms.b)
    wrong = gittins_index.table(T, *WRONG)
    references = {name: plugins.build("agents", name, env.spec, steering) for name in REFERENCES}

    def judged(actions: Array, outcomes: Array) -> tuple[Array, dict[str, Array]]:
        """actions [T], outcomes [T, 1] -> the values [T, A] of what was known before each, by who values."""
        pulled = jax.nn.one_hot(actions, arms.num_arms)
        hits = (jax.vmap(steering)(outcomes) - arms.worst) / ((arms.best - arms.worst) or 1.0)
        pulls, successes = (jnp.cumsum(seen, axis=0) - seen for seen in (pulled, pulled * hits[:, None]))
        to_go = T - jnp.arange(T)
        index = jax.vmap(gittins_index.index, in_axes=(None, 0, 0, 0))
        greedy = jax.vmap(lambda *seen: arm_counts.mean(arms, arm_counts.Counts(*seen)))(pulls, successes)
        return index(optimal, pulls, successes, to_go), {
            "wrong prior": index(wrong, pulls, successes, to_go),
            "greedy": greedy,
        }

    def clear(values: Array) -> tuple[Array, Array]:
        """[T, A] -> the best arm, and whether it is the best by a margin, [T]."""
        best, second = jax.lax.top_k(values, 2)[0].T
        return jnp.argmax(values, axis=1), best - second > MARGIN

    def one(key: Key) -> dict[str, Array]:
        _, trajectory = lived(subject, key, agent, env, steering, genome)
        num_lifetimes = {"subject": trajectory}
        for name, reference in references.items():
            _, num_lifetimes[name] = rollout_lifetime(key, reference, env, steering, (), learning=False)
        found = {}
        for name, trajectory in num_lifetimes.items():
            found[f"score {name}"] = jnp.mean(jax.vmap(env.score)(trajectory.outcome))
            indices, rivals = judged(trajectory.action, trajectory.outcome)
            best, sure = clear(indices)
            found[f"agrees {name}"] = jnp.sum(sure * (trajectory.action == best))
            found[f"asked {name}"] = jnp.sum(sure)
            if name == "subject":
                for rival, values in rivals.items():
                    other, other_sure = clear(values)
                    apart = sure & other_sure & (best != other)
                    follows = (trajectory.action == best).astype(float) - (trajectory.action == other)
                    found[f"agrees, not {rival}"] = jnp.sum(apart * follows)
                    found[f"asked, not {rival}"] = jnp.sum(apart)
        return found

    return over_lives(one, keys)


def judge(found: Mapping[str, np.ndarray], thresholds: Thresholds) -> Finding:
    bottom, top = found["score random"].mean(), found["score gittins"].mean()
    span = max(top - bottom, 1e-9)

    def gained(name: str) -> Effect:
        """On the scale from random to optimal; paired by task with the optimum, so that most chance cancels."""
        return effect(1 - (found["score gittins"] - found[f"score {name}"]) / span)

    def agrees(name: str) -> Effect:
        """A ratio of sums over lives, its error by linearisation (Cochran 1977, section 6.3)."""
        agreed, asked = found[f"agrees{name}"], found[f"asked{name}"]
        often = np.maximum(asked.mean(), 1e-9)
        share = agreed.mean() / often
        return effect(share + (agreed - share * asked) / often)

    effects = {"gained, of random to optimal": gained("subject"), "agrees with the optimum": agrees(" subject")}
    against = {f"follows it, not {rival}": agrees(f", not {rival}") for rival in ("wrong prior", "greedy")}
    controls = {"gained by greedy": gained("greedy")}
    controls |= {f"agreement of {name}": agrees(f" {name}") for name in ("random", "greedy", "gittins")}
    near = effects["gained, of random to optimal"]
    passed = near.low > thresholds.gained and all(part.z > thresholds.z for part in against.values())
    smallest = {"gained, of random to optimal": thresholds.gained} | dict.fromkeys(against, 0.0)
    verdict = three_way(passed, effects | against, smallest)
    told = (
        f"it gains {near.mean:.0%} of what the Bayes-optimal agent gains over a random one"
        + {
            "yes": ", and goes with it where rivals would not",
            "no": ": it is not Bayes-optimal, which says nothing against its learning",
            "undetermined": "; whether it goes with it rather than with its rivals was not told",
        }[verdict]
    )
    p = largest_p(against) if passed else 1.0
    return Finding("optimum", "learns", False, verdict, told, p, effects | against, controls)
