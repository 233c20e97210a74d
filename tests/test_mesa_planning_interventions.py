"""Tests of the measures of use and goal-directedness on contents whose algorithm is known."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax import Array

from ontogeny.agents.relay_streams import NUM_ACTIONS, Layout, find_member
from ontogeny.content.base import Predictor, StreamEdit
from ontogeny.environments import relay
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.studies.mesa.planning import abilities, goals, interventions, queries
from ontogeny.studies.mesa.planning.cells import CELLS, DEPTHS
from planted_contents import observed_steps

NUM_STREAMS = 160
PARAMS = DEPTHS[2]
LAYOUT = Layout(relay.num_states(PARAMS))
SETTINGS = CELLS["planner"].settings
FOOD = 0
CERTAIN = 20.0  # a logit
NUM_NUISANCES = 30
READ, COPY = 0, 1  # coordinates of the stream: the advantage that the content reads, and a copy that it does not read
COPY_SCALE, READ_NOISE = 3.0, 0.15  # standard deviation of the noise; that of a nuisance is 1
VARIABLE_LEVEL = 1  # at which the stream holds the advantage


def observed_advantage(inputs: Array, *, keeps_first: bool = False) -> Array:
    """The advantage of action 1 at the start for food, by what the inputs have shown.

    Args:
        inputs: Of a sequence; leading axis L.
        keeps_first: Whether the first observation of a link counts rather than the last one.
    """
    steps = observed_steps(LAYOUT, inputs)
    if keeps_first:
        steps = jax.tree.map(lambda leaf: leaf[::-1], steps)
    values = queries.start_values(PARAMS, queries.read_knowledge(PARAMS, steps).links, FOOD)
    return values[1] - values[0]


def content_of(query_edited) -> Predictor:
    """A content with these predictions, which are made at the last query of a sequence alone."""

    def query_sequence(weights: tuple, inputs: Array) -> Array:
        return query_edited(weights, inputs, lambda level, stream: stream)[0]

    return Predictor(lambda key: (), lambda weights: (), tuple, None, query_sequence, None, query_edited)  # pyright: ignore


def linear_content(read_noise: float = READ_NOISE) -> Predictor:
    """A content whose residual stream holds the advantage twice, beside nuisances, and reads the noisier one."""
    size = 2 + NUM_NUISANCES
    project = jax.random.normal(jax.random.key(0), (LAYOUT.num_inputs, size))

    def query_edited(weights: tuple, inputs: Array, edit: StreamEdit) -> tuple[Array, Array]:
        # A hash of the sequence: nuisances that have nothing to do with the advantage.
        total = jnp.sum(inputs * (1 + jnp.arange(len(inputs)))[:, None], axis=0) @ project
        nuisance = jnp.sin(total) * jnp.sqrt(2.0)
        advantage = observed_advantage(inputs)
        at_query = interventions.QUERY_POSITION
        embedding = edit(0, jnp.zeros((len(inputs), size)).at[at_query].set(nuisance.at[:2].set(0)))
        read = advantage + read_noise * nuisance[READ]
        variables = jnp.zeros(size).at[READ].set(read).at[COPY].set(COPY_SCALE * advantage)
        after = edit(VARIABLE_LEVEL, embedding.at[at_query].add(variables))
        logits = jnp.zeros((len(inputs), LAYOUT.num_classes))
        logits = logits.at[at_query, 1].set(CERTAIN * after[at_query, READ])
        return logits, jnp.stack([embedding, after])

    return content_of(query_edited)


def choosing_content(choose) -> Predictor:
    """A content that is certain of the choice that a function of the inputs makes."""

    def query_edited(weights: tuple, inputs: Array, edit: StreamEdit) -> tuple[Array, Array]:
        logits = jnp.zeros((len(inputs), LAYOUT.num_classes))
        return logits.at[interventions.QUERY_POSITION, :NUM_ACTIONS].set(choose(inputs)), jnp.zeros((1, len(inputs), 1))

    return content_of(query_edited)


def certain_choice(action: Array) -> Array:
    """The logits of a certain choice."""
    return CERTAIN * jax.nn.one_hot(action.astype(jnp.int32), NUM_ACTIONS)


CHOICES = {
    "planner": lambda inputs: certain_choice(observed_advantage(inputs) > 0),
    "first impressions": lambda inputs: certain_choice(observed_advantage(inputs, keeps_first=True) > 0),
    "random": lambda inputs: certain_choice(jnp.sum(inputs * jnp.arange(len(inputs))[:, None] ** 2) % 7 > 3),
    "indifferent": lambda inputs: jnp.zeros(NUM_ACTIONS),
}


@pytest.fixture(scope="module")
def streams_of_tests():
    keys = sample_lifetime_keys(key_from_seed(11), NUM_STREAMS, "evaluation")
    sample = jax.jit(jax.vmap(partial(abilities.sample_tests, params=PARAMS, settings=SETTINGS)))
    return keys, sample(keys)


def build_tester(content: Predictor) -> abilities.Tester:
    """The content with the streams of planners."""
    return abilities.Tester(content, PARAMS, SETTINGS, jnp.int32(find_member("planner")))


def measure(content: Predictor, streams_of_tests: tuple, function: abilities.Measure) -> dict[str, tuple[float, int]]:
    """A measure of a content over all test streams."""
    run = jax.jit(partial(abilities.measure_run, tester=build_tester(content), weights=(), measures=(function,)))
    keys, streams = streams_of_tests
    return {name: (float(mean), int(count)) for name, (mean, count) in run(keys, streams=streams).items()}


@pytest.fixture(scope="module")
def directions(streams_of_tests):
    keys, streams = streams_of_tests
    measured = jax.jit(partial(interventions.measure_directions, tester=build_tester(linear_content()), weights=()))(
        keys[0], streams=streams
    )
    return {name: float(value[0] if isinstance(value, tuple) else value) for name, value in measured.items()}


def test_steering_along_the_direction_that_holds_the_variable_reverses_choices(directions):
    """The least-norm probe decodes as well from a copy that the content does not read, and reverses nothing."""
    assert directions["best choices"] > 0.85 and directions["probe R2, level 1"] > 0.9
    assert directions["encoding direction, level 1"] > 0.9
    assert directions["probe direction, level 1"] < 0.1
    assert directions["random directions, level 1"] < 0.1
    assert directions["random directions, 95th percentile, level 1"] < 0.5
    assert directions["ablation, level 1"] > 0.25
    assert directions["ablation, level 1"] > directions["random ablations, 95th percentile, level 1"] + 0.1


def test_steering_at_a_level_that_does_not_hold_the_variable_reverses_nothing(directions):
    assert directions["probe R2, level 0"] < 0.2
    for name in ("encoding direction", "probe direction", "random directions", "ablation", "random ablations"):
        assert directions[f"{name}, level 0"] < 0.05, name


def test_an_exchange_at_the_level_that_holds_the_variable_moves_the_choice(streams_of_tests):
    measured = measure(linear_content(read_noise=0.0), streams_of_tests, interventions.measure_interchange)
    for layer in (1, 2):
        for level, expected in ((0, 0.0), (VARIABLE_LEVEL, 1.0)):
            effect, count = measured[f"interchange, layer {layer}, level {level}"]
            assert effect == expected and count > 20
            assert measured[f"harmless interchange, layer {layer}, level {level}"][0] == 0.0


@pytest.mark.parametrize(("name", "expected"), [("planner", 1.0), ("random", 0.0), ("indifferent", 0.0)])
def test_goal_directedness_is_one_for_a_planner_and_zero_for_chance(name, expected, streams_of_tests):
    content = build_tester(choosing_content(CHOICES[name]))
    value = jax.jit(partial(goals.goal_directedness, content, weights=()))(streams_of_tests[1])
    assert float(value) == pytest.approx(expected, abs=0.05)
