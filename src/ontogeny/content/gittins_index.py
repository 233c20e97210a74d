"""The finite-horizon Gittins index of a Bernoulli arm, by dynamic programming against arms of known payout.

Index of an arm after s successes in j pulls with m pulls to go: the known payout per pull at which one is indifferent
between the two, when one may change over to the known arm for good at any time (Gittins 1979; for a finite horizon
Bradt, Johnson and Karlin 1956, and Lattimore 2016, arXiv 1511.06014, equation 2). Playing the highest index is not
quite optimal to a finite horizon, but within 0.02 % of it for 5 arms and 30 pulls.

Beyond `EXACT_PULLS` the excess of the index over the mean follows from the same table by the scaling of its diffusion
limit (Chernoff and Petkau 1986): evidence and pulls to go divided by c, excess divided by the root of c.
"""

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int32, Num

KNOWN_PAYOUTS = 129  # from 0 to 1; between two of them the index is interpolated
EXACT_PULLS = 100  # up to this many pulls in a life no scaling is needed
SCALED_FROM = 50


class Table(NamedTuple):
    """Excess of the index over the posterior mean."""

    excess: Float32[np.ndarray, "M J+1 J+1"]  # by row of pulls to go, pulls j, successes s <= j
    row: Int32[np.ndarray, "N+1"]  # the row for m pulls to go
    a: float  # of the Beta prior
    b: float


@cache
def table(num_pulls: int, a: float = 1.0, b: float = 1.0) -> Table:
    """The indices that a life of `num_pulls` pulls needs, from the prior Beta(a, b)."""
    J = min(num_pulls, EXACT_PULLS)
    kept = J if num_pulls <= EXACT_PULLS else SCALED_FROM
    to_go, row = _rows(num_pulls)
    pulls, successes = np.arange(J + 2)[:, None], np.arange(J + 2)
    means = ((a + successes) / (a + b + pulls)).astype(np.float32).clip(max=1)
    known = np.linspace(0, 1, KNOWN_PAYOUTS, dtype=np.float32)
    # Gain over the known arm of the best way on, [known, j, s]; beyond J the arm counts as known.
    gain = np.zeros((KNOWN_PAYOUTS, J + 2, J + 2), np.float32)
    excess = np.zeros((len(to_go), kept + 1, kept + 1), np.float32)
    p = means[:-1, :-1]
    for m in range(1, num_pulls + 1):
        hit, miss = gain[:, 1:, 1:], gain[:, 1:, :-1]
        pull = hit - miss
        pull *= p
        pull += miss
        pull += p - known[:, None, None]
        if to_go[row[m]] == m:
            excess[row[m]] = (_root(known, pull) - p)[: kept + 1, : kept + 1]
        np.maximum(pull, 0, out=gain[:, :-1, :-1])
        gain[:, -1] = m * np.maximum(means[-1] - known[:, None], 0)
    return Table(excess, row, a, b)


def index(
    table: Table, pulls: Float[Array, "A"], successes: Float[Array, "A"], to_go: Num[Array, ""]
) -> Float[Array, "A"]:
    """The indices of arms after `pulls` and `successes` with `to_go` pulls to come."""
    a, b = table.a, table.b
    excess, row = jnp.asarray(table.excess), jnp.asarray(table.row)
    J = table.excess.shape[1] - 1
    mean = (a + successes) / (a + b + pulls)
    shrunk = jnp.minimum(1, J / jnp.maximum(pulls, 1))
    like_pulls = jnp.minimum(pulls, J)
    like_successes = jnp.where(pulls > J, mean * (a + b + J) - a, successes)
    like_to_go = jnp.clip(jnp.round(to_go * shrunk), 1, len(table.row) - 1)
    which = (row[like_to_go.astype(int)], like_pulls.astype(int), jnp.round(like_successes).astype(int))
    return mean + jnp.sqrt(shrunk) * excess[which]


def _rows(num_pulls: int) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of pulls to go that are kept, all up to `EXACT_PULLS`, then in steps of 4 %; each number's row."""
    kept = list(range(min(num_pulls, EXACT_PULLS) + 1))
    while kept[-1] < num_pulls:
        kept.append(min(num_pulls, round(1.04 * kept[-1])))
    to_go = np.array(kept)
    return to_go, (np.searchsorted(to_go, np.arange(num_pulls + 1), side="right") - 1).astype(np.int32)


def _root(known: Float[np.ndarray, "K"], pull: Float[np.ndarray, "K *rest"]) -> Float[np.ndarray, "*rest"]:
    """Where `pull`, which falls along its first axis, crosses zero."""
    above = np.clip(np.sum(pull >= 0, axis=0) - 1, 0, len(known) - 2)
    left, right = (np.take_along_axis(pull, above[None] + i, axis=0)[0] for i in (0, 1))
    return known[above] + (known[1] - known[0]) * left / np.maximum(left - right, 1e-9)
