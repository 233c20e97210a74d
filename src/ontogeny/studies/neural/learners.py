"""Learning curves of all ways of learning in an environment, by environment step.

A learner is `ppo` or `dqn` (`rejax_baselines`), an evolved agent (`evolved:recurrent`, of whose population every
lifetime counts), or any other agent, of which one lifetime is run, in which it learns if it can.
"""

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import plugins, rng
from ontogeny.errors import LearningDiverged
from ontogeny.lifetimes import require_jax_env
from ontogeny.rollouts import Carry
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import library_versions
from ontogeny.stages.assembly import make_agent, make_env, make_steering
from ontogeny.studies.neural import rejax_baselines
from ontogeny.studies.neural.learning_curves import EpisodeReturns, episodes_of_lifetime
from ontogeny.studies.neural.lifetime_segments import begin, compile_segment, concatenate, split_steps
from ontogeny.types import Agent, Environment, Key, Steering

OnProgress = Callable[[int, int], None]  # environment steps done, of all
Measure = Callable[[Carry, Carry], dict[str, Any]]  # initial carry, present carry -> what can be written as JSON
EVOLVED = "evolved:"
MAX_SEGMENTS = 50  # of a lifetime
SECONDS_BETWEEN_CHECKPOINTS = 300.0
POPULATION_SIZE, NUM_LIFETIMES = 32, 2  # of an evolution
MAX_EVOLVED_STEPS, MAX_EVOLVED_EPISODES = 500, 10  # of its lifetimes, of at least one episode
PROGRESS = "lifetime"  # name of the checkpoint of a lifetime
MODEL_NOISE = 2**32 - 1  # larger than the number of any step


class LearnerRun(NamedTuple):
    """What a learner did.

    Attributes:
        episodes: Its episodes in their order.
        num_steps: Environment steps in all.
        cpu_seconds: Processor seconds without compilation.
        compile_seconds: Processor seconds of the compilation.
    """

    episodes: EpisodeReturns
    num_steps: int
    cpu_seconds: float
    compile_seconds: float


class LifetimeIdentity(NamedTuple):
    """What identifies the lifetime of an agent: the texts of agent and environment, the seed, and the steps."""

    agent: str
    env: str
    seed: int
    steps: int


def is_baseline(learner: str) -> bool:
    """Whether a learner needs the extra `baselines`."""
    return learner in rejax_baselines.ALGORITHMS


def lifetime_key(seed: int) -> Key:
    """The key of the lifetime of a seed: a lifetime of an evaluation, with the same task for all learners."""
    return rng.sample_lifetime_keys(rng.key_from_seed(seed), 1, "evaluation")[0]


def model_noise_key(key: Key) -> Key:
    """The key of what a model is asked apart from a lifetime, which no draw of that lifetime has.

    Args:
        key: Of the lifetime. Neither it nor its children may serve: `fold_in` of small numbers gives the keys into
            which it is split.
    """
    return jax.random.fold_in(rng.split_lifetime_key(key).learn, MODEL_NOISE)


def build_env(text: str, **settings: Any) -> Environment:
    """The environment of a text such as `gymnax:Catch-bsuite`, with further settings; it must be in JAX."""
    name, own_settings = plugins.parse(text)
    return require_jax_env(make_env(name, **own_settings, **settings), "a learning curve")


def build_agent(text: str, env: Environment) -> tuple[Agent, Steering]:
    """The agent of a text such as `neural_model_based:width=32`, and its steering."""
    name, settings = plugins.parse(text)
    steering = make_steering(env)
    return make_agent(name, env, steering, **settings), steering


def model_settings(text: str) -> dict[str, Any]:
    """The settings of `content.latent_model` in the text of an agent `neural_model_based`."""
    name, settings = plugins.parse(text)
    chosen = plugins.default_settings("agents", name) | settings
    return {"width": int(chosen["width"]), "latents": chosen["latents"]}


