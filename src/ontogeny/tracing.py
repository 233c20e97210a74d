"""Functions that JAX traces once, although it runs their operations one by one.

A loop (`scan`, `while_loop`, `cond` or `map`) that is called outside of `jax.jit` is compiled at each call whose loop
body is a new closure, and JAX keeps each of these programs. A `TracedFunction` compiles it at the first call.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Generic, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.custom_batching import custom_vmap
from jax.extend.core import jaxpr_as_fun

from ontogeny.types import PyTree

Result = TypeVar("Result")
NamedTupleT = TypeVar("NamedTupleT", bound=NamedTuple)
MAX_PROGRAMS = 16  # shapes of arguments for which a function keeps its trace
MAX_BUILT = 128  # objects that `build_once` keeps


class TracedFunction(Generic[Result]):
    """A function whose operations are recorded at the first call, and run one by one at each call.

    Results have the bits that the function itself gives outside of `jax.jit`. Inside of a trace it is called as it is.

    Args:
        function: A function that JAX can trace; its arguments are pytrees of arrays and numbers.
    """

    def __init__(self, function: Callable[..., Result]) -> None:
        self.function = function
        self._record = lru_cache(MAX_PROGRAMS)(self._trace)

    def __call__(self, *arguments: Any) -> Result:
        """Calls the function."""
        if holds_tracers(*arguments) or is_tracing():
            return self.function(*arguments)
        leaves, structure = jax.tree.flatten(arguments)
        run, result_structure = self._record(structure, tuple(map(jax.typeof, leaves)))
        return jax.tree.unflatten(result_structure, run(*leaves))

    def __repr__(self) -> str:
        return f"<traced {self.function!r}>"

    def _trace(self, structure: Any, types: tuple[Any, ...]) -> tuple[Callable[..., list[Any]], Any]:
        """The recorded operations as a function of the leaves of the arguments, and the structure of the result."""

        def function(*leaves: Any) -> Result:
            return self.function(*jax.tree.unflatten(structure, leaves))

        program, result = jax.make_jaxpr(function, return_shape=True)(*types)
        return jaxpr_as_fun(program), jax.tree.structure(result)


def trace_fields(record: NamedTupleT, *names: str) -> NamedTupleT:
    """A copy of a NamedTuple of functions, such as an agent, in which these fields are traced once."""
    return record._replace(**{name: TracedFunction(getattr(record, name)) for name in names})


def holds_tracers(*trees: PyTree) -> bool:
    """Whether an array of these trees belongs to a trace."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def is_tracing() -> bool:
    """Whether JAX traces the calling function at present, so that every new array belongs to a trace."""
    return isinstance(jnp.zeros(()), Tracer)


def build_once(build: Callable[..., Result], *arguments: Any) -> Result:
    """`build(*arguments)`; equal arguments give the same object, for which JAX has compiled its programs already.

    Args:
        build: A pure function. It is called anew inside of a trace, and for arguments that are not hashable.
        *arguments: Equal where the objects may be the same, such as names, settings and specs.
    """
    try:
        hash(arguments)
    except TypeError:
        return build(*arguments)
    if is_tracing():
        return build(*arguments)
    return cast("Result", _build(build, arguments, repr(arguments)))


@lru_cache(MAX_BUILT)
def _build(build: Callable[..., Any], arguments: tuple[Any, ...], text: str) -> Any:
    """The object for these arguments, whose text tells numbers apart that are equal, such as 1 and 1.0."""
    del text
    return build(*arguments)


def lazy_cond(condition: Array, compute: Callable[[PyTree], PyTree], operand: PyTree, otherwise: PyTree) -> PyTree:
    """Returns `compute(operand)` where `condition` holds, else `otherwise`; stays cheap under `vmap`.

    `vmap` turns `lax.cond` into a selection between two results that are both computed. Here the whole batch is
    computed only if the condition holds for at least one of its elements.

    Args:
        condition: Whether to compute.
        compute: The costly function.
        operand: Its argument.
        otherwise: The alternative, of the same structure and shapes as the computed result.
    """

    @custom_vmap
    def choose(condition: Array, operand: PyTree, otherwise: PyTree) -> PyTree:
        return jax.lax.cond(condition, lambda: compute(operand), lambda: otherwise)

    @choose.def_vmap
    def _(
        axis_size: int, in_batched: list[PyTree], condition: Array, operand: PyTree, otherwise: PyTree
    ) -> tuple[PyTree, PyTree]:
        def broadcast(tree: PyTree, batched: PyTree) -> PyTree:
            return jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (axis_size, *x.shape)), tree, batched)

        arguments = zip((condition, operand, otherwise), in_batched, strict=True)
        conditions, operands, alternatives = (broadcast(tree, batched) for tree, batched in arguments)

        def compute_batch(batch: tuple[Array, PyTree, PyTree]) -> PyTree:
            conditions, operands, alternatives = batch

            def select(new: Array, old: Array) -> Array:
                return jnp.where(conditions.reshape(-1, *[1] * (new.ndim - 1)), new, old)

            return jax.tree.map(select, jax.vmap(compute)(operands), alternatives)

        selected = lazy_cond(jnp.any(conditions), compute_batch, (conditions, operands, alternatives), alternatives)
        return selected, jax.tree.map(lambda _: True, selected)

    return choose(condition, operand, otherwise)
