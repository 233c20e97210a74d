"""A saved agent in somebody's own loop: plain values in, a plain number out.

The state is a value: `act` and `reset` return a new one and leave the old one as it was. What a frozen agent learns
lives in its activations; one that was loaded `online` also learns by weights, from each step at the next call of `act`.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins, rng, trees
from ontogeny.errors import BadInput
from ontogeny.stages import saved as folders
from ontogeny.stages.subject import checked_seed
from ontogeny.types import Agent, Key, Percept, State, Steering, Transition


class Living(NamedTuple):
    """An agent in the midst of a life outside: immutable, a pytree, all that is carried."""

    state: State  # weights and activations
    percept: Percept  # what the last action was chosen on
    action: Array  # [] int32, the last action; -1 at birth and after a reset
    step: Array  # [] int32, actions taken in this life
    key: Key  # all chance of this life


class OwnLoop:
    """What `ontogeny.load` returns. It holds how the agent acts and learns; what changes is in the state alone."""

    def __init__(self, saved: folders.Saved, *, online: bool = False):
        self.saved = saved
        self.online = online
        self.agent, env, self.steering = saved.subject
        self.spec = env.spec
        if self.agent.privileged:
            raise BadInput(f"agent '{saved.spec.agent.name}' needs the task laid open, which your own loop cannot do")

    def __repr__(self) -> str:
        how = "online" if self.online else "frozen"
        return f"<agent '{self.saved.spec.agent.name}' from environment '{self.spec.name}', {how}>"

    def init(self, seed: int = 0) -> Living:
        """The state in which a life begins; of a saved deployment, the state in which it was saved."""
        key, state = folders.init(self.saved, checked_seed(seed, "birth"))
        return self._between(state, jnp.int32(0), key)

    def reset(self, state: Living) -> Living:
        """Activations as at birth; weights stay. The next `act` is like the first one: no action came before it."""
        return self._between(self.agent.reset(state.state), state.step, state.key)

    def act(
        self,
        state: Living,
        observation: Any,
        *,
        reward: float | None = None,
        outcome: Mapping[str, float] | None = None,
        first: bool = False,
        terminated: bool | None = None,
    ) -> tuple[int, Living]:
        """What the agent does on an observation, and the state after it.

        At birth and after a reset, `observation` is all there is. Later, say what the last action led to: `outcome`
        names facts (those not named are 0), `reward` is short for the only fact of an environment with one. `first`: a new
        episode begins with this observation. `terminated`: the last action truly ended an episode; False for a time
        limit; where not given, as `first`. Raises `BadInput` for what does not fit.
        """
        begins = int(state.action) < 0
        if begins and (reward is not None or outcome is not None or terminated):
            raise BadInput("at birth and after a reset there is no action yet that could have led to anything")
        outcome_features = (
            np.zeros(len(self.spec.outcome_features), np.float32) if begins else self._outcome_features(reward, outcome)
        )
        ended = first if terminated is None else terminated
        action, then = _act(
            state,
            self._observed(observation),
            outcome_features,
            np.bool_(first or begins),
            np.float32(begins or not ended),
            self.agent,
            self.steering,
            self.online and not begins,
            begins,
        )
        return int(action), then

    def digest(self, state: Living) -> str:
        """SHA-256 of the weights: the same for as long as nothing was learned by them."""
        return trees.digest(state.state.weights)

    def save(self, state: Living, folder: Path | str) -> Path:
        """Saves weights and activations in a new folder, which `ontogeny.load` and `ontogeny deploy` accept."""
        about = {"case": "online" if self.online else "offline", "steps": int(state.step)}
        return folders.write(folder, self.saved.spec, state.state, about)

    def _between(self, state: State, step: Array, key: Key) -> Living:
        spec = self.spec
        observation = jnp.zeros(spec.observation_shape, jnp.int32 if spec.num_observations else jnp.float32)
        zero, outcome_features = jnp.float32(0), jnp.zeros(len(spec.outcome_features), jnp.float32)
        blank = Percept(observation, jnp.int32(-1), zero, outcome_features, jnp.bool_(True), jnp.float32(1))
        return Living(state, blank, jnp.int32(-1), step, key)

    def _observed(self, observation: Any) -> np.ndarray:
        spec = self.spec
        try:
            seen = np.asarray(observation)
        except ValueError as error:
            raise BadInput(f"the observation is not an array of numbers: {error}") from None
        if seen.shape != spec.observation_shape:
            raise BadInput(f"the observation must have the shape {spec.observation_shape}, not {seen.shape}")
        if not spec.num_observations:
            return seen.astype(np.float32)
        if not np.issubdtype(seen.dtype, np.integer) or not 0 <= int(seen) < spec.num_observations:
            raise BadInput(
                f"the observation must be a whole number from 0 to {spec.num_observations - 1}, not {observation!r}"
            )
        return seen.astype(np.int32)

    def _outcome_features(self, reward: float | None, outcome: Mapping[str, float] | None) -> np.ndarray:
        outcome_features = self.spec.outcome_features
        if (reward is None) == (outcome is None):
            raise BadInput("say what the last action led to, either as `reward` or as `outcome`")
        if outcome is None:
            if len(outcome_features) != 1:
                raise BadInput(
                    f"this agent's environment has several facts: give `outcome` with {', '.join(outcome_features)}"
                )
            return np.array([_number(reward, "the reward")], np.float32)
        if not isinstance(outcome, Mapping):
            raise BadInput(f"`outcome` must name facts, {{'{outcome_features[0]}': 1.0}} or the like, not {outcome!r}")
        for feature in outcome:
            if feature not in outcome_features:
                raise plugins.unknown("feature", feature, list(outcome_features))
        return np.array(
            [_number(outcome.get(feature, 0.0), f"the fact '{feature}'") for feature in outcome_features], np.float32
        )


def _number(value: Any, what: str) -> float:
    try:
        return plugins.real(float(value), what)
    except (TypeError, ValueError) as error:
        raise error if isinstance(error, BadInput) else BadInput(f"{what} must be a number, not {value!r}") from None


def load(folder: Path | str, *, online: bool = False) -> OwnLoop:
    """The agent that a run developed, or that a deployment saved: frozen, or learning by weights where `online`."""
    return OwnLoop(folders.read(folder), online=online)


@partial(jax.jit, static_argnames=("agent", "steering", "learning", "begins"))
def _act(
    living: Living,
    observation: Array,
    outcome: Array,
    first: Array,
    discount: Array,
    agent: Agent,
    steering: Steering,
    learning: bool,
    begins: bool,
) -> tuple[Array, Living]:
    """Takes in what the last action led to, then acts; with the chance that `lifetime.live` draws from this key."""
    lifetime_keys = rng.split_lifetime_key(living.key)
    reward = jnp.float32(0) if begins else steering(outcome)
    then = Percept(observation, living.action, reward, outcome, first, discount)
    state = living.state
    if learning:
        key = jax.random.fold_in(lifetime_keys.learn, living.step - 1)
        state, _ = agent.learn(key, state, Transition(living.percept, living.action, then))
    action, state = agent.act(jax.random.fold_in(lifetime_keys.act, living.step), state, then)
    return action, Living(state, then, jnp.asarray(action, jnp.int32), living.step + 1, living.key)
