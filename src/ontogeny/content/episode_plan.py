"""A plan for one episode, drawn up where an episode begins and followed to its end.

`only_where` is why this is fast: `vmap` turns `lax.cond` into a choice between two results that are both computed, at
every step; here the costly one is computed only if some life of the batch is at the beginning of an episode.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float, Int32

from ontogeny.types import EnvSpec, Key, Percept, PyTree


class Plan(NamedTuple):
    policy: Int32[Array, "H S"]  # the action with h + 1 steps to go
    taken: Int32[Array, ""]  # steps of the episode taken so far; -1 where there is no plan


def none_yet(spec: EnvSpec) -> Plan:
    return Plan(jnp.zeros((spec.horizon, spec.num_observations), jnp.int32), jnp.int32(-1))


def follow(
    key: Key, plan: Plan, percept: Percept, action_values: Callable[[Key, PyTree], Float[Array, "H S A"]], given: PyTree
) -> tuple[Int32[Array, ""], Plan]:
    """The plan's next action; where an episode begins, a new plan is made from `action_values(key, given)`.

    `action_values` must not close over traced arrays: all that varies comes in through `given`.
    """

    def policy(key_and_given: tuple[Key, PyTree]) -> Int32[Array, "H S"]:
        value_key, tie_key = jax.random.split(key_and_given[0])
        return _greedy(tie_key, action_values(value_key, key_and_given[1]))

    begins = percept.first | (plan.taken < 0)
    policy_now = only_where(begins, policy, (key, given), plan.policy)
    taken = jnp.where(begins, 0, plan.taken)
    to_go = jnp.maximum(len(plan.policy) - taken, 1)
    return policy_now[to_go - 1, percept.observation], Plan(policy_now, taken + 1)


def at_time_limit(spec: EnvSpec, plan: Plan) -> Bool[Array, ""]:
    """Whether the step just taken was the last that an episode may take, so that its end tells nothing of the task."""
    return plan.taken >= spec.horizon


def only_where(
    condition: Bool[Array, ""], compute: Callable[[PyTree], PyTree], given: PyTree, otherwise: PyTree
) -> PyTree:
    """`compute(given)` where `condition`, else `otherwise`; in a batch computed only if it holds for any."""

    @custom_vmap
    def choice(condition: Bool[Array, ""], given: PyTree, otherwise: PyTree) -> PyTree:
        return jax.lax.cond(condition, lambda: compute(given), lambda: otherwise)

    @choice.def_vmap
    def _(axis_size: int, in_batched, condition: Array, given: PyTree, otherwise: PyTree):
        def whole(tree: PyTree, batched: PyTree) -> PyTree:
            return jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (axis_size, *x.shape)), tree, batched)

        condition, given, otherwise = (
            whole(x, b) for x, b in zip((condition, given, otherwise), in_batched, strict=True)
        )

        def some(given_and_rest: PyTree) -> PyTree:
            conditions, given, rest = given_and_rest

            def merge(new: Array, old: Array) -> Array:
                return jnp.where(conditions.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            return jax.tree.map(merge, jax.vmap(compute)(given), rest)

        result = only_where(jnp.any(condition), some, (condition, given, otherwise), otherwise)
        return result, jax.tree.map(lambda _: True, result)

    return choice(condition, given, otherwise)


def _greedy(key: Key, values: Float[Array, "*rest A"]) -> Int32[Array, "*rest"]:
    """The best actions, ties broken by chance."""
    best = values == jnp.max(values, axis=-1, keepdims=True)
    return jnp.argmax(jnp.where(best, jax.random.uniform(key, values.shape), -1.0), axis=-1).astype(jnp.int32)
