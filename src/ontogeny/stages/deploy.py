"""Deployment: a saved agent runs a lifetime in its environment, step by step, frozen or online.

Lifetimes in deployment are drawn from their own stage, so no training or evaluation has drawn them. Scores are passed
on for people to read; the agent does not receive them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from ontogeny import trees
from ontogeny.errors import BadInput, require_finite_learning
from ontogeny.lifetimes import iterate_lifetime
from ontogeny.stages.saved_agent import SavedAgent, check_frozen, initial_state
from ontogeny.types import PyTree, State


class DeploymentStep(NamedTuple):
    """One step of a lifetime in deployment.

    Attributes:
        number: From 1.
        episode: From 1.
        observation: Before the action; an array where observations are vectors.
        outcome: The outcome features of the action.
        reward: Of steering.
        score: Of the environment's evaluation metric.
        state: After the step; a lifetime can continue from it.
    """

    number: int
    episode: int
    observation: int | np.ndarray
    action: int
    outcome: dict[str, float]
    reward: float
    score: float
    state: State


def deploy(
    saved_agent: SavedAgent, *, online: bool = False, seed: int = 0, num_steps: int | None = None
) -> Iterator[DeploymentStep]:
    """Run one lifetime and yield its steps.

    Args:
        saved_agent: From `read_saved_agent`.
        online: Whether weights keep learning.
        seed: From 0 to 2**32 - 1.
        num_steps: At least 1; by default the length of a lifetime in this environment.

    Raises:
        BadInput: `num_steps` is too small, or the agent takes an action that the environment does not have.
        ContractViolation: The weights changed in a frozen lifetime.
        LearningDiverged: What `learn` computes is not finite; the state of the step before it is the last good one.
    """
    if num_steps is not None and num_steps < 1:
        raise BadInput(f"a deployment needs at least 1 step, not {num_steps}")
    return _steps(saved_agent, online, seed, num_steps or saved_agent.assembly.env.spec.num_steps)


def _steps(saved_agent: SavedAgent, online: bool, seed: int, num_steps: int) -> Iterator[DeploymentStep]:
    """Yield the steps; after a frozen lifetime, check that the weights are the same."""
    agent, env, steering = saved_agent.assembly
    spec = env.spec
    key, state = initial_state(saved_agent, seed)
    initial_digest = trees.digest(state.weights)
    infinite_at_first = {name for name, holds in _finite_weights(state).items() if not holds}
    episode = 0
    steps = iterate_lifetime(key, agent, env, steering, state, num_steps, online)
    for number, (state, trajectory, score) in enumerate(steps, start=1):
        if online:
            is_finite = _finite_by_name(trajectory.info) | _finite_weights(state)
            not_finite = [name for name, holds in is_finite.items() if not holds and name not in infinite_at_first]
            require_finite_learning(dict.fromkeys(not_finite, number - 1), number)
        action = int(trajectory.action)
        if not 0 <= action < spec.num_actions:
            raise BadInput(f"the agent took the action {action}, there are 0 to {spec.num_actions - 1}")
        episode += bool(trajectory.first)
        observation = np.asarray(trajectory.observation)
        yield DeploymentStep(
            number=number,
            episode=episode,
            observation=observation if spec.observation_shape else int(observation),
            action=action,
            outcome=dict(zip(spec.outcome_features, np.asarray(trajectory.outcome).tolist(), strict=True)),
            reward=float(trajectory.reward),
            score=float(score),
            state=state,
        )
    if not online:
        check_frozen(initial_digest, state)


def _finite_weights(state: State) -> dict[str, bool]:
    """Whether each array of the learned content is finite, by its name."""
    return _finite_by_name({"weights": state.weights.content})


def _finite_by_name(tree: PyTree) -> dict[str, bool]:
    """`trees.finite_by_name` in one compiled call, because it is made after every step."""
    return jax.device_get(_compiled_finite_by_name(tree))


_compiled_finite_by_name = jax.jit(trees.finite_by_name)
