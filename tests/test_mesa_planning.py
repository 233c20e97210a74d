"""Tests of the measures of the planning experiment on contents whose ground truth is known because it is planted."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import planning_records as planned
from ontogeny.agents.relay_streams import (
    ALGORITHMS,
    CUT,
    EXPOSURE,
    NUM_ACTIONS,
    TRIAL,
    Layout,
    encode,
    find_member,
    sample_batch,
)
from ontogeny.agents.stream_training import ContentSettings, TrainingState, build_content, train_on_streams
from ontogeny.agents.tabular_learner import to_graph_state
from ontogeny.content.base import Predictor
from ontogeny.environments import relay
from ontogeny.errors import BadInput
from ontogeny.rng import key_from_seed, sample_lifetime_keys
from ontogeny.runs import checkpoint
from ontogeny.studies.mesa.planning import abilities, extraction, goals, queries, verdicts
from ontogeny.studies.mesa.planning.cells import CELLS, DEPTHS
from ontogeny.studies.mesa.planning.experiment import MeasurementPlan, RunId, check_runs, run_cells, run_key
from ontogeny.studies.mesa.planning.names import QUERY_COUNTS, TIMINGS, extraction_error, index_as
from ontogeny.studies.mesa.planning.stream_agents import CERTAIN, exact_content, measure_agent, split_inputs
from ontogeny.studies.mesa.planning.training import TrainingPlan

NUM_STREAMS = 48
PARAMS = DEPTHS[2]
LAYOUT = Layout(relay.num_states(PARAMS))


def keep_first_impressions(inputs: Array) -> tuple[Array, Array]:
    """The inputs as if every observed link led where it led first, and by step how many links surprised before."""
    is_observed = split_inputs(LAYOUT, inputs[0::2])["observation_before"].sum(-1) > 0
    names = ("observation_before", "action_before", "successor_before")
    observed = [split_inputs(LAYOUT, inputs[0::2])[name] for name in names]
    spec = relay.make_relay(PARAMS).spec

    def step(links: Array, parts: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        is_observed, observation, action, successor = parts
        link = (to_graph_state(spec, observation), action)
        first = jnp.where(is_observed & (links[link] < 0), successor, links[link])
        return links.at[link].set(jnp.where(is_observed, first, links[link])), (first, first != successor)

    unknown = jnp.full((LAYOUT.num_states, NUM_ACTIONS), -1, jnp.int32)
    parts = (is_observed, *(part.argmax(-1).astype(jnp.int32) for part in observed))
    _, (first, is_other) = jax.lax.scan(step, unknown, parts)
    sizes = list(LAYOUT.input_sizes.values())
    start = sum(sizes[: list(LAYOUT.input_sizes).index("successor_before")])
    stale = jnp.where(is_observed[:, None], jax.nn.one_hot(first, LAYOUT.num_results), 0.0)
    inputs = inputs.at[0::2, start : start + LAYOUT.num_results].set(stale)
    return inputs, jnp.cumsum(is_observed & is_other)


def take(tree, index):
    """One entry of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def planted_content(algorithm: str) -> Predictor:
    """A content that looks links up, and predicts the choices of an algorithm for the goal that the query shows.

    Args:
        algorithm: Of a tabular organism, or "first_impression", a planner that keeps the first observation of each
            link, in its choices and its look-up, "switcher", which chooses alike but switches at every surprise, or
            "hidden_planner", which predicts TD(0) learners as they are and plans for agents with another name.
    """
    if algorithm == "hidden_planner":
        return hidden_planner()
    if algorithm not in ("first_impression", "switcher"):
        return exact_content(algorithm, PARAMS)
    exact = exact_content("planner", PARAMS)

    def query_sequence(weights: tuple, inputs: Array) -> Array:
        stale, num_surprises = keep_first_impressions(inputs)
        logits = exact.query_sequence(weights, stale)
        if algorithm == "first_impression":
            return logits
        choices = jnp.argmax(logits[0::2], axis=-1)
        switched = CERTAIN * jax.nn.one_hot((choices + num_surprises) % NUM_ACTIONS, LAYOUT.num_classes)
        return exact.query_sequence(weights, inputs).at[0::2].set(switched)

    return exact._replace(query_sequence=query_sequence)


