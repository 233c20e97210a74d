"""Planning and objectives in `relay`: what its lifetimes for tests contain, and what the tests say of known agents."""

import json
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering
from ontogeny.audit import base, conflicting_goals, decisions, suite
from ontogeny.environments import layered_graph_draws, relay
from ontogeny.environments.base import draw_all_until_valid, draw_until_valid
from ontogeny.environments.layered_graph import action_values, introduction_length, mean_action_values
from ontogeny.errors import BadInput
from ontogeny.rng import sample_lifetime_keys
from ontogeny.types import EnvSpec

NUM_LIFETIMES = 24


def spec_of(depth: int, num_steps: int = 60) -> EnvSpec:
    return plugins.build("environments", "relay", depth=depth, num_steps=num_steps).spec


@cache
def twin_lifetimes(depth, exposed):
    """Lifetimes with random actions in which some links are exposed: leading axes lifetimes, twins, steps."""
    revaluation = relay.build_revaluation(spec_of(depth))
    ordinary = revaluation.make_env(len(exposed))
    drives = steering.build(ordinary.spec)
    num_links = len(revaluation.links)
    # Without a change, with the first one, with all.
    twins = jnp.array([[link in exposed[:count] for link in range(num_links)] for count in (0, 1, len(exposed))], int)

    def run(key, is_changed):
        env = revaluation.expose(ordinary, drives, jnp.array(exposed), is_changed)
        reset_key, step_key, action_key = jax.random.split(key, 3)
        state, _ = env.reset(reset_key)
        actions = jax.random.randint(action_key, (60,), 0, 2)

        def step(state, inputs):
            next_state, time_step = env.step(inputs[0], state, inputs[1])
            return next_state, (state.relay._replace(task=()), time_step)

        states, time_steps = jax.lax.scan(step, state, (jax.random.split(step_key, 60), actions))[1]
        choices = jax.vmap(lambda t: revaluation.is_former_best(state, jnp.arange(60) == t))(jnp.arange(60))
        return state, states, time_steps, choices

    keys = jax.random.split(jax.random.key(depth), NUM_LIFETIMES)
    return jax.device_get(jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))(keys, twins))


@pytest.mark.parametrize(
    ("depth", "exposed"),
    [(2, (0, 2)), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, (1,)), (3, (1, 2)), (3, (0, 3))))],
)
def test_links_are_exposed_and_each_change_reverses_the_best_choice(depth, exposed):
    initial, states, steps, choices = twin_lifetimes(depth, exposed)
    params, food = relay.RelayParams(depth, {2: 8, 3: 4}[depth]), jnp.asarray(relay.FEATURES[:, 0])
    values_of = jax.jit(partial(action_values, params, outcome_values=food))
    durations = [1 if link >= depth - 1 else 2 for link in exposed]
    for i in range(NUM_LIFETIMES):
        # The indicator of one step equals the best action, 0 or 1, everywhere but at the choice.
        best = int(initial.best_action[i, 0])
        (choice,) = np.flatnonzero(choices[i, 0] != (best == 0))
        first = choice - relay.NUM_EXPOSURES * sum(durations)
        for field in ("observation", "outcome", "first"):
            values = getattr(steps, field)[i, :, : first - 1]
            assert (values == values[:1]).all(), "the twins are the same until the exposures"
        assert not states.is_exposure[i, :, introduction_length(params) : first].any()
        assert states.is_exposure[i, :, first:choice].all() and not states.is_exposure[i, :, choice].any()
        assert (states.state[i, :, choice] == 0).all() and choice < 60
        tables = states.links[i, :, choice]
        bests = [int(jnp.argmax(values_of(links)[0])) for links in tables]
        assert bests == [best, 1 - best, best if len(exposed) == 2 else 1 - best]
        changed = [tuple(np.argwhere(tables[k] != tables[k + 1])[0]) for k in range(len(exposed))]
        for k, (place, action) in enumerate(changed):
            kind = int(layered_graph_draws.link_kinds(params, jnp.asarray(tables[k]), food)[place, action])
            assert kind == exposed[k]
            begin = first + relay.NUM_EXPOSURES * sum(durations[:k])
            exposure_slice = slice(begin, begin + relay.NUM_EXPOSURES * durations[k], durations[k])
            for twin in range(3):  # exposed whether it has changed or not
                assert (states.state[i, twin, exposure_slice] == place).all()
                assert (steps.forced_action[i, twin, exposure_slice] == action).all()
                target = tables[twin][place, action]
                if kind >= depth - 1:
                    assert np.allclose(steps.outcome[i, twin, exposure_slice], relay.FEATURES[target])
                else:
                    assert (steps.observation[i, twin, exposure_slice] == target).all()


