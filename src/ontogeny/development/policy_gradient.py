"""Trains a recurrent network by policy gradient through whole lifetimes: RL^2 itself, as a published reference point.

Duan et al. 2016 (RL^2, arXiv 1611.02779, section 2.3) with the advantage actor-critic of Wang et al. 2016 (arXiv
1611.05763, section 2.2) in place of TRPO: generalized advantages (Schulman et al. 2016, arXiv 1506.02438, equation 16),
a critic that reads the same hidden units and is discarded after training, a decaying entropy bonus, Adam. A lifetime is
one unbroken return: the discount is counted across its episodes.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int32

from ontogeny.agents.recurrent import encode_percept
from ontogeny.content.gru_cell import GRUWeights, step_gru
from ontogeny.development.base import GradientBudget, develop_by_gradient
from ontogeny.errors import BadInput, require_between
from ontogeny.lifetimes import LifetimeMeasure, lifetimes_per_call, measure_lifetimes
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import (
    Agent,
    AnyEnvironment,
    Development,
    EnvSpec,
    HostEnvironment,
    Key,
    Percept,
    PyTree,
    State,
    Steering,
    Trajectory,
    Transition,
    Weights,
)


class ActorCritic(NamedTuple):
    """The trained parameters; only the actor is deployed."""

    actor: GRUWeights
    value: Float[Array, "H+1"]  # the critic's read-out and its bias


class PolicyInfo(NamedTuple):
    """Inputs of the loss at one step; leading axis T for a lifetime; all 0 in the steps after a lifetime is over."""

    log_probability: Float[Array, ""]  # of the action taken
    entropy: Float[Array, ""]  # of the policy, in nats
    value: Float[Array, ""]  # the critic's estimate before the action
    weight: Float[Array, ""]  # 1; 0 in the steps after the lifetime is over


class LifetimeExperience(NamedTuple):
    """What is recorded of one step in an environment of Python objects; leading axis T for a lifetime."""

    inputs: Float[Array, "I"]  # of the network
    action: Int32[Array, ""]
    reward: Float[Array, ""]
    weight: Float[Array, ""]  # 1; 0 in the steps after the lifetime is over


def build(
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    *,
    num_updates: int = 1000,
    num_lifetimes: int = 128,
    learning_rate: float = 0.01,
    discount: float = 0.95,
    trace_decay: float = 0.9,
    entropy_bonus: float = 0.12,
    updates_per_call: int = 10,
) -> Development:
    """Builds the development.

    Args:
        agent: The agent `recurrent`.
        num_updates: Gradient steps, at least 1.
        num_lifetimes: Lifetimes per update, at least 1.
        learning_rate: Of the first update, at least 0; falls to zero as a cosine.
        discount: Discount factor per step, from 0 to 1.
        trace_decay: Lambda of the generalized advantages, from 0 to 1.
        entropy_bonus: Weight of the entropy in the first update, which falls to zero linearly; without it the policy
            becomes deterministic before it explores.
        updates_per_call: Updates per compiled call at most, at least 1; in an environment of Python objects, each
            update is a call of its own.
    """
    require_between(0, 1, discount=discount, trace_decay=trace_decay)
    actor = make_actor_critic(agent, env.spec)

    def run(model: ActorCritic, experience: Any) -> tuple[PolicyInfo, Array]:
        if isinstance(env, HostEnvironment):
            return replay_policy(agent, model, experience), experience.reward
        _, trajectory = rollout_lifetime(experience, actor, env, steering, model, learning=True)
        return trajectory.info, trajectory.reward

    def loss(model: ActorCritic, experience: PyTree, progress: Array) -> tuple[Array, dict[str, Array]]:
        info, reward = jax.vmap(partial(run, model))(experience)
        return actor_critic_loss(info, reward, discount, trace_decay, entropy_bonus * (1 - progress))

    collect = None
    if isinstance(env, HostEnvironment):
        collect = partial(collect_experience, recording_agent(actor, env.spec), env, steering)
    budget = GradientBudget(num_updates, num_lifetimes, learning_rate, updates_per_call)
    return develop_by_gradient(actor.genome, loss, lambda model: model.actor, env, budget, collect)


def collect_experience(
    agent: Agent, env: HostEnvironment, steering: Steering, model: ActorCritic, keys: Key
) -> LifetimeExperience:
    """Runs lifetimes in an environment of Python objects; leading axes B and T.

    Args:
        agent: From `recording_agent`.
        keys: [B].
    """
    at_once = lifetimes_per_call(agent, env, steering, model, len(keys))
    chunks = [keys[begin : begin + at_once] for begin in range(0, len(keys), at_once)]
    recorded = [measure_lifetimes(_EXPERIENCE, chunk, model, agent, env, steering, True) for chunk in chunks]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *recorded)


def recording_agent(actor: Agent, spec: EnvSpec) -> Agent:
    """The network with a critic, for lifetimes of which `replay_policy` computes the `PolicyInfo` afterwards."""

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, LifetimeExperience]:
        del key
        inputs = encode_percept(spec, transition.percept)
        reward = transition.next_percept.reward
        return state, LifetimeExperience(inputs, transition.action, reward, jnp.float32(1))

    return actor._replace(learn=learn)


def replay_policy(agent: Agent, model: ActorCritic, experience: LifetimeExperience) -> PolicyInfo:
    """The `PolicyInfo` of a recorded lifetime, leading axis T, as a differentiable function of the model."""
    hidden = agent.init(jax.random.key(0), model.actor).activations

    def step(hidden: Array, step: LifetimeExperience) -> tuple[Array, PolicyInfo]:
        hidden, logits = step_gru(model.actor, hidden, step.inputs)
        info = policy_info(model, hidden, logits, step.action)
        return hidden, jax.tree.map(lambda number: number * step.weight, info)

    return jax.lax.scan(step, hidden, experience)[1]


def policy_info(model: ActorCritic, hidden: Float[Array, "H"], logits: Float[Array, "A"], action: Array) -> PolicyInfo:
    """The inputs of the loss at a step in which this action was taken."""
    log_policy = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_policy) * log_policy)
    value = hidden @ model.value[:-1] + model.value[-1]
    return PolicyInfo(log_policy[action], entropy, value, jnp.float32(1))


def actor_critic_loss(
    info: PolicyInfo, reward: Float[Array, "B T"], discount: float, trace_decay: float, entropy_weight: Array
) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch of lifetimes, [], with its diagnostics; `info` has leading axes B and T.

    Means and variances are over the steps that were taken; the steps after a lifetime is over count nowhere.
    """
    is_taken = info.weight > 0
    # The critic learns returns in units of one step's reward: it starts at zero and would take long to reach sums.
    scaled_reward, value = (1 - discount) * reward, jax.lax.stop_gradient(info.value)
    advantage = jax.vmap(lambda r, v: advantages(r, v, discount, trace_decay))(scaled_reward, value)
    target = value + advantage
    mean = partial(jnp.mean, where=is_taken)
    scaled = (advantage - mean(advantage)) / (jnp.std(advantage, where=is_taken) + 1e-6)
    fitness, entropy = jnp.mean(jnp.sum(reward, axis=1)), mean(info.entropy)
    actor_loss = -mean(info.log_probability * scaled) - entropy_weight * entropy
    critic_loss = mean((info.value - target) ** 2)
    diagnostics = {"fitness": fitness, "entropy": entropy, "critic_loss": critic_loss, "env_steps": jnp.sum(is_taken)}
    # The loss of the critic is measured against the variance of its targets; 0.5 is its usual weight.
    return actor_loss + 0.5 * critic_loss / (jnp.var(target, where=is_taken) + 1e-6), diagnostics


