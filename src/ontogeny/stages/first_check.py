"""A first check of plugins that are files of the user: mistakes are named before any work is done.

Every function is traced once, which is quick, and its shapes are compared with the contract; no lifetime is run.
`ontogeny.contracts` checks the contract itself.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ontogeny import plugins
from ontogeny.errors import BadInput
from ontogeny.rollouts import perceive
from ontogeny.types import Agent, Environment, Key, PyTree, State, Steering, TimeStep, Transition, Weights


class _Checker:
    """Traces functions of the user's files and compares the shapes of their results."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = list(files)
        self._file_names = " and ".join(f"'{file}'" for file in files)

    def trace(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """The shapes of a function's result; an error inside it is reported with the file."""
        with plugins.explain_plugin_errors(self._files, f"`{name}` fails with {self._file_names}"):
            return jax.eval_shape(function, *arguments)

    def trace_pair(self, name: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
        """As `trace`, of a function that must return a pair."""
        pair = self.trace(name, function, *arguments)
        self.require(
            isinstance(pair, tuple) and len(pair) == 2, f"`{name}` must return a pair, not {type(pair).__name__}"
        )
        return pair

    def require(self, holds: bool, message: str) -> None:
        """Raise `BadInput` where a condition does not hold."""
        if not holds:
            raise BadInput(f"with {self._file_names}, {message}")

    def require_same_shapes(self, name: str, before: PyTree, after: PyTree) -> None:
        """Raise `BadInput` where a function returns a state of another structure than it took."""
        old, new = _shapes(before), _shapes(after)
        change = next((f"{o} became {n}" for o, n in zip(old, new, strict=False) if o != n), "")
        change = change or f"the number of arrays changed from {len(old)} to {len(new)}"
        self.require(old == new, f"`{name}` returns a state of another structure: {change}")


def check_signatures(agent: Agent, env: Environment, steering: Steering, files: Sequence[str]) -> None:
    """Raise `BadInput` for mistakes that would appear in the first step of a lifetime.

    Args:
        files: The user's files, which messages name.
    """
    checker, key = _Checker(files), jax.random.key(0)
    env_state, time_step = _check_reset(checker, env, key)
    genome = checker.trace("genome", agent.genome, key)
    state = checker.trace("init", agent.init, key, genome)
    checker.require(
        isinstance(state, State) and isinstance(state.weights, Weights),
        f"`init` must return State(Weights(...), activations), not {type(state).__name__}",
    )
    checker.require_same_shapes("reset", state, checker.trace("reset", agent.reset, state))
    perceive_step = partial(perceive, agent, env, steering)
    percept = checker.trace("steering", perceive_step, env_state, time_step, None)
    action, acted = checker.trace_pair("act", agent.act, key, state, percept)
    is_whole_number = jnp.shape(action) == () and jnp.issubdtype(action.dtype, jnp.integer)
    checker.require(is_whole_number, f"`act` must return one whole number, not {action.dtype}{list(action.shape)}")
    checker.require_same_shapes("act", state, acted)
    env_state, time_step = _check_step(checker, env, key, (env_state, time_step), action)
    following = checker.trace("steering", perceive_step, env_state, time_step, action)
    learned, _ = checker.trace_pair("learn", agent.learn, key, acted, Transition(percept, action, following))
    checker.require_same_shapes("learn", state, learned)


def _check_reset(checker: _Checker, env: Environment, key: Key) -> tuple[PyTree, TimeStep]:
    """Check what `reset` of the environment returns; its state and time step as shapes."""
    env_state, time_step = checker.trace_pair("reset", env.reset, key)
    checker.require(isinstance(time_step, TimeStep), "`reset` of the environment must return (state, TimeStep)")
    shape, names = jnp.shape(time_step.outcome), env.spec.outcome_features
    checker.require(
        shape == (len(names),),
        f"an outcome has the shape {shape}, but the environment names {len(names)} outcome features",
    )
    return env_state, time_step


def _check_step(
    checker: _Checker, env: Environment, key: Key, start: tuple[PyTree, TimeStep], action: PyTree
) -> tuple[PyTree, TimeStep]:
    """Check what `step` and `score` return; the state and time step after a step as shapes."""
    env_state, time_step = checker.trace_pair("step", env.step, key, start[0], action)
    checker.require_same_shapes("step", start, (env_state, time_step))
    score = checker.trace("score", env.score, time_step.outcome)
    checker.require(jnp.shape(score) == (), f"`score` must be one number, not of the shape {jnp.shape(score)}")
    return env_state, time_step


def _shapes(tree: PyTree) -> list[str]:
    """Every array of a tree by its place in it: `activations float32[3]`."""
    return [
        f"{jax.tree_util.keystr(path).lstrip('.')} {leaf.dtype}{list(leaf.shape)}".strip()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