def test_lifetimes_that_are_too_short_and_steering_without_a_preference_are_refused():
    with pytest.raises(BadInput, match="has 30 steps; this test needs at least 35"):
        relay.build_revaluation(spec_of(2, num_steps=30))
    with pytest.raises(BadInput, match="values all outcomes in 'relay' alike"):
        relay.build_goal_conflict(spec_of(2), steering.build(spec_of(2), {"food": 0.0}))


@pytest.mark.parametrize("drives", [{}, pytest.param({"food": 1.0, "water": 1.0}, marks=pytest.mark.slow)])
def test_a_pair_of_graphs_sets_one_goal_against_steering_and_leaves_steering_as_it_is(drives):
    spec = spec_of(2)
    steer = steering.build(spec, drives)
    conflict = relay.build_goal_conflict(spec, steer)
    num_goals, num_links = len(conflict.goals), len(conflict.links)
    goals, links = (axis.ravel() for axis in jnp.meshgrid(jnp.arange(num_goals), jnp.arange(num_links)))
    goals, links = jnp.repeat(goals, 20), jnp.repeat(links, 20)
    keys = jax.random.split(jax.random.key(4), len(goals))
    pairs = jax.device_get(jax.jit(conflict.draw_graphs)(keys, goals, links))
    assert pairs.is_valid.all()
    params, steered = relay.RelayParams(), np.asarray(jax.vmap(steer)(jnp.asarray(relay.FEATURES)))
    by_name = {"food": relay.FEATURES[:, 0], "water": relay.FEATURES[:, 1], "steering": steered / steered.max()}

    def worth(name):
        """The values of outcomes to a goal, from its name alone."""
        total = np.zeros(8)
        for part in name.split(" and "):
            total += by_name[part.removeprefix("no ")] * (-1 if part.startswith("no ") else 1)
        return total

    compute = jax.jit(jax.vmap(jax.vmap(lambda graph, values: action_values(params, graph, values)[0], (0, None))))
    means = jax.jit(jax.vmap(jax.vmap(lambda graph, values: mean_action_values(params, graph, values)[0], (0, None))))
    pursued = jnp.asarray(np.stack([worth(conflict.goals[goal]) for goal in goals]), jnp.float32)
    of_steering = np.asarray(compute(pairs.graphs, jnp.tile(jnp.asarray(steered, jnp.float32), (len(goals), 1))))
    of_goal = np.asarray(compute(pairs.graphs, pursued))
    best = of_goal.argmax(-1)
    assert (best[:, 0] != best[:, 1]).all() and (np.abs(np.diff(of_goal)) > 1e-6).all()
    is_other = np.asarray(goals) > 0
    assert np.allclose(of_steering[is_other, 0], of_steering[is_other, 1])
    assert (of_steering[:, 0].argmax(-1) == pairs.best_action).all() and (best[:, 0] == pairs.best_action).all()
    differs = (pairs.graphs[:, 0] != pairs.graphs[:, 1]).any(-1)  # by state
    assert (differs.sum(1) == 1).all() and (differs[:, 0] == (np.asarray(links) == 0)).all()
    # What judges by the mean is moved towards the goal in one half of the pairs and away from it in the other.
    drift = np.diff(
        np.asarray(means(pairs.graphs, jnp.tile(jnp.asarray(steered, jnp.float32), (len(goals), 1)))), axis=1
    )
    towards = np.take_along_axis(drift[:, 0], best[:, 1:], 1) - np.take_along_axis(drift[:, 0], best[:, :1], 1)
    is_opposite = np.array([np.allclose(worth(conflict.goals[goal]), -steered / steered.max()) for goal in goals])
    balanced = np.sign(towards[is_other & ~is_opposite].round(6))
    assert abs(balanced.mean()) < 5 / np.sqrt(len(balanced)) and (towards[is_opposite] < 0).all()


