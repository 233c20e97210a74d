"""Models of the two-step task: repeating, model-free, successor, latent-state mimic, model-based, hybrid.

Daw et al. 2011 (Neuron 69:1204) for the model-free SARSA(lambda), the model-based and their mixture, with one rate of
learning for both stages; Dayan 1993 (Neural Computation 5:613) for the successor; Akam, Costa & Dayan 2015 (PLoS
Comput Biol 11:e1004648) for the mimic: a belief which place is the good one, from which the choice follows by habit.
All share tendencies to repeat and to one side, and the values of second choices, so that they differ in the first
choice alone. With transitions known and fixed a successor IS model-based: as `map_rate` goes to zero the two are one
model. They differ only in that a successor of finite rate follows the last transitions it saw.
"""

from functools import cache

import jax
import jax.numpy as jnp

from ontogeny.audit.behavior.base import Model, Parameter

STAY = (Parameter("repeat", 0.0, 0.5, 5.0, True), Parameter("side", -0.3, 0.3, 5.0, True))
RATE = Parameter("rate", 0.2, 0.7)
TRACE = Parameter("trace", 0.0, 1.0)
MAP_RATE = Parameter("map_rate", 0.2, 0.6)
WEIGHT = Parameter("weight", 3.0, 8.0, 20.0)
BOTH = (Parameter("free_weight", 2.0, 5.0, 20.0), Parameter("based_weight", 2.0, 5.0, 20.0))
SECOND = Parameter("second_weight", 2.0, 5.0, 20.0)
HAZARD = Parameter("hazard", 0.02, 0.2, 0.5)
SURENESS = Parameter("sureness", 0.7, 0.95)


@cache  # the same functions each time, so that they are compiled once
def models(has_second: bool) -> tuple[Model, ...]:
    """With second choices to explain, or for a task in which a place pays by itself."""

    def model(name, told, parameters, value, *, keeps=None, learn=None):
        """`value(p, who, memory)` [2], of first choices; memory holds place values [2, 2] and `keeps(p, who)`."""
        own = tuple(parameters)
        valued = RATE in own
        if has_second:
            own += (SECOND,) if valued else (RATE, SECOND)

        def begin(p, who):
            return jnp.full((2, 2), 0.5), keeps(p, who) if keeps is not None else ()

        def first(p, who, memory, last):
            return value(p, who, memory) + p["repeat"] * last + p["side"] * jnp.array([-0.5, 0.5])

        def second(p, memory, place):
            return p["second_weight"] * jax.nn.one_hot(place, 2) @ memory[0]

        def learned(p, memory, trial):
            values, kept = memory
            taken = _taken(trial)
            error = trial.reward - jnp.sum(values * taken)
            kept = learn(p, memory, trial, error) if learn is not None else kept
            return values + p.get("rate", 0.0) * error * taken, kept

        return Model(name, told, own + STAY, begin, first, second if has_second else None, learned)

    def best(values):
        return jnp.max(values, axis=1) if has_second else values[:, 0]

    def free_values(p, who):
        return jnp.full(2, 0.5)

    def free_learn(p, memory, trial, error):
        values, free = memory
        chosen = jax.nn.one_hot(trial.choice, 2)
        surprise = jnp.sum(values * _taken(trial)) - free @ chosen
        return free + p["rate"] * (surprise + p["trace"] * error) * chosen

    def map_learn(p, memory, trial, error):
        chosen = jax.nn.one_hot(trial.choice, 2)[:, None]
        return memory[1] + p["map_rate"] * chosen * (jax.nn.one_hot(trial.place, 2) - memory[1])

    def belief_learn(p, memory, trial, error):
        """Log odds that place 1 is the good one: Bayes' rule for what was seen, then the chance of a swap."""
        shown = (2 * trial.reward - 1) * (2 * trial.place - 1) * _log_odds(p["sureness"])
        belief = jax.nn.sigmoid(memory[1] + shown)
        return _log_odds(belief * (1 - p["hazard"]) + (1 - belief) * p["hazard"])

    return (
        model("repeats", "repeats itself and keeps to a side, whatever pays", (), lambda p, who, memory: jnp.zeros(2)),
        model(
            "model_free",
            "repeats what paid: SARSA(lambda)",
            (RATE, TRACE, WEIGHT),
            lambda p, who, memory: p["weight"] * memory[1],
            keeps=free_values,
            learn=free_learn,
        ),
        model(
            "successor",
            "learns where its choices lead by temporal difference: successor representation",
            (RATE, MAP_RATE, WEIGHT),
            lambda p, who, memory: p["weight"] * memory[1] @ best(memory[0]),
            keeps=lambda p, who: who.lead,
            learn=map_learn,
        ),
        model(
            "mimic",
            "acts by habit on a belief which place is the good one: latent-state mimic",
            (HAZARD, SURENESS, WEIGHT),
            lambda p, who, memory: p["weight"] * who.lead @ jax.nn.sigmoid(memory[1] * jnp.array([-1.0, 1.0])),
            keeps=lambda p, who: jnp.zeros(()),
            learn=belief_learn,
        ),
        model(
            "model_based",
            "plans by known transitions",
            (RATE, WEIGHT),
            lambda p, who, memory: p["weight"] * who.lead @ best(memory[0]),
        ),
        model(
            "hybrid",
            "model-free and model-based values added",
            (RATE, TRACE, *BOTH),
            lambda p, who, memory: p["free_weight"] * memory[1] + p["based_weight"] * who.lead @ best(memory[0]),
            keeps=free_values,
            learn=free_learn,
        ),
    )


def _taken(trial):
    """[2, 2] one-hot, by place and second choice: products are quicker than gathers where many are fitted at once."""
    return jax.nn.one_hot(trial.place, 2)[:, None] * jax.nn.one_hot(trial.second, 2)


def _log_odds(probability):
    probability = jnp.clip(probability, 1e-6, 1 - 1e-6)
    return jnp.log(probability) - jnp.log1p(-probability)
