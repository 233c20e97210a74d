"""Deployment: a saved agent lives on in its world, step by step, frozen (Case 2) or online (Case 1).

Lives in use are drawn from the stream "use": they are neither training's nor evaluation's. Scores are passed on for
people to read; the agent does not see them.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from ontogeny import streams, trees
from ontogeny.errors import BadInput
from ontogeny.lifecycle.saved import Saved, birth, check_frozen
from ontogeny.lifetime import Moment, advance, begin
from ontogeny.types import Agent, Key, Life, State, Steering, World


class Step(NamedTuple):
    """One step of a life in use."""

    number: int  # from 1
    episode: int  # from 1
    observation: int | np.ndarray  # before the action
    action: int
    outcome: dict[str, float]  # facts of that action
    reward: float  # of steering
    score: float  # what was meant
    state: State  # after the step: all that is needed to go on, or to be saved


def deploy(saved: Saved, *, online: bool = False, seed: int = 0, num_steps: int | None = None) -> Iterator[Step]:
    """Yields the steps of one life, as many as a life in this world has unless `num_steps` says otherwise.

    A frozen life that comes to its end has the weights it began with, or `LawBroken` is raised.
    """
    if num_steps is not None and num_steps < 1:
        raise BadInput(f"a deployment needs at least 1 step, not {num_steps}")
    return _steps(saved, online, seed, num_steps or saved.subject.world.spec.num_steps)


def _steps(saved: Saved, online: bool, seed: int, num_steps: int) -> Iterator[Step]:
    agent, world, steering = saved.subject
    key, state = birth(saved, seed)
    before = trees.digest(state.weights)
    moment = _begin(streams.chances(key).task, agent, world, steering, state)
    episode = 0
    for number in range(1, num_steps + 1):
        moment, life, score = _advance(key, number - 1, agent, world, steering, moment, online)
        if not 0 <= int(life.action) < world.spec.num_actions:
            raise BadInput(f"the agent took the action {int(life.action)}, there are 0 to {world.spec.num_actions - 1}")
        episode += bool(life.first)
        yield Step(
            number=number,
            episode=episode,
            observation=np.asarray(life.observation) if world.spec.observation_shape else int(life.observation),
            action=int(life.action),
            outcome=dict(zip(world.spec.facts, np.asarray(life.outcome).tolist(), strict=True)),
            reward=float(life.reward),
            score=float(score),
            state=moment.state,
        )
    if not online:
        check_frozen(before, moment.state)


_begin = jax.jit(begin, static_argnames=("agent", "world", "steering"))


@partial(jax.jit, static_argnames=("agent", "world", "steering", "online"))
def _advance(
    key: Key, step: int, agent: Agent, world: World, steering: Steering, moment: Moment, online: bool
) -> tuple[Moment, Life, jax.Array]:
    """The same step, drawn from the same chance, as `lifetime.live` takes with this key."""
    chance = streams.chances(key)
    world_key, act_key, learn_key = (jax.random.fold_in(k, step) for k in (chance.world, chance.act, chance.learn))
    moment, life = advance((world_key, act_key, learn_key), agent, world, steering, moment, online)
    return moment, life, world.score(life.outcome)
