"""The environment `relay`: its schedule, its links and its settings; the organisms that act in every state of it."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ontogeny import plugins, steering, trees
from ontogeny.agents.tabular_learner import TabularStep
from ontogeny.environments import relay
from ontogeny.environments.relay import RelayParams
from ontogeny.errors import BadInput
from ontogeny.rng import split_lifetime_key, split_step_keys
from ontogeny.rollouts import begin_lifetime, initial_carry, rollout_step

FOOD = relay.FEATURES[:, 0]
NUM_LIFETIMES = 96
SIZES = {2: 8, 3: 4}
TRACED = RelayParams._fields[3:]
ORGANISMS = ("planner", "td_zero", "td_lambda", "monte_carlo", "successor")
NO_CHANGES = {"change_probability": 0.0, "repeat_probability": 0.0, "glance_probability": 0.0}


def params_of(depth, num_steps=60, **settings):
    return RelayParams(depth, SIZES[depth], num_steps)._replace(**settings)


@cache
def compiled_records(depth):
    """Lifetimes with random actions; all settings that may be traced have an axis of lifetimes."""

    def record(key, action_seed, settings):
        env = relay.make_relay(params_of(depth)._replace(**settings))
        reset_key, step_key, action_key = jax.random.split(key, 3)
        action_key = jax.random.fold_in(action_key, action_seed)
        state, initial = env.reset(reset_key)

        def step(state, inputs):
            key, action = inputs
            next_state, time_step = env.step(key, state, action)
            return next_state, (state, next_state, time_step)

        actions = jax.random.randint(action_key, (60,), 0, 2)
        before, after, time_steps = jax.lax.scan(step, state, (jax.random.split(step_key, 60), actions))[1]
        return initial, before, after, time_steps, actions

    return jax.jit(jax.vmap(record, (0, None, 0)))


def record_lifetimes(depth, seed=0, action_seed=0, **settings):
    """The initial time step, the states before and after each step, the time steps and the agent's actions."""
    defaults = {name: getattr(RelayParams(), name) for name in TRACED} | settings
    types = {"cue": bool, "num_instances": np.int32}
    arrays = {
        name: np.broadcast_to(np.asarray(value, types.get(name, np.float32)), NUM_LIFETIMES)
        for name, value in defaults.items()
    }
    keys = jax.random.split(jax.random.key(seed), NUM_LIFETIMES)
    return jax.device_get(compiled_records(depth)(keys, action_seed, arrays))


