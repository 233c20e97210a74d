"""How often a choice is repeated after what came of it, and the regression of staying on reward and transition.

Pairs of consecutive trials that are both there. Plain: stay on reward, transition and their product (Daw et al. 2011,
Neuron 69:1204). Corrected: with a regressor more, whether the choice was the better one (Akam, Costa & Dayan 2015,
PLoS Comput Biol 11:e1004648), because what was good before a trial both pays in it and is repeated after it. Where the
file does not say what was better it is read off in hindsight, from rewards at each place before and after, the trial
itself left out. The correction does not clear an agent that acts on latent states: see the organisms beside it.

Logistic, one regression per subject with a weak prior N(0, 3^2) on each coefficient; terms are coded +1 and -1.
Intervals over subjects are Student's t. S subjects, T trials.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtr

from ontogeny.audit.behavior.base import CELLS, Choices, Trials
from ontogeny.stats import Z95, clopper_pearson, critical_value, mean_and_standard_error

PRIOR = 3.0  # standard deviation of a coefficient, in log odds
HINDSIGHT = 8.0  # trials
TERMS = {
    "two_step": ("intercept", "reward", "transition", "reward x transition", "correct"),
    "bandit": ("intercept", "reward"),
}


class Mean(NamedTuple):
    """Over subjects, with its 95 % interval; of one subject there is none."""

    mean: float
    se: float
    low: float
    high: float
    p: float  # two-sided, against nothing
    subjects: int


class Cell(NamedTuple):
    """One subject's staying in one cell, with the exact interval of a share over its pairs."""

    stayed: int
    pairs: int
    share: float
    low: float
    high: float


class Stays(NamedTuple):
    cells: dict[str, list[Cell]]  # per subject
    pooled: dict[str, Mean]
    contrasts: dict[str, Mean]  # of shares of staying
    plain: dict[str, Mean]  # log odds
    corrected: dict[str, Mean]
    pairs: int


def stays(choices: Choices) -> Stays:
    names = CELLS[choices.task]
    stayed, cell = _pairs(choices)
    counts = np.stack([((cell == c).sum(axis=1)) for c in range(len(names))], axis=1)
    kept = np.stack([((cell == c) & stayed).sum(axis=1) for c in range(len(names))], axis=1)
    with np.errstate(invalid="ignore"):
        shares = kept / counts  # [S, cells], NaN where a subject has no such pair
    cells = {
        name: [
            Cell(int(k), int(n), float(k / n) if n else 0.0, *(clopper_pearson(int(k), int(n)) if n else (0.0, 1.0)))
            for k, n in zip(kept[:, i], counts[:, i], strict=True)
        ]
        for i, name in enumerate(names)
    }
    if choices.task == "two_step":
        cr, rr, cu, ru = shares.T
        contrasts = {"interaction": cr - rr - cu + ru, "reward": (cr + rr - cu - ru) / 2}
    else:
        contrasts = {"reward": shares[:, 0] - shares[:, 1]}
    plain, corrected = regressions(choices)
    return Stays(
        cells,
        {name: mean_of(shares[:, i]) for i, name in enumerate(names)},
        {name: mean_of(values) for name, values in contrasts.items()},
        {name: mean_of(plain[:, i]) for i, name in enumerate(TERMS[choices.task][: plain.shape[1]])},
        {name: mean_of(corrected[:, i]) for i, name in enumerate(TERMS[choices.task])}
        if choices.task == "two_step"
        else {},
        int(counts.sum()),
    )


def mean_of(values: np.ndarray) -> Mean:
    """Over the subjects that have a value."""
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 2:
        only = float(values[0]) if n else float("nan")
        return Mean(only, float("nan"), float("nan"), float("nan"), float("nan"), n)
    mean, error = mean_and_standard_error(values)
    half = critical_value(Z95, n - 1) * error
    p = 2 * stdtr(n - 1, -abs(mean) / error) if error > 0 else float(mean == 0)
    return Mean(float(mean), float(error), float(mean - half), float(mean + half), float(p), n)


