"""Distilled organisms: the evolved agents' own dense network, taught by gradient to do as an organism does.

Effects of hand-written organisms are often exactly zero, those of networks never; so only these say how often a test is
wrong about networks. The network is `recurrent` with choices drawn by softmax, taught in the environment `chain` by imitation
on its own lives (`development.distillation`). Links that rarely cross come first, since the parity of three links is
found by no gradient at once; pairs of links come last, so that a pupil of a planner is a planner for pairs as well.
That its teacher's truth holds for it is not assumed but looked at: `fidelity`, on lives that it was not taught on.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny import plugins, steering
from ontogeny.audit.base import Subject, map_lifetimes
from ontogeny.development.distillation import imitate
from ontogeny.rng import sample_lifetime_keys, split_lifetime_key
from ontogeny.rollouts import Carry, initial_carry, rollout_step
from ontogeny.runs import checkpoint
from ontogeny.runs.folder import library_versions
from ontogeny.types import Agent, Environment, Genome, Key, State, Steering

TAUGHT = ("planner", "td_zero", "td_one", "successor", "latent_state_learner", "win_stay")
STAGES = (  # how often links cross, and what is exposed
    (0.1, "random"),
    (0.3, "random"),
    (0.5, "pairs"),
    (0.5, "pairs"),
    (0.5, "pairs"),
)
UPDATES, LIVES, STEP_SIZE = 800, 128, 0.005  # of each stage
TRIALS, AFTER = 10, 2
UNITS, MEMORY = 48, 4.0
FAITHFUL = 0.85  # share of choices that must be the teacher's
OnProgress = Callable[[int, int, str], None]


def pupil_in(env: Environment) -> tuple[Agent, Steering]:
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "recurrent", env.spec, drives, hidden_size=UNITS, update_gate_bias=MEMORY, stochastic=True)
    return agent, drives


def stage(crossed: float, exposed: str) -> Environment:
    return plugins.build("environments", "chain", num_trials=TRIALS, num_test_trials=AFTER, crossing_probability=crossed, exposed_links=exposed)


def subject(
    name: str,
    seed: int = 0,
    folder: Path | None = None,
    *,
    updates: int = UPDATES,
    on_progress: OnProgress | None = None,
) -> Subject:
    """The pupil of an organism, taught now or read from the folder where it was kept."""
    home = plugins.build("environments", "chain")
    genome = _kept(name, seed, folder, home)
    if genome is None:
        genome = teach(name, seed, updates=updates, on_progress=on_progress)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            about = {"teacher": name, "seed": seed, "updates": updates, "versions": library_versions()}
            checkpoint.save(folder, f"{name}-{seed}", genome, about, write_once=True)
    return Subject(f"{name}, distilled", home, pupil_in, lambda agent, *_: genome)


def teach(name: str, seed: int = 0, *, updates: int = UPDATES, on_progress: OnProgress | None = None) -> Genome:
    """The genome that imitation of an organism ends in, from one seed."""
    genome: Genome = None
    for number, (crossed, exposed) in enumerate(STAGES):
        env = stage(crossed, exposed)
        agent, drives = pupil_in(env)
        if genome is not None:
            agent = agent._replace(genome=lambda key, so_far=genome: so_far)
        teacher = plugins.build("organisms", name, env.spec, drives)
        development = imitate(
            agent,
            teacher,
            env,
            drives,
            updates=updates,
            num_lifetimes=LIVES,
            learning_rate=STEP_SIZE,
            updates_per_call=50,
        )
        state = development.init(jax.random.fold_in(jax.random.key(seed), number))
        for dispatch in range(development.num_calls):
            state, _ = development.step(state)
            if on_progress is not None:
                done = number * updates + (dispatch + 1) * development.generations_per_call
                on_progress(done, len(STAGES) * updates, f"teaching a pupil of {name}")
        genome = development.genome(state)
    return genome


def fidelity(name: str, pupil: Subject, num_lifetimes: int = 200) -> tuple[float, float]:
    """How often a pupil chooses as its teacher would with the same draw: in all, and right after links were shown.

    On lives of the stage `validation`, all links drawn, half of them with two links shown.
    """
    shares = []
    for exposed in ("random", "pairs"):
        env = stage(0.5, exposed)
        agent, drives = pupil_in(env)
        teacher = plugins.build("organisms", name, env.spec, drives)
        given = pupil.genome(agent, env, drives)

        def one(key: Key, env=env, agent=agent, drives=drives, teacher=teacher, given=given) -> dict[str, Any]:
            return _agreement(key, env, agent, drives, teacher, given)

        shares.append(map_lifetimes(one, sample_lifetime_keys(jax.random.key(1), num_lifetimes, "validation")))
    whole = np.mean([found["all"] for found in shares])
    return float(whole), float(np.mean([found["probe"] for found in shares]))


def _agreement(
    key: Key, env: Environment, agent: Agent, drives: Steering, teacher: Agent, given: Genome
) -> dict[str, jax.Array]:
    """A life of the pupil with the teacher looking on, both choosing from the same draw."""
    lifetime_keys = split_lifetime_key(key)
    T, L = env.spec.num_steps, env.spec.horizon
    keys = (
        jax.random.split(lifetime_keys.env, T),
        jax.random.split(lifetime_keys.act, T),
        jax.random.split(lifetime_keys.learn, T),
    )

    def step(both: tuple[Carry, State], now: tuple[Key, Key, Key]) -> tuple[tuple[Carry, State], tuple]:
        carry, held = both
        would, held = teacher.act(now[1], held, carry.percept)
        # What the pupil would do by itself, also where the environment then forces something else.
        does, _ = agent.act(now[1], carry.state, carry.percept)
        later, trajectory = rollout_step(now, agent, env, drives, carry, False)
        return (later, held), (does == would, (trajectory.observation == 0) & trajectory.first)

    start = initial_carry(lifetime_keys.task, agent, env, drives, agent.init(lifetime_keys.init, given))
    _, (same, chooses) = jax.lax.scan(step, (start, teacher.init(lifetime_keys.init, ())), keys)
    return {"all": jnp.sum(same * chooses) / jnp.sum(chooses), "probe": same[T - AFTER * L].astype(jnp.float32)}


def _kept(name: str, seed: int, folder: Path | None, home: Environment) -> Genome | None:
    if folder is None or not checkpoint.exists(folder, f"{name}-{seed}"):
        return None
    agent, _ = pupil_in(home)
    return checkpoint.load(folder, f"{name}-{seed}", agent.genome(jax.random.key(0)))
