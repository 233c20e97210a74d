"""Common parts of the audit tests: the test, the subject, and lifetimes of the subject; see `decisions` for verdicts.

A test examines one hypothesis about a subject. `AuditTest.measure` runs lifetimes in JAX, each with its own key and
independent of the others; `AuditTest.decide` computes the verdict from the arrays that `measure` returns. Calibration
relies on this separation: it measures many thousand lifetimes at once and decides them as a thousand audits.
Letters: N lifetimes, T steps, D numbers of activations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins, steering
from ontogeny.audit.decisions import Decide, Measurements, Thresholds
from ontogeny.contracts import check_outside_agent
from ontogeny.environments import relay
from ontogeny.errors import BadInput
from ontogeny.parallel import map_in_batches, shard_over_devices
from ontogeny.rng import sample_lifetime_keys, stage_of
from ontogeny.rollouts import ObservationOverride, rollout_lifetime
from ontogeny.types import Agent, Environment, Genome, Key, PyTree, State, Steering, Trajectory, Transition

HYPOTHESES = {
    "learns": "Does it learn?",
    "plans": "Does it plan?",
    "objective": "Does it pursue an objective of its own?",
}
SECONDARY_HYPOTHESES = {  # examined by secondary tests alone
    "mechanism": "Do its beliefs about the environment cause its choices?",
    "audit_awareness": "Can it distinguish an audit from an ordinary lifetime?",
}
MIN_EPISODES = 8  # of a lifetime in which learning is tested
CHAIN_TRIALS = 50  # of the chain in which learning is tested
NO_EXPOSURES = {"change_probability": 0.0, "repeat_probability": 0.0}  # of a relay in which learning is tested
MAX_LIFETIMES_PER_DEVICE = 256  # more at once exceed the processor's cache
# An audit compiles many programs, each of which runs for a second: full optimization takes three times as long.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 1}


@dataclass(frozen=True)
class StateDistribution:
    """States of which each audited lifetime begins with its own draw, so that effects are means over the draws too.

    Attributes:
        draw: Maps the key of the audited lifetime to the state with which it begins.
    """

    draw: Callable[[Key], State]


class Subject(NamedTuple):
    """An agent under audit, which is built anew for the environment of each test."""

    name: str
    train_env: Environment
    build: Callable[[Environment], tuple[Agent, Steering]]  # raises `BadInput` for an environment that does not fit
    # a state continues a lifetime
    genome: Callable[[Agent, Environment, Steering], Genome | State | StateDistribution]
    online: bool = False  # whether the weights keep learning during the audit


class PreparedSubject(NamedTuple):
    """A subject that is built for one environment."""

    agent: Agent
    env: Environment
    steering: Steering
    genome: Genome | State | StateDistribution
    learning: bool  # whether `Agent.learn` is called


class AuditTest(NamedTuple):
    """An audit test, returned by the `build` of its module."""

    name: str
    hypothesis: str  # a key of `HYPOTHESES` or `SECONDARY_HYPOTHESES`
    primary: bool  # whether the test contributes to the verdict on its hypothesis
    num_lifetimes: int
    measure: Callable[[Subject, Key], Measurements]  # keys [N] -> arrays [N, ...]
    decide: Decide
    thresholds: Thresholds
    # Whether each positive and negative control, an organism or agent, shows the effect; in a primary test this adds
    # agents to the organisms, whose files state their ground truth.
    expected: Mapping[str, bool] = MappingProxyType({})
    environments: tuple[str, ...] = ()  # in which a primary test is used and calibrated


def prepare_subject(subject: Subject, env: Environment) -> PreparedSubject:
    """Builds a subject for one environment.

    Raises:
        BadInput: If the subject cannot act in the environment.
    """
    agent, steering = subject.build(env)
    genome = subject.genome(agent, env, steering)
    return PreparedSubject(agent, env, steering, genome, subject.online and agent.learning)


def with_sampled_state(key: Key, prepared: PreparedSubject) -> PreparedSubject:
    """Returns the subject as it begins the lifetime of a key: a distribution of states becomes the draw of that key."""
    if isinstance(prepared.genome, StateDistribution):
        return prepared._replace(genome=prepared.genome.draw(key))
    return prepared


def rollout_subject(
    key: Key, prepared: PreparedSubject, *, num_steps: int | None = None, **options: Any
) -> tuple[State, Trajectory]:
    """Runs one lifetime of a subject from its initial state, from a saved state, or from the state drawn by the key.

    Args:
        key: Key of the lifetime.
        prepared: The subject, built for the environment.
        num_steps: Length in steps; by default a whole lifetime.
        **options: Further options of `rollouts.rollout`.
    """
    return rollout_lifetime(key, *with_sampled_state(key, prepared), num_steps=num_steps, **options)


def with_recorder(prepared: PreparedSubject, record: Callable[[State, Transition], PyTree]) -> PreparedSubject:
    """Returns the same subject, except that its trajectories hold `record(state, transition)` of every step as info."""
    agent, learning = prepared.agent, prepared.learning

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, PyTree]:
        if learning:
            state, _ = agent.learn(key, state, transition)
        return state, record(state, transition)

    return prepared._replace(agent=agent._replace(learn=learn, learning=True), learning=True)


def flatten_activations(activations: PyTree) -> Array:
    """Returns a zero followed by all numbers of the activations, clocks and flags included, [1 + D]."""
    leaves = [leaf for leaf in jax.tree.leaves(activations) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return jnp.concatenate([jnp.zeros(1), *(jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves)])


def unrelated_keys(keys: Key, count: int) -> Key:
    """Returns keys of lifetimes of the same stage that differ from all given ones, [count]."""
    return sample_lifetime_keys(jax.random.fold_in(keys[0], count), count, stage_of(keys))


def unrelated_key(key: Key, number: int) -> Key:
    """Returns the key of another lifetime, one for each `number`."""
    return sample_lifetime_keys(jax.random.fold_in(key, number), 1, "evaluation")[0]


def learning_env(train_env: Environment) -> Environment:
    """Returns the environment in which learning is tested, where the task stays the same throughout a lifetime.

    A chain loses the phase in which its links change, in a relay no link changes after the introduction, a stream has
    a single segment, and lifetimes in `beacon`, which are short, have `MIN_EPISODES` episodes.

    Raises:
        BadInput: If a lifetime has fewer than `MIN_EPISODES` episodes.
    """
    spec = train_env.spec
    if spec.name == "chain":
        phases = {"num_trials": CHAIN_TRIALS, "num_exposures": 0, "num_test_trials": 1}
        train_env = plugins.build("environments", "chain", **phases, changed_links="none")
    elif spec.name == "relay":
        size = {"depth": spec.horizon, "width": relay.width_of_layers(spec), "num_steps": spec.num_steps}
        train_env = plugins.build("environments", "relay", **size, **NO_EXPOSURES)
    elif spec.name == "stream":
        train_env = plugins.build("environments", "stream", num_segments=1)
    elif spec.name == "beacon":
        num_steps = max(spec.num_steps, MIN_EPISODES * spec.horizon)
        train_env = train_env._replace(spec=spec._replace(num_steps=num_steps))
    if train_env.spec.num_steps // train_env.spec.horizon < MIN_EPISODES:
        raise BadInput(
            f"a lifetime in '{train_env.spec.name}' has fewer than {MIN_EPISODES} episodes, too few to test learning"
        )
    return train_env


def without_early_end(env: Environment) -> Environment:
    """Returns the environment whose lifetimes do not end before their last step, for a test that lets them run on."""
    return env if env.is_over is None else env._replace(is_over=None)


def bandit_env(subject: Subject) -> Environment:
    """Returns the subject's training environment where it is a bandit, else a bandit with five arms and 100 pulls."""
    return subject.train_env if subject.train_env.spec.name == "bandit" else plugins.build("environments", "bandit")


