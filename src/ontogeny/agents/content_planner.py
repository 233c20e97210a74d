"""Plans with the links that its learned content predicts; steering alone says which outcomes are good.

For the environment `relay`. The host is code: at every step it asks the content where each link leads, computes the
values of all actions by backward induction over these predictions and the rewards of steering, and takes the best one.
The content is a predictor of streams (`agents.relay_streams`), whose loss is prediction and never reward. It has been
trained on what other agents do: by the mesa study, whose weights are read from a file, or by `num_updates` updates when
the genome is drawn. In a lifetime the content is shown every step of the host as an exposure of that link, so that it
does not take the host's choices for those of another agent; deployed online, it learns from these steps by prediction.

Letters: S states, A actions, R results (states, then outcomes), O outcomes, L steps of a stream.
"""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int32
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ontogeny import plugins, trees
from ontogeny.agents.relay_streams import (
    ALGORITHMS,
    CUT,
    EXPOSURE,
    MEMBERS,
    NUM_ACTIONS,
    Layout,
    StreamSettings,
    StreamSteps,
    encode,
    find_member,
    read_successor,
    sample_batch,
)
from ontogeny.agents.stream_training import ContentSettings, TrainingState, build_content, train_on_streams
from ontogeny.agents.tabular_learner import num_graph_states, to_graph_state
from ontogeny.content.base import Predictor
from ontogeny.environments import relay
from ontogeny.environments.relay import RelayParams
from ontogeny.errors import BadInput, require_at_least, require_one_of
from ontogeny.types import Agent, EnvSpec, Genome, Key, Percept, PyTree, State, Steering, Transition, Weights

UNLABELED = jnp.bool_(False)


class HostActivations(NamedTuple):
    """The activations of the host."""

    memory: PyTree  # of the content
    observation: Int32[Array, ""]  # the last one
    last_step: StreamSteps  # the last one that the content was shown, leaves []
    is_new: Bool[Array, ""]  # whether the content was shown none yet


class HostScratch(NamedTuple):
    """What `learn` alone reads."""

    predictor: PyTree  # scratch of the content
    stream: StreamSteps  # the steps since the last update, leaves [L]
    num_steps: Int32[Array, ""]


class Host(NamedTuple):
    """What all functions of the agent share."""

    spec: EnvSpec
    predictor: Predictor
    outcome_values: Float[Array, "O"]  # rewards of steering
    num_stream_steps: int  # L

    @property
    def layout(self) -> Layout:
        """Sizes of the sequences."""
        return Layout(num_graph_states(self.spec))


class StreamTraining(NamedTuple):
    """The training of the content when a genome is drawn."""

    params: RelayParams
    algorithm: str
    num_updates: int
    batch_size: int


def build(
    spec: EnvSpec,
    steering: Steering,
    *,
    content: str = "causal_transformer",
    width: int = 64,
    num_blocks: int = 3,
    num_heads: int = 4,
    learning_rate: float = 0.002,
    optimizer: str = "muon",
    weights: str = "",
    num_updates: int = 0,
    algorithm: str = "planner",
    batch_size: int = 8,
    num_stream_steps: int = 0,
) -> Agent:
    """Builds the agent.

    Args:
        spec: Spec of the environment `relay`.
        steering: Reward function, with which the host plans.
        content: Name of a predictor with categorical outputs.
        width: Width of the content, or its hidden units.
        num_blocks: Blocks of a transformer.
        num_heads: Attention heads of a transformer.
        learning_rate: Initial step size of the content's optimizer.
        optimizer: `muon` or `adam`, of contents that have the choice.
        weights: Path of a safetensors file with the weights of the content, as the mesa study leaves it in
            `runs/planning`; it is read whenever the agent is built. If a JSON file of that study lies beside it, the
            settings must be those of its cell. Empty for new weights.
        num_updates: Updates of new weights by prediction, at least 0; not with `weights`.
        algorithm: Of the agents, who pursue food, in the streams of these updates.
        batch_size: Streams in each of these updates, at least 1.
        num_stream_steps: Steps of these streams, or of those on which the weights were trained; 0 for the length of a
            lifetime. The content attends to no more steps, and learns online whenever so many are complete.

    Raises:
        BadInput: If the environment is not `relay`, the content predicts no streams, or the weights do not fit it.
    """
    if spec.name != "relay":
        raise BadInput(f"agent 'content_planner' is for the environment 'relay', not for '{spec.name}'")
    require_at_least(0, num_updates=num_updates, num_stream_steps=num_stream_steps)
    require_at_least(1, batch_size=batch_size)
    require_one_of(ALGORITHMS, algorithm=algorithm)
    if weights and num_updates:
        raise BadInput("the settings 'weights' and 'num_updates' of agent 'content_planner' exclude each other")
    L = num_stream_steps or spec.num_steps
    params = RelayParams(depth=spec.horizon, width=relay.width_of_layers(spec), num_steps=L)
    settings = ContentSettings(content, width, num_blocks, num_heads, learning_rate, optimizer)
    predictor = build_content(settings, params, Layout(num_graph_states(spec)))
    host = Host(spec, predictor, jax.vmap(steering)(jnp.asarray(relay.FEATURES)), L)
    genome: Callable[[Key], Genome] = predictor.init
    if weights:
        trained = {"depth": params.depth, "num_stream_steps": L, **_sizes(settings)}
        genome = partial(_read_weights, predictor, weights, trained)
        genome(jax.random.key(0))  # faulty weights are refused before a run begins
    elif num_updates:
        genome = jax.jit(partial(_train_content, host, StreamTraining(params, algorithm, num_updates, batch_size)))

    def init(key: Key, genome: Genome) -> State:
        del key
        stream = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, L), _no_step())
        scratch = HostScratch(predictor.init_scratch(genome), stream, jnp.int32(0))
        return State(Weights(genome, scratch), _init_activations(predictor))

    def reset(state: State) -> State:
        return State(state.weights, _init_activations(predictor))

    return Agent(genome, init, reset, partial(_act, host), partial(_learn, host), learning=True)


