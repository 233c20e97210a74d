"""Models of choices by maximum likelihood, compared by BIC, and how far the comparison can be trusted.

The likelihood climbs by scoring with the outer products of each trial's gradient (Berndt, Hall, Hall & Hausman 1974,
Ann Econ Soc Meas 3:653), damped (Levenberg 1944), from several starts, all subjects and starts at once. Recovery
(Wilson & Collins 2019, eLife 8:e49547): organisms of each model live as many trials as the subjects did, are fitted
by all models, and the matrix says who is taken for whom. S subjects, T trials, K parameters, N simulated.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.audit.behavior.base import Choices, Model, Trials, Who, option

ITERATIONS = 40
AT_ONCE = 64  # climbs: more leave the processor's cache
FARTHEST = 8.0  # of a parameter before it is pressed between its bounds
LONGEST = 2.0  # step
WINDOW = 8.0  # trials over which rewards are smoothed to say how likely an option paid
STARTS = 48, 12  # of each subject and of each organism
SPREAD = 2.0  # of starts, before they are pressed between bounds: values and slow rates far from the usual count
ORGANISMS = 40  # of each model, at least, for recovery
CLEAR = 2.0  # of BIC: a smaller lead is none (Raftery 1995, Sociological Methodology 25:111)


class Fit(NamedTuple):
    """One model fitted to each subject."""

    model: str
    unbound: np.ndarray  # [S, K]
    values: dict[str, np.ndarray]  # [S] each, by parameter
    log_likelihood: np.ndarray  # [S]
    bic: np.ndarray  # [S]
    agreed: np.ndarray  # [S] share of starts that ended within 0.1 of the best


class Recovery(NamedTuple):
    """Rows: organisms of each model; columns: the model that is said to have lived."""

    models: tuple[str, ...]
    by_subject: np.ndarray  # [M, M] shares of simulated subjects
    by_group: np.ndarray  # [M, M] shares of simulated groups, by summed BIC
    subjects: int  # N simulated subjects of each model
    groups: int


class Comparison(NamedTuple):
    fits: list[Fit]
    recovery: Recovery
    organisms: list[Trials]  # of each model, parameters drawn from the ranges of its file, [groups S, T]
    repeated: list[Trials]  # of each model, with the parameters that were fitted to the subjects


def who_of(choices: Choices) -> Who:
    """How each subject's task led and paid, from what it saw: shares of transitions, rewards smoothed over time."""
    S, T = choices.trials.choice.shape
    lead, pays = np.full((S, 2, 2), 0.5, np.float32), np.zeros((S, T, choices.options), np.float32)
    away = np.abs(np.arange(T)[:, None] - np.arange(T)[None, :])
    near = np.exp(-away / WINDOW)
    taken = option(choices.task, choices.has_second, choices.trials)
    for s in range(S):
        there, reward = choices.trials.there[s], choices.trials.reward[s]
        if choices.task == "two_step":
            share = choices.common[s][there].mean()
            for choice in (0, 1):
                lead[s, choice, choices.good[s, choice]] = share
                lead[s, choice, 1 - choices.good[s, choice]] = 1 - share
        mean = reward[there].mean()
        for o in range(choices.options):
            seen = there & (taken[s] == o)
            pays[s, :, o] = (near[:, seen] @ reward[seen] + mean) / (near[:, seen].sum(axis=1) + 1)
    return Who(lead, pays)


def bound(model: Model, unbound: Array) -> dict[str, Array]:
    """Unbounded numbers [K] -> parameters by name."""
    return {
        p.name: p.scale * (jnp.tanh(x) if p.signed else jax.nn.sigmoid(x))
        for p, x in zip(model.parameters, unbound, strict=True)
    }


def drawn(seed: int, model: Model, number: int) -> np.ndarray:
    """Unbounded parameters [number, K] of organisms, uniform in each parameter's range."""
    low, high, scale = (np.array([getattr(p, name) for p in model.parameters]) for name in ("low", "high", "scale"))
    signed = np.array([p.signed for p in model.parameters])
    share = np.random.default_rng(seed).uniform(low, high, (number, len(low))) / scale
    inside = np.clip(share, np.where(signed, -0.999, 1e-3), 0.999)
    return np.where(signed, np.arctanh(inside), np.log(np.maximum(inside, 1e-6)) - np.log1p(-inside)).astype(np.float32)


