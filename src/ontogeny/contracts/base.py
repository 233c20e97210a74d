"""What the checks share: a condition with its sentence, and the program that JAX records of a function.

A program shows without any computation that an array is returned as it was received, whatever its values are.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr

from ontogeny import plugins, trees
from ontogeny.errors import ContractViolation
from ontogeny.tracing import TracedFunction
from ontogeny.types import PyTree, State

# Programs of a check run once, on few arrays, so compiling them takes most of its time.
QUICK_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


class RecordedProgram(NamedTuple):
    """The operations that a function carries out on arrays.

    Attributes:
        jaxpr: The operations and the constants in them.
        arguments: The arguments, with a variable of the program in place of each array.
        results: The result, likewise.
        shapes: The result, with a `jax.ShapeDtypeStruct` in place of each array.
    """

    jaxpr: ClosedJaxpr
    arguments: tuple[PyTree, ...]
    results: PyTree
    shapes: PyTree


class Recorder:
    """Records functions of an agent or environment, and names the user's files in the errors of these functions.

    Args:
        files: Paths of the user's files; without any, errors pass unchanged.
    """

    def __init__(self, files: Sequence[str] = ()) -> None:
        self._files = list(files)

    def record(self, name: str, function: Callable[..., Any], *arguments: PyTree) -> RecordedProgram:
        """The program of a function, which must be the same program each time that JAX traces the function."""
        with self.explain(f"`{name}` fails"):
            first, second = (_record(function, *arguments) for _ in range(2))
        require(
            is_same_program(first, second),
            f"`{name}` is not a function of its arguments: traced twice it gives two programs, as where it draws from "
            "`random` or `numpy.random` or changes a variable outside of it; draw all chance from its key and return "
            "all that changes as state",
        )
        return first

    def record_pair(self, name: str, function: Callable[..., Any], *arguments: PyTree) -> RecordedProgram:
        """As `record`, of a function that must return a pair."""
        program = self.record(name, function, *arguments)
        pair = program.shapes
        is_pair = isinstance(pair, tuple) and len(pair) == 2 and not isinstance(pair, State)
        require(is_pair, f"`{name}` must return a pair, not {type(pair).__name__}")
        return program

    def explain(self, message: str) -> Any:
        """A context that turns any error of the user's files into one sentence which begins with the message."""
        names = " and ".join(f"'{file}'" for file in self._files)
        return plugins.explain_plugin_errors(self._files, f"{message} with {names}")


def require(holds: bool, message: str) -> None:
    """Raises `ContractViolation` where a condition does not hold."""
    if not holds:
        raise ContractViolation(message)


def require_same_types(name: str, before: PyTree, after: PyTree) -> None:
    """Raises `ContractViolation` where a function returns arrays of another structure, shape or type than it took."""
    old, new = _array_types(before), _array_types(after)
    change = next((f"{o} became {n}" for o, n in zip(old, new, strict=False) if o != n), "")
    change = change or f"the number of arrays changed from {len(old)} to {len(new)}"
    require(
        old == new,
        f"`{name}` returns a state of another structure: {change}; shapes and types must stay the same in every step",
    )


def is_same_program(first: RecordedProgram, second: RecordedProgram) -> bool:
    """Whether two programs have the same operations and the same constants in them."""
    texts = [re.sub("0x[0-9a-f]+", "", str(program.jaxpr)) for program in (first, second)]  # addresses of functions
    return texts[0] == texts[1] and trees.bitwise_equal(list(first.jaxpr.consts), list(second.jaxpr.consts))


def is_passed_through(received: PyTree, returned: PyTree) -> bool:
    """Whether a part of the result of a program consists of the very variables of a part of its arguments."""
    pair = jax.tree.leaves(received), jax.tree.leaves(returned)
    return len(pair[0]) == len(pair[1]) and all(a is b for a, b in zip(*pair, strict=True))


def is_used(program: RecordedProgram, received: PyTree, results: PyTree) -> bool:
    """Whether an operation of a program, or a part of its result, takes one of the variables of its arguments."""
    used = {id(variable) for equation in program.jaxpr.eqns for variable in equation.invars}
    used |= {id(variable) for variable in jax.tree.leaves(results)}
    return any(id(variable) in used for variable in jax.tree.leaves(received))


def _record(function: Callable[..., Any], *arguments: PyTree) -> RecordedProgram:
    """Traces a function anew."""
    while isinstance(function, TracedFunction):
        function = function.function
    if hasattr(function, "lower"):  # compiled by `jax.jit`, which keeps what it traced before
        function = getattr(function, "__wrapped__", function)
    jaxpr, shapes = jax.make_jaxpr(lambda *inputs: function(*inputs), return_shape=True)(*arguments)
    variables = jax.tree.unflatten(jax.tree.structure(arguments), jaxpr.jaxpr.invars)
    results = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.jaxpr.outvars)
    return RecordedProgram(jaxpr, variables, results, shapes)


def _array_types(tree: PyTree) -> list[str]:
    """Every array of a tree by its place in it: `activations float32[3]`."""
    return [
        f"{jax.tree_util.keystr(path).lstrip('.')} {leaf.dtype}{list(leaf.shape)}".strip()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
