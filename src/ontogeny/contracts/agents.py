"""The contract of an agent, as checks of steps and whole lifetimes that can be run on any of them."""

import jax
import jax.numpy as jnp
import numpy as np

from ontogeny.contracts.base import require
from ontogeny.contracts.first_steps_of_agents import RULES, check_agent_first_steps
from ontogeny.rollouts import rollout
from ontogeny.seeds import nth_seed
from ontogeny.trees import bitwise_equal, scramble
from ontogeny.types import Agent, Environment, State, Steering, Trajectory

NUM_STEPS = 30


def check_agent(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Checks the agent contract bit for bit, step by step and over whole rollouts.

    Args:
        env: An environment in which it can act.
        seed: Draws the task, the genome and all chance.

    Raises:
        ContractViolation: The agent violates the contract.
    """
    check_agent_steps(agent, env, steering, seed)
    check_agent_lifetimes(agent, env, steering, seed)


def check_agent_steps(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Checks rules 1 and 2 step by step: what `act` and `learn` change, and that `act` does not read scratch.

    The arguments are those of `check_agent`.
    """
    check_agent_first_steps(agent, env, steering, seed=seed, every_rule=True)


def check_agent_lifetimes(agent: Agent, env: Environment, steering: Steering, seed: int = 0) -> None:
    """Checks rules 1 and 3 and the two modes, frozen and online, over whole rollouts.

    The arguments are those of `check_agent`.
    """
    initial = _initial_state(agent, seed)

    def run(env: Environment, learning: bool) -> tuple[State, Trajectory]:
        compiled = jax.jit(rollout, static_argnums=(1, 2, 3, 5, 6))
        return compiled(jax.random.key(seed), agent, env, steering, initial, NUM_STEPS, learning)

    final, trajectory = run(env, learning=False)
    require(bitwise_equal(final.weights, initial.weights), "weights changed in a rollout without learning")

    if agent.learning:
        final, trajectory = run(env, learning=True)
    # Scrambled, because this one rollout may have left the activations as they were.
    scrambled = scramble(jax.random.key(nth_seed(seed, 1)), final.activations)
    reset = agent.reset(final._replace(activations=scrambled))
    require(bitwise_equal(reset.weights, final.weights), RULES["reset_weights"])
    require(bitwise_equal(reset.activations, initial.activations), RULES["reset_activations"])
    if agent.learning:
        require(
            not bitwise_equal(final.weights, initial.weights),
            f"`learning` is True, but `learn` did not change weights in {NUM_STEPS} steps",
        )

    other_score = env._replace(score=_other_score)
    require(
        bitwise_equal((final, trajectory), run(other_score, agent.learning)),
        "the rollout changed with `Environment.score`, which only evaluation may read: an agent's reward is computed "
        "by its steering",
    )
    rewards = jax.vmap(steering)(trajectory.outcome)
    is_steered = np.allclose(trajectory.reward, rewards, rtol=1e-5, atol=1e-6)
    require(is_steered, "a reward is not the steering of the outcome")


def _other_score(outcome: jax.Array) -> jax.Array:
    """A score that no environment has."""
    return 1000.0 - jnp.sum(outcome)


def _initial_state(agent: Agent, seed: int) -> State:
    """An initial state from a random genome."""
    genome_key, init_key = jax.random.split(jax.random.key(nth_seed(seed, 2)))
    return agent.init(init_key, agent.genome(genome_key))
