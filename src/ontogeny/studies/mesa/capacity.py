"""Trains one content many times over, by either model, and asks what it came to hold: the runs of the mesa study.

R runs, each independent of the others by its key, N lives. By prediction: one life each, side by side. By return: the
genome is every weight, searched by evolution. What is audited is the content with its weights frozen.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins, steering
from ontogeny.audit import learns, plans, sacrifice
from ontogeny.audit.base import PreparedSubject, Subject
from ontogeny.development import evolution
from ontogeny.environments import stream
from ontogeny.rng import sample_lifetime_keys
from ontogeny.rollouts import rollout, rollout_lifetime
from ontogeny.studies.mesa import distilled
from ontogeny.types import Agent, Development, Environment, Genome, Key, PyTree, State, Steering, Weights

CONTENTS = ("table", "linear", "mlp", "gru", "causal_transformer")  # as capacity grows
SIZES = {"causal_transformer": 8}  # others have their own default
CURRICULUM = ((0.1, "random"), (0.3, "random"), (0.5, "pairs"))  # how often links cross, and what is exposed
TRIALS, AFTER = 10, 2
STRATEGY, SPREAD = "Sep_CMA_ES", 0.2
OnProgress = Callable[[int, int], None]


def over_runs(one: Callable[..., PyTree], *given: PyTree, at_once: int = 0) -> Any:
    """`one` for all runs, leading axis R on every leaf, `at_once` of them side by side (0: all) -> numpy arrays.

    On one device: two devices of a host whose products are large enough for the processor's common threads can wait for
    each other without end.
    """
    count = count_of(given)
    every = jax.jit(lambda *given: jax.lax.map(lambda run: one(*run), given, batch_size=at_once or count))
    return jax.tree.map(np.asarray, jax.device_get(every(*given)))


def predictor(env: Environment, content: str, evolved: bool) -> tuple[Agent, Steering]:
    drives = steering.build(env.spec)
    size = SIZES.get(content, 0)
    return plugins.build("agents", "predictor", env.spec, drives, content=content, size=size, evolved=evolved), drives


def by_prediction(content: str, keys: Key, inert: Array, segments: int) -> PyTree:
    """What R lives of prediction leave in the content; where `inert` [R], no report moves an item."""

    def one(key: Key, inert: Array) -> PyTree:
        env = stream.make_stream(inert, num_segments=segments)
        agent, drives = predictor(env, content, evolved=False)
        state, _ = rollout_lifetime(key, agent, env, drives, (), learning=True)
        return state.weights.content

    return over_runs(one, keys, inert)


@cache
def search(content: str, inert: bool, population: int, num_lifetimes: int, generations: int) -> Development:
    env = plugins.build("environments", "stream", inert=inert)
    agent, drives = predictor(env, content, evolved=True)
    return evolution.build(
        agent, env, drives, strategy=STRATEGY, population_size=population, num_lifetimes=num_lifetimes, num_generations=generations,
        sigma=SPREAD, generations_per_call=10,
    )  # fmt: skip


def developed(development: Development, key: Key, on_progress: OnProgress | None = None) -> tuple[Genome, float]:
    """The genome that a search ends in, and the mean fitness of its last dispatch."""
    state, fitness = development.init(key), float("nan")
    for dispatch in range(development.num_calls):
        state, info = development.step(state)
        fitness = float(jnp.mean(info["fitness"]))
        if on_progress is not None:
            on_progress((dispatch + 1) * development.generations_per_call, development.num_calls * development.generations_per_call)
    return development.genome(state), fitness


def weights_like(content: str) -> PyTree:
    """The content's weights before anything was learned: a template."""
    agent, _ = predictor(plugins.build("environments", "stream"), content, evolved=True)
    return agent.genome(jax.random.key(0))


