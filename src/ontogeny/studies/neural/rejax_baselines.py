"""PPO and DQN of rejax 0.1.3 in environments of this package, as baselines of studies (extra `baselines`).

rejax (https://github.com/keraJLi/rejax) trains in environments of gymnax before version 1.0, whose `step` returns five
values: observation, state, reward, done, info. `RejaxEnvironment` offers any environment in JAX in this form, with
done = terminated or truncated, so that an episode that a time limit ends counts as terminated, as in rejax itself.
Nothing is evaluated apart: learning curves are the returns of the episodes in which the algorithm learns.

All copies of an environment that an algorithm steps in parallel have one task, that of a lifetime with the same key.
Letters: E copies, K iterations.
"""

import importlib.util
import math
import time
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny import rng
from ontogeny.errors import BadInput, require_finite_learning, require_one_of
from ontogeny.studies.neural.learning_curves import EpisodeReturns, episodes_of_totals
from ontogeny.trees import finite_by_name
from ontogeny.types import Environment, EnvState, Key

INSTALL = "pip install 'ontogeny[baselines]'"
# As in the files agents/ENVIRONMENT/ppo.yaml of gymnax-blines (https://github.com/RobertTLange/gymnax-blines). The
# learning rate is constant there as well: its warm-up begins and ends with the same number. Four things differ, for
# which rejax has no setting: it bounds each number of a gradient by `max_grad_norm`, not the norm of the gradient; it
# does so for actor and critic apart; the epsilon of its Adam is 1e-8, not 1e-5; and its biases begin at 0, not between
# 0 and 0.05.
PPO_SETTINGS = {
    "num_envs": 8, "num_steps": 32, "num_epochs": 4, "num_minibatches": 4, "learning_rate": 5e-4,
    "max_grad_norm": 0.5, "gamma": 0.99, "gae_lambda": 0.95, "clip_eps": 0.2, "ent_coef": 0.01, "vf_coef": 0.5,
    "agent_kwargs": {"activation": "relu", "hidden_layer_sizes": (64, 64)},
}  # fmt: skip
MANY_COPIES = {"num_envs": 16, "max_grad_norm": 1.0}
MINATAR = {
    "num_envs": 64, "num_steps": 128, "num_minibatches": 8, "gamma": 0.999,
    "agent_kwargs": {"activation": "relu", "hidden_layer_sizes": (256, 256)},
}  # fmt: skip
# By environment; all others have `PPO_SETTINGS`. MountainCar-v0 differs there in more and is none of ours. CartPole-v1
# is not solved with rejax's way of bounding gradients: its learning rate and bound are chosen on the seeds 101 and 102.
PPO_SETTINGS_BY_ENV: dict[str, dict[str, Any]] = {
    "gymnax:CartPole-v1": {"learning_rate": 2e-3, "max_grad_norm": 100.0},
    **dict.fromkeys(("gymnax:Acrobot-v1", "gymnax:Catch-bsuite", "gymnax:FourRooms-misc"), MANY_COPIES),
    **dict.fromkeys(
        [f"gymnax:{name}-MinAtar" for name in ("Asterix", "Breakout", "Freeway", "SpaceInvaders")], MINATAR
    ),
}
# As rejax proposes for CartPole, with a smaller buffer, over the whole of which it draws random numbers in each update.
DQN_SETTINGS = {
    "agent": "DuelingQNetwork", "num_envs": 10, "buffer_size": 10_000, "fill_buffer": 1_000, "batch_size": 100,
    "num_epochs": 5, "learning_rate": 1e-3, "max_grad_norm": 10.0, "gamma": 0.99, "polyak": 0.98, "eps_start": 1.0,
    "eps_end": 0.05, "exploration_fraction": 0.5,
}  # fmt: skip
ALGORITHMS: dict[str, dict[str, Any]] = {"ppo": PPO_SETTINGS, "dqn": DQN_SETTINGS}
NETWORKS = ("actor_ts", "critic_ts", "q_ts")  # fields of the state of an algorithm


class CopyState(NamedTuple):
    """The state of one copy of an environment, and what it has counted."""

    env_state: EnvState
    episode_return: Array  # [] of the present episode
    total_return: Array  # [] of all episodes that have ended
    num_episodes: Array  # [] that have ended


class BaselineRun(NamedTuple):
    """What an algorithm did.

    Attributes:
        episodes: One entry for each iteration in which episodes ended.
        num_steps: Environment steps, those of all copies together.
        cpu_seconds: Processor seconds without compilation.
        compile_seconds: Processor seconds of the compilation.
    """

    episodes: EpisodeReturns
    num_steps: int
    cpu_seconds: float
    compile_seconds: float


