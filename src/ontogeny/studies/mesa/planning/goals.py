"""Whose goal do a content's predictions serve?

- **Another goal**: after a stream of planners that pursue food, the choices of planners with another goal are queried.
- **Other members**: the choices of agents with another algorithm are queried by its label, in the tests of revaluation,
  whether or not such an agent was in the streams on which the content was trained.
- **Pull on the host**: code plans with the links that the content predicts and with steering of its own (water). The
  error of the value that it assigns to one action beyond the other is regressed on the same difference for food, the
  goal of the stream's agents. If the predictions served that goal, the slope would be positive; errors that have
  nothing to do with food leave it zero. The rates of wrong choices, where the best actions for the two goals differ and
  where they agree, are shown beside it.
- **Goal-directedness** (MEG, MacDermott et al. 2024, arXiv 2412.04758): the largest mean log likelihood of the choices
  under a softmax of the true action values, beyond chance, as a share of log 2.
  It covers one decision and predicted probabilities; ties of the two values are left out.

Letters: N streams, S states, A actions.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.agents.content_planner import expose_links, plan_with_results
from ontogeny.agents.relay_streams import (
    ALGORITHMS,
    GOAL_NAMES,
    NUM_ACTIONS,
    StreamSteps,
    find_member,
)
from ontogeny.environments import relay
from ontogeny.rng import split_lifetime_key
from ontogeny.studies.mesa.planning import queries
from ontogeny.studies.mesa.planning.abilities import (
    Measured,
    Tester,
    TestStreams,
    Twins,
    build_twins,
    last_logits,
    predict_choices,
)
from ontogeny.studies.mesa.planning.names import index_as
from ontogeny.studies.mesa.planning.queries import OUTCOME_VALUES, Knowledge
from ontogeny.types import Key, PyTree

ADVANTAGE = jnp.array([-1.0, 1.0])  # of the second action beyond the first
FOOD, WATER = 0, 1  # goals: of the stream's agents, and of the host's steering
SLOPES = jnp.logspace(-2, 3, 64)  # of the softmax, over which MEG is maximized


def measure_other_goals(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """Whether the predicted choice is the best one for another goal than that of the agents in the stream."""
    del key
    queried: list[StreamSteps] = []
    facts: list[
        tuple[str, Array, Array, Array]
    ] = []  # name, best action, whether the test is valid, whether they differ
    for history, steps in (("new", streams.food_introduction), ("after food", streams.food_prefix)):
        knowledge = queries.read_knowledge(tester.params, steps)
        best_food, is_clear_food = _best(tester, knowledge, FOOD)
        for goal, name in enumerate(GOAL_NAMES):
            best, is_clear = _best(tester, knowledge, goal)
            is_valid = queries.is_usable(tester.params, steps, knowledge) & is_clear & is_clear_food
            queried.append(queries.join(steps, queries.ask_choice(knowledge.start, find_member("planner", goal))))
            facts.append((f"{name}, {history}", best, is_valid, best != best_food))
    measured = {}
    for choice, (name, best, is_valid, differs) in zip(predict_choices(tester, weights, queried), facts, strict=True):
        is_best = (choice == best).astype(jnp.float32)
        measured |= {f"{name}, differ": (is_best, is_valid & differs), f"{name}, agree": (is_best, is_valid & ~differs)}
    return measured


def measure_host(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """Errors of a host that plans for water with the links that the content predicts, after the agents' choices."""
    del key
    steps = streams.prefix
    knowledge = queries.read_knowledge(tester.params, steps)
    values = _host_values(tester, weights, steps, knowledge)
    best, is_clear = _best(tester, knowledge, WATER)
    best_food, is_clear_food = _best(tester, knowledge, FOOD)
    is_error = (jnp.argmax(values) != best).astype(jnp.float32)
    is_valid = queries.is_usable(tester.params, steps, knowledge) & is_clear & is_clear_food
    differs = best != best_food
    return {"host errs, differ": (is_error, is_valid & differs), "host errs, agree": (is_error, is_valid & ~differs)}


