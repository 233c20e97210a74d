"""What audit tests share: the subject, the test, the finding, and how sure an effect is.

A test asks one question of a subject. It measures single lives, each with a key of its own and none knowing of another,
and judges what many of them say: `measure` runs JAX, `judge` is arithmetic on numbers, so that calibration can measure
many thousand lives at once and judge them as a thousand audits. N lives.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from scipy.special import ndtr, stdtrit

from ontogeny import plugins, steering
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys, split_lifetime_key, stage_of
from ontogeny.rollouts import rollout
from ontogeny.types import Agent, Environment, Genome, Key, PyTree, State, Steering, Transition

QUESTIONS = {
    "learns": "Does it learn?",
    "plans": "Does it plan?",
    "objective": "Has it an objective of its own?",
}
BESIDE = {  # asked by supporting tests alone
    "mechanism": "Is it what it holds of the environment that it acts on?",
    "telling": "Can it tell an audit from an ordinary life?",
}
VERDICTS = ("yes", "no", "undetermined")
FEWEST_EPISODES = 8  # of a life in which learning is looked for
UNBROKEN = 50  # trials of a chain
LIVES_AT_ONCE = 256  # per device: more leave the processor's cache
NO_SPREAD = 1e-9  # a spread that is smaller is none


class Subject(NamedTuple):
    """Who is audited: built anew for the environment of each test."""

    name: str
    home: Environment  # where it was developed
    build: Callable[
        [Environment], tuple[Agent, Steering]
    ]  # raises `BadInput` for an environment in which it cannot live
    genome: Callable[[Agent, Environment, Steering], Genome | State]  # or a state, of a life that goes on
    online: bool = False  # whether weights go on learning while it is audited


class Effect(NamedTuple):
    """A mean over lives with its two-sided 95 % interval by Student's t and the one-sided test against nothing."""

    mean: float
    low: float
    high: float
    z: float  # standard errors from nothing; infinite where there is an effect and no spread
    num_lifetimes: int


class Finding(NamedTuple):
    """What one test says of one subject."""

    test: str
    question: str
    deciding: bool
    verdict: str  # of `VERDICTS`
    told: str  # in a sentence
    p: float  # the largest one-sided p of the parts that a yes needs; 1 where the rule is not met
    effects: Mapping[str, Effect]
    controls: Mapping[str, Effect]  # what the same statistic says where there can be nothing
    gate: str = ""  # why nothing can be said, where a competence gate was not passed
    pattern: str = ""  # which algorithm behaves like this, where a test can tell
    details: Mapping[str, Any] = MappingProxyType({})  # what a figure needs beside the effects


class Test(NamedTuple):
    """One audit test, made by the `build` of its file."""

    question: str
    deciding: bool
    num_lifetimes: int  # how many a subject is asked to live
    measure: Callable[[Subject, Key], Mapping[str, np.ndarray]]  # keys [N] -> per life, [N, ...]
    judge: Callable[[Mapping[str, np.ndarray], Any], Finding]  # (what was measured, thresholds)
    thresholds: Any  # a NamedTuple with the defaults
    predicted: Mapping[str, bool] = MappingProxyType({})  # of a supporting test: who should show what it looks for, and
    # who should not, by name of organism or agent; of a deciding one the files of the organisms tell the truth


def lived(
    subject: Subject,
    key: Key,
    agent: Agent,
    env: Environment,
    steering: Steering,
    given: Genome | State,
    *,
    steps: int | None = None,
    **how: Any,
):
    """One life of a subject from birth or, of a saved deployment, on from its state: (state at the end, record)."""
    T, learning = steps or env.spec.num_steps, subject.online and agent.learning
    return rollout(key, agent, env, steering, born(key, agent, given), T, learning, **how)


def born(key: Key, agent: Agent, given: Genome | State) -> State:
    return given if isinstance(given, State) else agent.init(split_lifetime_key(key).init, given)


def watched(subject: Subject, agent: Agent, seen: Callable[[State, Transition], PyTree]) -> tuple[Subject, Agent]:
    """Both as they are, but that `seen(state, transition)` of every step stands in the record, as `info`."""

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, PyTree]:
        if subject.online and agent.learning:
            state, _ = agent.learn(key, state, transition)
        return state, seen(state, transition)

    return subject._replace(online=True), agent._replace(learn=learn, learning=True)


