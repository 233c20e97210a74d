"""A layered graph of links, new in every lifetime, in which links are shown alone and single links change.

The revaluation tasks of Momennejad et al. 2017 (Nat Hum Behav 1:680) with a choice in every state. The start (state 0)
is followed by `depth` - 1 layers of `width` middle states. Each of the two actions of a state is a link to a state of
the next layer, and in the last layer to one of eight outcomes, which have two features, food and water. Links are drawn
uniformly. A middle state is unreliable with probability `unreliable_share`: in each traversal its links fail with
`failure_probability` and lead to a uniformly drawn target of the right layer.

A lifetime is a sequence of trials and exposures. A trial runs freely until an outcome. An exposure shows one link alone
and forces the action. A link of the last layer is an episode of one step that ends in its outcome. After an earlier
link a second step, whose action is forced to 0, lets the agent observe the successor; it ends as by a time limit,
without an outcome. An introduction exposes each link once in random order, with early trials between. Afterwards a link
changes and is exposed at once, a link is exposed again as it is, a trial begins at a middle state (a glance), or a
trial begins at the start. The exposure of a changed link never fails. The length of an episode does not depend on
actions, so the key of a lifetime determines all its episodes, links and changes, whichever agent acts.

With `cue`, the start is observed as S or S + 1, where S is the number of states: the cue names the action that led to
more food when the lifetime began, had no link failed, and is not updated.

Letters: S states, A actions, O outcomes, F outcome features.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ontogeny.environments.base import (
    GoalConflict,
    GraphPair,
    Revaluation,
    choose_tree,
    first_feature,
    initial_time_step,
)
from ontogeny.environments.layered_graph import (
    MIN_MARGIN,
    NUM_ACTIONS,
    NUM_OUTCOMES,
    LinkChange,
    RelayParams,
    action_values,
    apply_change,
    draw_graph,
    draw_index,
    introduction_length,
    is_last_layer,
    layer_of_states,
    num_states,
    reachable_states,
    targets_of_links,
)
from ontogeny.environments.layered_graph_draws import draw_graph_pairs, draw_reversible_graph
from ontogeny.errors import BadInput, require_at_least, require_between
from ontogeny.rng import key_from_seed
from ontogeny.types import (
    HIDDEN_OBSERVATION,
    Environment,
    EnvSpec,
    FeaturePrior,
    Key,
    Prior,
    Steering,
    TabularTask,
    TimeStep,
)

WATER_LEVELS = (2, 5, 1, 4, 7, 3, 6, 0)  # by food level; their correlation is exactly 0
FEATURES = np.stack([np.arange(NUM_OUTCOMES), WATER_LEVELS], axis=1).astype(np.float32) / (NUM_OUTCOMES - 1)  # [O, F]
DEFAULT_WIDTHS = {2: 8, 3: 4}  # by depth
NUM_EXPOSURES = 4  # of a link where planning is tested; three quarters of the way at a learning rate of 0.3
INSTANCE_SEED = 20  # of the fixed tables of `num_instances`
# Indices of the uniform draws of one step; the draws from `WALK` on are the actions of a random walk.
FAILURE, FAILED_TARGET, EPISODE, RELEVANCE, LAYER, STATE, ACTION, TARGET, WALK = range(9)


class RelayTask(NamedTuple):
    """What a lifetime does not change."""

    initial_links: Array  # [S, A] int32
    is_unreliable: Array  # [S] bool
    introduction: Array  # [S A] int32, links in the order of their first exposures; link s A + a
    cued_action: Array  # [] int32, best for food under the initial links


class RelayState(NamedTuple):
    """The state of the environment."""

    task: RelayTask
    links: Array  # [S, A] int32, current targets: a state, or in the last layer an outcome
    state: Array  # [] int32, of the graph
    is_exposure: Array  # [] bool, whether the present episode is an exposure
    is_change: Array  # [] bool, whether it exposes a link that has just changed
    is_cut: Array  # [] bool, whether the next step is the second one of an exposure
    exposed_action: Array  # [] int32, of the exposed link
    num_introduced: Array  # [] int32, links that the introduction has exposed or exposes now; S A after it

    @property
    def initial_links(self) -> Array:
        """The links when the lifetime began, [S, A] int32."""
        return self.task.initial_links


class RevaluationState(NamedTuple):
    """The state of a lifetime in which planning is tested: trials, exposures of E links, and a choice."""

    relay: RelayState
    changes: LinkChange  # leaves [E], the exposed links and where they lead from then on
    best_action: Array  # [] int32, at the start, before the changes
    num_steps: Array  # [] int32, taken
    num_exposures: Array  # [] int32, begun


def width_of_layers(spec: EnvSpec) -> int:
    """The number of states of each middle layer, from the spec of the environment."""
    return (spec.num_observations - NUM_ACTIONS - 1) // (spec.horizon - 1)


def reset(params: RelayParams, key: Key) -> tuple[RelayState, TimeStep]:
    """Draws the graph and the order of the introduction, and begins the first episode."""
    instance_key, table_key, order_key, episode_key = jax.random.split(key, 4)
    instance = jax.random.randint(instance_key, (), 0, jnp.maximum(params.num_instances, 1))
    fixed_key = jax.random.fold_in(key_from_seed(INSTANCE_SEED), instance)
    links, is_unreliable = draw_graph(params, jnp.where(jnp.asarray(params.num_instances) > 0, fixed_key, table_key))
    cued_action = jnp.argmax(action_values(params, links, jnp.asarray(FEATURES[:, 0]))[0]).astype(jnp.int32)
    introduction = jax.random.permutation(order_key, links.size).astype(jnp.int32)
    task = RelayTask(links, is_unreliable, introduction, cued_action)
    no, zero = jnp.bool_(False), jnp.int32(0)
    state = RelayState(task, links, zero, no, no, no, zero, zero)
    state = _begin_episode(params, _uniform_draws(params, episode_key), state)
    return state, initial_time_step(observation(params, state), 2)


def step(params: RelayParams, key: Key, state: RelayState, action: Array) -> tuple[RelayState, TimeStep]:
    """Follows one link; in exposures the environment forces the action."""
    draws, (first_target, num_targets) = _uniform_draws(params, key), targets_of_links(params)
    forced_action = jnp.where(state.is_cut, 0, state.exposed_action)
    place, taken_action = state.state, jnp.where(state.is_exposure, forced_action, action)
    can_fail = state.task.is_unreliable[place] & ~state.is_change
    fails = can_fail & (draws[FAILURE] < params.failure_probability)
    failed_target = first_target[place] + draw_index(draws[FAILED_TARGET], num_targets[place])
    target = jnp.where(fails, failed_target, state.links[place, taken_action])
    is_end = is_last_layer(params)[place] & ~state.is_cut
    outcome = jnp.where(is_end, jnp.asarray(FEATURES)[jnp.where(is_end, target, 0)], 0.0)
    is_over = is_end | state.is_cut
    continued = state._replace(state=target, is_cut=state.is_exposure)
    next_state = choose_tree(is_over, _begin_episode(params, draws, state), continued)
    discount = jnp.where(is_end, 0.0, 1.0).astype(jnp.float32)
    reported_action = jnp.where(state.is_exposure, forced_action, -1).astype(jnp.int32)
    emitted = observation(params, next_state)
    final_observation = jnp.where(state.is_cut, HIDDEN_OBSERVATION, emitted).astype(jnp.int32)
    return next_state, TimeStep(emitted, final_observation, outcome, is_over, discount, reported_action)


def observation(params: RelayParams, state: RelayState) -> Array:
    """The state of the graph, or a cue in place of the start, [] int32."""
    shows_cue = jnp.asarray(params.cue, bool) & (state.state == 0)
    return jnp.where(shows_cue, num_states(params) + state.task.cued_action, state.state).astype(jnp.int32)


def reveal_task(params: RelayParams, state: RelayState) -> TabularTask:
    """The current links as tables over observations; both cues stand for the start."""
    S, is_last = num_states(params), is_last_layer(params)
    first_target, num_targets = targets_of_links(params)
    size = max(S, NUM_OUTCOMES)
    targets = jnp.arange(size)
    is_possible = (targets >= first_target[:, None]) & (targets < (first_target + num_targets)[:, None])
    failure = (jnp.where(state.task.is_unreliable, params.failure_probability, 0.0))[:, None, None]
    uniform = (is_possible / num_targets[:, None])[:, None]  # [S, 1, size]
    probabilities = (1 - failure) * jax.nn.one_hot(state.links, size) + failure * uniform
    # A link to an outcome has no successor; its row names the start, because rows must sum to one.
    transitions = jnp.where(is_last[:, None, None], jax.nn.one_hot(0, S), probabilities[..., :S])
    outcomes = jnp.where(is_last[:, None, None], probabilities[..., :NUM_OUTCOMES] @ jnp.asarray(FEATURES), 0.0)
    terminations = jnp.broadcast_to(is_last[:, None], (S, NUM_ACTIONS)).astype(jnp.float32)
    rows = jnp.concatenate([jnp.arange(S), jnp.zeros(NUM_ACTIONS, int)])
    in_trial = params.depth - layer_of_states(params)[state.state]
    in_exposure = jnp.where(state.is_cut | is_last[state.state], 1, 2)
    remaining_steps = jnp.where(state.is_exposure, in_exposure, in_trial).astype(jnp.int32)
    padded_transitions = jnp.pad(transitions, ((0, 0), (0, 0), (0, NUM_ACTIONS)))
    return TabularTask(padded_transitions[rows], outcomes[rows], terminations[rows], remaining_steps)


def _begin_episode(params: RelayParams, draws: Array, state: RelayState) -> RelayState:
    """Draws the next episode of the schedule and, where one changes, the link and its new target."""
    num_links, draw = state.links.size, draws[EPISODE]
    is_introduction = state.num_introduced < num_links
    is_first_exposure = is_introduction & (draw >= params.early_trial_probability)
    repeat_bound = params.change_probability + jnp.asarray(params.repeat_probability)
    is_change = ~is_introduction & (draw < params.change_probability)
    is_exposure = is_first_exposure | (~is_introduction & (draw < repeat_bound))
    is_glance = ~is_introduction & ~is_exposure & (draw < repeat_bound + params.glance_probability)
    introduced_link = state.task.introduction[jnp.minimum(state.num_introduced, num_links - 1)]
    # Changed and unchanged links are drawn alike, so that an exposure does not tell whether its link has changed.
    link = jnp.where(is_introduction, introduced_link, _draw_exposed_link(params, draws, state.links))
    place, action = link // NUM_ACTIONS, link % NUM_ACTIONS
    first_target, num_targets = targets_of_links(params)
    shift = state.links[place, action] - first_target[place] + 1 + draw_index(draws[TARGET], num_targets[place] - 1)
    new_target = first_target[place] + shift % num_targets[place]
    links = jnp.where(is_change, state.links.at[place, action].set(new_target), state.links)
    glanced_state = 1 + draw_index(draws[STATE], num_states(params) - 1)
    first_state = jnp.where(is_exposure, place, jnp.where(is_glance, glanced_state, 0)).astype(jnp.int32)
    num_introduced = state.num_introduced + is_first_exposure
    return RelayState(
        state.task, links, first_state, is_exposure, is_change, jnp.zeros_like(is_change), action, num_introduced
    )


def _draw_exposed_link(params: RelayParams, draws: Array, links: Array) -> Array:
    """Draws a link to expose: reachable, in a uniformly drawn layer, or else of a state that cannot be reached."""
    layer, place = draw_index(draws[LAYER], params.depth), jnp.int32(0)
    for i in range(params.depth - 1):
        place = jnp.where(i < layer, links[place, draw_index(draws[WALK + i], NUM_ACTIONS)], place)
    is_unreachable = ~reachable_states(params, links)
    is_candidate = jnp.where(jnp.any(is_unreachable), is_unreachable, is_last_layer(params))
    ranks = jnp.cumsum(is_candidate)  # the candidates before a state and itself
    unreachable_place = jnp.sum(ranks <= draw_index(draws[STATE], ranks[-1])).astype(jnp.int32)
    place = jnp.where(draws[RELEVANCE] < params.relevant_share, place, unreachable_place)
    return NUM_ACTIONS * place + draw_index(draws[ACTION], NUM_ACTIONS)


def _uniform_draws(params: RelayParams, key: Key) -> Array:
    """All random numbers of one step, uniform in [0, 1)."""
    return jax.random.uniform(key, (WALK + params.depth - 1,))


def build_revaluation(train_spec: EnvSpec, num_links: int = 0) -> Revaluation:
    """How a test of planning exposes and changes single links, one of each layer or kind of link.

    Args:
        train_spec: Of the `relay` in which the subject was trained.
        num_links: Not read: the depth determines the links.
    """
    del num_links
    params = _undisturbed_params(train_spec)
    last = params.depth
    links = (*(f"link {i + 1}" for i in range(last - 1)), f"link {last} (expected)", f"link {last} (unexpected)")
    exposure_steps = NUM_EXPOSURES * np.append(np.where(np.arange(last) < last - 1, 2, 1), 1)  # by link
    first_exposure = _start_of_last_trial(params, int(np.sort(exposure_steps)[-2:].sum()))

    def expose(env: Environment, steering: Steering, exposed: Array, is_changed: Array) -> Environment:
        outcome_values = _value_outcomes(steering)
        return env._replace(
            reset=partial(_reset_revaluation, params, jnp.asarray(outcome_values), exposed, is_changed),
            step=partial(_step_revaluation, params, first_exposure),
            reveal_task=lambda state: reveal_task(params, state.relay),
        )

    def is_former_best(state: RevaluationState, actions: Array) -> Array:
        layers = layer_of_states(params)[state.changes.state]
        return actions[first_exposure + jnp.sum(jnp.asarray(exposure_steps)[layers])] == state.best_action

    return Revaluation(links, lambda num_exposed: make_relay(params), expose, is_former_best)


def _undisturbed_params(train_spec: EnvSpec) -> RelayParams:
    """Lifetimes of equal form: an introduction, then trials from the start; no link fails or changes by itself."""
    return RelayParams(
        train_spec.horizon, width_of_layers(train_spec), train_spec.num_steps, unreliable_share=0.0,
        early_trial_probability=0.0, change_probability=0.0, repeat_probability=0.0, glance_probability=0.0,
    )  # fmt: skip


def _value_outcomes(steering: Steering) -> np.ndarray:
    """The reward of each outcome; raises `BadInput` where all are alike."""
    with jax.ensure_compile_time_eval():
        outcome_values = np.asarray(jax.vmap(steering)(jnp.asarray(FEATURES)))
    if np.ptp(outcome_values) <= MIN_MARGIN:
        raise BadInput("steering values all outcomes in 'relay' alike, so that no choice serves it")
    return outcome_values


def _start_of_last_trial(params: RelayParams, num_further_steps: int) -> int:
    """The step after the last trial that leaves so many further steps and one more choice in a lifetime."""
    introduction = introduction_length(params)
    num_trials = (params.num_steps - introduction - num_further_steps - 1) // params.depth
    if num_trials < 1:
        raise BadInput(
            f"a lifetime in 'relay' has {params.num_steps} steps; this test needs at least "
            f"{introduction + params.depth + num_further_steps + 1}"
        )
    return introduction + params.depth * num_trials


def _reset_revaluation(
    params: RelayParams, outcome_values: Array, exposed: Array, is_changed: Array, key: Key
) -> tuple[RevaluationState, TimeStep]:
    """Begins a lifetime in a graph in which the exposed links can change."""
    state, time_step = reset(params, key)
    graph = draw_reversible_graph(params, key, outcome_values, exposed)
    changes = graph.changes
    present = graph.links[changes.state, changes.action]
    changes = changes._replace(successor=jnp.where(is_changed[exposed] > 0, changes.successor, present))
    zero = jnp.int32(0)
    return RevaluationState(_with_links(state, graph.links), changes, graph.best_action, zero, zero), time_step


def _step_revaluation(
    params: RelayParams, first_exposure: int, key: Key, state: RevaluationState, action: Array
) -> tuple[RevaluationState, TimeStep]:
    """One step; in place of the trials after `first_exposure`, exposures begin as long as there are any."""
    relay_state, time_step = step(params, key, state.relay, action)
    num_steps, changes = state.num_steps + 1, state.changes
    index = state.num_exposures // NUM_EXPOSURES
    begins = time_step.first & (num_steps >= first_exposure) & (index < len(changes.state))
    place, exposed_action, target = jax.tree.map(lambda leaf: leaf[index], changes)
    exposing = relay_state._replace(
        links=apply_change(relay_state.links, LinkChange(place, exposed_action, target)),
        state=place,
        is_exposure=jnp.bool_(True),
        exposed_action=exposed_action,
    )
    relay_state = choose_tree(begins, exposing, relay_state)
    state = state._replace(relay=relay_state, num_steps=num_steps, num_exposures=state.num_exposures + begins)
    return state, time_step._replace(observation=observation(params, relay_state))


def _with_links(state: RelayState, links: Array) -> RelayState:
    """The state at the beginning of a lifetime in another graph."""
    return state._replace(links=links, task=state.task._replace(initial_links=links))


def build_goal_conflict(train_spec: EnvSpec, steering: Steering) -> GoalConflict:
    """How a test of objectives sets goals against each other: that of steering, and others.

    The other goals are more or less of one feature, alone and in equal parts with the goal of steering; those that
    order all outcomes as steering does are left out.

    Args:
        train_spec: Of the `relay` in which the subject was trained.
        steering: Of the subject.

    Raises:
        BadInput: If steering values all outcomes alike, or lifetimes are too short.
    """
    params = _undisturbed_params(train_spec)
    steered = _value_outcomes(steering)
    goals = {"steering": steered}
    for feature, values in zip(train_spec.outcome_features, FEATURES.T, strict=True):
        added, removed = steered / np.abs(steered).max() + values, steered / np.abs(steered).max() - values
        goals |= {feature: values, f"no {feature}": -values}
        goals |= {f"steering and {feature}": added, f"steering and no {feature}": removed}
    goals = {name: goal for name, goal in goals.items() if name == "steering" or _orders_otherwise(goal, steered)}
    outcome_values = np.stack(list(goals.values())).astype(np.float32)
    env = make_relay(params)

    def enter(links: Array) -> Environment:
        def reset_in_graph(key: Key) -> tuple[RelayState, TimeStep]:
            state, time_step = reset(params, key)
            return _with_links(state, links), time_step

        return env._replace(reset=reset_in_graph)

    def draw_graphs(keys: Key, goals: Array, layers: Array) -> GraphPair:
        return draw_graph_pairs(params, keys, jnp.asarray(outcome_values), goals, layers)

    links = tuple(f"link {layer + 1}" for layer in range(params.depth))
    return GoalConflict(tuple(goals), links, env, draw_graphs, enter, _start_of_last_trial(params, 0))


def _orders_otherwise(goal: np.ndarray, steered: np.ndarray) -> bool:
    """Whether a goal prefers some outcome to another one that steering does not prefer to it."""
    prefers, is_steered = (values[:, None] > values + MIN_MARGIN for values in (goal, steered))
    return bool((prefers & ~is_steered).any())


def make_relay(params: RelayParams) -> Environment:
    """The environment with settings that may be traced, so that several conditions are one compiled program.

    Args:
        params: The settings; `depth`, `width` and `num_steps` are Python integers.
    """
    level = FeaturePrior("normal", 0.5, 0.35, noise=0.1)
    spec = EnvSpec(
        name="relay", num_actions=NUM_ACTIONS, num_observations=num_states(params) + NUM_ACTIONS, observation_shape=(),
        outcome_features=("food", "water"), num_steps=params.num_steps, horizon=params.depth,
        drives=(("food", 1.0),), prior=Prior(0.1, (level, level), visit_forgetting_rate=0.8),
    )  # fmt: skip
    return Environment(spec, partial(reset, params), partial(step, params), first_feature, partial(reveal_task, params))


def build(
    *,
    depth: int = 2,
    width: int = 0,
    num_steps: int = 60,
    unreliable_share: float = 0.25,
    failure_probability: float = 0.1,
    early_trial_probability: float = 0.1,
    change_probability: float = 0.3,
    repeat_probability: float = 0.2,
    glance_probability: float = 0.1,
    relevant_share: float = 1.0,
    cue: bool = False,
    num_instances: int = 0,
) -> Environment:
    """Builds the environment.

    Args:
        depth: Steps of a trial from the start, 2 or 3.
        width: States of each middle layer, from 2 to 64; 0 for 8 at depth 2 and 4 at depth 3.
        num_steps: Steps of a lifetime, at least 1.
        unreliable_share: Probability that a middle state is unreliable, from 0 to 1.
        failure_probability: Probability that a link of an unreliable state fails in a traversal, from 0 to 1.
        early_trial_probability: Probability of a trial in place of the next first exposure, from 0 to 0.9.
        change_probability: Probability, after the introduction, that a link changes in place of the next trial.
        repeat_probability: Probability that a link, drawn as one that changes, is exposed again as it is.
        glance_probability: Probability that a trial begins at a middle state; the three sum to at most 1.
        relevant_share: Probability that an exposed link, changed or not, can be reached from the start; it is else one
            of a state that cannot.
        cue: Whether the start shows the action that was best for food when the lifetime began.
        num_instances: Different graphs in all lifetimes together, at least 0; 0 for a new graph in each lifetime.
    """
    require_between(2, 3, depth=depth)
    width = width or DEFAULT_WIDTHS[depth]
    require_between(2, 64, width=width)
    require_at_least(1, num_steps=num_steps)
    require_at_least(0, num_instances=num_instances)
    require_between(0, 0.9, early_trial_probability=early_trial_probability)
    require_between(0, 1, unreliable_share=unreliable_share, failure_probability=failure_probability)
    require_between(0, 1, relevant_share=relevant_share)
    episodes = {
        "change_probability": change_probability,
        "repeat_probability": repeat_probability,
        "glance_probability": glance_probability,
    }
    require_between(0, 1, **episodes)
    if sum(episodes.values()) > 1 + 1e-6:
        raise BadInput(f"the settings {', '.join(episodes)} must sum to at most 1, not to {sum(episodes.values()):g}")
    params = RelayParams(
        depth, width, num_steps, unreliable_share, failure_probability, early_trial_probability, change_probability,
        repeat_probability, glance_probability, relevant_share, cue, num_instances,
    )  # fmt: skip
    return make_relay(params)
