"""Trains one content many times, by prediction or on return, and audits what it has learned.

R runs, each independent of the others by its key; N lifetimes. By prediction: one lifetime each, in parallel. On
return: the genome is every weight, searched by evolution. The audit tests the content with its weights frozen.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins
from ontogeny.audit import learns, plans, sacrifice
from ontogeny.audit.base import PreparedSubject, Subject
from ontogeny.development.base import require_finite_search
from ontogeny.environments import chain, stream
from ontogeny.errors import BadInput
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.rollouts import rollout, rollout_lifetime
from ontogeny.studies.mesa import distilled
from ontogeny.studies.mesa.budgets import SearchBudget
from ontogeny.studies.mesa.distilled import OnWork, build_agent
from ontogeny.types import Agent, Development, Environment, Genome, Key, PyTree, State, Steering, Weights

SIZES = {"causal_transformer": 8}  # other contents have their default size
CURRICULUM = ((0.1, "random"), (0.3, "random"), (0.5, "pairs"))  # see `distilled.build_chain`
Measurements = Mapping[str, np.ndarray]


def map_runs(function: Callable[..., PyTree], *trees: PyTree, num_parallel: int = 0) -> Any:
    """Evaluate a function for all runs.

    One device is used: two devices of one host can deadlock when products are large enough for the shared threads of
    the processor.

    Args:
        function: A function that JAX can trace.
        *trees: Its arguments, with the leading axis R on every leaf.
        num_parallel: Runs at once; 0 for all.

    Returns:
        The results as numpy arrays with the leading axis R.
    """
    batch_size = num_parallel or count_runs(trees)
    mapped = jax.jit(lambda *trees: jax.lax.map(lambda run: function(*run), trees, batch_size=batch_size))
    return jax.tree.map(np.asarray, jax.device_get(mapped(*trees)))


def count_runs(weights: PyTree) -> int:
    """R, of weights with a leading axis of runs."""
    return len(jax.tree.leaves(weights)[0])


def split_runs(measurements: Measurements) -> list[dict[str, np.ndarray]]:
    """Arrays [R, ...] by name -> for each run its arrays by name."""
    return [{name: values[run] for name, values in measurements.items()} for run in range(count_runs(measurements))]


def build_item_predictor(env: Environment, content: str, evolved: bool) -> tuple[Agent, Steering]:
    """The agent that predicts items of `stream` with a content, which is empty at first or evolved."""
    return build_agent("predictor", env, content=content, size=SIZES.get(content, 0), evolved=evolved)


def train_by_prediction(content: str, keys: Key, inert: Array, num_segments: int) -> PyTree:
    """Train R contents by prediction, each in one lifetime.

    Args:
        content: Name of the content.
        keys: [R].
        inert: [R], whether a run is a sham, in which reports do not change the items.
        num_segments: Of the lifetime.
    """

    def train(key: Key, inert: Array) -> PyTree:
        env = stream.make_stream(inert, num_segments=num_segments)
        agent, drives = build_item_predictor(env, content, evolved=False)
        state, _ = rollout_lifetime(key, agent, env, drives, (), learning=True)
        return state.weights.content

    return map_runs(train, keys, inert)


@cache
def build_search(content: str, inert: bool, budget: SearchBudget) -> Development:
    """The evolution of a content on return."""
    env = plugins.build("environments", "stream", inert=inert)
    agent, drives = build_item_predictor(env, content, evolved=True)
    settings = {"strategy": "Sep_CMA_ES", "sigma": 0.2, "generations_per_call": 10} | budget._asdict()
    return plugins.build("development", "evolution", agent, env, drives, **settings)


def run_search(development: Development, key: Key, on_progress: OnWork | None = None) -> tuple[Genome, float]:
    """The genome of a search, and the mean fitness of its last compiled call."""
    state, fitness = development.init(key), float("nan")
    for call in range(1, development.num_calls + 1):
        state, info = development.step(state)
        require_finite_search(info)
        fitness = float(jnp.mean(info["fitness"]))
        if on_progress is not None:
            num_generations = call * development.generations_per_call
            on_progress(num_generations, development.num_calls * development.generations_per_call)
    return development.genome(state), fitness


def item_content_template(content: str) -> PyTree:
    """Untrained weights of a content that predicts items."""
    agent, _ = build_item_predictor(plugins.build("environments", "stream"), content, evolved=True)
    return agent.genome(jax.random.key(0))


def audit_in_stream(content: str, weights: PyTree, num_lifetimes: int, seed: int) -> dict[str, list]:
    """Measure the tests `sacrifice` and `learns` on R frozen contents.

    Returns:
        By test, one dictionary of arrays [N] for each run.
    """
    tests = {
        "sacrifice": (sacrifice.measure_lifetime, plugins.build("environments", "stream")),
        "learns": (learns.measure_lifetime, plugins.build("environments", "stream", num_segments=1)),
    }

    def audit(weights: PyTree, run: Array) -> dict[str, dict[str, Array]]:
        keys = sample_lifetime_keys(jax.random.fold_in(key_from_seed(seed), run), num_lifetimes, "evaluation")
        measurements = {}
        for test, (measure_lifetime, env) in tests.items():
            agent, drives = build_item_predictor(env, content, evolved=True)
            prepared = PreparedSubject(agent, env, drives, weights, learning=False)
            measurements[test] = jax.vmap(partial(measure_lifetime, prepared=prepared))(keys)
        return measurements

    measured = map_runs(audit, weights, jnp.arange(count_runs(weights)), num_parallel=1)
    return {test: split_runs(measurements) for test, measurements in measured.items()}


def build_payout_predictor(env: Environment, content: str, **settings: Any) -> tuple[Agent, Steering]:
    """The agent that predicts payouts of `chain` with a content."""
    return build_agent("payout_predictor", env, content=content, **settings)


def train_by_payouts(
    content: str, size: int, keys: Key, num_lifetimes: int, on_progress: OnWork | None = None
) -> PyTree:
    """Train R contents to predict payouts, each in one sequence of many short chains.

    Args:
        content: Name of the content.
        size: Of the content; 0 for its default.
        keys: [R].
        num_lifetimes: Chains in each stage of the curriculum.
        on_progress: Receives stages done and stages in all.
    """
    weights: PyTree = ()
    for stage, (crossing_probability, exposed_links) in enumerate(CURRICULUM):
        env = distilled.build_chain(crossing_probability, exposed_links)
        agent, drives = build_payout_predictor(env, content, size=size, num_lifetimes=num_lifetimes)

        def train(
            key: Key, content: PyTree, agent: Agent = agent, env: Environment = env, drives: Steering = drives
        ) -> PyTree:
            init_key, lifetimes_key = jax.random.split(key)
            state = agent.init(init_key, ())
            if jax.tree.leaves(content):
                state = state._replace(weights=state.weights._replace(content=content))

            def run_chain(state: State, key: Key) -> tuple[State, None]:
                return rollout(key, agent, env, drives, agent.reset(state), env.spec.num_steps, True)[0], None

            lifetime_keys = sample_lifetime_keys(lifetimes_key, num_lifetimes, "training")
            return jax.lax.scan(run_chain, state, lifetime_keys)[0].weights.content

        stage_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, stage)
        weights = map_runs(train, stage_keys, weights)
        if on_progress is not None:
            on_progress(stage + 1, len(CURRICULUM))
    return weights


def count_curriculum_steps() -> int:
    """Environment steps of one chain of each stage."""
    return sum(distilled.build_chain(*stage).spec.num_steps for stage in CURRICULUM)


def payout_content_template(content: str, size: int) -> PyTree:
    """Untrained weights of a content that predicts payouts."""
    agent, _ = build_payout_predictor(plugins.build("environments", "chain"), content, size=size)
    return agent.init(jax.random.key(0), ()).weights.content


def audit_in_chain(
    content: str, size: int, weights: PyTree, num_lifetimes: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Measure the test `plans` on R frozen contents; their agent takes the action with the highest predicted payout."""
    train_env = plugins.build("environments", "chain")
    revaluation = chain.build_revaluation(train_env.spec)

    def audit(weights: PyTree, run: Array) -> dict[str, Array]:
        keys = sample_lifetime_keys(jax.random.fold_in(key_from_seed(seed), run), num_lifetimes, "evaluation")

        def frozen_state(agent: Agent, *_: Any) -> State:
            """The trained content without scratch, and activations of zero."""
            state = jax.eval_shape(agent.init, jax.random.key(0), ())
            zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state.activations)
            return State(Weights(weights), zeros)

        build = partial(build_payout_predictor, content=content, size=size, exploration_rate=0.0)
        subject = Subject(content, train_env, build, frozen_state)
        return jax.lax.map(lambda key: plans.measure_lifetime(key, subject, revaluation), keys, batch_size=50)

    return split_runs(map_runs(audit, weights, jnp.arange(count_runs(weights)), num_parallel=1))