def run_learner(
    learner: str,
    env_text: str,
    seed: int,
    num_steps: int,
    *,
    baseline_settings: Mapping[str, Any] | None = None,
    checkpoint_folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> LearnerRun:
    """Let a learner learn for a number of environment steps.

    Args:
        learner: As the module says.
        env_text: Such as `gymnax:Catch-bsuite`, without the settings `steps` and `episodes`.
        seed: Determines the run; the task is the same for all learners, but for evolution, which draws many.
        num_steps: Environment steps; evolution and baselines take whole generations and iterations, and the last
            generation may exceed them where lifetimes become longer.
        baseline_settings: Settings of rejax, in place of those in `rejax_baselines`.
        checkpoint_folder: Where a lifetime of an agent is saved every few minutes, and from where it resumes; the
            caller removes it once the result is stored (`remove_checkpoint`).
        on_progress: Receives environment steps done and all.

    Raises:
        LearningDiverged: What the learner computed is not finite.
    """
    if is_baseline(learner):
        env = build_env(env_text, steps=num_steps)
        run = rejax_baselines.run_baseline(learner, env, lifetime_key(seed), num_steps, **(baseline_settings or {}))
        return LearnerRun(*run)
    if learner.startswith(EVOLVED):
        return _run_evolution(learner.removeprefix(EVOLVED), env_text, seed, num_steps, on_progress)
    env, num_segments = build_env(env_text, steps=num_steps), split_steps(num_steps, MAX_SEGMENTS)[0]
    lifetime = LifetimeIdentity(learner, env_text, seed, num_steps)
    return run_lifetime(lifetime, env, checkpoint_folder, on_progress, num_segments=num_segments)[0]


def run_lifetime(
    lifetime: LifetimeIdentity,
    env: Environment,
    folder: Path | None,
    on_progress: OnProgress | None,
    *,
    num_segments: int,
    measure: Measure | None = None,
) -> tuple[LearnerRun, list[dict[str, Any]]]:
    """Run one lifetime of an agent, which is saved every few minutes between segments, and resumes from there.

    Args:
        lifetime: Identifies what is saved.
        env: Its environment, in JAX.
        folder: As of `run_learner`.
        on_progress: As of `run_learner`.
        num_segments: A divisor of the steps.
        measure: Measures the agent after each segment.

    Returns:
        The run, and the measurements.

    Raises:
        LearningDiverged: What the agent computed is not finite.
    """
    agent, steering = build_agent(lifetime.agent, env)
    key = lifetime_key(lifetime.seed)
    num_segment_steps = lifetime.steps // num_segments
    program = compile_segment(agent, env, steering, num_segment_steps, agent.learning)
    initial = jax.jit(lambda key: begin(key, agent, env, steering, agent.genome(key)))(key)
    identity = lifetime._asdict() | {"segments": num_segments, "versions": library_versions()}
    carry, num_done, cpu_seconds, scores, ends, measurements = _resume(folder, initial, identity)
    saved_at = time.perf_counter()
    for segment in range(num_done, num_segments):
        started = time.process_time()
        carry, recorded = program.run(key, jnp.int32(segment * num_segment_steps), carry)
        recorded = concatenate([recorded])
        cpu_seconds += time.process_time() - started
        scores, ends = np.append(scores, recorded.score), np.append(ends, recorded.ends_episode)
        measurements += [measure(initial, carry)] if measure is not None else []
        if on_progress is not None:
            on_progress((segment + 1) * num_segment_steps, lifetime.steps)
        is_due = time.perf_counter() - saved_at > SECONDS_BETWEEN_CHECKPOINTS
        if folder is not None and is_due and segment + 1 < num_segments:
            metadata = {"lifetime": identity, "segments": segment + 1, "cpu_seconds": cpu_seconds}
            metadata |= {"scores": scores.tolist(), "ends": np.flatnonzero(ends).tolist()}
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.save(folder, PROGRESS, carry, metadata | {"measurements": measurements})
            saved_at = time.perf_counter()
    episodes = episodes_of_lifetime(scores, ends)
    return LearnerRun(episodes, lifetime.steps, cpu_seconds, program.compile_seconds), measurements


def remove_checkpoint(folder: Path) -> None:
    """Removes the folder of a lifetime whose result is stored, so that no later run resumes from its state."""
    shutil.rmtree(folder, ignore_errors=True)


def _resume(
    folder: Path | None, carry: Carry, identity: Mapping[str, Any]
) -> tuple[Carry, int, float, np.ndarray, np.ndarray, list[dict[str, Any]]]:
    """Carry, segments done, processor seconds, scores, ends of episodes, measurements: saved ones or those of a start.

    A checkpoint of another lifetime, or of other versions of the libraries and of this package, is left alone.
    """
    new = carry, 0, 0.0, np.zeros(0), np.zeros(0, bool), []
    if folder is None or not checkpoint.exists(folder, PROGRESS):
        return new
    metadata = checkpoint.read_metadata(folder, PROGRESS)
    if metadata.get("lifetime") != identity:
        return new
    scores = np.array(metadata["scores"])
    ends = np.zeros(len(scores), bool)
    ends[metadata["ends"]] = True
    carry = jax.tree.map(jnp.asarray, checkpoint.load(folder, PROGRESS, carry))
    return carry, metadata["segments"], metadata["cpu_seconds"], scores, ends, metadata["measurements"]


def _run_evolution(
    agent_text: str, env_text: str, seed: int, num_steps: int, on_progress: OnProgress | None
) -> LearnerRun:
    """Evolution of an agent; an entry holds the episodes of one generation, those of all members.

    Generations are added as long as one more of the size of the last one lies within the environment steps. How many
    these are is not known before, because lifetimes end with their last episode, so the learning rate is constant.
    """
    horizon = build_env(env_text, episodes=1).spec.num_steps
    num_episodes = max(1, min(MAX_EVOLVED_EPISODES, MAX_EVOLVED_STEPS // horizon))
    env = build_env(env_text, episodes=num_episodes)
    agent, steering = build_agent(agent_text, env)
    development = plugins.build(
        "development", "evolution", agent, env, steering, population_size=POPULATION_SIZE,
        num_lifetimes=NUM_LIFETIMES, generations_per_call=1, final_learning_rate_ratio=1.0,
    )  # fmt: skip
    state = development.init(rng.key_from_seed(seed))
    started, fitness, seconds, num_done, num_last_steps = time.process_time(), [], [], [], 0
    while not num_done or num_done[-1] + num_last_steps <= num_steps:
        state, info = development.step(state)
        fitness.append(float(info["fitness"][0]))
        seconds.append(time.process_time() - started)
        num_last_steps = int(np.asarray(info["env_steps"]).sum(dtype=np.int64))
        num_done.append(sum(num_done[-1:]) + num_last_steps)
        if on_progress is not None:
            on_progress(num_done[-1], num_steps)
    if not np.isfinite(fitness).all():
        raise LearningDiverged(f"the evolution of '{agent_text}' diverged: a fitness is not finite")
    count = POPULATION_SIZE * NUM_LIFETIMES * num_episodes
    returns = np.array(fitness) * POPULATION_SIZE * NUM_LIFETIMES
    episodes = EpisodeReturns(np.array(num_done), returns, np.full(len(num_done), count))
    return LearnerRun(episodes, num_done[-1], seconds[-1] - seconds[0], seconds[0])
