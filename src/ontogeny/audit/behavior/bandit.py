"""Models of bandit choices: tastes, win-stay-lose-shift, Q-learning, a choice kernel, and both together.

The five of Wilson & Collins 2019 (eLife 8:e49547), box 2.
"""

from functools import cache

import jax
import jax.numpy as jnp

from ontogeny.audit.behavior.base import Model, Parameter

SLIP = Parameter("slip", 0.05, 0.4)
RATE = Parameter("rate", 0.1, 0.6)
WEIGHT = Parameter("weight", 3.0, 8.0, 20.0)
KERNEL = (Parameter("kernel_rate", 0.1, 0.6), Parameter("kernel_weight", 1.0, 4.0, 20.0))


@cache  # the same functions each time, so that they are compiled once
def models(arms: int) -> tuple[Model, ...]:
    A = arms

    def towards(rate, values, choice, target):
        return values + rate * jax.nn.one_hot(choice, A) * (target - values)

    def kernel(p, held, trial):
        return held + p["kernel_rate"] * (jax.nn.one_hot(trial.choice, A) - held)

    def shifts(p, who, memory, last):
        """After a reward r the same arm with r (1 - slip), else the others; the slip is at random."""
        stay = memory * last + (1 - memory) * (1 - last) / (A - 1)
        known = jnp.sum(last) > 0
        return jnp.log(jnp.where(known, (1 - p["slip"]) * stay + p["slip"] / A, 1.0 / A) + 1e-9)

    tastes = tuple(Parameter(f"taste_{arm}", -0.7, 0.7, 5.0, True) for arm in range(1, A))
    nothing = {"begin": lambda p, who: (), "second": None, "learn": lambda p, memory, trial: memory}
    return (
        Model(
            "tastes",
            "has favourites, whatever pays",
            tastes,
            first=lambda p, who, memory, last: jnp.stack([jnp.zeros(()), *(p[taste.name] for taste in tastes)]),
            **nothing,
        ),
        Model(
            "win_stay",
            "stays with what paid and shifts from what did not",
            (SLIP,),
            lambda p, who: jnp.zeros(()),
            shifts,
            None,
            lambda p, memory, trial: trial.reward,
        ),
        Model(
            "q_learning",
            "learns what each arm pays",
            (RATE, WEIGHT),
            lambda p, who: jnp.full(A, 0.5),
            lambda p, who, memory, last: p["weight"] * memory,
            None,
            lambda p, memory, trial: towards(p["rate"], memory, trial.choice, trial.reward),
        ),
        Model(
            "choice_kernel",
            "repeats what it chose lately",
            KERNEL,
            lambda p, who: jnp.zeros(A),
            lambda p, who, memory, last: p["kernel_weight"] * memory,
            None,
            kernel,
        ),
        Model(
            "q_and_kernel",
            "learns what each arm pays and repeats what it chose lately",
            (RATE, WEIGHT, *KERNEL),
            lambda p, who: (jnp.full(A, 0.5), jnp.zeros(A)),
            lambda p, who, memory, last: p["weight"] * memory[0] + p["kernel_weight"] * memory[1],
            None,
            lambda p, memory, trial: (
                towards(p["rate"], memory[0], trial.choice, trial.reward),
                kernel(p, memory[1], trial),
            ),
        ),
    )
