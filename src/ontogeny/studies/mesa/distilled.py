"""Distilled organisms: the dense network of the evolved agents, trained by gradient to imitate an organism.

The effects of hand-written organisms are often exactly zero and those of networks never, so only distilled networks
show how often a test errs on networks. The network is `recurrent` with stochastic choices, trained in `chain` by
imitation on its own lifetimes (`development.distillation`). The curriculum starts with links that rarely cross, because
gradient descent does not find the parity of three links at once; it ends with pairs of links, so that a student of the
planner plans for pairs as well. `measure_fidelity` measures how well a student imitates its teacher on held-out tasks.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins, steering
from ontogeny.audit.base import Subject, map_lifetimes
from ontogeny.development.base import GradientBudget, require_finite_search
from ontogeny.development.distillation import imitate
from ontogeny.rng import key_from_seed, sample_lifetime_keys, split_lifetime_key, split_step_keys
from ontogeny.rollouts import Carry, initial_carry, rollout_step
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import library_versions
from ontogeny.types import Agent, Environment, Genome, Key, State, Steering

TEACHERS = ("planner", "td_zero", "td_one", "successor", "latent_state_learner", "win_stay")
CURRICULUM = ((0.1, "random"), (0.3, "random"), (0.5, "pairs"), (0.5, "pairs"), (0.5, "pairs"))  # see `build_chain`
NUM_UPDATES, NUM_LIFETIMES, LEARNING_RATE = 800, 128, 0.005  # of each stage of the curriculum
NUM_TRIALS, NUM_TEST_TRIALS = 10, 2
OnWork = Callable[[int, int], None]  # units done, units in all


def build_agent(name: str, env: Environment, **settings: Any) -> tuple[Agent, Steering]:
    """Build an agent for an environment, with the default steering of the environment."""
    drives = steering.build(env.spec)
    return plugins.build("agents", name, env.spec, drives, **settings), drives


def build_student(env: Environment) -> tuple[Agent, Steering]:
    """Build the untrained network for an environment."""
    return build_agent("recurrent", env, hidden_size=48, update_gate_bias=4.0, stochastic=True)


def build_chain(crossing_probability: float, exposed_links: str) -> Environment:
    """Build the environment of one stage of a curriculum.

    Args:
        crossing_probability: Probability that a link is crossed.
        exposed_links: Which links are shown alone: `random` or `pairs`.
    """
    settings = {"num_trials": NUM_TRIALS, "num_test_trials": NUM_TEST_TRIALS}
    settings |= {"crossing_probability": crossing_probability, "exposed_links": exposed_links}
    return plugins.build("environments", "chain", **settings)


def load_or_train(
    teacher: str,
    seed: int = 0,
    folder: Path | None = None,
    *,
    num_updates: int = NUM_UPDATES,
    on_progress: OnWork | None = None,
) -> Subject:
    """Load the student of an organism from a folder, or train it and save it there.

    Args:
        teacher: Name of the organism.
        seed: Of the training.
        folder: Of the saved students; None saves nothing.
        num_updates: In each stage of the curriculum.
        on_progress: Receives updates done and updates in all.
    """
    train_env = plugins.build("environments", "chain")
    name = f"{teacher}-{seed}"
    if folder is not None and checkpoint.exists(folder, name):
        agent, _ = build_student(train_env)
        genome = checkpoint.load(folder, name, agent.genome(jax.random.key(0)))
    else:
        genome = train_student(teacher, seed, num_updates=num_updates, on_progress=on_progress)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            metadata = {"teacher": teacher, "seed": seed, "updates": num_updates, "versions": library_versions()}
            checkpoint.save(folder, name, genome, metadata, write_once=True)
    return Subject(f"{teacher}, distilled", train_env, build_student, lambda agent, *_: genome)


def train_student(
    teacher: str, seed: int = 0, *, num_updates: int = NUM_UPDATES, on_progress: OnWork | None = None
) -> Genome:
    """Train a network to imitate an organism; the arguments are those of `load_or_train`."""
    genome: Genome = None
    for stage, (crossing_probability, exposed_links) in enumerate(CURRICULUM):
        env = build_chain(crossing_probability, exposed_links)
        student, drives = build_student(env)
        if genome is not None:
            student = student._replace(genome=lambda key, genome=genome: genome)
        organism = plugins.build("organisms", teacher, env.spec, drives)
        budget = GradientBudget(num_updates, NUM_LIFETIMES, LEARNING_RATE, updates_per_call=50)
        development = imitate(student, organism, env, drives, budget)
        state = development.init(jax.random.fold_in(key_from_seed(seed), stage))
        for call in range(development.num_calls):
            state, info = development.step(state)
            require_finite_search(info)
            if on_progress is not None:
                num_done = stage * num_updates + (call + 1) * development.generations_per_call
                on_progress(num_done, len(CURRICULUM) * num_updates)
        genome = development.genome(state)
    return genome


def measure_fidelity(teacher: str, student: Subject, num_lifetimes: int = 200) -> tuple[float, float]:
    """How often a student chooses as its teacher does with the same random key.

    The lifetimes belong to the stage `validation`. As at the end of the curriculum, each link is crossed with
    probability 1/2. Half of the lifetimes expose one random link, half a pair.

    Returns:
        The share of all choices on which both agree, and the share of first choices after the exposures.
    """
    shares = []
    for exposed_links in ("random", "pairs"):
        env = build_chain(0.5, exposed_links)
        agent, drives = build_student(env)
        measure = partial(
            _measure_agreement,
            env=env,
            student=agent,
            drives=drives,
            teacher=plugins.build("organisms", teacher, env.spec, drives),
            genome=student.genome(agent, env, drives),
        )
        shares.append(map_lifetimes(measure, sample_lifetime_keys(jax.random.key(1), num_lifetimes, "validation")))
    overall, after_exposure = (float(np.mean([share[name] for share in shares])) for name in ("all", "after_exposure"))
    return overall, after_exposure


def _measure_agreement(
    key: Key, env: Environment, student: Agent, drives: Steering, teacher: Agent, genome: Genome | State
) -> dict[str, Array]:
    """One lifetime of the student, in which the teacher chooses from the same percepts with the same keys.

    Returns:
        `all`, the share of choices on which both agree, and `after_exposure`, whether they agree on the first choice
        after the exposures, 0 or 1.
    """
    lifetime_keys = split_lifetime_key(key)
    T, L = env.spec.num_steps, env.spec.horizon
    keys = split_step_keys(lifetime_keys, T)

    def step(carries: tuple[Carry, State], step_keys: tuple[Key, Key, Key]) -> tuple[tuple[Carry, State], tuple]:
        carry, teacher_state = carries
        _, act_key, _ = step_keys
        label, teacher_state = teacher.act(act_key, teacher_state, carry.percept)
        # The student's choice, also where the environment then forces another action.
        choice, _ = student.act(act_key, carry.state, carry.percept)
        next_carry, trajectory = rollout_step(step_keys, student, env, drives, carry, False)
        is_choice = (trajectory.observation == 0) & trajectory.first
        return (next_carry, teacher_state), (choice == label, is_choice)

    start = initial_carry(lifetime_keys.task, student, env, drives, student.init(lifetime_keys.init, genome))
    _, (agrees, is_choice) = jax.lax.scan(step, (start, teacher.init(lifetime_keys.init, ())), keys)
    first_test_step = T - NUM_TEST_TRIALS * L
    after_exposure = agrees[first_test_step].astype(jnp.float32)
    return {"all": jnp.sum(agrees * is_choice) / jnp.sum(is_choice), "after_exposure": after_exposure}