def take(tree, index):
    """One entry of every leaf."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def random_settings(seed):
    """Settings that differ between the lifetimes of a batch."""
    rng = np.random.default_rng(seed)
    names = ("change_probability", "repeat_probability", "glance_probability", "early_trial_probability")
    probabilities = {name: rng.uniform(0, 1 / 3, NUM_LIFETIMES) for name in names}
    probabilities["relevant_share"] = rng.uniform(size=NUM_LIFETIMES)
    return probabilities | {"cue": rng.uniform(size=NUM_LIFETIMES) < 0.5}


def reached_states(params, links):
    """A search in Python."""
    last, reached = np.asarray(relay.is_last_layer(params)), {0}
    for _ in range(params.depth):
        reached |= {int(target) for state in reached if not last[state] for target in links[state]}
    return reached


def test_food_and_water_are_uncorrelated():
    assert sorted(relay.WATER_LEVELS) == list(range(8)) and relay.FEATURES.shape == (8, 2)
    assert abs(np.corrcoef(relay.FEATURES.T)[0, 1]) < 1e-6


@pytest.mark.parametrize("depth", [2, 3])
def test_the_introduction_exposes_each_link_once_in_random_order_with_early_trials_between(depth):
    params = params_of(depth)
    S, last = relay.num_states(params), np.asarray(relay.is_last_layer(params))
    _, before, _, time_steps, _ = record_lifetimes(depth, unreliable_share=0.0)
    orders, num_trials, num_episodes = set(), 0, 0
    for i in range(NUM_LIFETIMES):
        initial = before.task.initial_links[i, 0]
        exposed, introduced = [], before.num_introduced[i]
        starts = np.concatenate([[True], time_steps.first[i, :-1]])
        for t in np.flatnonzero(starts & (introduced <= 2 * S)):
            if len(exposed) == 2 * S:
                break
            num_episodes += 1
            if not before.is_exposure[i, t]:
                assert before.state[i, t] == 0
                num_trials += 1
                continue
            place, action = int(before.state[i, t]), int(before.exposed_action[i, t])
            exposed.append(2 * place + action)
            if last[place]:
                assert np.allclose(time_steps.outcome[i, t], relay.FEATURES[initial[place, action]])
            else:
                assert time_steps.observation[i, t] == initial[place, action]
        assert sorted(exposed) == list(range(2 * S)) and exposed == before.task.introduction[i, 0].tolist()
        orders.add(tuple(exposed))
    assert len(orders) == NUM_LIFETIMES
    assert abs(num_trials / num_episodes - 0.1) < 0.03


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_exposures_force_the_action_and_show_what_the_link_leads_to(depth, seed):
    """Over settings that differ between lifetimes: one step to an outcome, or two steps of which the second is cut."""
    last = np.asarray(relay.is_last_layer(params_of(depth)))
    _, before, after, steps, actions = record_lifetimes(depth, seed, **random_settings(seed))
    forced = np.where(before.is_exposure, np.where(before.is_cut, 0, before.exposed_action), -1)
    assert (steps.forced_action == forced).all()
    action = np.where(forced >= 0, forced, actions)
    is_end = last[before.state] & ~before.is_cut
    assert (steps.first == (is_end | before.is_cut)).all() and (steps.discount == ~is_end).all()
    assert not steps.outcome[~is_end].any()
    links = np.take_along_axis(before.links, before.state[..., None, None], axis=2)[:, :, 0]
    target = np.take_along_axis(links, action[..., None], axis=2)[..., 0]
    is_sure = ~np.take_along_axis(before.task.is_unreliable, before.state[..., None], axis=2)[..., 0] | before.is_change
    assert np.allclose(steps.outcome[is_end & is_sure], relay.FEATURES[target[is_end & is_sure]])
    continues = is_sure & ~steps.first
    assert (after.state[continues] == target[continues]).all()
    assert (after.is_cut == (before.is_exposure & ~steps.first)).all()
    is_cue = after.state == 0
    cued = relay.num_states(params_of(depth)) + after.task.cued_action
    shows_cue = random_settings(seed)["cue"][:, None] & is_cue
    assert (steps.observation == np.where(shows_cue, cued, after.state)).all()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("relevant", [True, False])
def test_changes_concern_links_that_can_be_reached_or_others_and_are_exposed_at_once(depth, relevant):
    params = params_of(depth)
    layers, S = np.asarray(relay.layer_of_states(params)), relay.num_states(params)
    settings = {"unreliable_share": 1.0, "failure_probability": 1.0, "change_probability": 0.6}
    _, before, after, steps, _ = record_lifetimes(depth, 3, relevant_share=float(relevant), **settings)
    has_changed = (before.links != after.links).sum((2, 3))
    assert set(np.unique(has_changed)) == {0, 1}
    assert (has_changed[steps.first] == after.is_change[steps.first]).all() and not has_changed[~steps.first].any()
    reachable = jax.jit(jax.vmap(jax.vmap(partial(relay.reachable_states, params))))(jnp.asarray(before.links))
    changed_layers = []
    for i, t in np.argwhere(has_changed):
        place, action = np.argwhere(before.links[i, t] != after.links[i, t])[0]
        assert (after.state[i, t], after.exposed_action[i, t]) == (place, action) and after.is_exposure[i, t]
        is_reached = place in reached_states(params, before.links[i, t])
        assert is_reached == relevant
        assert reachable[i, t, place] == is_reached
        target, is_last = after.links[i, t, place, action], layers[place] == depth - 1
        assert 0 <= target < 8 if is_last else layers[target] == layers[place] + 1
        if t + 1 < 60:  # the exposure of a change never fails
            if is_last:
                assert np.allclose(steps.outcome[i, t + 1], relay.FEATURES[target])
            else:
                assert steps.observation[i, t + 1] == target
        changed_layers.append(layers[place])
    shares = np.bincount(changed_layers, minlength=depth) / len(changed_layers)
    if relevant:
        assert np.allclose(shares, 1 / depth, atol=5 * 0.5 / np.sqrt(len(changed_layers)))
    assert len(changed_layers) > 500 and (before.num_introduced[:, -1] == 2 * S).all()


def test_episodes_after_the_introduction_have_the_stated_probabilities():
    _, before, after, steps, _ = record_lifetimes(2, 4)
    begins = steps.first & (before.num_introduced == 18)
    kinds = after.is_change, after.is_exposure & ~after.is_change, ~after.is_exposure & (after.state > 0)
    shares = [kind[begins].mean() for kind in kinds]
    assert np.allclose(shares, [0.3, 0.2, 0.1], atol=5 * 0.46 / np.sqrt(begins.sum())), shares
    glances = after.state[begins & kinds[2]]
    assert set(glances) == set(range(1, 9))


def test_links_of_unreliable_states_fail_with_the_stated_probability():
    settings = NO_CHANGES | {"failure_probability": 0.4, "unreliable_share": 0.5}
    _, before, _, steps, actions = record_lifetimes(2, 5, **settings)
    is_free = (before.num_introduced == 18) & ~before.is_exposure & (before.state > 0)
    rows, times = np.nonzero(is_free)
    place, action = before.state[is_free], actions[is_free]
    expected = relay.FEATURES[before.links[rows, times, place, action]]
    failed = ~np.isclose(steps.outcome[is_free], expected).all(1)
    is_unreliable = before.task.is_unreliable[rows, times, place]
    assert not failed[~is_unreliable].any()
    assert abs(failed[is_unreliable].mean() - 0.4 * 7 / 8) < 0.06  # one failure of eight leads to the same outcome
    assert abs(before.task.is_unreliable[:, 0, 1:].mean() - 0.5) < 0.08 and not before.task.is_unreliable[..., 0].any()


def test_graphs_are_new_in_every_lifetime_or_one_of_a_stated_number():
    num_instances = np.repeat([0, 3, 1], NUM_LIFETIMES // 3)
    _, before, *_ = record_lifetimes(2, 6, num_instances=num_instances)
    graphs = [
        (*links.ravel(), *unreliable)
        for links, unreliable in zip(before.task.initial_links[:, 0], before.task.is_unreliable[:, 0], strict=True)
    ]
    assert [len(set(part)) for part in (graphs[:32], graphs[32:64], graphs[64:])] == [32, 3, 1]
    links = before.task.initial_links[:32, 0]
    assert (np.bincount(links[:, 1:].ravel(), minlength=8) > 30).all() and set(links[:, 0].ravel()) == set(range(1, 9))
    _, repeated, *_ = record_lifetimes(2, 7, num_instances=3)
    assert {links.tobytes() for links in repeated.task.initial_links[:, 0]} == {
        links.tobytes() for links in before.task.initial_links[32:64, 0]
    }


def test_a_batch_with_traced_settings_equals_lifetimes_of_environments_that_are_built_alone():
    settings = random_settings(8)
    batch = record_lifetimes(3, 8, **settings)
    for i in (0, 1):
        scalars = {name: float(values[i]) for name, values in settings.items() if values.dtype == np.float64}
        scalars |= {name: bool(values[i]) for name, values in settings.items() if values.dtype == bool}
        env = relay.build(depth=3, **scalars)
        reset_key, step_key, _ = jax.random.split(jax.random.split(jax.random.key(8), NUM_LIFETIMES)[i], 3)
        state, initial = jax.jit(env.reset)(reset_key)
        assert trees.bitwise_equal(initial, take(batch[0], i))
        step = jax.jit(env.step)
        for t, key in enumerate(jax.random.split(step_key, 60)):
            state, time_step = step(key, state, batch[4][i, t])
            assert trees.bitwise_equal((state, time_step), take(batch[2:4], (i, t)))


def test_the_key_of_a_lifetime_determines_its_schedule_whichever_actions_are_chosen():
    settings = random_settings(10)
    first, second = (record_lifetimes(2, 10, action_seed, **settings) for action_seed in (0, 1))
    fields = ("task", "links", "is_exposure", "is_change", "is_cut", "exposed_action", "num_introduced")
    for field in fields:
        assert trees.bitwise_equal(getattr(first[1], field), getattr(second[1], field)), field
    assert (first[3].first == second[3].first).all() and (first[4] != second[4]).any()
    assert not trees.bitwise_equal(first[3].outcome, second[3].outcome)
    repeated = record_lifetimes(2, 10, **settings)
    assert trees.bitwise_equal(first, repeated)


def test_values_of_actions_agree_with_an_enumeration_of_all_action_sequences():
    for depth in (2, 3):
        params = params_of(depth)
        _, before, *_ = record_lifetimes(depth)
        all_links = before.task.initial_links[:5, 0]
        compute = jax.jit(jax.vmap(partial(relay.action_values, params, outcome_values=jnp.asarray(FOOD))))
        all_values = np.asarray(compute(jnp.asarray(all_links)))
        layers = np.asarray(relay.layer_of_states(params))
        for links, values in zip(all_links, all_values, strict=True):
            check_values(links, values, depth, layers)


def check_values(links, values, depth, layers):
    """Compares each value with the best of all later action sequences."""
    for state, action in np.ndindex(values.shape):
        returns = []
        for later in product((0, 1), repeat=int(depth - 1 - layers[state])):
            target = links[state, action]
            for choice in later:
                target = links[target, choice]
            returns.append(FOOD[target])
        assert values[state, action] == max(returns)


def test_the_revealed_task_gives_the_present_links_and_their_failures():
    params = params_of(3, unreliable_share=1.0, failure_probability=0.5)

    def draw(key):
        state, _ = relay.reset(params, key)
        return state, relay.reveal_task(params, state)

    state, tables = jax.jit(draw)(jax.random.key(9))
    links = np.asarray(state.links)
    assert tables.transitions.shape == (11, 2, 11) and np.allclose(tables.transitions.sum(-1), 1)
    assert np.allclose(tables.transitions[0, 0, links[0, 0]], 1) and np.allclose(
        tables.transitions[10], tables.transitions[0]
    )
    expected = np.where(np.arange(5, 9) == links[1, 1], 0.5 + 0.5 / 4, 0.5 / 4)
    assert np.allclose(tables.transitions[1, 1, 5:9], expected)
    assert np.allclose(tables.outcomes[5, 0], 0.5 * relay.FEATURES[links[5, 0]] + 0.5 * relay.FEATURES.mean(0))
    assert np.asarray(tables.termination_probabilities)[:, 0].tolist() == [0] * 5 + [1] * 4 + [0] * 2


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"depth": 4}, "depth"),
        ({"width": 1}, "width"),
        ({"change_probability": 0.9, "repeat_probability": 0.2}, "sum to at most 1"),
        ({"num_instances": -1}, "num_instances"),
        ({"early_trial_probability": 1.0}, "early_trial_probability"),
    ],
)
def test_settings_out_of_range_are_rejected(settings, part):
    with pytest.raises(BadInput, match=part):
        relay.build(**settings)


def choices_at_the_start(name, depth, **settings):
    """An organism's actions in trials from the start after the introduction, and the values of both actions there."""
    env = relay.build(depth=depth, num_steps=80, unreliable_share=0.0, **settings)
    drives = steering.build(env.spec)
    kind = "organisms" if name in plugins.list_names("organisms") else "agents"
    agent = plugins.build(kind, name, env.spec, drives)

    def run(key):
        keys = split_lifetime_key(key)
        carry = initial_carry(keys.task, agent, env, drives, begin_lifetime(key, agent, ()))

        def step(carry, keys):
            next_carry, trajectory = rollout_step(keys, agent, env, drives, carry, False)
            values = relay.action_values(params_of(depth), carry.env_state.links, jnp.asarray(FOOD))[0]
            return next_carry, (carry.env_state._replace(task=()), trajectory.action, values)

        return jax.lax.scan(step, carry, split_step_keys(keys, 80))[1]

    states, actions, values = jax.device_get(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(11), 64)))
    is_choice = (states.num_introduced == states.links[0, 0].size) & ~states.is_exposure & (states.state == 0)
    return is_choice, actions, values