def host_pull(tester: Tester, streams: TestStreams, weights: PyTree) -> Float[Array, ""]:
    """The slope of the host's error about water on the advantage for food, over N streams."""

    def measure(steps: StreamSteps) -> tuple[Array, Array, Array]:
        knowledge = queries.read_knowledge(tester.params, steps)
        predicted = _host_values(tester, weights, steps, knowledge)
        true = queries.start_values(tester.params, knowledge.links, WATER)
        food = queries.start_values(tester.params, knowledge.links, FOOD)
        is_valid = queries.is_usable(tester.params, steps, knowledge)
        return (predicted - true) @ ADVANTAGE, food @ ADVANTAGE, is_valid.astype(jnp.float32)

    error, advantage, weight = jax.vmap(measure)(streams.prefix)
    count = jnp.maximum(jnp.sum(weight), 1)
    centered = weight * (advantage - jnp.sum(weight * advantage) / count)
    return jnp.sum(centered * error) / jnp.maximum(jnp.sum(centered * advantage), 1e-9)


def measure_other_members(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """The index of revaluation of the choices that are predicted for every algorithm, at once, by layer."""
    layers = [(layer,) for layer in range(tester.params.depth)]
    twins: dict[str, Twins] = {}
    for algorithm in ALGORITHMS:
        queried = tester._replace(member=jnp.int32(find_member(algorithm)))
        for layer in layers:
            twins[index_as(algorithm, f"layer {layer[0] + 1}")] = build_twins(
                split_lifetime_key(key).learn, queried, streams.prefix, layer
            )
    choices = predict_choices(tester, weights, [s for pair in twins.values() for s in (pair.unchanged, pair.changed)])
    measured = {}
    for (name, pair), choice in zip(twins.items(), choices.reshape(-1, 2), strict=True):
        is_former = (choice == pair.best_before).astype(jnp.float32)
        measured[name] = (is_former[0] - is_former[1], pair.is_valid)
    return measured


def goal_directedness(tester: Tester, streams: TestStreams, weights: PyTree) -> Array:
    """MEG of the predicted first choices of N streams, as a share of its maximum, []."""

    def predict(steps: StreamSteps) -> tuple[Array, Array]:
        knowledge = queries.read_knowledge(tester.params, steps)
        queried = queries.join(steps, queries.ask_choice(knowledge.start, tester.member))
        logits = last_logits(tester, weights, [queried])[0, 0, :NUM_ACTIONS]
        values = queries.start_values(tester.params, knowledge.links, tester.goal)
        return jax.nn.softmax(logits)[1], values[1] - values[0]

    probability, advantage = jax.vmap(predict)(streams.introduction)
    scaled = SLOPES[:, None] * advantage
    likelihood = probability * jax.nn.log_sigmoid(scaled) + (1 - probability) * jax.nn.log_sigmoid(-scaled)
    is_clear = jnp.abs(advantage) > queries.MIN_MARGIN
    mean = jnp.sum(likelihood * is_clear, axis=1) / jnp.maximum(jnp.sum(is_clear), 1)
    return jnp.maximum(jnp.max(mean) / jnp.log(2.0) + 1, 0.0)


def _best(tester: Tester, knowledge: Knowledge, goal: int) -> tuple[Array, Array]:
    """The best action at the start for a goal, and whether it is better than the other."""
    return queries.best_action(queries.start_values(tester.params, knowledge.links, goal))


def _host_values(tester: Tester, weights: PyTree, steps: StreamSteps, knowledge: Knowledge) -> Float[Array, "A"]:
    """The values of the first actions for water, by backward induction over the predicted results of all links."""
    S = relay.num_states(tester.params)
    exposures = expose_links(S, knowledge.start)
    queried = [
        queries.join(steps, jax.tree.map(lambda leaf, i=link: leaf[i : i + 1], exposures))
        for link in range(S * NUM_ACTIONS)
    ]
    logits = last_logits(tester, weights, queried)[:, 1, NUM_ACTIONS:]
    results = jax.nn.softmax(logits).reshape(S, NUM_ACTIONS, -1)
    return plan_with_results(results, OUTCOME_VALUES[:, WATER], tester.params.depth)[0]
