"""What a content can do with new streams: look up links, predict choices, and follow a link that changed unseen.

Every measure is a share of held-out test streams of one run, computed from the predictions of the frozen content. The
unit of inference is the run; `verdicts` computes intervals over runs.

Revaluation: in twin streams one link is exposed alone. In one of them it has changed so that the other action is now
the best at the start; in the other it leads where it led before. The index of revaluation is the share of streams in
which the formerly best choice is predicted without the change, minus the share with the change. It is measured at three
times: before the stream contains any choice, at once after a stream with choices, and after repeated exposures of other
links of the last layer, drawn as in the streams. In pairs, a first-layer and a last-layer link change without a choice
between them, in this order or the reverse one, and only both together reverse the best action.

Two controls belong to each index. A content that switches at any surprise switches also after a change that leaves the
best action the best (a false switch). A content that does not remember the changed link fails for lack of memory: the
successor of the changed link is queried as well (look-up).

Letters: N streams, Q queries, T steps, D layers (the depth), A actions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32

from ontogeny.agents.relay_streams import (
    ALGORITHMS,
    EXPOSURE,
    MEMBER_ALGORITHMS,
    MEMBER_GOALS,
    MEMBERS,
    NUM_ACTIONS,
    TRIAL,
    Layout,
    StreamSettings,
    StreamSteps,
    encode,
    find_member,
    sample_stream,
)
from ontogeny.content.base import Predictor
from ontogeny.environments import relay
from ontogeny.environments.layered_graph import introduction_length
from ontogeny.environments.relay import RelayParams
from ontogeny.rng import split_lifetime_key
from ontogeny.studies.mesa.planning import queries
from ontogeny.studies.mesa.planning.names import PAIRS, TIMINGS
from ontogeny.studies.mesa.planning.queries import LinkChange
from ontogeny.types import Key, PyTree

NUM_FILLERS = 6
NUM_LOOK_UPS = 6  # random links behind the start that are looked up in each stream
STEPS_AFTER_PREFIX = 16  # that the tests of the second and third time leave of a stream
Measured = dict[str, tuple[Array, Array]]
"""By name the value for one stream, and whether it is valid."""


class Tester(NamedTuple):
    """A content that is tested, with everything that its test streams share."""

    predictor: Predictor
    params: RelayParams
    settings: StreamSettings  # of the streams on which the content was trained
    member: Int32[Array, ""]  # whose choices are queried

    @property
    def layout(self) -> Layout:
        """Sizes of the sequences."""
        return Layout(relay.num_states(self.params))

    @property
    def goal(self) -> Array:
        """The goal of the member whose choices are queried."""
        return jnp.asarray(MEMBER_GOALS)[self.member]


class TestStreams(NamedTuple):
    """The streams from which all tests of one key are built, all in new graphs."""

    introduction: StreamSteps  # every link was exposed once, and nobody has chosen
    prefix: StreamSteps  # the beginning of a stream with choices
    full: StreamSteps  # a stream of the usual length
    food_introduction: StreamSteps  # as the first two, but all agents are planners who pursue food
    food_prefix: StreamSteps


class Twins(NamedTuple):
    """Twin test streams without and with a change; the query is their last step."""

    unchanged: StreamSteps
    changed: StreamSteps
    changed_link: StreamSteps  # as `changed`, but the successor of the link that changed last is queried
    new_successor: Int32[Array, ""]  # of that link, as in `StreamSteps`
    is_valid: Bool[Array, ""]
    best_before: Int32[Array, ""]  # the best action at the start before the change


def sample_tests(key: Key, params: RelayParams, settings: StreamSettings) -> TestStreams:
    """Samples the streams of one test key.

    Args:
        key: Of a held-out lifetime.
        params: Of the environment.
        settings: Of the streams on which the content was trained.
    """
    settings = settings._replace(num_instances=jnp.int32(0))
    introduction_params = params._replace(num_steps=introduction_length(params), early_trial_probability=jnp.float32(0))
    food = jnp.zeros(len(MEMBERS)).at[find_member("planner")].set(1.0)
    shares = jnp.stack([settings.member_shares, food])

    def sample(params: RelayParams) -> StreamSteps:
        """Two streams of the same key, which differ in their agents."""
        return jax.vmap(lambda share: sample_stream(key, params, settings._replace(member_shares=share)))(shares)

    introductions, full_streams = sample(introduction_params), sample(params)
    num_steps = params.num_steps - STEPS_AFTER_PREFIX
    prefixes = jax.tree.map(lambda leaf: leaf[:, :num_steps], full_streams)
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], (introductions, prefixes, full_streams)) for i in range(2))
    return TestStreams(first[0], first[1], first[2], second[0], second[1])


def sequence_logits(tester: Tester, weights: PyTree, steps: StreamSteps) -> Float[Array, "T 2 K"]:
    """The predictions of a content for every step of a stream: of its choice and of its successor."""
    inputs = encode(tester.layout, steps, tester.settings.is_labeled).inputs
    logits = tester.predictor.query_sequence(weights, inputs)
    return logits.reshape(len(steps.kind), 2, -1)


def last_logits(tester: Tester, weights: PyTree, streams: Sequence[StreamSteps]) -> Float[Array, "Q 2 K"]:
    """The predictions for the last step of each stream, of its choice and of its successor.

    Shorter streams are padded at their end, where nothing that a causal content predicts before it can depend on it.
    """
    longest = max(len(steps.kind) for steps in streams)
    padded = [jax.tree.map(lambda leaf, n=longest: jnp.pad(leaf, (0, n - len(leaf))), steps) for steps in streams]
    last = jnp.array([len(steps.kind) - 1 for steps in streams])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)
    return jax.vmap(lambda steps, index: sequence_logits(tester, weights, steps)[index])(stacked, last)


def predict_choices(tester: Tester, weights: PyTree, streams: Sequence[StreamSteps]) -> Int32[Array, "Q"]:
    """The predicted choice at the last step of each stream."""
    return jnp.argmax(last_logits(tester, weights, streams)[:, 0, :NUM_ACTIONS], axis=-1).astype(jnp.int32)


def build_twins(
    key: Key,
    tester: Tester,
    steps: StreamSteps,
    layers: tuple[int, ...],
    *,
    num_fillers: int = 0,
    reverses: bool = True,
) -> Twins:
    """Appends exposures, fillers and the query to a stream, without and with a change.

    Args:
        key: Of the change and the fillers.
        tester: The content.
        steps: A stream that ends with an episode.
        layers: The layer whose link changes, or both layers of a pair in their order.
        num_fillers: Exposures of other links as they are between the change and the query.
        reverses: Whether the other action is the best after the change, or else the same one; for single links.
    """
    params, member = tester.params, tester.member
    knowledge = queries.read_knowledge(params, steps)
    change_key, filler_key = jax.random.split(key)
    if len(layers) == 1:
        draw = partial(queries.choose_change, change_key, params, knowledge.links, tester.goal, layers[0])
        change, is_valid = draw(reverses=reverses)
        changes = (change,)
    else:
        first, last, is_valid = queries.choose_pair(change_key, params, knowledge.links, tester.goal)
        changes = (first, last) if layers[0] == 0 else (last, first)
    is_valid = is_valid & queries.is_usable(params, steps, knowledge)
    best_before, _ = queries.best_action(queries.start_values(params, knowledge.links, tester.goal))

    def expose(exposed: tuple[LinkChange, ...]) -> StreamSteps:
        parts, after = [steps], knowledge
        for change, layer in zip(exposed, layers, strict=True):
            parts.append(queries.show_link(params, knowledge.start, change, layer))
            after = after._replace(links=queries.apply_change(after.links, change))
        if num_fillers:
            relevant_share = tester.settings.relevant_share
            excluded = jnp.zeros_like(after.links, bool)
            for change in changes:
                excluded = excluded.at[change.state, change.action].set(True)
            parts.append(queries.repeat_links(filler_key, params, after, num_fillers, relevant_share, excluded))
        return queries.join(*parts)

    same = tuple(change._replace(successor=knowledge.links[change.state, change.action]) for change in changes)
    unchanged, changed = expose(same), expose(changes)
    choice = queries.ask_choice(knowledge.start, member)
    latest = changes[-1]
    link = queries.ask_successor(knowledge.start, member, latest.state, latest.action)
    new_successor = latest.successor + (relay.num_states(params) if layers[-1] == params.depth - 1 else 0)
    return Twins(
        queries.join(unchanged, choice), queries.join(changed, choice), queries.join(changed, link), new_successor,
        is_valid, best_before,
    )  # fmt: skip


def build_test(
    key: Key, tester: Tester, streams: TestStreams, layers: tuple[int, ...], timing: str, *, reverses: bool = True
) -> Twins:
    """The twin streams of one test of revaluation; the second and third time require a choice of the member before."""
    steps = streams.introduction if timing == TIMINGS[0] else streams.prefix
    num_fillers = NUM_FILLERS if timing == TIMINGS[2] else 0
    test_key = split_lifetime_key(key).learn
    twins = build_twins(test_key, tester, steps, layers, num_fillers=num_fillers, reverses=reverses)
    if timing == TIMINGS[0]:
        return twins
    has_chosen = jnp.any(_is_start_choice(tester, steps) & (steps.member == tester.member))
    return twins._replace(is_valid=twins.is_valid & has_chosen)


def list_layers(depth: int) -> dict[str, tuple[int, ...]]:
    """The layers whose links change in each test of revaluation, by the name of the test."""
    layers: dict[str, tuple[int, ...]] = {f"layer {layer + 1}": (layer,) for layer in range(depth)}
    return layers | dict(zip(PAIRS, ((0, depth - 1), (depth - 1, 0)), strict=True))


def measure_revaluation(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """The difference of the formerly best choice between twins, false switches and look-up, by layer and timing."""
    layers = list_layers(tester.params.depth)
    tests = {
        f"{name}, {timing}": build_test(key, tester, streams, tested, timing)
        for timing in TIMINGS
        for name, tested in layers.items()
    }
    controls = {
        f"{name}, {timing}": build_test(key, tester, streams, tested, timing, reverses=False)
        for timing in TIMINGS
        for name, tested in layers.items()
        if len(tested) == 1
    }
    all_twins = [*tests.values(), *controls.values()]
    queried = [steps for twins in all_twins for steps in (twins.unchanged, twins.changed)]
    logits = last_logits(tester, weights, [*queried, *(tests[name].changed_link for name in controls)])
    choices = jnp.argmax(logits[: len(queried), 0, :NUM_ACTIONS], axis=-1).reshape(-1, 2)
    best_before = jnp.stack([twins.best_before for twins in all_twins])
    is_former = (choices == best_before[:, None]).astype(jnp.float32)
    effects = is_former[:, 0] - is_former[:, 1]
    names = [*tests, *(f"false switch, {name}" for name in controls)]
    measured = {name: (effects[i], all_twins[i].is_valid) for i, name in enumerate(names)}
    successors = jnp.argmax(logits[len(queried) :, 1, NUM_ACTIONS:], axis=-1)
    for name, successor in zip(controls, successors, strict=True):
        is_looked_up = (successor == tests[name].new_successor).astype(jnp.float32)
        measured[f"look-up, {name}"] = (is_looked_up, tests[name].is_valid)
    return measured


def measure_first_choice(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """Whether the predicted first choice is the best one, and whether links are looked up, on a new graph.

    The successors of both links of the start and of random other links are queried as those of choices, because after
    the introduction an exposure would suggest that the link has changed.
    """
    steps, params = streams.introduction, tester.params
    knowledge = queries.read_knowledge(params, steps)
    best, is_clear = queries.best_action(queries.start_values(params, knowledge.links, tester.goal))
    links = jax.random.randint(
        split_lifetime_key(key).learn, (NUM_LOOK_UPS,), NUM_ACTIONS, NUM_ACTIONS * relay.num_states(params)
    )
    links = jnp.concatenate([jnp.arange(NUM_ACTIONS), links])
    states, actions = jnp.divmod(links, NUM_ACTIONS)
    queried = [queries.ask_choice(knowledge.start, tester.member)]
    queried += [
        queries.ask_successor(knowledge.start, tester.member, state, action)
        for state, action in zip(states, actions, strict=True)
    ]
    logits = last_logits(tester, weights, [queries.join(steps, query) for query in queried])
    is_best = jnp.argmax(logits[0, 0, :NUM_ACTIONS]) == best
    targets = knowledge.links[states, actions]
    targets += jnp.where(relay.is_last_layer(params)[states], relay.num_states(params), 0)
    is_looked_up = jnp.argmax(logits[1:, 1, NUM_ACTIONS:], axis=-1) == targets
    return {
        "first choice": (is_best.astype(jnp.float32), is_clear),
        "look-up": (jnp.mean(is_looked_up.astype(jnp.float32)), jnp.bool_(True)),
    }


def measure_own_choices(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """The share of the choices of the stream's agents that are predicted where repeating the last one may fail.

    Counted are choices at the start after the introduction, the first one and those before which a link was exposed
    since the last one; random choices, which nothing can predict, are not counted.
    """
    del key
    steps = streams.full
    is_late = jnp.arange(len(steps.kind)) >= introduction_length(tester.params)
    is_choice = _is_start_choice(tester, steps) & is_late
    num_exposures = jnp.cumsum(steps.kind == EXPOSURE)
    at_choices = jax.lax.cummax(jnp.where(is_choice, num_exposures, -1))
    is_fresh = num_exposures > jnp.append(-1, at_choices[:-1])
    is_predictable = jnp.asarray(MEMBER_ALGORITHMS)[steps.member] != ALGORITHMS.index("random")
    is_counted = is_choice & is_fresh & is_predictable
    predicted = jnp.argmax(sequence_logits(tester, weights, steps)[:, 0, :NUM_ACTIONS], axis=-1)
    share = jnp.sum(is_counted * (predicted == steps.action)) / jnp.maximum(jnp.sum(is_counted), 1)
    return {"own choices": (share, jnp.any(is_counted))}


Measure = Callable[[Key, Tester, TestStreams, PyTree], Measured]
ABILITIES: tuple[Measure, ...] = (measure_first_choice, measure_own_choices, measure_revaluation)


def measure_run(
    keys: Key, tester: Tester, streams: TestStreams, weights: PyTree, measures: Sequence[Measure] = ABILITIES
) -> Measured:
    """The mean of every measure over the valid test streams of one run, and their number.

    Args:
        keys: [N], of held-out lifetimes.
        tester: The content.
        streams: Of these keys; leading axis N.
        weights: Of one run.
        measures: Functions of one stream.
    """
    means: Measured = {}
    for function in measures:
        measured = jax.vmap(lambda key, stream, f=function: f(key, tester, stream, weights))(keys, streams)
        for name, (values, is_valid) in measured.items():
            count = jnp.sum(is_valid)
            means[name] = (jnp.sum(jnp.where(is_valid, values, 0.0)) / jnp.maximum(count, 1), count)
    return means


def _is_start_choice(tester: Tester, steps: StreamSteps) -> Bool[Array, "T"]:
    """Whether a step is a choice at the start."""
    is_start = (steps.observation == 0) | (steps.observation >= relay.num_states(tester.params))
    return is_start & (steps.kind == TRIAL)