def hidden_planner() -> Predictor:
    """The content of TD(0) streams with a planner that no query about TD(0) reaches."""
    learner, planner = exact_content("td_zero", PARAMS), exact_content("planner", PARAMS)

    def query_sequence(weights: tuple, inputs: Array) -> Array:
        is_own = split_inputs(LAYOUT, inputs)["algorithm"][:, ALGORITHMS.index("td_zero")] > 0
        by_algorithm = [content.query_sequence(weights, inputs) for content in (learner, planner)]
        return jnp.where(is_own[:, None], *by_algorithm)

    return learner._replace(query_sequence=query_sequence)


@cache
def measure(algorithm: str, cell: str, with_goals: bool = False) -> dict[str, tuple[float, int]]:
    """All abilities of a planted content on held-out streams of a cell."""
    settings = CELLS[cell].settings
    member = jnp.int32(find_member(CELLS[cell].queried_algorithm))
    tester = abilities.Tester(planted_content(algorithm), PARAMS, settings, member)
    keys = sample_lifetime_keys(key_from_seed(3), NUM_STREAMS, "evaluation")
    further = (goals.measure_other_goals, goals.measure_host) if with_goals else ()
    further = (goals.measure_other_members,) if algorithm == "hidden_planner" else further
    measures = (*abilities.ABILITIES, *further)

    @jax.jit
    def run(keys: Array) -> dict[str, tuple[Array, Array]]:
        streams = jax.vmap(lambda key: abilities.sample_tests(key, PARAMS, settings))(keys)
        return abilities.measure_run(keys, tester, streams, (), measures)

    return {name: (float(mean), int(count)) for name, (mean, count) in run(keys).items()}


def record_of(measured: dict[str, tuple[float, int]]) -> dict:
    """The record of a run with these measures, whose curve is flat."""
    means = {name: mean for name, (mean, _) in measured.items()}
    points = [{"updates": updates} | means for updates in (0, 50, 100)]
    counts = {name: 20 * count for name, (_, count) in measured.items()}
    return {"measures": means, "num_streams": counts, "curve": points, "num_curve_streams": counts, "num_updates": 100}


@pytest.mark.parametrize("with_goals", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_planted_planner_passes_at_every_time_and_for_every_goal(with_goals):
    """Other goals take most of the compilation; `test_mesa_planning_objectives.py` measures them too."""
    measured = measure("planner", "goals" if with_goals else "planner", with_goals=with_goals)
    assert all(measured[name] == (1.0, measured[name][1]) for name in ("look-up", "first choice"))
    for timing in TIMINGS:
        for name in ("layer 1", "layer 2", "pair"):
            mean, count = measured[f"{name}, {timing}"]
            assert mean == 1.0 and count > 5, (name, timing, mean, count)
    for name, (mean, count) in measured.items():
        if name.endswith(("agree", "differ")) and not name.startswith("host"):
            assert mean == 1.0 or count == 0, name
        if name.startswith("false switch"):
            assert mean == 0.0 and count > 5, name
        if name.startswith("look-up"):
            assert mean == 1.0, name
    assert verdicts.decide([record_of(measured)] * 10, depth=2).verdict == "contains a planner"


@pytest.mark.slow
def test_a_planted_content_that_switches_at_every_surprise_is_no_planner():
    measured = measure("switcher", "planner")
    assert measured["first choice"][0] == 1.0 and measured["layer 2, before any choice"][0] == 1.0
    assert measured["false switch, layer 2, before any choice"][0] == 1.0
    assert measured["pair, before any choice"][0] == 0.0
    assert verdicts.decide([record_of(measured)] * 10, depth=2).verdict != "contains a planner"


@pytest.mark.slow
def test_a_planted_content_without_memory_of_changes_is_undetermined():
    measured = measure("first_impression", "planner")
    assert measured["first choice"][0] == measured["look-up"][0] == 1.0
    assert measured["layer 2, before any choice"][0] == measured["look-up, layer 2, before any choice"][0] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "follows_first_layer"),
    [("td_zero", True), ("monte_carlo", False)],
)
def test_a_planted_learner_of_values_does_not_follow_the_last_layer(algorithm, follows_first_layer):
    measured = measure(algorithm, algorithm)
    assert measured["look-up"][0] == 1.0 and measured["own choices"][0] > 0.95
    for timing in TIMINGS:
        assert measured[f"layer 2, {timing}"][0] == 0.0
        assert (measured[f"layer 1, {timing}"][0] > 0.5) == follows_first_layer
    assert verdicts.decide([record_of(measured)] * 10, depth=2).verdict == "contains no planner"