def simulated(choices: Choices, trials: Trials) -> Choices:
    """The same task with what organisms did in it; their number may be a multiple of the subjects'."""
    times = len(trials.choice) // len(choices.subjects)
    good = np.tile(choices.good, (times, 1))
    rows = np.arange(len(good))[:, None]
    return choices._replace(
        subjects=choices.subjects * times,
        trials=trials,
        common=trials.place == good[rows, np.minimum(trials.choice, 1)],
        good=good,
        rewarded=trials.reward > 0.5,
        correct=None,
    )


def regressions(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [S, 4] without and [S, 5] with the correction; [S, 2] twice for a bandit. NaN without pairs."""
    stayed, cell = _pairs(choices)
    reward = np.where(choices.rewarded, 1.0, -1.0)[:, :-1]
    columns = [np.ones_like(reward), reward]
    if choices.task == "two_step":
        transition = np.where(choices.common, 1.0, -1.0)[:, :-1]
        columns += [transition, reward * transition]
    used, empty = cell >= 0, ~(cell >= 0).any(axis=1)
    plain = np.array(_fitted(np.stack(columns, -1), stayed, used))
    plain[empty] = np.nan
    if choices.task != "two_step":
        return plain, plain
    corrected = np.array(_fitted(np.stack([*columns, np.where(better(choices), 1.0, -1.0)[:, :-1]], -1), stayed, used))
    corrected[empty] = np.nan
    return plain, corrected


def better(choices: Choices) -> np.ndarray:
    """Whether each choice was the better one, [S, T] bool: as the file says, or in hindsight."""
    if choices.correct is not None:
        return choices.correct
    S, T = choices.trials.choice.shape
    near = np.exp(-np.abs(np.arange(T)[:, None] - np.arange(T)[None, :]) / HINDSIGHT)
    np.fill_diagonal(near, 0.0)
    worth = np.zeros((S, T, 2))
    for place in (0, 1):
        seen = (choices.trials.there & (choices.trials.place == place)).astype(float)
        mean = choices.trials.reward[choices.trials.there].mean()
        worth[:, :, place] = ((seen * choices.trials.reward) @ near + 0.5 * mean) / (seen @ near + 0.5)
    rows = np.arange(S)[:, None]
    leads = choices.good[rows, np.minimum(choices.trials.choice, 1)]
    times = np.arange(T)[None, :]
    return worth[rows, times, leads] > worth[rows, times, 1 - leads]


def _pairs(choices: Choices) -> tuple[np.ndarray, np.ndarray]:
    """Whether the next choice was the same [S, T-1], and the cell of what came of this one, -1 where no pair counts."""
    choice = choices.trials.choice
    stayed = choice[:, 1:] == choice[:, :-1]
    unrewarded = (~choices.rewarded[:, :-1]).astype(int)
    cell = unrewarded
    if choices.task == "two_step":
        cell = 2 * unrewarded + (~choices.common[:, :-1]).astype(int)
    return stayed, np.where(choices.trials.follows[:, 1:], cell, -1)


@jax.jit
def _fitted(x: np.ndarray, stayed: np.ndarray, used: np.ndarray) -> jax.Array:
    """x [S, T, K], outcomes and weights [S, T] -> coefficients [S, K], by Newton's method."""
    K = x.shape[-1]

    def one(x, y, weight):
        def step(_, b):
            chance = jax.nn.sigmoid(x @ b)
            slope = x.T @ (weight * (y - chance)) - b / PRIOR**2
            curve = (x * (weight * chance * (1 - chance))[:, None]).T @ x + jnp.eye(K) / PRIOR**2
            move = jnp.linalg.solve(curve, slope)
            return b + move * jnp.minimum(1.0, 2.0 / jnp.maximum(jnp.linalg.norm(move), 1e-9))

        return jax.lax.fori_loop(0, 25, step, jnp.zeros(K))

    return jax.vmap(one)(x, stayed.astype(jnp.float32), used.astype(jnp.float32))