def expose_links(num_states: int, start: Array) -> StreamSteps:
    """The exposures in which the content is asked for the successor of every link, leaves [S A].

    Args:
        num_states: S.
        start: The observation at the start, with its cue if it has one.
    """
    states, actions = jnp.divmod(jnp.arange(num_states * NUM_ACTIONS, dtype=jnp.int32), NUM_ACTIONS)
    kinds, zeros = jnp.full_like(states, EXPOSURE), jnp.zeros_like(states)
    return StreamSteps(kinds, zeros, jnp.where(states == 0, start, states), actions, zeros)


def plan_with_results(
    results: Float[Array, "S A R"], outcome_values: Float[Array, "O"], depth: int
) -> Float[Array, "S A"]:
    """The expected values of all actions, by backward induction over predicted results.

    Args:
        results: Probability of each result of each link.
        outcome_values: What each outcome is worth.
        depth: Layers of the environment.
    """
    S, A, _ = results.shape
    state_values, action_values = jnp.zeros(S), jnp.zeros((S, A))
    for _ in range(depth):
        action_values = results @ jnp.concatenate([state_values, outcome_values])
        state_values = jnp.max(action_values, axis=1)
    return action_values


def _sizes(settings: ContentSettings) -> dict[str, int]:
    """The settings of a content that determine its function beside its weights, as far as the content has them."""
    names = {"width", "num_blocks", "num_heads"} & plugins.default_settings("content", settings.content).keys()
    return {name: getattr(settings, name) for name in sorted(names)}


def _read_weights(predictor: Predictor, path: str, settings: Mapping[str, int], key: Key) -> PyTree:
    """The weights of a content from a file, which were trained with these settings; the key draws nothing."""
    template = jax.eval_shape(predictor.init, key)
    _check_training(path, settings)
    try:
        return trees.from_arrays(template, load_file(path))
    except OSError as error:
        reason = error.strerror or ("it is no file" if Path(path).exists() else "there is no such file")
        raise BadInput(f"the weights '{path}' of agent 'content_planner' cannot be read: {reason}") from None
    except SafetensorError as error:
        raise BadInput(f"the weights '{path}' of agent 'content_planner' are damaged: {error}") from None
    except BadInput as error:
        raise BadInput(f"the weights '{path}' do not fit the content of agent 'content_planner': {error}") from None


def _check_training(path: str, settings: Mapping[str, int]) -> None:
    """Compares the settings with those of the training, which the mesa study leaves in a JSON file beside the weights.

    Arrays of the same shapes may belong to another environment, or to other attention heads.
    """
    try:
        trained = json.loads(Path(path).with_suffix(".json").read_text(encoding="utf-8"))["metadata"]
        differing = {name: trained[name] for name in settings if trained.get(name, settings[name]) != settings[name]}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return  # weights of another origin have no such file
    for name, value in differing.items():
        raise BadInput(
            f"the weights '{path}' of agent 'content_planner' were trained with {name}={value}, not with "
            f"{name}={settings[name]}"
        )