@pytest.mark.slow
def test_a_hidden_planner_is_reached_by_asking_about_other_agents():
    """A planted cheat: by every test of its own agent it contains no planner."""
    measured = measure("hidden_planner", "td_zero")
    runs = [record_of(measured)] * 10
    assert verdicts.decide(runs, depth=2).verdict == "contains no planner"
    for layer in ("layer 1", "layer 2"):
        assert measured[index_as("planner", layer)][0] == 1.0 and measured[index_as("planner", layer)][1] > 10
    assert measured[index_as("td_zero", "layer 2")][0] == 0.0
    cells = {"td_zero": runs, **verdicts.collect_cells([*planned.controls(), *planned.planning_cell(*["planner"] * 2)])}
    decided = verdicts.decide_cells(cells)["td_zero"]
    assert decided.verdict == "undetermined" and "asked about a planner" in decided.reason


@pytest.mark.slow
def test_the_agents_of_the_streams_are_measured_in_the_tests_of_their_content():
    keys = jnp.stack([run_key(3, RunId("successor", run)) for run in range(2)])
    measured = measure_agent(CELLS["successor"], keys, num_streams=48)
    assert measured["look-up"] == (1.0, 96) and measured["own choices"][0] == 1.0
    index, count = measured["layer 2, before any choice"]
    assert 0.5 < index < 0.9 and count > 30  # it follows changed outcomes of links that it expects to follow


@cache
def extract(algorithm: str, depth: int) -> dict[tuple[int, int], float]:
    """The errors of links that are recovered from the choices of a planted content, by goal depth and queries."""
    params, settings = DEPTHS[depth], CELLS["planner"].settings
    content = planted_content(algorithm) if depth == 2 else exact_content(algorithm, params)
    member = jnp.int32(find_member("planner" if algorithm == "first_impression" else algorithm))
    tester = abilities.Tester(content, params, settings, member)
    keys = sample_lifetime_keys(key_from_seed(4), NUM_STREAMS, "evaluation")

    @jax.jit
    def run(keys: Array) -> dict[str, tuple[Array, Array]]:
        streams = jax.vmap(lambda key: abilities.sample_tests(key, params, settings))(keys)
        return abilities.measure_run(keys, tester, streams, (), (extraction.measure_extraction,))

    measured = run(keys)
    assert all(count == NUM_STREAMS for _, count in measured.values())
    places = [(goal_depth, count) for goal_depth in range(1, depth + 1) for count in QUERY_COUNTS]
    return {place: float(measured[extraction_error(*place)][0]) for place in places}


def test_links_are_recovered_from_choices_that_follow_a_model_and_not_from_those_of_a_memory():
    """The control keeps the first observation of each link: it chooses well, and follows no change."""
    planner, memory = extract("planner", 2), extract("first_impression", 2)
    for goal_depth in (1, 2):
        errors = [planner[goal_depth, count] for count in QUERY_COUNTS]
        assert errors == sorted(errors, reverse=True) and errors[0] > 0.5 and errors[-1] < 0.1, (goal_depth, errors)
        assert memory[goal_depth, QUERY_COUNTS[-1]] > 0.7


@pytest.mark.slow
def test_links_far_behind_a_choice_are_recovered_from_a_planner_alone():
    """A learner of values by temporal differences does not follow exposures more than one link behind the choice."""
    planner, learner = extract("planner", 3), extract("td_zero", 3)
    last = QUERY_COUNTS[-1]
    assert all(planner[goal_depth, last] < 0.15 for goal_depth in (1, 2, 3))
    assert learner[3, last] > 0.5 > planner[3, last] + 0.3


@pytest.mark.slow
def test_a_host_that_plans_with_exact_links_is_not_pulled():
    measured = measure("planner", "goals", with_goals=True)
    assert measured["host errs, differ"][0] == measured["host errs, agree"][0] == 0.0
    assert min(measured["host errs, differ"][1], measured["host errs, agree"][1]) > 2


