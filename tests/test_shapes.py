"""Annotated shapes are checked in all tests, and only in tests; a planted error is rejected, also under tracing.

The import hook in `conftest.py` checks the arguments and results of functions. It ignores the fields of named tuples,
so the tests of this module check the records that environments, agents and learned content return.
"""

import contextlib
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import Array
from jaxtyping import AbstractArray, Float, TypeCheckError, jaxtyped

import ontogeny
from ontogeny import plugins, rollouts, steering
from ontogeny.agents import recurrent_cells
from ontogeny.content import planning, tabular_model, tabular_posterior, transformer
from ontogeny.development import policy_gradient
from ontogeny.types import BadInput, FeaturePrior, TabularTask

S, A, H = 3, 2, 4
REWARDS, SUCCESSORS = jnp.ones((S, A)), jnp.full((S, A, S), 1 / S)
SOURCE = Path(ontogeny.__file__).parent
MODULES_WITH_SHAPES = [
    ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)
    for path in sorted(SOURCE.rglob("*.py"))
    if "from jaxtyping import" in path.read_text()
]


def plan(saved_values):
    return planning.value_iteration(REWARDS, SUCCESSORS, H, saved_values)


def plan_batch(saved_values):
    return jax.vmap(plan)(jnp.stack([saved_values, saved_values]))


TRANSFORMS = pytest.mark.parametrize("values", [plan, jax.jit(plan), plan_batch, jax.jit(plan_batch)])


@TRANSFORMS
def test_an_argument_of_the_annotated_shape_is_accepted(values):
    assert values(jnp.ones((S, A))).shape[-3:] == (H, S, A)


@TRANSFORMS
@pytest.mark.parametrize(
    "saved_values", [jnp.ones(A), jnp.ones((S, 1)), jnp.ones((S, A), int)], ids=["[A]", "[S, 1]", "int"]
)
def test_an_argument_of_another_shape_is_rejected(values, saved_values):
    """Without the check, each of these arguments would be broadcast or converted silently."""
    with pytest.raises(TypeCheckError, match="saved_step_values"):
        values(saved_values)


def test_an_unchecked_function_accepts_an_argument_of_another_shape():
    unchecked = inspect.unwrap(planning.value_iteration)
    assert unchecked(REWARDS, SUCCESSORS, H, jnp.ones(A)).shape == (H, S, A)


def test_equal_letters_require_equal_dimensions_of_different_arguments():
    with pytest.raises(TypeCheckError, match="parameter 'value'"):
        policy_gradient.advantages(jnp.ones(3), jnp.ones(1), 0.9, 0.5)
    with pytest.raises(TypeCheckError, match="parameter 'feature_sum'"):
        tabular_posterior.feature_posterior(FeaturePrior("normal", 0.0, 1.0, noise=1.0), jnp.ones((S, A)), jnp.ones(A))


@pytest.mark.parametrize("name", MODULES_WITH_SHAPES)
def test_every_function_with_annotated_shapes_is_checked(name):
    """The import hook in `conftest.py` must list each module that annotates shapes."""
    module = importlib.import_module(name)
    functions = [f for _, f in inspect.getmembers(module, inspect.isfunction) if f.__module__ == name]
    # jaxtyping leaves coroutines as they are.
    assert all(hasattr(f, "__wrapped__") for f in functions if not inspect.iscoroutinefunction(f))


def test_shapes_are_not_checked_outside_tests():
    code = "import ontogeny.types, ontogeny.content.planning, sys; sys.exit('beartype' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def mismatched_fields(record):
    """Names of the fields of a named tuple, and of named tuples in it, whose shape differs from the annotation."""
    hints = inspect.get_annotations(type(record))
    fields = {name: hint for name, hint in hints.items() if inspect.isclass(hint) and issubclass(hint, AbstractArray)}
    with jaxtyped("context"):
        # `C` occurs only in sums, so its value is bound here. Fields whose shape is a sum or product of letters come
        # last, after those that bind the letters.
        assert isinstance(jnp.zeros(recurrent_cells.NUM_TIME_INPUTS), Float[Array, "C"])
        for name in sorted(fields, key=lambda name: bool(re.search(r"\+|\d\*", fields[name].dim_str))):
            if not isinstance(getattr(record, name), fields[name]):
                yield name
    for value in record:
        if hasattr(value, "_fields"):
            yield from mismatched_fields(value)


def test_a_field_of_another_shape_or_dtype_is_detected():
    tables = TabularTask(SUCCESSORS, jnp.ones((S, A, 1)), jnp.zeros((S, A)), jnp.int32(H))
    assert not list(mismatched_fields(tables))
    assert list(mismatched_fields(tables._replace(termination_probabilities=jnp.zeros(A)))) == [
        "termination_probabilities"
    ]
    assert list(mismatched_fields(tables._replace(remaining_steps=jnp.float32(H)))) == ["remaining_steps"]


def mismatched_fields_of(compute):
    """As `mismatched_fields`, for the record that `compute` returns; it is only traced, so nothing is compiled."""
    fields = []
    jax.eval_shape(lambda: fields.extend(mismatched_fields(compute())))
    return fields


@pytest.mark.parametrize("name", plugins.list_buildable("environments"))
def test_records_of_environments_have_the_annotated_shapes(name):
    env = plugins.build("environments", name)
    drives = steering.build(env.spec)
    agent = plugins.build("agents", "random", env.spec, drives)
    key = jax.random.key(0)
    assert not mismatched_fields_of(lambda: env.reset(key)[1])
    assert not mismatched_fields_of(lambda: env.step(key, env.reset(key)[0], jnp.int32(0))[1])
    assert env.reveal_task is None or not mismatched_fields_of(lambda: env.reveal_task(env.reset(key)[0]))
    assert not mismatched_fields_of(
        lambda: rollouts.rollout_lifetime(key, agent, env, drives, (), True, num_steps=3)[1]
    )


@pytest.mark.parametrize("name", plugins.list_names("agents"))
def test_records_of_agents_have_the_annotated_shapes(name):
    """Checks the carry (weights, activations, percept) before and after one step."""
    env, drives, agent = accepted_env(name)
    key = jax.random.key(0)

    def initial_carry():
        return rollouts.initial_carry(key, agent, env, drives, agent.init(key, agent.genome(key)))

    assert not mismatched_fields_of(initial_carry)
    assert not mismatched_fields_of(
        lambda: rollouts.rollout_step((key, key, key), agent, env, drives, initial_carry(), True)[0]
    )


def test_records_of_content_have_the_annotated_shapes():
    spec = plugins.build("environments", "random_mdp", num_states=S, horizon=H).spec
    model = tabular_model.build(spec)
    assert not mismatched_fields_of(lambda: model.query(model.init()))
    assert not mismatched_fields_of(lambda: tabular_posterior.sample_task(jax.random.key(0), spec.prior, model.init()))
    config = transformer.make_config("gpt2", 7, 5, num_layers=1, num_heads=2, width=4)
    assert not mismatched_fields_of(lambda: transformer.init_weights(jax.random.key(0), config))
    assert not mismatched_fields_of(lambda: transformer.init_weights(jax.random.key(0), config).blocks[0])


def accepted_env(name):
    """Returns a small environment that the agent accepts, drives, and the agent."""
    envs = (plugins.build("environments", name) for name in ("bandit", "stream", "chain", "text", "relay"))
    for env in (plugins.build("environments", "random_mdp", num_states=S, horizon=H), *envs):
        drives = steering.build(env.spec)
        with contextlib.suppress(BadInput):
            return env, drives, plugins.build("agents", name, env.spec, drives)
    raise AssertionError(f"no environment for {name}")