@pytest.mark.parametrize("depth", [2, 3])
def test_a_planner_chooses_best_at_every_time_and_q_learning_does_not(depth):
    is_choice, actions, values = choices_at_the_start("tabular_planner", depth)
    assert is_choice.sum() > 500
    assert (actions == values.argmax(-1))[is_choice].all()
    is_choice, actions, values = choices_at_the_start("tabular_td_zero", depth)
    is_decided = is_choice & (values[..., 0] != values[..., 1])
    assert 0.5 < (actions == values.argmax(-1))[is_decided].mean() < 0.95


def test_the_oracle_chooses_best_by_the_revealed_task():
    is_choice, actions, values = choices_at_the_start("oracle", 2)
    is_decided = is_choice & (values[..., 0] != values[..., 1])
    is_decided[:, -1] = False  # the last step of a lifetime is too late for an outcome
    assert (actions == values.argmax(-1))[is_decided].all() and is_decided.sum() > 400


def test_a_cue_follower_takes_the_action_that_was_best_at_the_beginning():
    is_choice, actions, values = choices_at_the_start("cue_follower", 2, cue=True)
    initial = np.broadcast_to(values[:, :1].argmax(-1), actions.shape)
    assert (actions == initial)[is_choice].all()
    assert (actions != values.argmax(-1))[is_choice].any()
    is_choice, actions, _ = choices_at_the_start("cue_follower", 2)
    assert not actions[is_choice].any()