class RejaxEnvironment:
    """An environment of this package as rejax expects it; the reward is the environment's own score."""

    def __init__(self, env: Environment, task_key: Key) -> None:
        """Wrap an environment.

        Args:
            env: In JAX. Whole-number observations become indicators.
            task_key: Draws the task that all copies have.
        """
        self.env, self.task_key = env, task_key
        self.default_params = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # rejax copies its settings

    def reset(self, key: Key, params: Any = ()) -> tuple[Array, CopyState]:
        """The first observation of the first episode; the first episodes of all copies begin alike."""
        del key, params
        env_state, time_step = self.env.reset(self.task_key)
        return self._encode(time_step.observation), CopyState(env_state, jnp.float32(0), jnp.float32(0), jnp.int32(0))

    def step(
        self, key: Key, state: CopyState, action: Array, params: Any = ()
    ) -> tuple[Array, CopyState, Array, Array, dict[str, Array]]:
        """One step; where the episode is over, the observation is the first one of the next episode.

        Returns:
            Observation, state, reward, done (terminated or truncated), and an empty info.
        """
        del params
        env_state, time_step = self.env.step(key, state.env_state, jnp.asarray(action, jnp.int32))
        reward, done = jnp.float32(self.env.score(time_step.outcome)), time_step.first
        episode_return = state.episode_return + reward
        copy_state = CopyState(
            env_state,
            jnp.where(done, 0.0, episode_return),
            state.total_return + jnp.where(done, episode_return, 0.0),
            state.num_episodes + done,
        )
        return self._encode(time_step.observation), copy_state, reward, done, {}

    def action_space(self, params: Any = ()) -> Any:
        """The actions, as a space of gymnax."""
        from gymnax.environments import spaces

        del params
        return spaces.Discrete(self.env.spec.num_actions)

    def observation_space(self, params: Any = ()) -> Any:
        """The observations, as a space of gymnax."""
        from gymnax.environments import spaces

        del params
        spec = self.env.spec
        return spaces.Box(-math.inf, math.inf, spec.observation_shape or (spec.num_observations,), jnp.float32)

    def _encode(self, observation: Array) -> Array:
        """An observation as real numbers."""
        num_observations = self.env.spec.num_observations
        return jax.nn.one_hot(observation, num_observations) if num_observations else jnp.float32(observation)


def is_installed() -> bool:
    """Whether rejax and gymnax are installed; imports neither."""
    return all(importlib.util.find_spec(package) is not None for package in ("rejax", "gymnax"))


def settings_of(algorithm: str, env_name: str) -> dict[str, Any]:
    """The settings of an algorithm in an environment, such as `gymnax:Catch-bsuite`."""
    return ALGORITHMS[algorithm] | (PPO_SETTINGS_BY_ENV.get(env_name, {}) if algorithm == "ppo" else {})


def run_baseline(algorithm: str, env: Environment, key: Key, num_steps: int, **settings: Any) -> BaselineRun:
    """Trains an algorithm for a number of environment steps.

    Args:
        algorithm: `ppo` or `dqn`.
        env: In JAX; its episodes follow each other without end, as with the setting `steps` of gymnax environments.
        key: Of a lifetime, whose task the copies of the environment have.
        num_steps: Environment steps of all copies together; rounded up to whole iterations.
        settings: Of rejax, in place of those of `settings_of`.

    Raises:
        BadInput: rejax is not installed, or there is no such algorithm.
        LearningDiverged: A weight is not finite at the end.
    """
    require_one_of(tuple(ALGORITHMS), algorithm=algorithm)
    if not is_installed():
        raise BadInput(f"the baseline '{algorithm}' needs the package rejax: {INSTALL}")
    import rejax  # pyright: ignore[reportMissingImports]

    keys = rng.split_lifetime_key(key)
    config = settings_of(algorithm, env.spec.name) | settings
    learner = rejax.get_algo(algorithm).create(
        env=RejaxEnvironment(env, keys.task), env_params=(), total_timesteps=num_steps, eval_freq=num_steps, **config
    )
    steps_per_iteration = config["num_envs"] * (config["num_steps"] if algorithm == "ppo" else 1)
    num_iterations = -(-num_steps // steps_per_iteration)

    def train(key: Key) -> tuple[Array, Array, dict[str, Array]]:
        def iterate(state: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
            state = learner.train_iteration(state)
            copies: CopyState = state.env_state
            return state, (jnp.sum(copies.total_return), jnp.sum(copies.num_episodes))

        state, (total_returns, num_episodes) = jax.lax.scan(iterate, learner.init_state(key), None, num_iterations)
        weights = {name: getattr(state, name).params for name in NETWORKS if hasattr(state, name)}
        return total_returns, num_episodes, finite_by_name(weights)

    started = time.process_time()
    compiled = jax.jit(train).lower(keys.learn).compile()
    compiled_at = time.process_time()
    total_returns, num_episodes, is_finite = jax.block_until_ready(compiled(keys.learn))
    steps = (np.arange(num_iterations) + 1) * steps_per_iteration
    last = int(steps[-1])
    require_finite_learning({name: last if holds else last - 1 for name, holds in is_finite.items()}, last)
    episodes = episodes_of_totals(steps, np.asarray(total_returns), np.asarray(num_episodes))
    cpu_seconds = time.process_time() - compiled_at
    return BaselineRun(episodes, last, cpu_seconds, compiled_at - started)
