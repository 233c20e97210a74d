"""Trains a recurrent network by policy gradient through whole lives: RL^2 itself, for orientation.

Duan et al. 2016 (RL^2, arXiv 1611.02779, section 2.3) with the advantage actor-critic of Wang et al. 2016
(arXiv 1611.05763, section 2.2) in place of TRPO: generalised advantages (Schulman et al. 2016, arXiv 1506.02438,
equation 16), a critic that reads the same hidden units and is thrown away after training, an entropy bonus that
fades, Adam. A life is one unbroken return: the discount is counted across its episodes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.agents.recurrent import encode_percept
from ontogeny.content.gru import GRUWeights, step_gru
from ontogeny.development.base import Development, descent
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import Agent, Environment, EnvSpec, Key, Percept, State, Steering, Transition, Weights


class ActorCritic(NamedTuple):
    actor: GRUWeights
    value: Float[Array, "H+1"]  # the critic's read-out and its bias


class Trace(NamedTuple):
    """What the loss needs to know of one step; leading axis T once a life is over."""

    log_probability: Float[Array, ""]  # of the action taken
    entropy: Float[Array, ""]  # of the policy, in nats
    value: Float[Array, ""]  # what the critic expected before the action


def build(
    agent: Agent,
    env: Environment,
    steering: Steering,
    *,
    updates: int = 1000,
    num_lifetimes: int = 128,
    step_size: float = 0.01,
    discount: float = 0.95,
    trace_decay: float = 0.9,
    entropy_bonus: float = 0.12,
    updates_per_dispatch: int = 10,
) -> Development:
    """`step_size` falls to zero as a cosine, `entropy_bonus` along a line: a policy that is certain too early never
    comes to compare."""
    for name, share in (("discount", discount), ("trace_decay", trace_decay)):
        if not 0 <= share <= 1:
            raise BadInput(f"the setting '{name}' must lie between 0 and 1, not {share}")
    player = sampling(agent, env.spec)

    def loss(model: ActorCritic, keys: Key, progress: Array) -> tuple[Array, dict[str, Array]]:
        def one(key: Key) -> tuple[Trace, Array]:
            _, trajectory = rollout_lifetime(key, player, env, steering, model, learning=True)
            return trajectory.info, trajectory.reward

        trace, reward = jax.vmap(one)(keys)
        # Returns in units of one step's reward: the critic starts at zero and would take long to reach their sums.
        ahead = jax.vmap(lambda r, v: advantages(r, v, discount, trace_decay))(
            (1 - discount) * reward, jax.lax.stop_gradient(trace.value)
        )
        target = jax.lax.stop_gradient(trace.value) + ahead
        scaled = (ahead - jnp.mean(ahead)) / (jnp.std(ahead) + 1e-6)
        bonus = entropy_bonus * (1 - progress)
        actor = -jnp.mean(trace.log_probability * scaled) - bonus * jnp.mean(trace.entropy)
        critic = jnp.mean((trace.value - target) ** 2)
        info = {"fitness": jnp.mean(jnp.sum(reward, axis=1)), "entropy": jnp.mean(trace.entropy), "critic": critic}
        return actor + 0.5 * critic / (jnp.var(target) + 1e-6), info

    return descent(
        player.genome,
        loss,
        lambda model: model.actor,
        env,
        updates=updates,
        num_lifetimes=num_lifetimes,
        step_size=step_size,
        updates_per_dispatch=updates_per_dispatch,
    )


def sampling(agent: Agent, spec: EnvSpec) -> Agent:
    """The network with a critic at its side, drawing its actions by softmax; `Life.info` holds the `Trace`."""
    if not isinstance(jax.eval_shape(agent.genome, jax.random.key(0)), GRUWeights):
        raise BadInput("the development 'policy_gradient' trains the agent 'recurrent' only")

    def genome(key: Key) -> ActorCritic:
        actor = agent.genome(key)
        return ActorCritic(actor, jnp.zeros(actor.readout.shape[0] + 1))

    def init(key: Key, model: ActorCritic) -> State:
        silent = Trace(jnp.float32(0), jnp.float32(0), jnp.float32(0))
        return State(Weights(model), (agent.init(key, model.actor).activations, silent))

    def reset(state: State) -> State:
        hidden, trace = state.activations
        own = agent.reset(State(Weights(state.weights.content.actor), hidden))
        return State(state.weights, (own.activations, jax.tree.map(jnp.zeros_like, trace)))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        model, (hidden, _) = state.weights.content, state.activations
        hidden, logits = step_gru(model.actor, hidden, encode_percept(spec, percept))
        action = jax.random.categorical(key, jax.lax.stop_gradient(logits)).astype(jnp.int32)
        odds = jax.nn.log_softmax(logits)
        value = hidden @ model.value[:-1] + model.value[-1]
        return action, State(state.weights, (hidden, Trace(odds[action], -jnp.sum(jnp.exp(odds) * odds), value)))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, Trace]:
        del key, transition
        return state, state.activations[1]

    return Agent(genome, init, reset, act, learn, learning=True)


def advantages(
    reward: Float[Array, "T"], value: Float[Array, "T"], discount: float, trace_decay: float
) -> Float[Array, "T"]:
    """Generalised advantages of a life: sums of one-step surprises, fading by discount * trace_decay."""
    following = jnp.append(value[1:], 0.0)
    surprise = reward + discount * following - value

    def back(later: Float[Array, ""], now: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        total = now + discount * trace_decay * later
        return total, total

    return jax.lax.scan(back, jnp.float32(0), surprise, reverse=True)[1]
