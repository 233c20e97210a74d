"""A saved agent in the user's own loop: plain values in, a plain number out.

The state is a value: `act` and `reset` return a new one and leave the old one as it was. A frozen agent adapts in its
activations; an agent loaded with `online` also learns by weights, from each step at the next call of `act`.
"""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import plugins, rng, trees
from ontogeny.errors import BadInput
from ontogeny.rollouts import first_percept
from ontogeny.seeds import check_seed
from ontogeny.stages.saved_agent import SavedAgent, initial_state, save_deployment
from ontogeny.types import HIDDEN_OBSERVATION, Agent, Key, Percept, State, Steering, Transition


class AgentState(NamedTuple):
    """Everything that an agent carries from one step of a lifetime to the next: immutable, a pytree.

    Attributes:
        state: Weights and activations.
        percept: The percept on which the last action was chosen.
        action: The last action, [] int32; -1 at the initial state and after a reset.
        step: Actions taken in this lifetime, [] int32.
        key: The random key of this lifetime.
    """

    state: State
    percept: Percept
    action: Array
    step: Array
    key: Key


class AgentSession:
    """A trained agent that a user steps in their own loop; `ontogeny.load` returns it.

    The session holds how the agent acts and learns. Whatever changes is in the `AgentState` alone.
    """

    def __init__(self, saved_agent: SavedAgent, *, online: bool = False) -> None:
        """Build a session.

        Args:
            saved_agent: From `read_saved_agent`.
            online: Whether weights keep learning.

        Raises:
            BadInput: The agent is privileged: it needs the task revealed, which a user's loop cannot do.
        """
        self.saved_agent = saved_agent
        self.online = online
        self.agent, env, self.steering = saved_agent.assembly
        self.spec = env.spec
        if self.agent.privileged:
            raise BadInput(
                f"agent '{saved_agent.spec.agent.name}' needs the task revealed, which your own loop cannot do"
            )

    def __repr__(self) -> str:
        mode = "online" if self.online else "frozen"
        return f"<agent '{self.saved_agent.spec.agent.name}' from environment '{self.spec.name}', {mode}>"

    def init(self, seed: int = 0) -> AgentState:
        """The state with which a lifetime begins; of a saved deployment, the saved state.

        Args:
            seed: From 0 to 2**32 - 1.
        """
        key, state = initial_state(self.saved_agent, check_seed(seed))
        return self._without_percept(state, jnp.int32(0), key)

    @cached_property
    def state_types(self) -> AgentState:
        """Shapes and types of every state of this agent, each a `jax.ShapeDtypeStruct`."""
        return jax.eval_shape(self.init)

    def reset(self, state: AgentState) -> AgentState:
        """Restore the initial activations and keep the weights; the next `act` is like the first one."""
        return self._without_percept(self.agent.reset(state.state), state.step, state.key)

    def act(
        self,
        state: AgentState,
        observation: Any,
        *,
        reward: float | None = None,
        outcome: Mapping[str, float] | None = None,
        first: bool = False,
        terminated: bool | None = None,
        final_observation: Any = None,
    ) -> tuple[int, AgentState]:
        """Choose an action on an observation.

        At the initial state and after a reset, the observation is the only input. Later the caller also states what
        followed the last action, either as `reward` or as `outcome`.

        Args:
            observation: A whole number below `spec.num_observations`, or an array of shape `spec.observation_shape`.
            reward: The only outcome feature of an environment that has one.
            outcome: Outcome features by name; those not named are 0.
            first: Whether a new episode begins with this observation.
            terminated: Whether the last action terminated an episode; False for a time limit. By default as `first`.
            final_observation: The observation to which the last action led where a new episode begins, for agents that
                learn from it where a time limit ended the old one. By default it is unknown: no agent learns a
                successor from whole numbers, and of arrays the observation before the last action stands in for it.

        Returns:
            The action, a whole number below `spec.num_actions`, and the state after it.

        Raises:
            BadInput: The observation, reward or outcome does not fit the environment.
        """
        is_initial = int(state.action) < 0
        if is_initial and (reward is not None or outcome is not None or terminated):
            raise BadInput("at the initial state and after a reset there is no last action with an outcome")
        if final_observation is not None and (is_initial or not first):
            raise BadInput("`final_observation` goes with `first`: elsewhere the observation itself is the final one")
        no_outcome = np.zeros(len(self.spec.outcome_features), np.float32)
        outcome_features = no_outcome if is_initial else self.check_outcome(reward, outcome)
        has_ended = first if terminated is None else terminated
        begins_anew = first and not is_initial
        action, after = _act(
            state,
            self._checked_observation(observation),
            self._checked_final_observation(state, final_observation if begins_anew else observation),
            outcome_features,
            np.bool_(first or is_initial),
            np.float32(is_initial or not has_ended),
            self.agent,
            self.steering,
            self.online and not is_initial,
            is_initial,
        )
        return int(action), after

    def digest(self, state: AgentState) -> str:
        """SHA-256 of the weights, as long as nothing was learned the same."""
        return trees.digest(state.state.weights)

    def save(self, state: AgentState, folder: Path | str) -> Path:
        """Save weights and activations in a new folder, which `ontogeny.load` and `ontogeny deploy` accept."""
        mode = "online" if self.online else "frozen"
        return save_deployment(folder, self.saved_agent.spec, state.state, mode=mode, num_steps=int(state.step))

    def check_outcome(self, reward: float | None, outcome: Mapping[str, float] | None) -> np.ndarray:
        """The outcome features of the last action, [F] float32.

        Args:
            reward: As for `act`.
            outcome: As for `act`.

        Raises:
            BadInput: Neither or both are given, a name is unknown, or a value is no finite number.
        """
        names = self.spec.outcome_features
        if (reward is None) == (outcome is None):
            raise BadInput("state the outcome of the last action, either as `reward` or as `outcome`")
        if outcome is None:
            if len(names) != 1:
                raise BadInput(
                    f"this agent's environment has several outcome features: give `outcome` with {', '.join(names)}"
                )
            return np.array([_real_number(reward, "the reward")], np.float32)
        if not isinstance(outcome, Mapping):
            raise BadInput(f"`outcome` must map outcome features to numbers, {{'{names[0]}': 1.0}}, not {outcome!r}")
        for name in outcome:
            if name not in names:
                raise plugins.unknown_name_error("outcome feature", name, list(names))
        values = [_real_number(outcome.get(name, 0.0), f"the outcome feature '{name}'") for name in names]
        return np.array(values, np.float32)

    def _without_percept(self, state: State, step: Array, key: Key) -> AgentState:
        """The state before the first observation of a lifetime or after a reset."""
        spec = self.spec
        observation = jnp.zeros(spec.observation_shape, jnp.int32 if spec.num_observations else jnp.float32)
        percept = first_percept(observation, len(spec.outcome_features))
        return AgentState(state, percept, jnp.int32(-1), step, key)

    def _checked_final_observation(self, state: AgentState, observation: Any) -> Any:
        """The observation to which the last action led; where it is unknown, what stands in for it."""
        if observation is not None:
            return self._checked_observation(observation)
        return np.int32(HIDDEN_OBSERVATION) if self.spec.num_observations else state.percept.observation

    def _checked_observation(self, observation: Any) -> np.ndarray:
        """An observation as the array that the environment of the agent would emit."""
        spec = self.spec
        try:
            array = np.asarray(observation)
        except ValueError as error:
            raise BadInput(f"the observation is not an array of numbers: {error}") from None
        if array.shape != spec.observation_shape:
            raise BadInput(f"the observation must have the shape {spec.observation_shape}, not {array.shape}")
        if not spec.num_observations:
            return array.astype(np.float32)
        if not np.issubdtype(array.dtype, np.integer) or not 0 <= int(array) < spec.num_observations:
            raise BadInput(
                f"the observation must be a whole number from 0 to {spec.num_observations - 1}, not {observation!r}"
            )
        return array.astype(np.int32)


