"""The finite-horizon Gittins index of a Bernoulli arm, by dynamic programming against arms of known payout.

The index of an arm after s successes in j pulls with m pulls to go is the payout per pull of a known arm that is worth
as much, where one may change over to the known arm for good at any time (Gittins 1979; for a finite horizon Bradt,
Johnson and Karlin 1956, and Lattimore 2016, arXiv 1511.06014, equation 2). Pulling the arm of the highest index is not
exactly optimal for a finite horizon, but within 0.02 % of it for 5 arms and 30 pulls.

For lifetimes of more than `MAX_EXACT_PULLS` the excess of the index over the mean follows from the same table by the
scaling of its diffusion limit (Chernoff and Petkau 1986): evidence and pulls to go divided by c, excess divided by the
square root of c.
"""

from functools import cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Float32, Int32, Num

NUM_PAYOUTS = 129  # known payouts from 0 to 1; the index is interpolated between two of them
MAX_EXACT_PULLS = 100  # lifetimes of up to this many pulls need no scaling
NUM_SCALED_PULLS = 50  # pulls in the table of a longer lifetime


class GittinsTable(NamedTuple):
    """Excess of the index over the posterior mean."""

    excess: Float32[np.ndarray, "M J+1 J+1"]  # by row of pulls to go, pulls j, successes s <= j
    row: Int32[np.ndarray, "N+1"]  # the row for m pulls to go
    a: float  # of the Beta prior
    b: float


@cache
def compute_table(num_pulls: int, a: float = 1.0, b: float = 1.0) -> GittinsTable:
    """Computes the indices that a lifetime needs.

    Args:
        num_pulls: Pulls in the lifetime, at least 1; about 4 ms of computing time each.
        a: First parameter of the Beta prior, above 0.
        b: Second parameter of the Beta prior, above 0.
    """
    J = min(num_pulls, MAX_EXACT_PULLS)
    table_pulls = J if num_pulls <= MAX_EXACT_PULLS else NUM_SCALED_PULLS
    to_go, row = _table_rows(num_pulls)
    pulls, successes = np.arange(J + 2)[:, None], np.arange(J + 2)
    means = ((a + successes) / (a + b + pulls)).astype(np.float32).clip(max=1)
    payouts = np.linspace(0, 1, NUM_PAYOUTS, dtype=np.float32)
    # [payout, j, s]: what the best continuation gains over the known arm. Beyond J pulls the arm counts as known.
    gain = np.zeros((NUM_PAYOUTS, J + 2, J + 2), np.float32)
    excess = np.zeros((len(to_go), table_pulls + 1, table_pulls + 1), np.float32)
    p = means[:-1, :-1]
    for m in range(1, num_pulls + 1):  # pulls to go
        success, failure = gain[:, 1:, 1:], gain[:, 1:, :-1]
        pull = success - failure  # in place, for speed: what one pull of the arm and the best continuation gain
        pull *= p
        pull += failure
        pull += p - payouts[:, None, None]
        if to_go[row[m]] == m:
            excess[row[m]] = (_root(payouts, pull) - p)[: table_pulls + 1, : table_pulls + 1]
        np.maximum(pull, 0, out=gain[:, :-1, :-1])
        gain[:, -1] = m * np.maximum(means[-1] - payouts[:, None], 0)
    return GittinsTable(excess, row, a, b)


def gittins_indices(
    table: GittinsTable, pulls: Float[Array, "A"], successes: Float[Array, "A"], to_go: Num[Array, ""]
) -> Float[Array, "A"]:
    """Looks up the indices of arms.

    Args:
        table: Table for the whole lifetime.
        pulls: Pulls of each arm so far.
        successes: Successes of each arm so far.
        to_go: Pulls that remain.
    """
    a, b = table.a, table.b
    excess, row = jnp.asarray(table.excess), jnp.asarray(table.row)
    J = table.excess.shape[1] - 1
    mean = (a + successes) / (a + b + pulls)
    scale = jnp.minimum(1, J / jnp.maximum(pulls, 1))
    scaled_pulls = jnp.minimum(pulls, J)
    scaled_successes = jnp.where(pulls > J, mean * (a + b + J) - a, successes)
    scaled_to_go = jnp.clip(jnp.round(to_go * scale), 1, len(table.row) - 1)
    entry = (row[scaled_to_go.astype(int)], scaled_pulls.astype(int), jnp.round(scaled_successes).astype(int))
    return mean + jnp.sqrt(scale) * excess[entry]


def _table_rows(num_pulls: int) -> tuple[np.ndarray, np.ndarray]:
    """Pulls to go in the table (all up to `MAX_EXACT_PULLS`, then in steps of 4 %), and the row of each number."""
    numbers = list(range(min(num_pulls, MAX_EXACT_PULLS) + 1))
    while numbers[-1] < num_pulls:
        numbers.append(min(num_pulls, round(1.04 * numbers[-1])))
    to_go = np.array(numbers)
    return to_go, (np.searchsorted(to_go, np.arange(num_pulls + 1), side="right") - 1).astype(np.int32)


def _root(payouts: Float[np.ndarray, "K"], pull: Float[np.ndarray, "K *rest"]) -> Float[np.ndarray, "*rest"]:
    """The payout at which `pull`, which decreases along its first axis, crosses zero."""
    above = np.clip(np.sum(pull >= 0, axis=0) - 1, 0, len(payouts) - 2)
    left, right = (np.take_along_axis(pull, above[None] + i, axis=0)[0] for i in (0, 1))
    return payouts[above] + (payouts[1] - payouts[0]) * left / np.maximum(left - right, 1e-9)