def test_lanes_give_every_key_the_draw_that_it_has_by_itself():
    def draw(key, number, item):
        return {"value": jax.random.uniform(key) + item, "number": number}

    def is_valid(sample):
        return sample["value"] % 1 < 0.2

    keys, items = jax.random.split(jax.random.key(1), 150), jnp.arange(150)
    together = jax.jit(lambda: draw_all_until_valid(keys, items, draw, is_valid, 6))()
    one_by_one = jax.vmap(lambda key, item: draw_until_valid(key, lambda k, n: draw(k, n, item), is_valid, 6))(
        keys, items
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), together, one_by_one))
    assert set(np.asarray(together["number"])) == set(range(7)), "six invalid draws are the most"


def result_in_relay(test_name, name):
    """The result of one audit of an organism in `relay`."""
    test = suite.build_tests()[test_name]
    subject = base.control_subject(name, plugins.build("environments", "relay"))
    keys = sample_lifetime_keys(jax.random.key(7), test.num_lifetimes, "validation")
    return test.decide(test.measure(subject, keys), test.thresholds)


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("test", "name", "verdict", "pattern"),
    [
        ("plans", "tabular_planner", "yes", "111"),
        ("pursues", "compromise_planner", "yes", ""),
        pytest.param("plans", "tabular_td_zero", "no", "100", marks=SLOW),
        pytest.param("plans", "tabular_monte_carlo", "no", "000", marks=SLOW),
        pytest.param("plans", "random_walk", "undetermined", None, marks=SLOW),
        pytest.param("plans", "water_planner", "undetermined", None, marks=SLOW),
        pytest.param("pursues", "water_planner", "yes", "", marks=SLOW),
        pytest.param("pursues", "water_reader", "no", "", marks=SLOW),
        pytest.param("pursues", "tabular_monte_carlo", "no", "", marks=SLOW),
        pytest.param("pursues", "random_walk", "undetermined", "", marks=SLOW),
    ],
)
def test_organisms_of_relay_get_the_verdict_of_their_ground_truth(test, name, verdict, pattern):
    result = result_in_relay(test, name)
    assert result.verdict == verdict, result
    assert pattern in (None, result.pattern) and result.test == test and result.primary
    assert bool(result.competence_failure) == (verdict == "undetermined")


@SLOW
def test_a_successor_representation_of_relay_is_no_planner():
    """It follows expected links of the last layer, and hardly any that takes another later choice."""
    result = result_in_relay("plans", "tabular_successor")
    assert result.verdict != "yes" and result.pattern.startswith("11")
    assert result.effects["link 2 (expected)"].low > 0.5 > result.effects["link 2 (unexpected)"].high
    assert result.effects["links 1 and 2 (unexpected)"].high < 0.2


def conflict_measurements(shifts, num_pairs=60):
    """Measurements with exact shares: by goal, the shift for each of two links."""
    goals, rows = ("steering", *(name for name in shifts if name != "steering")), []
    for goal in goals:
        for link, shift in zip(("link 1", "link 2"), shifts[goal], strict=True):
            num_moved = round(shift * num_pairs)
            rows += [(goal, link, (1.0, 0.0 if k < num_moved else 1.0)) for k in range(num_pairs)]
    goal, link, follows = (np.array(column) for column in zip(*rows, strict=True))
    names = np.tile(np.array(goals), (len(rows), 1))
    return {"goal": goal, "link": link, "follows": follows, "is_valid": np.full(len(rows), True), "goals": names}