def make_actor_critic(agent: Agent, spec: EnvSpec) -> Agent:
    """The network with a critic, drawing its actions by softmax; `Trajectory.info` holds the `PolicyInfo`.

    Raises:
        BadInput: The agent is not `recurrent`.
    """
    if not isinstance(jax.eval_shape(agent.genome, jax.random.key(0)), GRUWeights):
        raise BadInput("the development 'policy_gradient' trains the agent 'recurrent' only")

    def genome(key: Key) -> ActorCritic:
        actor = agent.genome(key)
        return ActorCritic(actor, jnp.zeros(actor.readout.shape[0] + 1))

    def init(key: Key, model: ActorCritic) -> State:
        info = PolicyInfo(*[jnp.float32(0)] * len(PolicyInfo._fields))
        return State(Weights(model), (agent.init(key, model.actor).activations, info))

    def reset(state: State) -> State:
        hidden, info = state.activations
        hidden = agent.reset(State(Weights(state.weights.content.actor), hidden)).activations
        return State(state.weights, (hidden, jax.tree.map(jnp.zeros_like, info)))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        model, (hidden, _) = state.weights.content, state.activations
        hidden, logits = step_gru(model.actor, hidden, encode_percept(spec, percept))
        action = jax.random.categorical(key, jax.lax.stop_gradient(logits)).astype(jnp.int32)
        return action, State(state.weights, (hidden, policy_info(model, hidden, logits, action)))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, PolicyInfo]:
        del key, transition
        return state, state.activations[1]

    return Agent(genome, init, reset, act, learn, learning=True)


def advantages(
    reward: Float[Array, "T"], value: Float[Array, "T"], discount: float, trace_decay: float
) -> Float[Array, "T"]:
    """Generalized advantages of a lifetime: sums of TD errors, decaying by discount * trace_decay."""
    next_value = jnp.append(value[1:], 0.0)
    td_error = reward + discount * next_value - value

    def accumulate(later: Float[Array, ""], error: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        total = error + discount * trace_decay * later
        return total, total

    return jax.lax.scan(accumulate, jnp.float32(0), td_error, reverse=True)[1]


def _record_experience(env: AnyEnvironment, step: Trajectory) -> LifetimeExperience:
    """Keeps what the agent recorded."""
    del env
    return step.info


def _keep_experience(before: Weights, after: State, experience: LifetimeExperience) -> LifetimeExperience:
    """Returns what was recorded."""
    del before, after
    return experience


_EXPERIENCE = LifetimeMeasure(_record_experience, _keep_experience)
