"""Trains a recurrent network by gradient to imitate a baseline agent: what the network can hold, search aside.

Imitation on the student's own lifetimes (Ross, Gordon and Bagnell 2011, DAgger, arXiv 1011.0686, with the student
acting from the first lifetime on): the student acts, the teacher receives the same percepts and labels each with its
own action, and Adam lowers the cross-entropy of that action through the whole lifetime. Duan et al. 2016 (arXiv
1611.02779, section 3.1) found in this way that a network which search leaves below the Gittins index can hold it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.recurrent import encode_percept
from ontogeny.content.gru_cell import GRUWeights, step_gru
from ontogeny.development.base import GradientBudget, build_agent_from_text, develop_by_gradient
from ontogeny.errors import BadInput
from ontogeny.lifetimes import require_jax_env
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import (
    Agent,
    AnyEnvironment,
    Development,
    Environment,
    EnvSpec,
    Key,
    Percept,
    State,
    Steering,
    Transition,
    Weights,
)


class ImitationInfo(NamedTuple):
    """The comparison of student and teacher at one step; the student's activations hold the latest.

    All numbers are 0 in the steps after a lifetime is over.
    """

    loss: Array  # [] cross-entropy of the teacher's action under the student's logits, in nats
    agreement: Array  # [] 1 where the student's action is the teacher's
    weight: Array  # [] 1; 0 in the steps after the lifetime is over


def build(
    agent: Agent,
    env: AnyEnvironment,
    steering: Steering,
    *,
    teacher: str = "gittins",
    num_updates: int = 600,
    num_lifetimes: int = 128,
    learning_rate: float = 0.01,
    updates_per_call: int = 10,
) -> Development:
    """Builds the development.

    Args:
        agent: The student, the agent `recurrent`.
        env: The environment in which the teacher acts and the student imitates it.
        steering: The reward function of student and teacher.
        teacher: Agent that is imitated, settings after a colon.
        num_updates: Gradient steps, at least 1.
        num_lifetimes: Lifetimes per update, at least 1.
        learning_rate: Of the first update, at least 0; falls to zero as a cosine.
        updates_per_call: Updates per compiled call at most, at least 1.
    """
    env = require_jax_env(env, "the development 'distillation'")
    budget = GradientBudget(num_updates, num_lifetimes, learning_rate, updates_per_call)
    return imitate(agent, build_agent_from_text(teacher, env, steering), env, steering, budget)


def imitate(agent: Agent, teacher: Agent, env: Environment, steering: Steering, budget: GradientBudget) -> Development:
    """The development of `build` with any agent of the same environment as the teacher."""
    student = make_student(agent, teacher, env.spec)

    def loss(genome: GRUWeights, keys: Key, progress: Array) -> tuple[Array, dict[str, Array]]:
        del progress
        info, fitness = jax.vmap(lambda key: rollout_student(key, student, env, steering, genome))(keys)
        is_taken = info.weight > 0
        diagnostics = {
            "agreement": jnp.mean(info.agreement, where=is_taken),
            "fitness": jnp.mean(fitness),
            "env_steps": jnp.sum(is_taken),
        }
        return jnp.mean(info.loss, where=is_taken), diagnostics

    return develop_by_gradient(agent.genome, loss, lambda network: network, env, budget)


def make_student(agent: Agent, teacher: Agent, spec: EnvSpec) -> Agent:
    """The agent with a teacher that receives the same percepts.

    The student's state contains the teacher's weights and activations, so the teacher may learn during the lifetime.
    `learn` leaves the student's own weights alone and returns the `ImitationInfo`, a differentiable function of the
    genome.

    Raises:
        BadInput: The agent is not `recurrent`.
    """
    if not isinstance(jax.eval_shape(agent.genome, jax.random.key(0)), GRUWeights):
        raise BadInput("the development 'distillation' trains the agent 'recurrent' only")

    def init(key: Key, genome: GRUWeights) -> State:
        student_state = agent.init(key, genome)
        genome_key, init_key = jax.random.split(key)
        teacher_state = teacher.init(init_key, teacher.genome(genome_key))
        info = ImitationInfo(jnp.float32(0), jnp.float32(0), jnp.float32(0))
        weights = Weights((student_state.weights.content, teacher_state.weights))
        return State(weights, (student_state.activations, teacher_state.activations, info))

    def reset(state: State) -> State:
        (network, teacher_weights), (hidden, teacher_activations, info) = state.weights.content, state.activations
        hidden = agent.reset(State(Weights(network), hidden)).activations
        teacher_activations = teacher.reset(State(teacher_weights, teacher_activations)).activations
        return State(state.weights, (hidden, teacher_activations, jax.tree.map(jnp.zeros_like, info)))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        (network, teacher_weights), (hidden, teacher_activations, _) = state.weights.content, state.activations
        act_key, teacher_key = jax.random.split(key)
        label, teacher_state = teacher.act(teacher_key, State(teacher_weights, teacher_activations), percept)
        # The compiler recognizes that both calls of the network are the same and runs it once.
        action, _ = agent.act(act_key, State(Weights(network), hidden), percept)
        hidden, logits = step_gru(network, hidden, encode_percept(spec, percept))
        agreement = (action == label).astype(jnp.float32)
        info = ImitationInfo(-jax.nn.log_softmax(logits)[label], agreement, jnp.float32(1))
        return action, State(state.weights, (hidden, teacher_state.activations, info))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, ImitationInfo]:
        (network, teacher_weights), (_, teacher_activations, info) = state.weights.content, state.activations
        if teacher.learning:
            teacher_weights = teacher.learn(key, State(teacher_weights, teacher_activations), transition)[0].weights
        return State(Weights((network, teacher_weights)), state.activations), info

    return Agent(agent.genome, init, reset, act, learn, learning=teacher.learning, privileged=teacher.privileged)


def rollout_student(
    key: Key, student: Agent, env: Environment, steering: Steering, genome: GRUWeights
) -> tuple[ImitationInfo, Array]:
    """One lifetime of a student: its `ImitationInfo`, leading axis T, and its return []."""
    _, trajectory = rollout_lifetime(key, student, env, steering, genome, learning=True)
    return trajectory.info, jnp.sum(trajectory.reward)