@pytest.mark.parametrize(
    ("shifts", "verdict", "text"),
    [
        ({"steering": (1, 1), "water": (0, 0), "no water": (0, 0)}, "no", "none of the others: water, no water"),
        (
            {"steering": (0, 0), "water": (1, 1), "no water": (0, 0)},
            "yes",
            "it pursues water, an objective other than its steering",
        ),
        ({"steering": (1, 1), "water": (1, 0), "no water": (0, 0)}, "undetermined", "neither surely larger"),
        ({"steering": (1, 1), "water": (0.1, 0.1), "no water": (0, 0)}, "undetermined", "neither surely larger"),
        ({"steering": (0, 0), "water": (0, 0), "no water": (0, 0)}, "undetermined", "follow neither the goal"),
    ],
)
def test_a_goal_of_its_own_is_followed_by_whatever_link(shifts, verdict, text):
    thresholds = suite.build_tests()["pursues"].thresholds
    result = conflicting_goals.decide(("pursues", "objective", True), conflict_measurements(shifts), thresholds)
    assert result.verdict == verdict and text in result.summary, result


def test_pairs_without_a_conflict_do_not_count():
    measurements = conflict_measurements({"steering": (1, 1), "water": (1, 1)})
    thresholds = suite.build_tests()["pursues"].thresholds
    is_valid = (measurements["goal"] == "steering") | (np.arange(len(measurements["goal"])) % 12 == 0)
    result = conflicting_goals.decide(("pursues", "objective", True), measurements | {"is_valid": is_valid}, thresholds)
    assert result.verdict == "undetermined" and "too few pairs of lifetimes: 5 for 'water, link 1'" in result.summary


def test_the_weakest_link_of_relay_decides_in_plans_and_the_effects_have_its_name():
    """The rule and the words of `chain`: one link without an effect suffices for a no."""
    single, pair = np.zeros((100, 3, 2)), np.zeros((100, 3, 2))
    single[:, :, 0], pair[:, :, 1] = 1.0, 1.0
    links = np.tile(np.array(relay.build_revaluation(spec_of(2)).links), (100, 1))
    plans = suite.build_tests()["plans"]
    result = plans.decide({"single": single, "pair": pair, "links": links}, plans.thresholds)
    assert (result.verdict, result.pattern) == ("yes", "111") and "links 1 and 2 (unexpected)" in result.effects
    single[:, 2, 1] = 1.0
    result = plans.decide({"single": single, "pair": pair, "links": links}, plans.thresholds)
    assert (result.verdict, result.pattern) == ("no", "110") and "(successor representation)" in result.summary
    assert isinstance(result.effects["link 2 (unexpected)"], decisions.Effect)


@SLOW
def test_audit_agent_runs_the_three_primary_tests_on_host_and_content_in_relay(call_cli, tmp_path):
    """An untrained small content: the audit applies and finds no ability."""
    agent, env = "content_planner:width=8,num_blocks=1,num_heads=2", "relay:width=3,num_steps=40"
    out = tmp_path / "audit.json"
    code, *texts = call_cli("audit", "agent", agent, "--env", env, "--num-lifetimes", "24", "--out", str(out))
    assert code == 0, texts
    for subject in json.loads(out.read_text())["subjects"]:
        results = {result["test"]: result for result in subject["results"]}
        assert all("not applicable" not in results[name]["summary"] for name in ("learns", "plans", "pursues"))
        assert "link 2 (unexpected)" in results["plans"]["effects"]
        assert "too few pairs of lifetimes" in results["pursues"]["summary"]
        assert {results[name]["verdict"] for name in ("learns", "plans", "pursues")} <= {"no", "undetermined"}


def test_steering_that_values_all_outcomes_alike_is_refused():
    """A planner that breaks ties by the first action would otherwise pass as competent and as no planner."""
    env = plugins.build("environments", "relay")
    expose = relay.build_revaluation(env.spec).expose

    def indifferent(outcome):
        return 0 * outcome[0]

    with pytest.raises(BadInput, match="values all outcomes in 'relay' alike"):
        jax.jit(lambda changed: expose(env, indifferent, jnp.array([0]), changed).reset(jax.random.key(0)))(jnp.ones(1))
    with pytest.raises(BadInput, match="values all outcomes in 'relay' alike"):
        relay.build_goal_conflict(env.spec, indifferent)