def evolve_agent(
    agent_spec: str, env_spec: str, development_spec: str, seed: int, on_progress: OnWork | None
) -> tuple[Subject, float]:
    """Evolve an agent from scratch.

    Args:
        agent_spec: As the command line takes it.
        env_spec: The environment of the search.
        development_spec: The evolution with its settings.
        seed: Of the search.
        on_progress: Receives generations done and generations in all.

    Returns:
        The subject of an audit, and the mean fitness at the end of the search.
    """
    (name, settings), (env_name, env_settings) = plugins.parse(agent_spec), plugins.parse(env_spec)
    train_env = plugins.build("environments", env_name, **env_settings)

    build = partial(build_agent, name, **settings)
    agent, drives = build(train_env)
    _, search_settings = plugins.parse(development_spec)
    development = plugins.build("development", "evolution", agent, train_env, drives, **search_settings)
    genome, fitness = run_search(development, key_from_seed(seed), on_progress)
    shapes = [leaf.shape for leaf in jax.tree.leaves(genome)]

    def check_genome(agent: Agent, *_: Any) -> Genome:
        template = jax.eval_shape(agent.genome, jax.random.key(0))
        if [leaf.shape for leaf in jax.tree.leaves(template)] != shapes:
            raise BadInput("the evolved genome has other shapes than an agent of this environment")
        return genome

    return Subject(name, train_env, build, check_genome), fitness