def log_likelihoods(model: Model, arms: int, unbound: Array, who: Who, trials: Trials) -> Array:
    """Of each trial's choices [T]; zero where a trial is not there."""
    p = bound(model, unbound)

    def step(carry, trial: Trials):
        memory, last = carry
        memory = jax.tree.map(lambda new, old: jnp.where(trial.begins, new, old), model.begin(p, who), memory)
        logits = model.first(p, who, memory, jnp.where(trial.follows, last, 0.0))
        chosen = jax.nn.one_hot(trial.choice, arms)
        told = jnp.sum(jax.nn.log_softmax(logits) * chosen)
        if model.second is not None:
            told += jax.nn.log_softmax(model.second(p, memory, trial.place)) @ jax.nn.one_hot(trial.second, 2)
        later = model.learn(p, memory, trial)
        memory = jax.tree.map(lambda new, old: jnp.where(trial.there, new, old), later, memory)
        return (memory, chosen), jnp.where(trial.there, told, 0.0)

    return jax.lax.scan(step, (model.begin(p, who), jnp.zeros(arms)), trials)[1]


def lived(
    key: Array, model: Model, task: str, arms: int, has_second: bool, unbound: Array, who: Who, trials: Trials
) -> Trials:
    """An organism of a model in the task of a subject: same trials missed, same transitions and rewards by chance."""
    p = bound(model, unbound)

    def step(carry, given):
        memory, last = carry
        key, trial, pays = given
        keys = jax.random.split(key, 4)
        memory = jax.tree.map(lambda new, old: jnp.where(trial.begins, new, old), model.begin(p, who), memory)
        logits = model.first(p, who, memory, jnp.where(trial.follows, last, 0.0))
        choice = jax.random.categorical(keys[0], logits).astype(jnp.int32)
        place, second = jnp.int32(0), jnp.int32(0)
        if task == "two_step":
            place = (jax.random.uniform(keys[1]) < who.lead[choice, 1]).astype(jnp.int32)
        if model.second is not None:
            second = jax.random.categorical(keys[2], model.second(p, memory, place)).astype(jnp.int32)
        new = trial._replace(choice=choice, place=place, second=second)
        reward = jax.random.uniform(keys[3]) < pays[option(task, has_second, new)]
        new = new._replace(reward=reward.astype(jnp.float32))
        later = model.learn(p, memory, new)
        memory = jax.tree.map(lambda a, b: jnp.where(trial.there, a, b), later, memory)
        return (memory, jax.nn.one_hot(choice, arms)), new

    keys = jax.random.split(key, len(trials.choice))
    return jax.lax.scan(step, (model.begin(p, who), jnp.zeros(arms)), (keys, trials, who.pays))[1]


@partial(jax.jit, static_argnames=("model", "arms"))
def _climbed(model: Model, arms: int, starts: Array, who: Who, trials: Trials) -> tuple[Array, Array]:
    """starts [B, K], each with a subject of its own -> where each ended [B, K], log-likelihoods [B]."""
    K = starts.shape[-1]

    def one(start: Array, who: Who, trials: Trials) -> tuple[Array, Array]:
        def at(x: Array):
            def along(direction: Array):
                return jax.jvp(lambda x: log_likelihoods(model, arms, x, who, trials), (x,), (direction,))

            told, slopes = jax.vmap(along, out_axes=(None, 0))(jnp.eye(K))  # [T], [K, T]
            return jnp.sum(told), jnp.sum(slopes, axis=1), slopes @ slopes.T

        def step(state, _):
            x, value, slope, curve, damping = state
            move = jnp.linalg.solve(curve + damping * jnp.eye(K), slope)
            move *= jnp.minimum(1.0, LONGEST / jnp.maximum(jnp.linalg.norm(move), 1e-9))
            tried = jnp.clip(x + move, -FARTHEST, FARTHEST)
            found = at(tried)
            better = found[0] > value
            kept = jax.tree.map(lambda a, b: jnp.where(better, a, b), (tried, *found), (x, value, slope, curve))
            return (*kept, jnp.clip(jnp.where(better, damping / 3, damping * 4), 1e-4, 1e6)), None

        # The first step goes nowhere and is better than nothing: it evaluates the start.
        nowhere = (start, -jnp.inf, jnp.zeros(K), jnp.zeros((K, K)), jnp.float32(3.0))
        end, _ = jax.lax.scan(step, nowhere, None, length=ITERATIONS + 1)
        return end[0], end[1]

    return jax.lax.map(lambda given: one(*given), (starts, who, trials), batch_size=AT_ONCE)


@partial(jax.jit, static_argnames=("model", "task", "arms", "has_second"))
def _lives(keys, model, task, arms, has_second, unbound, who, trials) -> Trials:
    """Keys, parameters, tasks and trials [N] -> what N organisms of a model did."""
    one = partial(lived, model=model, task=task, arms=arms, has_second=has_second)
    return jax.vmap(lambda key, x, who, trials: one(key, unbound=x, who=who, trials=trials))(keys, unbound, who, trials)


