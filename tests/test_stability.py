"""Signs of a loss of plasticity: of known matrices, of the agent `neural_model_based`, and over a long lifetime."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ontogeny import plugins, steering
from ontogeny.agents import neural_model_based
from ontogeny.agents.actor_critic import UNIFORM_SHARE, policy_logits
from ontogeny.agents.experience import sample_experience
from ontogeny.agents.neural_updates import SEQUENCE_LENGTH, NeuralParams, NeuralSettings
from ontogeny.content import latent_model, outcome_ensemble, plasticity
from ontogeny.content.perceptron import apply_perceptron
from ontogeny.content.transformer_block import apply_linear
from ontogeny.errors import BadInput
from ontogeny.studies.neural import learners, stability
from ontogeny.types import EnvSpec, State

pytestmark = pytest.mark.usefixtures("quick_compilation")
BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "neural.py"
NUM_EXAMPLES = 12
SPEC = EnvSpec("corridor", 2, 5, (), ("apple", "bread"), 40, 20, (("apple", 1.0), ("bread", -1.0)))
CHANGES = {
    "width": 16,
    "discount": 0.9,
    "imagination_length": 3,
    "imagination_share": 0.0,
    "ablation": "no_imagination",
}
SETTINGS = NeuralSettings(**plugins.default_settings("agents", "neural_model_based") | CHANGES)
SHAPE = latent_model.model_shape(SPEC, SETTINGS.width)


def draw_orthonormal(rng: np.random.Generator, size: int, num_columns: int) -> np.ndarray:
    """Orthonormal columns."""
    return np.linalg.qr(rng.normal(size=(size, num_columns)))[0]


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_effective_rank_is_a_function_of_the_shares_of_singular_values(singular_values, seed, scale):
    rng, rank = np.random.default_rng(seed), len(singular_values)
    basis = draw_orthonormal(rng, 8, rank)
    features = draw_orthonormal(rng, NUM_EXAMPLES, rank) * singular_values @ basis.T
    shares = np.array(singular_values) / sum(singular_values)
    expected = np.prod(shares**-shares)
    measured = plasticity.effective_rank(features)
    assert measured == pytest.approx(expected, rel=1e-6) and 1 - 1e-9 <= measured <= rank + 1e-6
    rotated = scale * features[rng.permutation(NUM_EXAMPLES)] @ draw_orthonormal(rng, 8, 8)
    assert plasticity.effective_rank(rotated) == pytest.approx(expected, rel=1e-6)
    assert plasticity.effective_rank(features.T) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_effective_rank_of_equal_singular_values_is_their_number(rank):
    features = np.zeros((NUM_EXAMPLES, 7))
    features[range(rank), range(rank)] = -3.0
    assert plasticity.effective_rank(features) == pytest.approx(rank)
    # One example again and again, however many units: rank 1, which depends on no centering.
    assert plasticity.effective_rank(np.tile(features[:1] + 1, (NUM_EXAMPLES, 1))) == pytest.approx(1)
    assert plasticity.effective_rank(0 * features) == 0


def test_dormant_and_constant_units_of_a_known_layer():
    varying = np.where(np.arange(NUM_EXAMPLES) % 2, 1.0, -1.0)
    columns = [varying, 0 * varying, 0 * varying + 2.0, 0.01 * varying, 3.0 + 0.01 * varying, 0 * varying + 0.1]
    activations = np.stack(columns, axis=1)  # mean absolute activation of the layer: 6.11 / 6
    assert plasticity.is_dormant(activations).tolist() == [False, True, False, True, False, False]
    assert plasticity.is_constant(activations).tolist() == [False, True, True, True, True, True]
    assert plasticity.is_dormant(activations, 0.2).tolist() == [False, True, False, True, False, True]
    assert plasticity.is_constant(activations, 0.001).tolist() == [False, True, True, False, False, True]
    layer = plasticity.measure_layer(activations)
    assert (layer.num_units, layer.num_dormant, layer.num_constant) == (6, 2, 5) and 1 < layer.effective_rank < 2
    still = plasticity.measure_layer(np.full((NUM_EXAMPLES, 3), 0.7))
    assert (still.num_dormant, still.num_constant) == (0, 3) and still.effective_rank == pytest.approx(1)
    assert plasticity.measure_layer(np.zeros((NUM_EXAMPLES, 3))) == plasticity.LayerPlasticity(3, 3, 3, 0.0)


@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.floats(1e-3, 1e3))
def test_units_that_never_react_are_dormant_and_constant_in_any_order_and_scale(seed, num_dead, scale):
    rng = np.random.default_rng(seed)
    activations = np.abs(rng.normal(size=(200, 8)))
    is_dead = rng.permutation(np.arange(8) < num_dead)
    activations[:, is_dead] = 0
    assert plasticity.is_dormant(scale * activations).tolist() == is_dead.tolist()
    assert plasticity.is_constant(scale * activations).tolist() == is_dead.tolist()


NUMBERS = st.lists(st.floats(-10, 10), min_size=3, max_size=3)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_norm_and_distance_of_weights_are_those_of_one_vector(first, second, third):
    def tree(numbers):
        return {"layer": (np.float32(numbers[:2]), None), "bias": np.float32(numbers[2])}

    norm = plasticity.weight_norm(tree(first))
    assert norm == pytest.approx(np.linalg.norm(np.float32(first)), abs=1e-6)
    assert plasticity.weight_distance(tree(first), tree(first)) == 0
    assert plasticity.weight_distance(tree(first), tree([0, 0, 0])) == norm
    distance = plasticity.weight_distance(tree(first), tree(second))
    assert distance == plasticity.weight_distance(tree(second), tree(first))
    through_third = plasticity.weight_distance(tree(first), tree(third))
    assert distance <= through_third + plasticity.weight_distance(tree(third), tree(second)) + 1e-9


@pytest.fixture(scope="module")
def params() -> NeuralParams:
    """The functions of a small agent."""
    return neural_model_based.make_params(SPEC, steering.build(SPEC), SETTINGS)


@pytest.fixture(scope="module")
def state(params: NeuralParams) -> State:
    """A state with random experience of 30 steps, and content whose read-outs are not zero."""
    agent = neural_model_based.build(SPEC, params.steering, **SETTINGS._asdict())
    initial = jax.jit(lambda key: agent.init(key, agent.genome(key)))(jax.random.key(0))
    rng = np.random.default_rng(0)

    def disturb(leaf: jax.Array) -> jax.Array:
        return leaf + jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32)

    experience = initial.weights.scratch.experience
    capacity = len(experience.action)
    experience = experience._replace(
        observation=jnp.asarray(rng.integers(0, 5, capacity), jnp.int32),
        is_first=jnp.arange(capacity) % 7 == 0,
        action=jnp.asarray(rng.integers(0, 2, capacity), jnp.int32),
        num_steps=jnp.int32(30),
    )
    scratch = initial.weights.scratch._replace(experience=experience)
    content = jax.tree.map(disturb, initial.weights.content)
    return State(initial.weights._replace(content=content, scratch=scratch), initial.activations)


def test_hidden_activations_are_those_that_the_outputs_are_computed_from(params: NeuralParams, state: State):
    shape, key, content = params.shape, jax.random.key(1), state.weights.content
    experience, no_prior = state.weights.scratch.experience, jax.tree.map(jnp.zeros_like, content.ensemble.prior)

    @jax.jit
    def compute(key, content):
        sampled = sample_experience(key, experience, 3, SEQUENCE_LENGTH)
        layers, model = stability.hidden_activations(shape, key, content, sampled), content.model
        states = latent_model.infer_states(shape, key, model, sampled.sequences)
        flat = latent_model.flatten_state(states).reshape(-1, shape.state_size)
        inputs = jnp.concatenate([flat, jax.nn.one_hot(sampled.sequences.action.reshape(-1), 2)], axis=-1)
        members = layers["ensemble"].reshape(len(flat), outcome_ensemble.NUM_MEMBERS, -1)
        trained = content.ensemble.trained
        predictions = jnp.einsum("nkw,kwf->knf", members, trained.readout) + trained.readout_bias[:, None]
        spread = jnp.mean(jnp.std(predictions, axis=0), axis=-1)
        policy = jax.nn.softmax(apply_linear(content.actor.output, layers["actor"]))
        discount = jax.nn.sigmoid(apply_linear(model.outcome.output, layers["outcome"])[:, -1])
        ensemble = content.ensemble._replace(prior=no_prior)
        pairs = {
            "actor": ((1 - UNIFORM_SHARE) * policy + UNIFORM_SHARE / 2, jnp.exp(policy_logits(content.actor, flat))),
            "critic": (apply_linear(content.critic.output, layers["critic"]), apply_perceptron(content.critic, flat)),
            "decoder": (apply_linear(model.decoder.output, layers["decoder"]), apply_perceptron(model.decoder, flat)),
            "outcome": (discount, latent_model.predict_outcome(shape, model, layers["recurrent"])[1]),
            "ensemble": (spread, outcome_ensemble.query_disagreement(ensemble, inputs)),
        }
        return pairs, layers, states.hidden, sampled.sequences.is_first

    pairs, layers, hidden, is_first = jax.tree.map(np.asarray, compute(key, content))
    for name, (from_layer, expected) in pairs.items():
        assert from_layer == pytest.approx(expected, abs=1e-5), name
    # Within an episode, the recurrent units after an action are those of the next step.
    is_inner = ~is_first[:, 1:]
    after = layers["recurrent"].reshape(3, SEQUENCE_LENGTH, -1)[:, :-1]
    assert is_inner.any() and after[is_inner] == pytest.approx(hidden[:, 1:][is_inner], abs=1e-5)
    assert layers["posterior"].shape == layers["prior"].shape == layers["encoder"].shape == (48, SETTINGS.width)


def test_a_layer_that_no_longer_reacts_and_weights_that_moved_are_detected(params: NeuralParams, state: State):
    del params
    key, content = jax.random.key(2), state.weights.content
    measured = stability.measure_plasticity(key, SHAPE, state, state)
    assert len(measured["layers"]) == 10 and measured["layers"]["ensemble"]["num_units"] == 8 * outcome_ensemble.WIDTH
    assert all(layer["effective_rank"] > 1.5 for layer in measured["layers"].values())
    assert set(measured["weight_distance"].values()) == {0.0} and min(measured["weight_norm"].values()) > 1
    zeros = jax.tree.map(jnp.zeros_like, content.critic.hidden)
    dead = content._replace(critic=content.critic._replace(hidden=zeros))
    # The statistics of the observations and the priors of the ensemble are no trained weights.
    dead = dead._replace(
        model=dead.model._replace(num_updates=jnp.float32(1000)),
        ensemble=dead.ensemble._replace(prior=jax.tree.map(lambda leaf: leaf + 1, dead.ensemble.prior)),
    )
    after = State(state.weights._replace(content=dead), state.activations)
    measured_dead = stability.measure_plasticity(key, SHAPE, state, after)
    layers, layers_dead = measured["layers"], measured_dead["layers"]
    assert layers_dead["critic"] == {"num_units": 16, "num_dormant": 16, "num_constant": 16, "effective_rank": 0.0}
    assert all(layers_dead[name] == layers[name] for name in layers if name != "critic")
    num_units = sum(layer["num_units"] for layer in layers.values())
    num_dormant = sum(layer["num_dormant"] for layer in layers_dead.values())
    assert measured_dead["dormant_share"] == num_dormant / num_units > measured["dormant_share"]
    changed_parts = {part for part, distance in measured_dead["weight_distance"].items() if distance > 0}
    assert changed_parts == {"critic"}
    expected = plasticity.weight_norm(content.critic.hidden)
    assert measured_dead["weight_distance"]["critic"] == pytest.approx(expected)


def test_measurements_between_segments_are_saved_with_the_lifetime(tmp_path, monkeypatch):
    monkeypatch.setattr(learners, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    env_text = "bandit:num_arms=3,num_pulls=40"
    env, lifetime = learners.build_env(env_text), learners.LifetimeIdentity("q_learning", env_text, 1, 40)

    def measure(initial, carry):
        return {"num_arms": 3, "distance": plasticity.weight_distance(carry.state.weights, initial.state.weights)}

    def run(on_progress=None, folder=None):
        return learners.run_lifetime(lifetime, env, folder, on_progress, num_segments=4, measure=measure)

    def stop(num_done, num_steps):
        if num_done == 30:
            raise InterruptedError

    uninterrupted = run()
    with pytest.raises(InterruptedError):
        run(stop, tmp_path)
    steps = []
    resumed = run(lambda done, _: steps.append(done), tmp_path)
    assert steps == [30, 40] and len(resumed[1]) == 4 and resumed[1] == uninterrupted[1]
    assert resumed[1][-1]["distance"] > 0


def test_lines_of_stability_state_the_last_twentieth_and_all_of_them(state: State):
    benchmark = runpy.run_path(str(BENCHMARK))
    measured = stability.measure_plasticity(jax.random.key(2), SHAPE, state, state)
    records = []
    for seed in (0, 1):
        plasticity_by_part = [measured | {"dormant_share": 0.1 * (part + seed)} for part in range(3)]
        records.append(
            {
                "row": "stability", "environment": "Catch", "learner": "actions reversed every 40", "seed": seed,
                "num_steps": 160, "settings": "", "curve": [0.0, None, 0.5], "adapted": [0.5, 1.0 - seed],
                "plasticity": plasticity_by_part, "learning_cpu_seconds": 2.0, "seconds": 3.0,
            }
        )  # fmt: skip
    name = "neural/stability/Catch/actions reversed every 40"
    lines = {line["name"]: line for line in benchmark["collect_lines"](records)}
    dormant = lines[f"{name}/dormant_share"]
    assert dormant["value"] == 0.25 and dormant["setting"]["curves"] == [[0, 0.1, 0.2], [0.1, 0.2, 0.3]]
    assert lines[f"{name}/return"]["setting"]["curves"] == [[0, None, 0.5]] * 2
    assert (lines[f"{name}/adapted"]["value"], lines[f"{name}/speed"]["value"]) == (0.5, 80)
    rank = lines[f"{name}/effective_rank/actor"]
    assert rank["setting"]["num_units"] == 16 and 1 < rank["value"] <= 16
    assert {f"{name}/{quantity}/{part}" for quantity in ("weight_norm", "weight_distance")
            for part in ("model", "actor", "critic", "ensemble")} <= set(lines)  # fmt: skip
    # A twentieth in which no episode ended has no return.
    del lines
    lines = [line["name"] for line in benchmark["collect_lines"]([records[0] | {"curve": [0.0, None]}])]
    assert f"{name}/return" not in lines and f"{name}/adapted" in lines


@pytest.mark.slow
def test_the_benchmark_measures_stability(tmp_path, capsys):
    benchmark, out = runpy.run_path(str(BENCHMARK)), tmp_path / "neural.jsonl"
    settings = "width=8,ablation=no_imagination,exploration_bonus=0"
    arguments = ["--rows", "stability", "--environment", "Catch", "--seeds", "1", "--steps", "160", "--interval", "40"]
    benchmark["main"]([*arguments, "--settings", settings, "--out", str(out)])
    lines = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    name = "neural/stability/Catch/actions reversed every 40"
    layers = {line.removeprefix(f"{name}/effective_rank/") for line in lines if "/effective_rank/" in line}
    assert len(layers) == 10 and {"actor", "critic", "recurrent"} <= layers
    norm = lines[f"{name}/weight_distance/model"]["setting"]["curves"][0]
    assert len(norm) == 20 and norm[0] == 0 < norm[-1] == lines[f"{name}/weight_distance/model"]["value"]
    assert all(0 <= lines[f"{name}/{share}"]["value"] <= 1 for share in ("dormant_share", "constant_share"))
    assert len(lines[f"{name}/adapted"]["setting"]["curves"][0]) == 4 and f"{name}/return" in lines
    assert lines[f"{name}/speed"]["unit"] == "environment steps per processor second"


@pytest.mark.parametrize(("interval", "num_steps"), [(41, 820), (40, 810), (30, 160), (0, 160)])
def test_lifetimes_without_whole_intervals_or_twentieths_are_rejected(interval, num_steps):
    with pytest.raises(BadInput, match="the interval must be even and positive"):
        stability.measure_stability("gymnax:Catch-bsuite", interval, 0, num_steps)