@pytest.fixture(scope="module")
def streams():
    keys = key_from_seed(5)
    return jax.jit(lambda key: sample_batch(key, PARAMS, CELLS["planner"].settings, 32, "validation"))(keys)


def test_sequences_hold_every_step_and_no_reward(streams):
    batch = jax.vmap(lambda steps: encode(LAYOUT, steps, jnp.bool_(True)))(streams)
    first, second = split_inputs(LAYOUT, batch.inputs[:, 0::2]), split_inputs(LAYOUT, batch.inputs[:, 1::2])
    assert (first["observation"].argmax(-1) == streams.observation).all()
    assert (second["action"].argmax(-1) == streams.action).all() and (first["action"] == 0).all()
    is_cut = np.asarray(streams.kind == CUT)
    before = np.asarray(first["successor_before"])[:, 1:]
    assert (before.argmax(-1)[~is_cut[:, :-1]] == np.asarray(streams.successor)[:, :-1][~is_cut[:, :-1]]).all()
    assert (before[is_cut[:, :-1]] == 0).all()
    assert (np.asarray(batch.mask[:, 0::2]) == np.asarray(streams.kind == TRIAL)).all()
    assert (np.asarray(batch.mask[:, 1::2]) == ~is_cut).all()
    assert batch.inputs.shape[-1] == LAYOUT.num_inputs and set(np.unique(batch.inputs)) == {0.0, 1.0}
    unlabeled = jax.vmap(lambda steps: encode(LAYOUT, steps, jnp.bool_(False)))(streams)
    parts = split_inputs(LAYOUT, unlabeled.inputs)
    assert (parts["algorithm"] == 0).all() and (parts["goal"] == 0).all()


def test_exact_content_predicts_step_by_step_as_by_sequence_and_forgets_at_a_start(streams):
    content = exact_content("td_zero", PARAMS)
    inputs = jnp.concatenate([encode(LAYOUT, take(streams, n), jnp.bool_(True)).inputs for n in range(2)])

    def step(memory, position):
        logits, memory = content.query((), memory, position)
        return memory, logits

    _, logits = jax.lax.scan(step, content.init_memory(), inputs)
    half = len(inputs) // 2
    for part in (slice(half), slice(half, None)):
        assert (logits[part] == content.query_sequence((), inputs[part])).all()


def test_knowledge_is_the_last_observation_of_each_link(streams):
    knowledge = jax.vmap(lambda steps: queries.read_knowledge(PARAMS, steps))(streams)
    S = LAYOUT.num_states
    for number in range(8):
        links = {}
        steps = jax.tree.map(lambda leaf, n=number: np.asarray(leaf[n]), streams)
        for kind, observation, action, successor in zip(
            steps.kind, steps.observation, steps.action, steps.successor, strict=True
        ):
            if kind != CUT:
                links[int(observation), int(action)] = int(successor) - S * (successor >= S)
        assert all(knowledge.links[number][link] == successor for link, successor in links.items())
        assert int(knowledge.is_known[number].sum()) == len(links)


@pytest.mark.parametrize("relevant_share", [1.0, 0.0])
def test_fillers_show_other_links_of_the_last_layer_as_they_are(streams, relevant_share):
    knowledge = jax.vmap(lambda steps: queries.read_knowledge(PARAMS, steps))(streams)
    excluded = jnp.zeros_like(knowledge.links, bool).at[:, knowledge.links[0, 0, 0], 1].set(True)
    keys = jax.random.split(jax.random.key(0), len(excluded))
    fillers = jax.vmap(lambda *parts: queries.repeat_links(parts[0], PARAMS, parts[1], 20, relevant_share, parts[2]))(
        keys, knowledge, excluded
    )
    for number in range(len(excluded)):
        links, exposed = np.asarray(knowledge.links[number]), jax.tree.map(lambda leaf, n=number: leaf[n], fillers)
        assert (exposed.successor == LAYOUT.num_states + links[exposed.observation, exposed.action]).all()
        assert not np.asarray(excluded[number])[exposed.observation, exposed.action].any()
        assert (np.isin(exposed.observation, links[0]) == bool(relevant_share)).all()
        assert (exposed.observation > 0).all() and (exposed.kind == EXPOSURE).all()