def _train_content(host: Host, training: StreamTraining, key: Key) -> PyTree:
    """New weights after their updates by prediction."""
    params, predictor = training.params, host.predictor
    init_key, streams_key = jax.random.split(key)
    shares = jnp.zeros(len(MEMBERS)).at[find_member(training.algorithm)].set(1.0)
    settings = StreamSettings(
        shares,
        UNLABELED,
        jnp.float32(params.change_probability),
        jnp.float32(params.relevant_share),
        quiet_share=jnp.float32(0),
        has_cue=jnp.bool_(False),
        num_instances=jnp.int32(0),
    )

    def update(state: TrainingState, number: Array) -> tuple[TrainingState, None]:
        step_key = jax.random.fold_in(streams_key, number)
        streams = sample_batch(step_key, params, settings, training.batch_size, "training")
        batch = jax.tree.map(lambda leaf: leaf[None], streams)
        progress = number[None] / training.num_updates
        return train_on_streams(predictor, host.layout, UNLABELED, state, batch, progress), None

    weights = predictor.init(init_key)
    state = TrainingState(weights, predictor.init_scratch(weights))
    return jax.lax.scan(update, state, jnp.arange(training.num_updates))[0].weights


def _act(host: Host, key: Key, state: State, percept: Percept) -> tuple[Array, State]:
    """Shows the content the last step, and takes the best action for the links that it predicts now."""
    del key
    content, activations = state.weights.content, state.activations
    step = _read_step(host.spec, activations.observation, percept.action, percept)
    inputs = _encode_step(host, activations, step)
    memory = activations.memory
    for position in inputs:
        _, memory = host.predictor.query(content, memory, position)
    observed = HostActivations(memory, percept.observation, step, jnp.bool_(False))
    unchanged = activations._replace(observation=percept.observation)
    activations = jax.tree.map(partial(jnp.where, percept.action >= 0), observed, unchanged)
    S = num_graph_states(host.spec)
    # The start shows its cue only where the agent stands there.
    start = jnp.where(to_graph_state(host.spec, percept.observation) == 0, percept.observation, 0)
    logits = jax.vmap(partial(_predict_successor, host, content, activations))(expose_links(S, start))
    results = jax.nn.softmax(logits[:, NUM_ACTIONS:]).reshape(S, NUM_ACTIONS, -1)
    values = plan_with_results(results, host.outcome_values, host.spec.horizon)
    action = jnp.argmax(values[to_graph_state(host.spec, percept.observation)]).astype(jnp.int32)
    return action, State(state.weights, activations)


def _predict_successor(host: Host, content: PyTree, activations: HostActivations, step: StreamSteps) -> Array:
    """The logits of the successor at a step that the content is not shown."""
    choice, successor = _encode_step(host, activations, step)
    _, memory = host.predictor.query(content, activations.memory, choice)
    return host.predictor.query(content, memory, successor)[0]


def _encode_step(host: Host, activations: HostActivations, step: StreamSteps) -> Float[Array, "2 I"]:
    """The two positions of a step that follows those which the content was shown."""
    steps = jax.tree.map(lambda *leaves: jnp.stack(leaves), activations.last_step, step)
    inputs = encode(host.layout, steps, UNLABELED).inputs[2:]
    return inputs.at[0, -1].set(activations.is_new.astype(jnp.float32))


def _learn(host: Host, key: Key, state: State, transition: Transition) -> tuple[State, tuple[()]]:
    """Stores one step, and trains the content by prediction when a stream is complete."""
    del key
    content, scratch = state.weights
    step = _read_step(host.spec, transition.percept.observation, transition.action, transition.next_percept)
    t = scratch.num_steps % host.num_stream_steps
    stream = jax.tree.map(lambda leaf, new: leaf.at[t].set(new), scratch.stream, step)

    def train(state: TrainingState) -> TrainingState:
        batch = jax.tree.map(lambda leaf: leaf[None, None], stream)
        return train_on_streams(host.predictor, host.layout, UNLABELED, state, batch, jnp.zeros(1))

    # All lifetimes of a batch have taken equally many steps, so that under `vmap` this remains a branch.
    is_complete = t == host.num_stream_steps - 1
    trained = jax.lax.cond(is_complete, train, lambda state: state, TrainingState(content, scratch.predictor))
    scratch = HostScratch(trained.scratch, stream, scratch.num_steps + 1)
    return State(Weights(trained.weights, scratch), state.activations), ()


def _read_step(spec: EnvSpec, observation: Array, action: Array, after: Percept) -> StreamSteps:
    """A step as the exposure of its link, or as the cut that lets its successor be seen; leaves []."""
    kind = jnp.where(after.first & (after.discount > 0), CUT, EXPOSURE)
    return StreamSteps(kind, jnp.int32(0), observation, jnp.maximum(action, 0), read_successor(spec, after))


def _no_step() -> StreamSteps:
    """A step of which nothing is shown, leaves []."""
    return StreamSteps(jnp.int32(CUT), jnp.int32(0), jnp.int32(0), jnp.int32(0), jnp.int32(-1))


def _init_activations(predictor: Predictor) -> HostActivations:
    """The activations at the start of a lifetime."""
    return HostActivations(predictor.init_memory(), jnp.int32(0), _no_step(), jnp.bool_(True))