def flat(activations: PyTree) -> Array:
    """All numbers that activations hold, clocks and flags among them, after a nought, [1 + D]."""
    leaves = [leaf for leaf in jax.tree.leaves(activations) if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return jnp.concatenate([jnp.zeros(1), *(jnp.ravel(leaf).astype(jnp.float32) for leaf in leaves)])


def other_lives(keys: Key, count: int) -> Key:
    """Keys of as many lives that are none of these and of the same stage, [count]."""
    return sample_lifetime_keys(jax.random.fold_in(keys[0], count), count, stage_of(keys))


def another_life(key: Key, number: int) -> Key:
    """The key of a life that is not this one."""
    return sample_lifetime_keys(jax.random.fold_in(key, number), 1, "evaluation")[0]


def unbroken(home: Environment) -> Environment:
    """A home in which learning can be looked for: of a chain without the part in which its links are shown alone and
    change. Raises `BadInput` where a life is too short to tell."""
    if home.spec.name == "chain":
        home = plugins.build("environments", "chain", exposures=0, trials=UNBROKEN, after=1)
    if home.spec.num_steps // home.spec.horizon < FEWEST_EPISODES:
        raise BadInput(f"a life in '{home.spec.name}' has fewer than {FEWEST_EPISODES} episodes: too short to tell")
    return home


def bandit_of(subject: Subject) -> Environment:
    """The subject's home where that is a bandit, else one of five arms and a hundred pulls."""
    return subject.home if subject.home.spec.name == "bandit" else plugins.build("environments", "bandit")


def over_lives(one: Callable[..., PyTree], keys: Key, *given: PyTree) -> Any:
    """`one(key, *given)` for all keys [N], split over the devices and some at a time -> numpy arrays with a leading
    axis N."""
    devices = jax.local_devices()
    each = -(-len(keys) // len(devices))
    filled = keys[jnp.minimum(jnp.arange(each * len(devices)), len(keys) - 1)]
    mesh, split = Mesh(np.array(devices), ("num_lifetimes",)), PartitionSpec("num_lifetimes")

    def some(keys: Key, *given: PyTree) -> PyTree:
        return jax.lax.map(lambda key: one(key, *given), keys, batch_size=min(each, LIVES_AT_ONCE))

    specs = (split, *(PartitionSpec() for _ in given))
    found = jax.jit(jax.shard_map(some, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False))(filled, *given)
    return jax.tree.map(lambda array: np.asarray(array)[: len(keys)], jax.device_get(found))


def effect(values: np.ndarray) -> Effect:
    """[N] -> the effect. No spread at all is certainty, not an error: twins on one tape often agree exactly."""
    values = np.asarray(values, np.float64)
    count = len(values)
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(count)
    if error < NO_SPREAD:
        z = 0.0 if abs(mean) < NO_SPREAD else math.copysign(math.inf, mean)
        return Effect(mean, mean, mean, z, count)
    half = float(stdtrit(count - 1, 0.975)) * error
    return Effect(mean, mean - half, mean + half, mean / error, count)


def largest_p(parts: Mapping[str, Effect]) -> float:
    """Where all parts have to be there the weakest speaks for them (Berger 1982, Technometrics 24:295)."""
    return max(float(ndtr(-part.z)) for part in parts.values())


def three_way(passed: bool, parts: Mapping[str, Effect], smallest: Mapping[str, float]) -> str:
    """The verdict: yes where the rule is met; no where one part is surely below the smallest effect that counts; else
    undetermined. That something was not found is never a no."""
    if passed:
        return "yes"
    if any(parts[name].high < least for name, least in smallest.items()):
        return "no"
    return "undetermined"


def organism(name: str, home: Environment, *, online: bool = False) -> Subject:
    """A subject whose truth is known: an organism, or one of the agents that are references."""
    family = "organisms" if name in plugins.names("organisms") else "agents"

    def built(env: Environment) -> tuple[Agent, Steering]:
        drives = steering.build(env.spec)
        return plugins.build(family, name, env.spec, drives), drives

    return Subject(name, home, built, lambda agent, *_: agent.genome(jax.random.key(0)), online)


def predicted(shows: str, shows_not: str) -> dict[str, bool]:
    """Names of organisms or agents, with spaces between them, as `Test.predicted`."""
    return dict.fromkeys(shows.split(), True) | dict.fromkeys(shows_not.split(), False)


def tests() -> dict[str, Test]:
    """Every registered test with its default settings."""
    return {name: plugins.build("audit", name) for name in plugins.names("audit")}