def test_a_change_reverses_the_best_action_and_changes_one_link(streams):
    def draw(key: Array, steps) -> tuple:
        links = queries.read_knowledge(PARAMS, steps).links
        changed = [queries.choose_change(key, PARAMS, links, 0, layer) for layer in range(2)]
        first, second, is_pair = queries.choose_pair(key, PARAMS, links, 0)
        tables = [links, *(queries.apply_change(links, change) for change, _ in changed)]
        tables += [queries.apply_change(links, first), queries.apply_change(links, second)]
        tables.append(queries.apply_change(tables[3], second))
        best = jnp.stack([queries.best_action(queries.start_values(PARAMS, table, 0))[0] for table in tables])
        return jnp.stack(tables), best, jnp.stack([changed[0][1], changed[1][1], is_pair])

    tables, best, is_valid = (
        np.asarray(x) for x in jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 32), streams)
    )
    for layer in range(2):
        chosen = is_valid[:, layer]
        assert chosen.sum() > 10 and (best[chosen, 1 + layer] != best[chosen, 0]).all()
        difference = tables[chosen, 1 + layer] != tables[chosen, 0]
        assert (difference.sum((1, 2)) == 1).all() and (difference[:, 0].any(1) == (layer == 0)).all()
    pairs = is_valid[:, 2]
    assert pairs.sum() > 10
    assert (best[pairs, 3] == best[pairs, 0]).all() and (best[pairs, 4] == best[pairs, 0]).all()
    assert (best[pairs, 5] != best[pairs, 0]).all()


def test_exposures_have_one_step_in_the_last_layer_and_two_before():
    change = queries.LinkChange(jnp.int32(0), jnp.int32(1), jnp.int32(4))
    steps = queries.show_link(PARAMS, jnp.int32(0), change, 0)
    assert steps.kind.tolist() == [EXPOSURE, CUT] and steps.successor.tolist() == [4, -1]
    assert steps.observation.tolist() == [0, 4]
    last = queries.show_link(PARAMS, jnp.int32(0), queries.LinkChange(jnp.int32(3), jnp.int32(0), jnp.int32(7)), 1)
    assert last.kind.tolist() == [EXPOSURE] and last.successor.tolist() == [LAYOUT.num_states + 7]


OWN_CONTENT = '''
"""A content that predicts from the present step alone."""

import jax.numpy as jnp

from ontogeny.content.base import feedforward_predictor


def build(num_inputs, num_outputs, *, outputs="binary", learning_rate=0.01):
    def apply(weights, inputs):
        return inputs @ weights

    def init(key):
        return jnp.zeros((num_inputs, num_outputs))

    return feedforward_predictor(init, apply, learning_rate, outputs=outputs)
'''


@pytest.mark.slow
def test_the_weights_of_every_run_are_saved_before_its_record(tmp_path):
    (tmp_path / "present_step.py").write_text(OWN_CONTENT)
    content = ContentSettings(str(tmp_path / "present_step.py"))
    cells = {name: CELLS[name]._replace(content=content) for name in ("planner", "random")}
    run_ids = [RunId("planner", 1), RunId("random", 0)]
    training = TrainingPlan(4, batch_size=4, updates_per_call=2)
    plan = MeasurementPlan((), num_curve_streams=2, num_streams=2, has_further_measures=False)
    folder = tmp_path / "weights"
    first_record = next(run_cells(cells, run_ids, training, plan, seed=1, weights_folder=folder))
    assert first_record["id"] == "planning/planner/1"
    template = jnp.zeros((LAYOUT.num_inputs, LAYOUT.num_classes))
    trained = [checkpoint.load(folder, name, template) for name in ("planner-1", "random-0")]
    assert {path.name for path in folder.glob("*.safetensors")} == {"planner-1.safetensors", "random-0.safetensors"}
    assert not jnp.array_equal(*trained) and all(jnp.any(weights != 0) for weights in trained)
    metadata = checkpoint.read_metadata(folder, "random-0")
    assert (metadata["id"], metadata["depth"], metadata["num_updates"]) == ("planning/random/0", 2, 4)
    # The same graphs give the same measures, and graphs of another seed others.
    repeated, changed = (next(check_runs(cells, run_ids, training, plan, seed, folder)) for seed in (1, 2))
    assert repeated["measures"] == first_record["measures"] != changed["measures"]
    assert repeated["id"] == "planning/planner/1/new graphs" and repeated["kind"] == verdicts.CHECK_KIND