def _real_number(value: Any, description: str) -> float:
    """A finite number of the user; the message names it by its description."""
    try:
        return plugins.finite_float(float(value), description)
    except (TypeError, ValueError, OverflowError) as error:
        raise (
            error if isinstance(error, BadInput) else BadInput(f"{description} must be a number, not {value!r}")
        ) from None


@partial(jax.jit, static_argnames=("agent", "steering", "learning", "is_initial"))
def _act(
    state: AgentState,
    observation: Array,
    final_observation: Array,
    outcome: Array,
    first: Array,
    discount: Array,
    agent: Agent,
    steering: Steering,
    learning: bool,
    is_initial: bool,
) -> tuple[Array, AgentState]:
    """Learn from the last action, then act, with the random numbers that `rollout` draws from the same key."""
    lifetime_keys = rng.split_lifetime_key(state.key)
    reward = jnp.float32(0) if is_initial else steering(outcome)
    percept = Percept(observation, state.action, reward, outcome, first, discount)
    agent_state = state.state
    if learning:
        key = jax.random.fold_in(lifetime_keys.learn, state.step - 1)
        transition = Transition(state.percept, state.action, percept, final_observation)
        agent_state, _ = agent.learn(key, agent_state, transition)
    action, agent_state = agent.act(jax.random.fold_in(lifetime_keys.act, state.step), agent_state, percept)
    return action, AgentState(agent_state, percept, jnp.asarray(action, jnp.int32), state.step + 1, state.key)
