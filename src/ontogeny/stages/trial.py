"""A first look at rooms that are files of somebody's own: their mistakes are named before any work is done on them.

Every function is traced once, which is quick, and its shapes are held against the contract; no life is lived. Whether
the laws are kept is another matter: `ontogeny.contracts` tries that out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.rollouts import perceive
from ontogeny.types import Agent, Environment, PyTree, State, Steering, TimeStep, Transition, Weights


def look_at(agent: Agent, env: Environment, steering: Steering, files: list[str]) -> None:
    """Raises `BadInput` for what would go wrong in a life's first step; `files` are those to blame."""
    named = " and ".join(f"'{file}'" for file in files)

    def tried(name: str, function: Callable, *arguments: Any) -> Any:
        with plugins.blaming(files, f"`{name}` fails with {named}"):
            return jax.eval_shape(function, *arguments)

    def wanted(holds: bool, said: str) -> None:
        if not holds:
            raise BadInput(f"with {named}, {said}")

    def kept(name: str, before: PyTree, after: PyTree) -> None:
        was, now = _shapes(before), _shapes(after)
        differing = next((f"{w} became {n}" for w, n in zip(was, now, strict=False) if w != n), "")
        differing = differing or f"of {len(was)} arrays there are now {len(now)}"
        wanted(was == now, f"`{name}` gives back a state of another structure: {differing}")

    key = jax.random.key(0)
    env_state, time_step = _pair(tried("reset", env.reset, key), "reset", wanted)
    wanted(isinstance(time_step, TimeStep), "`reset` of the environment must return (state, TimeStep)")
    outcome = jnp.shape(time_step.outcome)
    outcome_features = env.spec.outcome_features
    wanted(
        outcome == (len(outcome_features),),
        f"an outcome has the shape {outcome}, but the environment names {len(outcome_features)} facts",
    )

    genome = tried("genome", agent.genome, key)
    state = tried("birth", agent.init, key, genome)
    wanted(
        isinstance(state, State) and isinstance(state.weights, Weights),
        f"`birth` must return State(Weights(...), activations), not {type(state).__name__}",
    )
    kept("reset", state, tried("reset", agent.reset, state))

    at_birth = partial(perceive, agent, env, steering, born=True)
    percept = tried("steering", at_birth, env_state, time_step, jnp.int32(-1))
    action, acted = _pair(tried("act", agent.act, key, state, percept), "act", wanted)
    whole = jnp.shape(action) == () and jnp.issubdtype(action.dtype, jnp.integer)
    wanted(whole, f"`act` must return one whole number, not {action.dtype}{list(action.shape)}")
    kept("act", state, acted)

    env_after, later = _pair(tried("step", env.step, key, env_state, action), "step", wanted)
    kept("step", (env_state, time_step), (env_after, later))
    score = tried("score", env.score, later.outcome)
    wanted(jnp.shape(score) == (), f"`score` must be one number, not of the shape {jnp.shape(score)}")

    then = tried("steering", partial(perceive, agent, env, steering), env_after, later, action)
    learned, _ = _pair(tried("learn", agent.learn, key, acted, Transition(percept, action, then)), "learn", wanted)
    kept("learn", state, learned)


def _pair(found: Any, name: str, wanted: Callable[[bool, str], None]) -> tuple[Any, Any]:
    wanted(isinstance(found, tuple) and len(found) == 2, f"`{name}` must return a pair, not {type(found).__name__}")
    return found


def _shapes(tree: PyTree) -> list[str]:
    """Every array of a tree by its place in it: 'activations float32[3]'."""
    return [
        f"{jax.tree_util.keystr(path).lstrip('.')} {leaf.dtype}{list(leaf.shape)}".strip()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
