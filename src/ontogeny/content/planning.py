"""Planning over a posterior: what an observation is still worth, and value iteration to a finite horizon.

The bonus is derived, not tuned: the finite-horizon Gittins index says by how much a mean that is not yet known may be
overrated because what is learned can be used again. For a Normal arm of unit noise with n observations' worth of
evidence and N pulls to go it solves a stopping problem (Bellman 1956; Lai 1987, Annals of Statistics 15:1091; Gittins,
Glazebrook & Weber 2011, chapter 7); `index_bonus` is a closed form fitted to that dynamic program.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int


def value_iteration(
    rewards: Float[Array, "S A"],
    successors: Float[Array, "S A S"],
    horizon: int,
    saved: Float[Array, "S A"] | None = None,
) -> Float[Array, "H S A"]:
    """Action values Q_h(s, a) for h = 1 ... H steps to go (Puterman 1994, section 4.3).

    What the probabilities of `successors` lack of one is the probability of an end. An end is worth nothing, or, with
    `saved`, that much for each of the h - 1 steps that were still to go.
    """

    def backup(values: Float[Array, "S"], left: Float[Array, ""]) -> tuple[Float[Array, "S"], Float[Array, "S A"]]:
        action_values = rewards + successors @ values + (0.0 if saved is None else left * saved)
        return jnp.max(action_values, axis=-1), action_values

    left = jnp.arange(horizon, dtype=rewards.dtype)
    return jax.lax.scan(backup, jnp.zeros(rewards.shape[0]), left)[1]


def life_values(
    rewards: Float[Array, "S A"],
    successors: Float[Array, "S A S"],
    ends: Float[Array, "S A"],
    start: Int[Array, ""],
    horizon: int,
    num_steps: int,
) -> Float[Array, "{num_steps}+1"]:
    """What a known task is still worth where an episode begins with t steps of life left, W(t) for t = 0 ... T.

    An episode that ends early leaves its steps to those that follow, so whoever plans each episode by itself may
    linger. Value iteration over observations, steps to go h and steps of life left t, all h at once:
    V_t(s, h) = max_a r + P V_{t-1}(s', h - 1) + ends W(t - 1), where V_t(s, 0) = W(t) = V_t(start, H) and V_0 = 0.
    What the probabilities of `successors` lack of one is `ends`.
    """

    def back(later: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
        values, worth = later  # V_{t-1} [H, S] for h = 1 ... H, and W(t - 1)
        onward = jnp.concatenate([jnp.full_like(values[:1], worth), values[:-1]])
        action_values = rewards + jnp.einsum("sau,hu->hsa", successors, onward) + ends * worth
        values = jnp.max(action_values, axis=-1)
        return (values, values[-1, start]), values[-1, start]

    nothing = (jnp.zeros((horizon, rewards.shape[0])), jnp.zeros(()))
    return jnp.append(0.0, jax.lax.scan(back, nothing, None, length=num_steps)[1])


def episode_values(
    rewards: Float[Array, "S A"],
    successors: Float[Array, "S A S"],
    ends: Float[Array, "S A"],
    worth: Float[Array, "_"],
    steps_left: Int[Array, ""],
    horizon: int,
) -> Float[Array, "H S A"]:
    """Action values of an episode that begins with `steps_left` steps of life left, for h = 1 ... H to go.

    As `value_iteration`, but an end is worth what `worth`, the `life_values` W(t) for t = 0 ... T, says of the life
    that is left then, and what lies beyond the last step of life is worth nothing.
    """
    left = steps_left - horizon + jnp.arange(1, horizon + 1)  # before the action, [H]

    def backup(values: Float[Array, "S"], left: Int[Array, ""]) -> tuple[Float[Array, "S"], Float[Array, "S A"]]:
        after = worth[jnp.maximum(left - 1, 0)]
        action_values = jnp.where(left > 0, rewards + successors @ values + ends * after, 0.0)
        return jnp.max(action_values, axis=-1), action_values

    beyond = worth[jnp.maximum(steps_left - horizon, 0)]
    return jax.lax.scan(backup, jnp.full(rewards.shape[0], beyond), left)[1]


def index_bonus(evidence: Array, pulls: Array) -> Array:
    """Index minus mean of a Normal arm, in units of its noise; `evidence` n > 0 and `pulls` N >= 1 broadcast.

    Within 0.01 and 3 % of the exact index on a grid of whole n + N up to 1000, and exactly zero at the last pull.
    """
    return 0.355 * jnp.log1p(3 * (pulls - 1) / (evidence + 3)) / jnp.sqrt(evidence)


def bernoulli_bonus(mean: Array, evidence: Array, pulls: Array) -> Array:
    """Index minus mean of a Bernoulli arm: the Normal bonus on the angle 2 arcsin(sqrt(p)), whose noise is one.

    The arcsine stabilises the variance (Anscombe 1948), and the index stays a probability.
    """
    angle = 2 * jnp.arcsin(jnp.sqrt(mean)) + index_bonus(evidence, pulls)
    return jnp.sin(jnp.minimum(angle, jnp.pi) / 2) ** 2 - mean
