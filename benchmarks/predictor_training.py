"""Milliseconds per update of a predictor with three transformer blocks, beside a plain PyTorch loop.

    python benchmarks/predictor_training.py                      # on one core
    python benchmarks/predictor_training.py --cores 2 --turns 12

The network is `causal_transformer` with 3 blocks, width 64, 4 heads and categorical outputs; a batch has 64 sequences
of 120 steps with 40 inputs, two of which are 1, and 19 classes; the optimizer is Adam with clipping. The sides are:

- `update`: `Predictor.update`, compiled, with weights and scratch donated.
- `ungrouped`: the same with the gradient of all sequences at once instead of by groups that fit into the cache.
- `4 runs, vmap` and `4 runs, map`: one call that updates four sets of weights, with `jax.vmap` or one after the other.
- `peer`: the same network, initial weights, batches and optimizer in PyTorch, run eagerly, with the faster of its two
  forms of attention (`--attention`); left out where torch is not installed.

Each side is a process on the same cores, and the sides alternate in turns of a few updates, so that other load of the
machine affects all of them; the first turn, which compiles, is not timed. Prints one JSON line per side: time and
processor time per update of one run, the same of the peer, the ratios of the peer's times to those of the side (median
over turns), and the loss at the end, which is that of the peer where a side takes as many updates of a run.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

NUM_SEQUENCES, NUM_STEPS, NUM_INPUTS, NUM_CLASSES = 64, 120, 40, 19
NETWORK = {"width": 64, "num_heads": 4, "num_blocks": 3, "window_length": 128}
LEARNING_RATE, NUM_BATCHES = 0.001, 4
RUNS = {"update": 1, "ungrouped": 1, "4 runs, vmap": 4, "4 runs, map": 4, "peer": 1}


def make_batches() -> tuple[np.ndarray, np.ndarray]:
    """Inputs and classes of some batches, [NUM_BATCHES, B, L, ...]; a class is the first input of two steps ago."""
    random = np.random.default_rng(0)
    shape = NUM_BATCHES, NUM_SEQUENCES, NUM_STEPS
    first, second = random.integers(0, NUM_CLASSES, shape), random.integers(NUM_CLASSES, NUM_INPUTS - 1, shape)
    identity = np.eye(NUM_INPUTS, dtype=np.float32)
    inputs = identity[first] + identity[second]
    inputs[:, :, 0, -1] = 1  # a sequence starts
    return inputs, np.roll(first, 2, axis=2).astype(np.int32)


def build_predictor() -> Any:
    """The predictor whose update is timed."""
    from ontogeny import plugins

    settings = NETWORK | {"outputs": "categorical", "learning_rate": LEARNING_RATE}
    return plugins.build("content", "causal_transformer", NUM_INPUTS, NUM_CLASSES, **settings)


def our_side(name: str) -> tuple[Callable[[int], None], Callable[[], float]]:
    """A function that takes so many updates, and one that returns the loss of the last batch."""
    import jax
    import jax.numpy as jnp

    from ontogeny.content import base

    if name == "ungrouped":
        base.MAX_GROUP_ELEMENTS = 2**40
    predictor, runs = build_predictor(), RUNS[name]
    weights = predictor.init(jax.random.key(0))
    inputs, classes = make_batches()
    ones = jnp.ones(classes.shape)
    batches = base.PredictionBatch(jnp.array(inputs), jnp.array(classes), ones, ones)
    batches = [jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(NUM_BATCHES)]
    update, carry = predictor.update, (weights, predictor.init_scratch(weights))
    if runs > 1:
        carry = jax.tree.map(lambda leaf: jnp.stack([leaf] * runs), carry)
        single_update = update
        if name.endswith("vmap"):
            update = jax.vmap(single_update, (0, 0, None, None))
        else:

            def update(weights: Any, scratch: Any, batch: Any, progress: Any) -> Any:
                return jax.lax.map(lambda carry: single_update(*carry, batch, progress), (weights, scratch))

    step = jax.jit(update, donate_argnums=(0, 1))

    def take(count: int) -> None:
        nonlocal carry
        for i in range(count):
            carry = step(*carry, batches[i % NUM_BATCHES], jnp.float32(0.0))
        jax.block_until_ready(carry)

    def loss() -> float:
        content = carry[0] if runs == 1 else jax.tree.map(lambda leaf: leaf[0], carry[0])
        logits = jax.vmap(predictor.query_sequence, (None, 0))(content, batches[0].inputs)
        log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), batches[0].target_index[..., None], axis=-1)
        return -float(jnp.mean(log_probabilities))

    return take, loss


def peer_side(attention: str) -> tuple[Callable[[int], None], Callable[[], float]] | None:
    """The same in PyTorch, from the same initial weights; None where torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    import jax
    from torch.nn import functional

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    initial = build_predictor().init(jax.random.key(0))
    parameters, structure = jax.tree.flatten(initial)
    parameters = [torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for leaf in parameters]
    weights = jax.tree.unflatten(structure, parameters)
    adam = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    all_inputs, all_classes = make_batches()
    batches = [(torch.from_numpy(i), torch.from_numpy(c).long()) for i, c in zip(all_inputs, all_classes, strict=True)]
    L, D, N = NUM_STEPS, NETWORK["width"], NETWORK["num_heads"]
    step = torch.arange(L)
    age = step[:, None] - step[None, :]
    clipped_age = age.clamp(0, NETWORK["window_length"] - 1)

    def normalize(stream: Any) -> Any:
        return functional.rms_norm(stream, (D,), eps=1e-6)

    def attend(queries: Any, keys: Any, values: Any, bias: Any) -> Any:
        if attention == "sdpa":
            return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        scores = queries @ keys.transpose(-1, -2) * (1 / math.sqrt(D // N)) + bias
        return torch.softmax(scores, dim=-1) @ values

    def compute_loss(inputs: Any, classes: Any) -> Any:
        B = len(inputs)
        sequence = (inputs[..., -1] > 0.5).cumsum(1)
        is_visible = (age >= 0) & (sequence[:, :, None] == sequence[:, None, :])
        mask_bias = torch.where(is_visible, 0.0, -1e30)[:, None]
        stream = inputs @ weights.embedding + weights.embedding_bias
        for block in weights.blocks:
            joined = normalize(stream) @ block.attn_qkv
            parts = (part.view(B, L, N, D // N).transpose(1, 2) for part in joined.split(D, -1))
            attended = attend(*parts, block.age_bias[:, clipped_age] + mask_bias)
            stream = stream + attended.transpose(1, 2).reshape(B, L, D) @ block.out_proj
            stream = stream + torch.relu(normalize(stream) @ block.up) @ block.down
        logits = normalize(stream) @ weights.readout + weights.readout_bias
        return functional.cross_entropy(logits.flatten(0, 1), classes.flatten())

    def take(count: int) -> None:
        for i in range(count):
            loss = compute_loss(*batches[i % NUM_BATCHES])
            adam.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            adam.step()

    def loss() -> float:
        with torch.no_grad():
            return float(compute_loss(*batches[0]))

    return take, loss


def serve(name: str, cores: int, attention: str, pipe: Connection) -> None:
    """The process of a side: takes as many updates as it is told to, and reports seconds; at 0 it reports the loss."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    from ontogeny.cli.jax_setup import configure_jax

    configure_jax("cpu", num_host_devices=1 if cores == 1 else None)
    side = peer_side(attention) if name == "peer" else our_side(name)
    pipe.send(side is not None)
    if side is None:
        return
    take, loss = side
    while count := pipe.recv():
        started, cpu_started = time.perf_counter(), time.process_time()
        take(count)
        pipe.send((time.perf_counter() - started, time.process_time() - cpu_started))
    pipe.send(loss())


def start(name: str, arguments: argparse.Namespace) -> Connection | None:
    """Starts the process of a side; None where it is not available."""
    context = multiprocessing.get_context("spawn")
    pipe, remote_pipe = context.Pipe()
    target = (name, arguments.cores, arguments.attention, remote_pipe)
    context.Process(target=serve, args=target, daemon=True).start()
    return pipe if pipe.recv() else None


def main() -> None:
    """Lets the sides take turns and prints a record for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--turns", type=int, default=8, help="timed turns of each side")
    parser.add_argument("--updates", type=int, default=8, help="updates of a turn")
    parser.add_argument("--attention", choices=["explicit", "sdpa"], default="explicit", help="of the peer")
    parser.add_argument("--sides", nargs="+", choices=list(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    pipes = {name: pipe for name in arguments.sides if (pipe := start(name, arguments)) is not None}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    for turn in range(arguments.turns + 1):
        for name, pipe in pipes.items():
            count = max(arguments.updates // RUNS[name], 1)
            pipe.send(count)
            seconds, cpu_seconds = pipe.recv()
            if turn:
                num_updates = count * RUNS[name]
                times[name].append((seconds / num_updates, cpu_seconds / num_updates))
    losses = {}
    for name, pipe in pipes.items():
        pipe.send(0)
        losses[name] = pipe.recv()
    for name in (name for name in pipes if name != "peer"):
        report(name, times, losses, arguments)


def report(
    name: str, times: dict[str, list[tuple[float, float]]], losses: dict[str, float], arguments: argparse.Namespace
) -> None:
    """Prints the record of a side: milliseconds per update of one run, and processor time beside it."""
    from ontogeny.stats import mean_interval

    seconds, cpu_seconds = (list(column) for column in zip(*times[name], strict=True))
    setting = NETWORK | {"cores": arguments.cores, "turns": arguments.turns, "updates": arguments.updates}
    record: dict[str, Any] = {
        "name": f"predictor_training: {name}",
        "value": round(1e3 * statistics.median(seconds), 1),
        "unit": "ms per update",
        "se": round(1e3 * mean_interval(seconds).standard_error, 2) if len(seconds) > 1 else None,
        "cpu_value": round(1e3 * statistics.median(cpu_seconds), 1),
        "loss": round(losses[name], 4),
        "peer": "absent",
        "peer_value": None,
        "ratio": None,
    }
    if "peer" in times:
        peer_seconds, peer_cpu_seconds = (list(column) for column in zip(*times["peer"], strict=True))
        record |= {
            "peer": f"PyTorch, the same network, attention {arguments.attention}",
            "peer_value": round(1e3 * statistics.median(peer_seconds), 1),
            "peer_cpu_value": round(1e3 * statistics.median(peer_cpu_seconds), 1),
            "peer_loss": round(losses["peer"], 4),
            "ratio": median_ratio(peer_seconds, seconds),
            "cpu_ratio": median_ratio(peer_cpu_seconds, cpu_seconds),
        }
    print(json.dumps(record | {"seconds": round(sum(seconds) * arguments.updates, 1), "setting": setting}), flush=True)


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median over turns of the ratio of two times."""
    return round(statistics.median(a / b for a, b in zip(numerators, denominators, strict=True)), 3)


if __name__ == "__main__":
    main()