def fit(model: Model, arms: int, trials: Trials, who: Who, has_second: bool, starts: np.ndarray, seed: int = 0) -> Fit:
    """`starts` [S]: from how many places each subject's likelihood is climbed."""
    S, K = len(trials.choice), len(model.parameters)
    whose = np.repeat(np.arange(S), starts)
    whose = np.concatenate([whose, np.zeros(-len(whose) % AT_ONCE, int)])  # whole batches, so that one is compiled
    begin = np.random.default_rng(seed).normal(0, SPREAD, (len(whose), K)).astype(np.float32)
    usual = np.arange(len(whose)) % 4 == 0
    begin[usual] = drawn(seed, model, int(usual.sum()))
    each = Who(*(part[whose] for part in who)), Trials(*(part[whose] for part in trials))
    ends, reached = (np.asarray(found) for found in _climbed(model, arms, begin, *each))
    order = np.lexsort((-reached, whose))  # by subject, the highest first
    at = order[np.searchsorted(whose[order], np.arange(S))]
    told = reached[at].astype(np.float64)
    scored = trials.there.sum(axis=1) * (2 if has_second else 1)
    values = jax.vmap(partial(bound, model))(jnp.asarray(ends[at]))
    return Fit(
        model.name,
        ends[at],
        {p.name: np.asarray(values[p.name], np.float64) for p in model.parameters},
        told,
        K * np.log(scored) - 2 * told,
        np.bincount(whose, reached > told[whose] - 0.1, S) / np.bincount(whose),
    )


def compare(
    models: Sequence[Model],
    choices: Choices,
    *,
    groups: int | None = None,
    starts: tuple[int, int] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> Comparison:
    """Every model fitted to every subject, and to `groups` groups of organisms of every model, each with as many
    subjects and trials as the file (by default so many that each model has 40 organisms)."""
    S, M = len(choices.subjects), len(models)
    groups = max(2, -(-ORGANISMS // S)) if groups is None else groups
    who = who_of(choices)
    given = Trials(*(_tiled(part, groups) for part in choices.trials))
    task = Who(*(_tiled(part, groups) for part in who))

    def did(i: int, unbound: Any, key: int) -> Trials:
        keys = jax.random.split(jax.random.key(key), S * groups)
        how = (choices.task, choices.arms, choices.has_second)
        return jax.tree.map(np.asarray, _lives(keys, models[i], *how, jnp.asarray(unbound), task, given))

    organisms = [did(i, drawn(seed + 1 + i, m, S * groups), seed + i) for i, m in enumerate(models)]
    trials = Trials(*(np.concatenate(parts) for parts in zip(choices.trials, *organisms, strict=True)))
    whose = Who(*(np.concatenate([part] + [many] * M) for part, many in zip(who, task, strict=True)))
    each = np.where(np.arange(len(trials.choice)) < S, *(starts or STARTS))
    fits = []
    for number, model in enumerate(models):
        if on_progress is not None:
            on_progress(number, M, model.name)
        fits.append(fit(model, choices.arms, trials, whose, choices.has_second, each, seed))
    bic = np.stack([found.bic[S:] for found in fits]).reshape(M, M, groups, S)  # by fitted model, by organism
    won = bic.argmin(axis=0).reshape(M, -1), bic.sum(axis=-1).argmin(axis=0)
    shares = [np.stack([(winner == m).mean(axis=1) for m in range(M)], axis=1) for winner in won]
    by_subject, by_group = shares
    names = tuple(model.name for model in models)
    ours = [_first(found, S) for found in fits]
    repeated = [did(i, _tiled(found.unbound, groups), seed + 100 + i) for i, found in enumerate(ours)]
    return Comparison(ours, Recovery(names, by_subject, by_group, S * groups, groups), organisms, repeated)


def leads(fits: Sequence[Fit]) -> tuple[int, dict[str, np.ndarray]]:
    """The model of the lowest summed BIC, and by how much it beats each other one in each subject [S]."""
    total = [found.bic.sum() for found in fits]
    best = int(np.argmin(total))
    return best, {found.model: found.bic - fits[best].bic for i, found in enumerate(fits) if i != best}


def winners(fits: Sequence[Fit]) -> list[str]:
    """Per subject the model of the lowest BIC, or "undetermined" where its lead is not clear."""
    bic = np.stack([found.bic for found in fits])
    ordered = np.sort(bic, axis=0)
    clear = ordered[1] - ordered[0] > CLEAR
    return [fits[i].model if sure else "undetermined" for i, sure in zip(bic.argmin(axis=0), clear, strict=True)]


def _first(found: Fit, S: int) -> Fit:
    values = {name: value[:S] for name, value in found.values.items()}
    return Fit(found.model, found.unbound[:S], values, found.log_likelihood[:S], found.bic[:S], found.agreed[:S])


def _tiled(part: np.ndarray, times: int) -> np.ndarray:
    return np.tile(part, (times,) + (1,) * (part.ndim - 1))
