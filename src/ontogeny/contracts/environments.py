"""The contract of an environment, as checks of whole episodes that can be run on any of them.

Every check has a rule and runs on its own, so that a report shows all rules that an environment violates. Letters: B
lifetimes, T steps.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import trees
from ontogeny.contracts.base import Recorder, require
from ontogeny.contracts.first_steps_of_environments import (
    EMITTED_CHECKS,
    NUM_LIFETIMES,
    EmittedSteps,
    check_same_seed,
    compile_lifetimes,
    draw_actions,
    record_env,
)
from ontogeny.contracts.host_environments import run_host_lifetimes
from ontogeny.contracts.specs import check_spec
from ontogeny.errors import ContractViolation
from ontogeny.seeds import nth_seed
from ontogeny.types import AnyEnvironment, Environment, EnvSpec, HostEnvironment, Key, TabularTask, TimeStep

MAX_STEPS = 3000  # of a lifetime in the checks, unless an episode is longer
MAX_HOST_STEPS = 500  # of a lifetime of Python objects
BATCH_STEPS = 20  # in which a lifetime alone is compared with the same one in a batch

RULES = {  # name of a check -> its rule
    "spec": "the spec has sizes from 1 on, and its drives name outcome features",
    "types": "`reset` and `step` return arrays of the shapes and types in the spec, the same at every step",
    "same_seed": "the same seed and actions give the same lifetime, bit for bit",
    "history": "what happened before `reset` has no effect after it",
    "batch": "a lifetime is the same whether it runs alone or in a batch",
    "different_seeds": "different seeds give different lifetimes",
    "actions": "actions have an effect",
    "initial_step": "`reset` begins an episode",
    "initial_outcome": "no outcome, and so no reward, precedes the first action",
    "observation_space": "observations lie within the space of the spec",
    "numbers": "observations, outcomes and scores are finite",
    "final_observation": "the final observation is the observation except where a new episode has begun",
    "truncation": "a truncated episode keeps the observation to which its last action led",
    "termination": "the discount is 0 at a termination, which ends an episode, and 1 at every other step",
    "forced_actions": "forced actions are actions of the spec",
    "episode_limit": "no episode is longer than the horizon of the spec",
    "task": "a lifetime keeps its task",
    "revealed_task": "revealed tables have the shapes of the spec and allow what happens",
}
RUN_PAIRS = ("history", "batch")  # which compare runs of the same seed, and mean nothing where these differ
NOTES = ("different_seeds", "actions")  # whose violation is reported, but allowed: it may be meant


class EnvCheckResult(NamedTuple):
    """The result of one check.

    Attributes:
        check: A key of `RULES`.
        violation: What is wrong and what to change, one sentence; empty where the rule holds.
        is_note: Whether an environment may violate the rule.
    """

    check: str
    violation: str
    is_note: bool


class EnvReport(NamedTuple):
    """The results of all checks that could run, and the speed.

    Attributes:
        results: In the order of `RULES`; after a violation of `spec` or `types` no other check can run.
        steps_per_second: Environment steps of a batch of lifetimes with random actions.
    """

    results: tuple[EnvCheckResult, ...]
    steps_per_second: float

    @property
    def violations(self) -> list[EnvCheckResult]:
        """The rules that the environment must keep and violates."""
        return [entry for entry in self.results if entry.violation and not entry.is_note]


class LifetimeRuns(NamedTuple):
    """Several runs of the same lifetimes, of which each check compares two or reads one."""

    emitted: EmittedSteps  # [B, T]
    repeated: EmittedSteps  # with the same seeds and actions
    later: EmittedSteps  # again the same, after other lifetimes
    single: EmittedSteps  # the first lifetime without the others, [1, T]
    other_seeds: EmittedSteps
    other_actions: EmittedSteps  # with the same seeds


def check_env(env: AnyEnvironment, seed: int = 0) -> None:
    """Checks that an environment is a pure function of its keys, conforms to its spec, and keeps its task.

    Args:
        seed: Draws the tasks and all chance of lifetimes of up to three episodes.

    Raises:
        ContractViolation: The environment violates a rule; the message is about the first one.
    """
    violations = run_env_checks(env, seed).violations
    if violations:
        raise ContractViolation(violations[0].violation)


def run_env_checks(env: AnyEnvironment, seed: int = 0, files: Sequence[str] = ()) -> EnvReport:
    """Runs all checks of an environment and collects what they find.

    Args:
        seed: Draws the tasks and all chance of lifetimes of up to three episodes.
        files: The user's files, which messages about errors inside of them name.

    Returns:
        The result of each check, and the speed.
    """
    recorder = Recorder(files)
    checks: dict[str, Callable[[], object]] = {
        "spec": lambda: check_spec(env.spec),
        "types": lambda: _check_types_and_task(env, recorder, seed),
    }
    results: list[EnvCheckResult] = []
    for name, check in checks.items():
        results.append(_result(name, check))
        if results[-1].violation:
            return EnvReport(tuple(results), 0.0)
    with recorder.explain("the environment fails"):
        runs, steps_per_second = _run_lifetimes(env, seed)
    checks = {
        "same_seed": lambda: check_same_seed(runs.emitted, runs.repeated),
        "history": lambda: _check_history(runs),
        "batch": lambda: _check_batch(runs),
        "different_seeds": lambda: _check_seeds(runs),
        "actions": lambda: _check_actions(runs),
    }
    for name, check in EMITTED_CHECKS.items():
        checks[name] = lambda check=check: check(env.spec, runs.emitted)
    if isinstance(env, HostEnvironment):
        checks["observation_space"] = lambda: _check_declared_space(env, seed)
    if env.reveal_task is not None:
        checks["revealed_task"] = lambda: _check_revealed_tasks(env, seed)
    results += [_result(name, checks[name]) for name in RULES if name in checks]
    if any(entry.check == "same_seed" and entry.violation for entry in results):
        results = [entry for entry in results if entry.check not in ("history", "batch")]  # which compare such runs
    return EnvReport(tuple(results), steps_per_second)


def _result(name: str, check: Callable[[], object]) -> EnvCheckResult:
    """The result of a check; only a violation of the contract counts as one."""
    try:
        check()
    except ContractViolation as error:
        return EnvCheckResult(name, str(error), name in NOTES)
    return EnvCheckResult(name, "", name in NOTES)


def _check_types_and_task(env: AnyEnvironment, recorder: Recorder, seed: int) -> None:
    """The programs have the types of the spec, and the state shows the task."""
    if isinstance(env, HostEnvironment):
        run_host_lifetimes(env, [seed], np.asarray(draw_actions(env.spec, BATCH_STEPS, seed))[:1], strict=False)
        return
    reset, _ = record_env(env, recorder)
    require(
        hasattr(reset.shapes[0], "task"),
        "the state of an environment must have a field `task`, which a lifetime does not change",
    )


def _run_lifetimes(env: AnyEnvironment, seed: int) -> tuple[LifetimeRuns, float]:
    """All runs, and the steps per second of one that is already compiled."""
    spec = env.spec
    num_steps = min(3 * spec.horizon, max(spec.horizon + 1, MAX_STEPS))
    if isinstance(env, HostEnvironment):
        num_steps = min(num_steps, MAX_HOST_STEPS)
    run = _lifetime_runner(env)
    keys, other_keys = (_lifetime_keys(nth_seed(seed, n)) for n in (0, 2))
    actions, other_actions = (draw_actions(spec, num_steps, nth_seed(seed, n)) for n in (1, 3))
    run(keys, actions)  # so that all runs below but `later` have the same history
    start = time.perf_counter()
    emitted = run(keys, actions)
    seconds = time.perf_counter() - start
    repeated = run(keys, actions)
    single = _lifetime_runner(env)(keys[:1], actions[:1])
    of_other_seeds = run(other_keys, actions)
    of_other_actions = run(keys, other_actions)
    later = run(keys, actions)
    runs = LifetimeRuns(emitted, repeated, later, single, of_other_seeds, of_other_actions)
    return runs, emitted.scores.size / max(seconds, 1e-9)


def _lifetime_runner(env: AnyEnvironment) -> Callable[[Key, Array], EmittedSteps]:
    """The function that runs lifetimes: keys [B] and actions [B, T] -> what was emitted, as numpy arrays."""
    if not isinstance(env, HostEnvironment):
        return compile_lifetimes(env)

    def run(keys: Key, actions: Array) -> EmittedSteps:
        seeds = [int(words[-1]) for words in np.asarray(jax.random.key_data(keys))]
        return run_host_lifetimes(env, seeds, np.asarray(actions, np.int32), strict=False)

    return run


def _check_declared_space(env: HostEnvironment, seed: int) -> None:
    """Every observation lies in the space that the environment declares."""
    actions = np.asarray(draw_actions(env.spec, min(3 * env.spec.horizon, MAX_HOST_STEPS), seed), np.int32)
    run_host_lifetimes(env, [nth_seed(seed, n) for n in range(NUM_LIFETIMES)], actions, strict=True)


def _lifetime_keys(seed: int) -> Key:
    """The keys of the lifetimes, [B]."""
    return jax.random.split(jax.random.key(seed), NUM_LIFETIMES)


def _check_history(runs: LifetimeRuns) -> None:
    """Lifetimes after others are those without others before them."""
    require(
        trees.bitwise_equal(runs.emitted, runs.later),
        "a lifetime depends on what happened before its `reset`: the same seed and actions gave another lifetime after "
        "lifetimes with other actions; keep nothing outside of the state",
    )


def _check_batch(runs: LifetimeRuns) -> None:
    """A lifetime alone is that of the batch, up to rounding."""
    pairs = zip(jax.tree.leaves(runs.single), jax.tree.leaves(runs.emitted), strict=True)
    require(
        all(_is_close(single[0], batch[0]) for single, batch in pairs),
        "a lifetime depends on the others in its batch: run alone, it differs; use nothing but the state, the key and "
        "the action of a lifetime in `step`",
    )


def _is_close(first: Array, second: Array) -> bool:
    """Whether the first steps agree up to rounding; later ones drift apart where dynamics are chaotic."""
    pair = [np.asarray(numbers, np.float64) for numbers in (first, second)]
    num_steps = min([BATCH_STEPS, *(len(numbers) for numbers in pair if numbers.ndim)])  # objects may end early
    heads = [numbers[:num_steps] if numbers.ndim else numbers for numbers in pair]
    return bool(np.allclose(*heads, rtol=1e-3, atol=1e-4, equal_nan=True))


def _check_seeds(runs: LifetimeRuns) -> None:
    """Other seeds give other lifetimes."""
    require(
        not trees.bitwise_equal(runs.emitted, runs.other_seeds),
        f"{2 * NUM_LIFETIMES} seeds gave the same lifetimes: the environment is deterministic, or it ignores its seed",
    )


def _check_actions(runs: LifetimeRuns) -> None:
    """Other actions give other lifetimes."""
    require(
        not trees.bitwise_equal(runs.emitted, runs.other_actions),
        "actions have no effect: with the same seeds, other actions gave the same lifetimes",
    )


def _check_revealed_tasks(env: Environment, seed: int) -> None:
    """The tables of every step of one lifetime allow what happens in it."""
    spec, reveal_task = env.spec, env.reveal_task
    assert reveal_task is not None
    step = jax.jit(env.step)
    state, time_step = jax.jit(env.reset)(jax.random.key(seed))
    tables = reveal_task(state)
    for t, key in enumerate(jax.random.split(jax.random.key(nth_seed(seed, 1)), 3 * spec.horizon)):
        action, before = jnp.int32(t % spec.num_actions), time_step
        state, time_step = step(key, state, action)
        _check_termination(tables, before, action, time_step)
        tables = reveal_task(state)
    _check_tables(spec, tables)


def _check_termination(tables: TabularTask, before: TimeStep, action: jax.Array, after: TimeStep) -> None:
    """An episode that terminates early must be able to terminate by the revealed tables."""
    if float(after.discount) == 0 and int(tables.remaining_steps) > 1:
        probability = float(tables.termination_probabilities[int(before.observation), int(action)])
        require(
            probability > 0,
            "an episode ended before its last step where `reveal_task` gives a termination probability of 0",
        )


def _check_tables(spec: EnvSpec, tables: TabularTask) -> None:
    """Shapes and ranges of the revealed tables."""
    S, A, F = spec.num_observations, spec.num_actions, len(spec.outcome_features)
    has_shapes = tables.transitions.shape == (S, A, S) and tables.outcomes.shape == (S, A, F)
    require(has_shapes, "the tables of `reveal_task` have other shapes than the spec")
    is_distribution = np.allclose(tables.transitions.sum(-1), 1, atol=1e-5)
    require(is_distribution, "the successors' probabilities do not sum to one")
    is_in_range = 1 <= int(tables.remaining_steps) <= spec.horizon
    require(is_in_range, "`remaining_steps` must lie between 1 and the horizon")