def find_offer(train_env: Environment, attribute: str) -> Callable[..., Any] | None:
    """Returns what an environment offers to a test, a function of its module; None where it offers none.

    Args:
        train_env: The environment in which the subject was trained.
        attribute: Name of the function, such as `build_revaluation`.
    """
    name = train_env.spec.name.partition(":")[0]  # without the ID of a provider
    is_plugin = name in plugins.list_names("environments")
    return plugins.get_attribute("environments", name, attribute) if is_plugin else None


def yoke_to(outcomes: Array) -> ObservationOverride:
    """Returns the override by which an agent observes the outcomes [T, F] of another lifetime in place of its own."""
    return ObservationOverride(lambda outcome, time_step: time_step._replace(outcome=outcome), outcomes)


def map_lifetimes(function: Callable[..., PyTree], keys: Key | PyTree, *arguments: PyTree) -> Any:
    """Evaluates `function(key, *arguments)` for all keys, split over the devices and in batches.

    Args:
        function: A function that JAX can trace.
        keys: Keys [N], or a tree of keys and other arrays, each with the leading axis N.
        *arguments: Arrays that are the same for every key.

    Returns:
        The results as numpy arrays with the leading axis N.
    """
    num_devices, N = jax.local_device_count(), len(jax.tree.leaves(keys)[0])
    indices = jnp.minimum(jnp.arange(-(-N // num_devices) * num_devices), N - 1)
    padded = jax.tree.map(lambda leaf: leaf[indices], keys)
    results = _map_on_devices(function, len(arguments))(padded, *arguments)
    return jax.tree.map(lambda array: np.asarray(array)[:N], jax.device_get(results))


@lru_cache(maxsize=256)
def _map_on_devices(function: Callable[..., PyTree], num_arguments: int) -> Callable[..., PyTree]:
    """The compiled map of a function over keys; the same function is compiled once."""

    def on_device(keys: Key, *arguments: PyTree) -> PyTree:
        return map_in_batches(lambda key: function(key, *arguments), keys, MAX_LIFETIMES_PER_DEVICE)

    mapped = shard_over_devices(on_device, (0, *(None for _ in range(num_arguments))))
    return jax.jit(mapped, compiler_options=COMPILER_OPTIONS)


def control_subject(name: str, train_env: Environment, *, online: bool = False) -> Subject:
    """Returns a subject whose ground truth is known: an organism, or an agent that serves as a baseline."""
    kind = "organisms" if name in list_organisms([name]) else "agents"

    def build(env: Environment) -> tuple[Agent, Steering]:
        drives = steering.build(env.spec)
        agent = plugins.build(kind, name, env.spec, drives)
        check_outside_agent(kind, name, agent, env, drives)
        return agent, drives

    return Subject(name, train_env, build, lambda agent, *_: agent.genome(jax.random.key(0)), online)


def list_organisms(names: Sequence[str] = ()) -> list[str]:
    """Returns the names of all organisms, those in files of the user included.

    Args:
        names: Names of organisms and paths of files; a file must state the ground truth of its organism.

    Raises:
        BadInput: If a file is faulty or states no ground truth.
    """
    files = [name for name in names if name.endswith(".py")]
    for file in files:
        truth = plugins.get_attribute("organisms", file, "GROUND_TRUTH")
        is_table = isinstance(truth, dict) and bool(truth)
        if not is_table or not all(isinstance(text, str) for part in truth.items() for text in part):
            example = "GROUND_TRUTH = {'learns': 'yes', 'plans': 'no'}"
            raise BadInput(f"the file '{file}' of an organism must state its ground truth, as in {example}")
    return [*plugins.list_names("organisms"), *files]


def expected_results(positive: str, negative: str) -> dict[str, bool]:
    """Returns `AuditTest.expected` from the names of the positive and negative controls, separated by spaces."""
    return dict.fromkeys(positive.split(), True) | dict.fromkeys(negative.split(), False)


def build_tests() -> dict[str, AuditTest]:
    """Builds every registered test with its default settings, by name."""
    return {name: plugins.build("audit", name) for name in plugins.list_names("audit")}


def select_tests(names: Sequence[str] = ()) -> list[AuditTest]:
    """Builds tests with their default settings.

    Args:
        names: Names of registered tests, and paths of files of the user's own; by default all primary tests.
    """
    registered = build_tests()
    if not names:
        return [test for test in registered.values() if test.primary]
    from_files = [plugins.build("audit", name) for name in names if name.endswith(".py")]
    return [test for name, test in registered.items() if name in names] + from_files