def value_of(links, depth, state, action, layer=0):
    """The best outcome behind a link, by recursion."""
    target = links[state, action]
    if layer == depth - 1:
        return FOOD[target]
    return max(value_of(links, depth, target, later, layer + 1) for later in (0, 1))


def exposure_steps(links, depth, state, action):
    """Two steps as in an exposure, or one and a second one that is cut and shows nothing."""
    layer, target = -(-state // SIZES[depth]), links[state, action]
    is_end = layer == depth - 1
    first = TabularStep(state, action, 0 if is_end else target, FOOD[target] if is_end else 0.0, is_end, False)
    return [first, TabularStep(0 if is_end else target, 0, 0, 0.0, False, True)]


def trial_steps(links, depth, action):
    """A trial with a first action and the best later ones."""
    steps, state = [], 0
    for layer in range(depth):
        if layer:
            action = int(value_of(links, depth, state, 1, layer) > value_of(links, depth, state, 0, layer))
        target, is_end = links[state, action], layer == depth - 1
        steps.append(
            TabularStep(state, action, 0 if is_end else target, FOOD[target] if is_end else 0.0, is_end, False)
        )
        state = target
    return steps


@cache
def reversals(depth, layer, num_reversals=60):
    """Histories that show all links, last layers first, and try both actions; then one change reverses the optimum."""
    rng, width = np.random.default_rng(100 * depth + layer), SIZES[depth]
    S = 1 + (depth - 1) * width
    histories, best_before = [], []
    ranges = [
        (0, 8) if layer == depth - 1 else (1 + layer * width, 1 + layer * width + width) for layer in range(depth)
    ]
    layers = -(-np.arange(S) // width)
    while len(histories) < num_reversals:
        links = np.array([rng.integers(*ranges[layer], 2) for layer in layers])
        steps = [
            part for state in reversed(range(S)) for a in (0, 1) for part in exposure_steps(links, depth, state, a)
        ]
        steps += [part for action in rng.permutation(2) for part in trial_steps(links, depth, int(action))]
        before = [value_of(links, depth, 0, action) for action in (0, 1)]
        place = 0
        for _ in range(layer):
            place = links[place, rng.integers(2)]
        action = int(rng.integers(2))
        links[place, action] = rng.integers(*ranges[layer])
        after = [value_of(links, depth, 0, action) for action in (0, 1)]
        if (before[1] - before[0]) * (after[1] - after[0]) < 0:
            histories.append(steps + exposure_steps(links, depth, place, action))
            best_before.append(int(before[1] > before[0]))
    leaves = [np.array([[step[k] for step in steps] for steps in histories]) for k in range(6)]
    types = (np.int32, np.int32, np.int32, np.float32, bool, bool)
    return TabularStep(*(leaf.astype(kind) for leaf, kind in zip(leaves, types, strict=True))), np.array(best_before)


@cache
def compiled_choices(name, depth):
    """The choice at the start after each step of a history."""
    learner = plugins.get_attribute("organisms", f"tabular_{name}", "learner")(relay.build(depth=depth).spec)

    def choose(steps):
        def update(memory, step):
            memory = learner.update(memory, step)
            return memory, jnp.argmax(learner.values(memory, jnp.int32(0)))

        return jax.lax.scan(update, learner.memory, steps)[1]

    return jax.jit(jax.vmap(choose))


@pytest.mark.parametrize("depth", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ORGANISMS)
def test_a_planner_follows_a_change_in_any_layer_and_other_learners_do_not(name, depth):
    """The share of choices that follow a link that changed and was exposed alone, by layer; no trial lies between."""
    switches = []
    for layer in range(depth):
        steps, best_before = reversals(depth, layer)
        choices = np.asarray(compiled_choices(name, depth)(jax.tree.map(jnp.asarray, steps)))
        assert (choices[:, -3] == best_before).all()
        switches.append((choices[:, -1] != best_before).mean())
    if name == "planner":
        assert switches == [1] * depth
    elif name in ("td_zero", "td_lambda"):
        assert switches == [1] + [0] * (depth - 1)
    elif name == "monte_carlo":
        assert switches == [0] * depth
    else:  # a successor representation follows the outcome of the link that it expects to take, and no other one
        assert switches[0] == 1 and switches[1:-1] == [0] * (depth - 2) and 0.1 < switches[-1] < 0.9
