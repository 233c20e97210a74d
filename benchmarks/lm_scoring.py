"""Scoring of text by the numba kernels beside XLA, at the batch sizes of `ontogeny lm evaluate`, as JSON lines.

    python benchmarks/lm_scoring.py
    python benchmarks/lm_scoring.py --shapes 6,6,384,8192,256 --rounds 9

A shape is layers, heads, width, vocabulary and context of a GPT-2 with random float32 weights; the last half of each
window is scored. `value` and `peer_value` are medians of seconds, kernels and XLA in alternating order; `ratio` is
their quotient, and `processor_ratio` that of the processor time of all threads, which other programs disturb less.
"""

import argparse
import json
import time
from collections.abc import Callable

import jax
import numpy as np

from ontogeny.content import transformer
from ontogeny.lm import kernel_scoring
from ontogeny.lm.evaluation import choose_batch_size

SHAPES = ("4,4,128,1024,64", "6,6,384,8192,256", "12,12,768,50257,1024")
MAX_DIFFERENCE = 1e-4  # nats of a token between both

Times = tuple[list[float], list[float]]  # seconds, and seconds of processor time


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="layers,heads,width,vocabulary,context")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    for shape in arguments.shapes:
        num_layers, num_heads, width, vocab_size, context_length = map(int, shape.split(","))
        config = transformer.make_config(
            "gpt2", vocab_size, context_length, num_layers=num_layers, num_heads=num_heads, width=width
        )
        weights = transformer.init_weights(jax.random.key(0), config)
        for batch_size in sorted({1, choose_batch_size(config, None)}):
            compare(shape, config, weights, batch_size, arguments.rounds)


def compare(
    shape: str,
    config: transformer.TransformerConfig,
    weights: transformer.TransformerWeights,
    batch_size: int,
    num_rounds: int,
) -> None:
    """Measures both ways and prints a line."""
    started_at, num_scored = time.perf_counter(), config.context_length // 2
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, config.context_length + 1))
    windows, arrays = tokens.astype(np.int32), jax.tree.map(np.asarray, weights)
    program = jax.jit(transformer.last_token_losses, static_argnums=(0, 3))
    ways: tuple[Callable[[], np.ndarray], ...] = (
        lambda: kernel_scoring.last_token_losses(config, arrays, windows, num_scored),
        lambda: np.asarray(program(config, weights, windows, num_scored)),
    )
    difference = np.abs(ways[0]() - ways[1]()).max()
    if difference > MAX_DIFFERENCE:
        raise SystemExit(f"the losses differ by {difference}")
    times: tuple[Times, Times] = (([], []), ([], []))
    for _ in range(num_rounds):
        for way, (seconds, processor_seconds) in zip(ways, times, strict=True):
            before, processor_before = time.perf_counter(), time.process_time()
            way()
            seconds.append(time.perf_counter() - before)
            processor_seconds.append(time.process_time() - processor_before)
    kernels, xla = ([float(np.median(part)) for part in parts] for parts in times)
    record = {
        "name": "lm_scoring",
        "value": round(kernels[0], 5),
        "unit": "s",
        "se": round(float(1.25 * np.std(times[0][0]) / num_rounds**0.5), 5),
        "peer": "XLA",
        "peer_value": round(xla[0], 5),
        "ratio": round(kernels[0] / xla[0], 3),
        "processor_ratio": round(kernels[1] / xla[1], 3),
        "seconds": round(time.perf_counter() - started_at, 1),
        "setting": {"shape": shape, "batch_size": batch_size, "rounds": num_rounds},
    }
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