def asked_in_stream(
    content: str, weights: PyTree, num_lifetimes: int, seed: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """By test, what each of R frozen contents did in N lives."""
    whole = plugins.build("environments", "stream")
    short = plugins.build("environments", "stream", num_segments=1)
    runs = count_of(weights)

    def one(weights: PyTree, number: Array) -> dict[str, dict[str, Array]]:
        keys = sample_lifetime_keys(jax.random.fold_in(jax.random.key(seed), number), num_lifetimes, "evaluation")
        found = {}
        for test, ask, env in (("sacrifice", sacrifice.measure_lifetime, whole), ("learns", learns.measure_lifetime, short)):
            agent, drives = predictor(env, content, evolved=True)
            prepared = PreparedSubject(agent, env, drives, weights, learning=False)
            found[test] = jax.vmap(partial(ask, prepared=prepared))(keys)
        return found

    measured = over_runs(one, weights, jnp.arange(runs), at_once=1)
    apart = {test: [{k: v[run] for k, v in found.items()} for run in range(runs)] for test, found in measured.items()}
    for found in apart["learns"]:
        found["online"] = np.zeros(num_lifetimes, bool)
    return apart


def chooser(env: Environment, content: str, **settings: Any) -> tuple[Agent, Steering]:
    drives = steering.build(env.spec)
    return plugins.build("agents", "payout_predictor", env.spec, drives, content=content, **settings), drives


def by_payouts(content: str, size: int, keys: Key, num_lifetimes: int, on_progress: OnProgress | None = None) -> PyTree:
    """What one life of many short chains leaves in each of R contents: `lives` of each stage of the curriculum."""
    weights: PyTree = ()  # nothing yet
    for number, (crossed, exposed) in enumerate(CURRICULUM):
        env = plugins.build("environments", "chain", num_trials=TRIALS, num_test_trials=AFTER, crossing_probability=crossed, exposed_links=exposed)
        agent, drives = chooser(env, content, size=size, num_lifetimes=num_lifetimes)

        def one(key: Key, so_far: PyTree, agent=agent, env=env, drives=drives) -> PyTree:
            birth_key, lives_key = jax.random.split(key)
            state = agent.init(birth_key, ())
            if jax.tree.leaves(so_far):
                state = state._replace(weights=state.weights._replace(content=so_far))

            def chain(state: State, key: Key) -> tuple[State, None]:
                return rollout(key, agent, env, drives, agent.reset(state), env.spec.num_steps, True)[0], None

            return jax.lax.scan(chain, state, sample_lifetime_keys(lives_key, num_lifetimes, "training"))[
                0
            ].weights.content

        of_stage = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
        weights = over_runs(one, of_stage, weights)
        if on_progress is not None:
            on_progress(number + 1, len(CURRICULUM))
    return weights


def steps_of_curriculum() -> int:
    """Steps of one chain of each stage."""
    environments = [
        plugins.build("environments", "chain", num_trials=TRIALS, num_test_trials=AFTER, crossing_probability=crossed, exposed_links=exposed)
        for crossed, exposed in CURRICULUM
    ]
    return sum(env.spec.num_steps for env in environments)


def payouts_like(content: str, size: int) -> PyTree:
    agent, _ = chooser(plugins.build("environments", "chain"), content, size=size)
    return agent.init(jax.random.key(0), ()).weights.content


def asked_in_chain(
    content: str, size: int, weights: PyTree, num_lifetimes: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """What each of R frozen contents, asked by code that takes the likelier action, chose after links had changed."""
    home = plugins.build("environments", "chain")

    def one(weights: PyTree, number: Array) -> dict[str, Array]:
        keys = sample_lifetime_keys(jax.random.fold_in(jax.random.key(seed), number), num_lifetimes, "evaluation")

        def frozen(agent: Agent, *_: Any) -> State:
            born = jax.eval_shape(agent.init, jax.random.key(0), ())
            fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), born.activations)
            return State(Weights(weights), fresh)

        subject = Subject(content, home, lambda env: chooser(env, content, size=size, exploration_rate=0.0), frozen)
        return jax.lax.map(lambda key: plans.measure_lifetime(key, subject, 3), keys, batch_size=50)

    runs = count_of(weights)
    measured = over_runs(one, weights, jnp.arange(runs), at_once=1)
    return [{name: values[run] for name, values in measured.items()} for run in range(runs)]


def count_of(weights: PyTree) -> int:
    """R, of weights with a leading axis of runs."""
    return len(jax.tree.leaves(weights)[0])


def pupil(
    seed: int, updates: int, num_lifetimes: int, folder: Path, on_progress: OnProgress | None = None
) -> Mapping[str, np.ndarray]:
    """What a network of the same kind chooses that was taught to do as a planner does: that this size can hold it.

    It is kept in `folder`.
    """

    def progress(done: int, total: int, _: str) -> None:
        if on_progress is not None:
            on_progress(done, total)

    taught = distilled.subject("planner", seed, folder, updates=updates, on_progress=progress)
    return plans.measure(taught, sample_lifetime_keys(jax.random.key(seed), num_lifetimes, "evaluation"), 3)


def evolved_agent(
    agent_text: str, env_text: str, search_text: str, seed: int, on_progress: OnProgress | None
) -> tuple[Subject, float]:
    """An agent that evolution makes from scratch in an environment, to be asked, and its fitness in the end."""
    (name, settings), (room, given) = plugins.parse(agent_text), plugins.parse(env_text)
    home = plugins.build("environments", room, **given)

    def built(env: Environment) -> tuple[Agent, Steering]:
        drives = steering.build(env.spec)
        return plugins.build("agents", name, env.spec, drives, **settings), drives

    agent, drives = built(home)
    development = plugins.build("development", "evolution", agent, home, drives, **plugins.parse(search_text)[1])
    genome, fitness = developed(development, jax.random.key(seed), on_progress)
    wanted = [leaf.shape for leaf in jax.tree.leaves(genome)]

    def fitting(agent: Agent, *_: Any) -> Genome:
        own = jax.eval_shape(agent.genome, jax.random.key(0))
        if [leaf.shape for leaf in jax.tree.leaves(own)] != wanted:
            raise plugins.BadInput("what was developed has other shapes than an agent of this environment")
        return genome

    return Subject(name, home, built, fitting), fitness
