"""Trains a recurrent network by policy gradient through whole lives: RL^2 itself, for orientation.

Duan et al. 2016 (RL^2, arXiv 1611.02779, section 2.3) with the advantage actor-critic of Wang et al. 2016
(arXiv 1611.05763, section 2.2) in place of TRPO: generalised advantages (Schulman et al. 2016, arXiv 1506.02438,
equation 16), a critic that reads the same hidden units and is thrown away after training, an entropy bonus that
fades, Adam. A life is one unbroken return: the discount is counted across its episodes.
"""

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ontogeny.agents import recurrent
from ontogeny.development.base import Development
from ontogeny.errors import BadInput
from ontogeny.lifetime import whole_life
from ontogeny.streams import life_keys
from ontogeny.types import Agent, Key, Percept, Spec, State, Steering, Transition, Weights, World
from ontogeny.worlds.base import at_least


class ActorCritic(NamedTuple):
    actor: recurrent.Network
    value: Array  # [H + 1], the critic's read-out and its bias


class Trace(NamedTuple):
    """What the loss needs to know of one step; leading axis T once a life is over."""

    log_probability: Array  # [] of the action taken
    entropy: Array  # [] of the policy, in nats
    value: Array  # [] what the critic expected before the action


class Training(NamedTuple):
    """All that a killed run needs to go on."""

    seed: Key
    update: Array  # [] int32, updates made so far
    model: ActorCritic
    optimizer: optax.OptState


def build(
    agent: Agent,
    world: World,
    steering: Steering,
    *,
    updates: int = 1000,
    lives: int = 128,
    step_size: float = 0.01,
    discount: float = 0.95,
    trace_decay: float = 0.9,
    entropy_bonus: float = 0.12,
    updates_per_dispatch: int = 10,
) -> Development:
    """`step_size` falls to zero as a cosine, `entropy_bonus` along a line: a policy that is certain too early never
    comes to compare."""
    at_least(1, updates=updates, lives=lives, updates_per_dispatch=updates_per_dispatch)
    player = sampling(agent, world.spec)
    num_dispatches = -(-updates // updates_per_dispatch)
    total = num_dispatches * updates_per_dispatch
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(step_size, total)))

    def init(key: Key) -> Training:
        genome_key, seed = jax.random.split(key)
        model = player.genome(genome_key)
        return Training(seed, jnp.int32(0), model, optimizer.init(model))

    def update(state: Training, _: None) -> tuple[Training, dict[str, Array]]:
        keys = life_keys(jax.random.fold_in(state.seed, state.update), lives, "training")
        bonus = entropy_bonus * (1 - state.update / total)

        def loss(model: ActorCritic) -> tuple[Array, dict[str, Array]]:
            def one(key: Key) -> tuple[Trace, Array, Array]:
                _, life = whole_life(key, player, world, steering, model, learning=True)
                return life.info, life.reward, jnp.sum(jax.vmap(world.score)(life.outcome))

            trace, reward, score = jax.vmap(one)(keys)
            # Returns in units of one step's reward: the critic starts at zero and would take long to reach their sums.
            ahead = jax.vmap(lambda r, v: advantages(r, v, discount, trace_decay))(
                (1 - discount) * reward, jax.lax.stop_gradient(trace.value)
            )
            target = jax.lax.stop_gradient(trace.value) + ahead
            scaled = (ahead - jnp.mean(ahead)) / (jnp.std(ahead) + 1e-6)
            actor = -jnp.mean(trace.log_probability * scaled) - bonus * jnp.mean(trace.entropy)
            critic = jnp.mean((trace.value - target) ** 2)
            info = {"fitness": jnp.mean(score), "entropy": jnp.mean(trace.entropy), "critic": critic}
            return actor + 0.5 * critic / (jnp.var(target) + 1e-6), info

        gradient, info = jax.grad(loss, has_aux=True)(state.model)
        change, moments = optimizer.update(gradient, state.optimizer, state.model)
        model = cast(ActorCritic, optax.apply_updates(state.model, change))
        return Training(state.seed, state.update + 1, model, moments), info

    @jax.jit
    def step(state: Training) -> tuple[Training, dict[str, Array]]:
        return jax.lax.scan(update, state, length=updates_per_dispatch)

    return Development(
        init,
        step,
        lambda state: state.model.actor,
        num_dispatches,
        updates_per_dispatch,
        lives * world.spec.num_steps,
    )


def sampling(agent: Agent, spec: Spec) -> Agent:
    """The network with a critic at its side, drawing its actions by softmax; `Life.info` holds the `Trace`."""
    if not isinstance(jax.eval_shape(agent.genome, jax.random.key(0)), recurrent.Network):
        raise BadInput("the development 'policy_gradient' trains the agent 'recurrent' only")

    def genome(key: Key) -> ActorCritic:
        actor = agent.genome(key)
        return ActorCritic(actor, jnp.zeros(actor.readout.shape[0] + 1))

    def birth(key: Key, model: ActorCritic) -> State:
        silent = Trace(jnp.float32(0), jnp.float32(0), jnp.float32(0))
        return State(Weights(model), (agent.birth(key, model.actor).activations, silent))

    def reset(state: State) -> State:
        hidden, trace = state.activations
        own = agent.reset(State(Weights(state.weights.content.actor), hidden))
        return State(state.weights, (own.activations, jax.tree.map(jnp.zeros_like, trace)))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        model, (hidden, _) = state.weights.content, state.activations
        hidden, logits = recurrent.advance(model.actor, hidden, recurrent.inputs(spec, percept))
        action = jax.random.categorical(key, jax.lax.stop_gradient(logits)).astype(jnp.int32)
        odds = jax.nn.log_softmax(logits)
        value = hidden @ model.value[:-1] + model.value[-1]
        return action, State(state.weights, (hidden, Trace(odds[action], -jnp.sum(jnp.exp(odds) * odds), value)))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, Trace]:
        del key, transition
        return state, state.activations[1]

    return Agent(genome, birth, reset, act, learn, learns=True)


def advantages(reward: Array, value: Array, discount: float, trace_decay: float) -> Array:
    """Generalised advantages of a life, [T]: sums of one-step surprises, fading by discount * trace_decay."""
    following = jnp.append(value[1:], 0.0)
    surprise = reward + discount * following - value

    def back(later: Array, now: Array) -> tuple[Array, Array]:
        total = now + discount * trace_decay * later
        return total, total

    return jax.lax.scan(back, jnp.float32(0), surprise, reverse=True)[1]
