"""Distilled organisms: the evolved agents' own dense network, taught by gradient to do as an organism does.

Effects of hand-written organisms are often exactly zero, those of networks never; so only these say how often a test is
wrong about networks. The network is `recurrent` with choices drawn by softmax, taught in the world `chain` by imitation
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

from ontogeny import registry, steering
from ontogeny.audit.base import Subject, over_lives
from ontogeny.development.distillation import imitation
from ontogeny.lifecycle import checkpoint
from ontogeny.lifetime import Moment, advance, begin
from ontogeny.streams import chances, life_keys
from ontogeny.types import Agent, Genome, Key, State, Steering, World

TAUGHT = ("planner", "td_zero", "td_one", "successor", "mimic_learning", "win_stay")
STAGES = (  # how often links cross, and what is exposed
    (0.1, "drawn"),
    (0.3, "drawn"),
    (0.5, "pairs"),
    (0.5, "pairs"),
    (0.5, "pairs"),
)
UPDATES, LIVES, STEP_SIZE = 800, 128, 0.005  # of each stage
TRIALS, AFTER = 10, 2
UNITS, MEMORY = 48, 4.0
FAITHFUL = 0.85  # share of choices that must be the teacher's
OnProgress = Callable[[int, int, str], None]


def pupil_in(world: World) -> tuple[Agent, Steering]:
    drives = steering.build(world.spec)
    agent = registry.build("agents", "recurrent", world.spec, drives, units=UNITS, memory=MEMORY, sampled=True)
    return agent, drives


def stage(crossed: float, exposed: str) -> World:
    return registry.build("worlds", "chain", trials=TRIALS, after=AFTER, crossed=crossed, exposed=exposed)


def subject(
    name: str,
    seed: int = 0,
    folder: Path | None = None,
    *,
    updates: int = UPDATES,
    on_progress: OnProgress | None = None,
) -> Subject:
    """The pupil of an organism, taught now or read from the folder where it was kept."""
    home = registry.build("worlds", "chain")
    genome = _kept(name, seed, folder, home)
    if genome is None:
        genome = teach(name, seed, updates=updates, on_progress=on_progress)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            about = {"teacher": name, "seed": seed, "updates": updates, "versions": checkpoint.versions()}
            checkpoint.save(folder, f"{name}-{seed}", genome, about, once=True)
    return Subject(f"{name}, distilled", home, pupil_in, lambda agent, *_: genome)


def teach(name: str, seed: int = 0, *, updates: int = UPDATES, on_progress: OnProgress | None = None) -> Genome:
    """The genome that imitation of an organism ends in, from one seed."""
    genome: Genome = None
    for number, (crossed, exposed) in enumerate(STAGES):
        world = stage(crossed, exposed)
        agent, drives = pupil_in(world)
        if genome is not None:
            agent = agent._replace(genome=lambda key, so_far=genome: so_far)
        teacher = registry.build("organisms", name, world.spec, drives)
        development = imitation(
            agent, teacher, world, drives, updates=updates, lives=LIVES, step_size=STEP_SIZE, updates_per_dispatch=50
        )
        state = development.init(jax.random.fold_in(jax.random.key(seed), number))
        for dispatch in range(development.num_dispatches):
            state, _ = development.step(state)
            if on_progress is not None:
                done = number * updates + (dispatch + 1) * development.generations
                on_progress(done, len(STAGES) * updates, f"teaching a pupil of {name}")
        genome = development.genome(state)
    return genome


def fidelity(name: str, pupil: Subject, lives: int = 200) -> tuple[float, float]:
    """How often a pupil chooses as its teacher would with the same draw: in all, and right after links were shown.

    On lives of the stage `validation`, all links drawn, half of them with two links shown.
    """
    shares = []
    for exposed in ("drawn", "pairs"):
        world = stage(0.5, exposed)
        agent, drives = pupil_in(world)
        teacher = registry.build("organisms", name, world.spec, drives)
        given = pupil.genome(agent, world, drives)

        def one(key: Key, world=world, agent=agent, drives=drives, teacher=teacher, given=given) -> dict[str, Any]:
            return _agreement(key, world, agent, drives, teacher, given)

        shares.append(over_lives(one, life_keys(jax.random.key(1), lives, "validation")))
    whole = np.mean([found["all"] for found in shares])
    return float(whole), float(np.mean([found["probe"] for found in shares]))


def _agreement(
    key: Key, world: World, agent: Agent, drives: Steering, teacher: Agent, given: Genome
) -> dict[str, jax.Array]:
    """A life of the pupil with the teacher looking on, both choosing from the same draw."""
    chance = chances(key)
    T, L = world.spec.num_steps, world.spec.horizon
    keys = (jax.random.split(chance.world, T), jax.random.split(chance.act, T), jax.random.split(chance.learn, T))

    def step(both: tuple[Moment, State], now: tuple[Key, Key, Key]) -> tuple[tuple[Moment, State], tuple]:
        moment, held = both
        would, held = teacher.act(now[1], held, moment.percept)
        # What the pupil would do by itself, also where the world then forces something else.
        does, _ = agent.act(now[1], moment.state, moment.percept)
        later, life = advance(now, agent, world, drives, moment, False)
        return (later, held), (does == would, (life.observation == 0) & life.first)

    start = begin(chance.task, agent, world, drives, agent.birth(chance.birth, given))
    _, (same, chooses) = jax.lax.scan(step, (start, teacher.birth(chance.birth, ())), keys)
    return {"all": jnp.sum(same * chooses) / jnp.sum(chooses), "probe": same[T - AFTER * L].astype(jnp.float32)}


def _kept(name: str, seed: int, folder: Path | None, home: World) -> Genome | None:
    if folder is None or not checkpoint.exists(folder, f"{name}-{seed}"):
        return None
    agent, _ = pupil_in(home)
    return checkpoint.load(folder, f"{name}-{seed}", agent.genome(jax.random.key(0)))