@pytest.mark.slow
def test_a_content_in_a_file_of_its_own_is_trained_and_measured(tmp_path):
    (tmp_path / "present_step.py").write_text(OWN_CONTENT)
    content = ContentSettings(str(tmp_path / "present_step.py"))
    cells = {"planner": CELLS["planner"]._replace(content=content)}
    plan = MeasurementPlan((0, 100), num_curve_streams=8, num_streams=16)
    (record,) = run_cells(cells, [RunId("planner", 0)], TrainingPlan(100), plan, seed=1)
    assert record["num_parameters"] == LAYOUT.num_inputs * LAYOUT.num_classes
    assert record["measures"]["look-up"] < 0.5 and "host pull" in record["measures"]
    assert not any(name.startswith("interchange") for name in record["measures"])
    assert record["num_curve_streams"].keys() == record["curve"][0].keys() - {"updates"}


def test_an_update_of_the_latent_predictor_on_streams_keeps_shapes_and_precision(streams):
    """The state-space model of `neural_model_based` is an architecture of the experiment by its name alone."""
    content = build_content(ContentSettings("latent_predictor", width=16), PARAMS, LAYOUT)

    def train(key: Array) -> tuple[TrainingState, TrainingState]:
        weights = content.init(key)
        state = TrainingState(weights, content.init_scratch(weights))
        batches = jax.tree.map(lambda leaf: leaf[None], streams)
        return state, train_on_streams(content, LAYOUT, jnp.bool_(True), state, batches, jnp.zeros(1), "bfloat16")

    before, after = jax.eval_shape(train, jax.random.key(0))
    assert jax.tree.structure(before) == jax.tree.structure(after)
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)] for state in (before, after)]
    assert shapes[0] == shapes[1]


def test_a_content_that_cannot_predict_a_stream_is_refused():
    with pytest.raises(BadInput, match="has no setting 'outputs'"):
        build_content(ContentSettings("table"), PARAMS, LAYOUT)


@pytest.mark.parametrize(
    ("cells", "names", "changed", "error"),
    [
        ({}, ["absent"], {}, "the setting 'cell' must be one of planner"),
        ({}, [], {}, "there are no runs"),
        ({"planner": {"depth": 4}}, ["planner"], {}, "'depth' must lie between 2 and 3"),
        ({"planner": {"quiet_share": 1.5}}, ["planner"], {}, "'quiet_share' must lie between 0 and 1"),
        ({"planner": {"queried_algorithm": "mine"}}, ["planner"], {}, "'algorithm' must be one of"),
        ({}, ["planner", "planner_depth_3"], {}, "need the same content and depth"),
        ({}, ["planner"], {"num_updates": -4}, "'num_updates' must be at least 1"),
        ({}, ["planner"], {"num_updates": 3}, "3 updates are no multiple of the 2 updates"),
        ({}, ["planner"], {"batch_size": 0}, "'batch_size' must be at least 1"),
    ],
)
def test_runs_that_cannot_be_made_are_refused(cells, names, changed, error, tmp_path):
    """Otherwise runs of another depth would be trained in the environment of the first, and NaN would be recorded."""
    cells = CELLS | {name: CELLS[name]._replace(**settings) for name, settings in cells.items()}
    training = TrainingPlan(4, batch_size=4, updates_per_call=2)._replace(**changed)
    run_ids, plan = [RunId(name, 0) for name in names], MeasurementPlan((0, 4))
    with pytest.raises(BadInput, match=error):
        next(run_cells(cells, run_ids, training, plan, seed=1, weights_folder=tmp_path))
    with pytest.raises(BadInput, match=error):
        next(check_runs(cells, run_ids, training, plan, seed=2, weights_folder=tmp_path))
    with pytest.raises(BadInput, match="5 updates are no multiple"):
        plan = MeasurementPlan((0, 5))
        next(run_cells(CELLS, [RunId("planner", 0)], TrainingPlan(4, updates_per_call=2), plan, seed=1))
    assert not list(tmp_path.iterdir())
