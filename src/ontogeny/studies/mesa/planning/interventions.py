"""Do a content's predicted choices depend on what can be decoded from its streams? Exchanges and directions.

The residual stream at the query (or the hidden units of a recurrent content) is changed at one level, from the
embedding, level 0, to the last block. At the last level an exchange determines the prediction by construction.

- **Interchange**: the residual stream of the twin in which a link has changed replaces that of the twin in which it has
  not; its control takes the twin with a change that leaves the best action the best. Exposures of other links lie
  between the change and the query, because the query shows the step before it.
- **Steering**: the residual stream moves along a direction until the difference of the two action values would be
  reversed. Directions: encoding (the regression of the stream on the difference), least-norm probe (the regression of
  the difference on the stream; it decodes best and misleads, because it need not lie where the content's numbers lie),
  and 50 random differences between the streams of two instances, scaled to the norm of the encoding direction.
- **Ablation**: the component along the encoding direction, or along the random ones, is removed.

Directions are fitted on one half of the test streams and tried on those of the other half whose choice is predicted
correctly. Letters: N test streams, K random directions, D numbers of a residual stream.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from ontogeny.agents.relay_streams import NUM_ACTIONS, StreamSteps, encode
from ontogeny.content.base import StreamEdit
from ontogeny.studies.mesa.planning import queries
from ontogeny.studies.mesa.planning.abilities import Measured, Tester, TestStreams, build_test
from ontogeny.studies.mesa.planning.names import TIMINGS
from ontogeny.types import Key, PyTree

QueryEdited = Callable[[PyTree, Float[Array, "L I"], StreamEdit], tuple[Array, Array]]
NUM_RANDOM_DIRECTIONS = 50
RIDGE = 1e-3  # of the probe, as a share of the mean variance of the stream
QUERY_POSITION = -2  # the position of the query in the sequence; the last position is its result


def measure_interchange(key: Key, tester: Tester, streams: TestStreams, weights: PyTree) -> Measured:
    """How much less often the formerly best choice is predicted with the stream of the changed twin, by level."""
    query_edited = _query_edited(tester)
    measured = {}
    for layer in range(tester.params.depth):
        for name, reverses in (("interchange", True), ("harmless interchange", False)):
            twins = build_test(key, tester, streams, (layer,), TIMINGS[2], reverses=reverses)
            inputs = [_inputs(tester, steps) for steps in (twins.unchanged, twins.changed)]
            logits, _ = query_edited(weights, inputs[0], _keep)
            _, donor = query_edited(weights, inputs[1], _keep)
            former = (_choice(logits) == twins.best_before).astype(jnp.float32)
            for level in range(donor.shape[0]):
                stream = donor[level, QUERY_POSITION]
                patched = _replace_at(query_edited, weights, inputs[0], level=level, stream=stream)
                effect = former - (_choice(patched) == twins.best_before)
                measured[f"{name}, layer {layer + 1}, level {level}"] = (effect, twins.is_valid)
    return measured


def measure_directions(
    key: Key, tester: Tester, streams: TestStreams, weights: PyTree
) -> dict[str, Array | tuple[Array, Array]]:
    """Effects of steering and ablation on the first choices of N streams, by level.

    Returns:
        The share of correctly predicted choices that each kind of edit reverses (of random directions the mean and the
        95th percentile) and the share of best choices without any, each with its number of streams, and the
        coefficient of determination of the probe.
    """
    query_edited = _query_edited(tester)

    def prepare(steps: StreamSteps) -> tuple[Array, Array]:
        knowledge = queries.read_knowledge(tester.params, steps)
        values = queries.start_values(tester.params, knowledge.links, tester.goal)
        queried = queries.join(steps, queries.ask_choice(knowledge.start, tester.member))
        return _inputs(tester, queried), values[1] - values[0]

    inputs, advantage = jax.vmap(prepare)(streams.introduction)
    logits, levels = jax.vmap(lambda x: query_edited(weights, x, _keep))(inputs)
    choice, best = jax.vmap(_choice)(logits), (advantage > 0).astype(jnp.int32)
    is_clear = jnp.abs(advantage) > queries.MIN_MARGIN
    measured: dict[str, Array | tuple[Array, Array]] = {
        "best choices": (_share(choice == best, is_clear), jnp.sum(is_clear))
    }
    half = len(advantage) // 2
    is_counted = (is_clear & (choice == best))[half:]
    num_counted = jnp.sum(is_counted)
    for level in range(levels.shape[1]):
        at_query = levels[:, level, QUERY_POSITION]

        def reversed_share(edited: Float[Array, "N D"], level: int = level) -> Array:
            replace = partial(_replace_at, query_edited, weights, level=level)
            choices = jax.vmap(lambda x, stream: _choice(replace(x, stream=stream)))(inputs[half:], edited)
            return _share(choices != choice[half:], is_counted)

        for name, edited in _edited_streams(key, at_query, advantage).items():
            if name.startswith("random"):
                shares = jax.lax.map(reversed_share, edited)
                measured[f"{name}, level {level}"] = (jnp.mean(shares), num_counted)
                measured[f"{name}, 95th percentile, level {level}"] = (jnp.quantile(shares, 0.95), num_counted)
            else:
                measured[f"{name}, level {level}"] = (reversed_share(edited), num_counted)
        measured[f"probe R2, level {level}"] = _probe(at_query, advantage)[1]
    return measured


def _edited_streams(
    key: Key, streams: Float[Array, "N D"], advantage: Float[Array, "N"]
) -> dict[str, Float[Array, "*K half D"]]:
    """The streams of the second half after each kind of edit, whose direction is fitted on the first half."""
    half = len(streams) // 2
    fitted, y = streams[:half], advantage[:half] - advantage[:half].mean()
    mean, tried = fitted.mean(axis=0), streams[half:]
    encoding = y @ (fitted - mean) / jnp.maximum(y @ y, 1e-9)
    probe, _ = _probe(streams, advantage)
    shift = -2 * advantage[half:, None]
    first, distance = jax.random.randint(key, (2, NUM_RANDOM_DIRECTIONS), 0, jnp.array([[half], [half - 1]]))
    random = fitted[first] - fitted[(first + 1 + distance) % half]
    random = random * (jnp.linalg.norm(encoding) / jnp.maximum(jnp.linalg.norm(random, axis=1, keepdims=True), 1e-9))

    def ablate(direction: Float[Array, "D"]) -> Float[Array, "half D"]:
        unit = direction / jnp.maximum(jnp.linalg.norm(direction), 1e-9)
        return tried - ((tried - mean) @ unit)[:, None] * unit

    return {
        "encoding direction": tried + shift * encoding,
        "probe direction": tried + shift * probe / jnp.maximum(probe @ probe, 1e-9),
        "random directions": tried[None] + shift[None] * random[:, None],
        "ablation": ablate(encoding),
        "random ablations": jax.vmap(ablate)(random),
    }


def _probe(streams: Float[Array, "N D"], advantage: Float[Array, "N"]) -> tuple[Array, Array]:
    """Ridge regression of the advantage on the stream, fitted on one half: weights [D], and R^2 on the other half."""
    half = len(streams) // 2
    mean, y_mean = streams[:half].mean(axis=0), advantage[:half].mean()
    x, y = streams[:half] - mean, advantage[:half] - y_mean
    gram = x.T @ x
    ridge = RIDGE * jnp.trace(gram) / gram.shape[0] + 1e-6
    weights = jnp.linalg.solve(gram + ridge * jnp.eye(gram.shape[0]), x.T @ y)
    residual = advantage[half:] - y_mean - (streams[half:] - mean) @ weights
    held_out = advantage[half:] - advantage[half:].mean()
    return weights, 1 - jnp.sum(residual**2) / jnp.sum(held_out**2)


def _keep(level: int, stream: Array) -> Array:
    """The edit that changes nothing."""
    del level
    return stream


def _query_edited(tester: Tester) -> QueryEdited:
    """The content's predictions with edits."""
    query_edited = tester.predictor.query_edited
    assert query_edited is not None, "the content has no streams"
    return query_edited


def _inputs(tester: Tester, steps: StreamSteps) -> Float[Array, "L I"]:
    """The inputs of a stream."""
    return encode(tester.layout, steps, tester.settings.is_labeled).inputs


def _choice(logits: Float[Array, "L K"]) -> Array:
    """The predicted choice at the query."""
    return jnp.argmax(logits[QUERY_POSITION, :NUM_ACTIONS]).astype(jnp.int32)


def _replace_at(
    query_edited: QueryEdited, weights: PyTree, inputs: Float[Array, "L I"], *, level: int, stream: Float[Array, "D"]
) -> Float[Array, "L K"]:
    """The logits with another stream at the query."""

    def edit(index: int, streams: Array) -> Array:
        return streams.at[QUERY_POSITION].set(stream) if index == level else streams

    return query_edited(weights, inputs, edit)[0]


def _share(values: Array, is_counted: Array) -> Array:
    """The share of true values among the counted ones."""
    return jnp.sum(values & is_counted) / jnp.maximum(jnp.sum(is_counted), 1)
