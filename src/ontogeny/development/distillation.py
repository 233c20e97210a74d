"""Trains a recurrent network by gradient to imitate a reference agent: what the network can hold, search aside.

Imitation on the pupil's own lives (Ross, Gordon and Bagnell 2011, DAgger, arXiv 1011.0686, with the pupil acting
from the first life on): the pupil acts, the teacher sees the same percepts and says what it would have done, and the
cross-entropy of that action falls by Adam through the whole life. Duan et al. 2016 (arXiv 1611.02779, section 3.1)
found in this way that a network which search leaves below the Gittins index can hold it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ontogeny.agents.recurrent import encode_percept
from ontogeny.content.gru import GRUWeights, step_gru
from ontogeny.development.base import Development, beside, descent
from ontogeny.errors import BadInput
from ontogeny.rollouts import rollout_lifetime
from ontogeny.types import Agent, Environment, EnvSpec, Key, Percept, State, Steering, Transition, Weights


class Lesson(NamedTuple):
    """What one step taught; the activations of a pupil hold the latest, its `Life.info` all of them."""

    loss: Array  # [] cross-entropy of the teacher's action under the pupil's logits, in nats
    agrees: Array  # [] 1 where the pupil's action is the teacher's


def build(
    agent: Agent,
    env: Environment,
    steering: Steering,
    *,
    teacher: str = "gittins",
    updates: int = 600,
    num_lifetimes: int = 128,
    step_size: float = 0.01,
    updates_per_dispatch: int = 10,
) -> Development:
    """`teacher` names a reference agent, settings after a colon; the step size falls to zero as a cosine."""
    master = beside(teacher, env, steering)
    return imitation(
        agent,
        master,
        env,
        steering,
        updates=updates,
        num_lifetimes=num_lifetimes,
        step_size=step_size,
        updates_per_dispatch=updates_per_dispatch,
    )


def imitation(agent: Agent, master: Agent, env: Environment, steering: Steering, **schedule: Any) -> Development:
    """The same with any agent of the same environment as the teacher; `schedule` as in `development.base.descent`."""
    apprentice = pupil(agent, master, env.spec)

    def loss(genome: GRUWeights, keys: Key, progress: Array) -> tuple[Array, dict[str, Array]]:
        del progress
        lesson, fitness = jax.vmap(lambda key: attend(key, apprentice, env, steering, genome))(keys)
        return jnp.mean(lesson.loss), {"agreement": jnp.mean(lesson.agrees), "fitness": jnp.mean(fitness)}

    return descent(agent.genome, loss, lambda network: network, env, **schedule)


def pupil(agent: Agent, master: Agent, spec: EnvSpec) -> Agent:
    """The agent, acting as ever, with a teacher at its side that perceives what it perceives.

    The teacher's weights and activations travel with the pupil's, so it may learn as the life goes on. `learn`
    leaves the pupil's weights alone and hands out the `Lesson`; it is a differentiable function of the genome.
    """
    if not isinstance(jax.eval_shape(agent.genome, jax.random.key(0)), GRUWeights):
        raise BadInput("the development 'distillation' trains the agent 'recurrent' only")

    def init(key: Key, genome: GRUWeights) -> State:
        own = agent.init(key, genome)
        genome_key, birth_key = jax.random.split(key)
        taught = master.init(birth_key, master.genome(genome_key))
        nothing = Lesson(jnp.float32(0), jnp.float32(0))
        return State(
            Weights((own.weights.content, taught.weights)),
            (own.activations, taught.activations, nothing),
        )

    def reset(state: State) -> State:
        (content, taught), (hidden, memory, lesson) = state.weights.content, state.activations
        own = agent.reset(State(Weights(content), hidden))
        others = master.reset(State(taught, memory))
        return State(state.weights, (own.activations, others.activations, jax.tree.map(jnp.zeros_like, lesson)))

    def act(key: Key, state: State, percept: Percept) -> tuple[Array, State]:
        (network, taught), (hidden, memory, _) = state.weights.content, state.activations
        act_key, master_key = jax.random.split(key)
        label, others = master.act(master_key, State(taught, memory), percept)
        # The network is run twice in writing and once in fact: the compiler sees that both are the same.
        action, _ = agent.act(act_key, State(Weights(network), hidden), percept)
        hidden, logits = step_gru(network, hidden, encode_percept(spec, percept))
        lesson = Lesson(-jax.nn.log_softmax(logits)[label], (action == label).astype(jnp.float32))
        return action, State(state.weights, (hidden, others.activations, lesson))

    def learn(key: Key, state: State, transition: Transition) -> tuple[State, Lesson]:
        (network, taught), (_, memory, lesson) = state.weights.content, state.activations
        if master.learning:
            taught = master.learn(key, State(taught, memory), transition)[0].weights
        return State(Weights((network, taught)), state.activations), lesson

    return Agent(agent.genome, init, reset, act, learn, learning=master.learning, privileged=master.privileged)


def attend(
    key: Key, apprentice: Agent, env: Environment, steering: Steering, genome: GRUWeights
) -> tuple[Lesson, Array]:
    """One life of a pupil: its lessons, leading axis T, and its return []."""
    _, trajectory = rollout_lifetime(key, apprentice, env, steering, genome, learning=True)
    return trajectory.info, jnp.sum(trajectory.reward)
