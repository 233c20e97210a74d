"""Tokens per second and memory of streams with different adapters of the same weights.

    python benchmarks/adapters.py
    python benchmarks/adapters.py --rounds 15 --streams 4 --rank 16

The model is that of `benchmarks/lm_generate.py` (GPT-2, 6 x 384, vocabulary 8192, prompt 32, 128 new tokens, greedy),
with random adapters of every matrix. Each side answers as many requests at once as there are streams: `applied` adds
the adapter of each request to the products of shared weights, `merged` has weights for each adapter that contain it,
which is how adapters were served before, and `none` has no adapter. Rounds of all sides alternate after one that
compiles; values are medians, ratios are medians over rounds, `cpu_ratio` compares processor seconds: with `--cores 1`
no thread waits for another, so that it depends little on what else the machine does. The last records are the memory
that adapters need beyond their factors and the shared weights, and the time until a new one can answer. To compare
versions of the program, put the `src` folder of each on PYTHONPATH: the sides that merge run on versions that apply no
adapters too. Prints JSON lines.
"""

import argparse
import ctypes
import json
import os
import statistics
import time
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from lm_generate import CONTEXT_LENGTH, MAX_TOKENS, PROMPT_TOKENS, SHAPE, VOCAB_SIZE
from ontogeny import kernels
from ontogeny.cli.jax_setup import configure_jax
from ontogeny.content import transformer
from ontogeny.content.transformer import TransformerConfig, TransformerWeights
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams
from ontogeny.kernels import packing
from ontogeny.kernels.cache import SequenceCache
from ontogeny.kernels.transformer import extend
from ontogeny.lm.adapters import AdapterTree, add_adapters, init_adapters
from ontogeny.stats import mean_interval

GREEDY = SamplingParams(temperature=0.0)
SIZE_OF_NUMBERS = 0.05  # standard deviation of the factors; the greedy tokens of all adapters then differ
NONE, ONE_APPLIED, ALL_APPLIED = "no adapter", "one adapter, applied", "different adapters, applied"
ONE_MERGED, ALL_MERGED = "one adapter, merged", "different adapters, merged"
PAUSE = 0.1  # seconds between turns


class Variant(NamedTuple):
    """The weights of one stream, and the adapter that is added to their products, if any."""

    weights: TransformerWeights
    adapter: AdapterTree | None = None


class Turn(NamedTuple):
    """The tokens of each stream and the time that they took together."""

    tokens: list[list[int]]
    seconds: float
    cpu_seconds: float


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    # Before any library starts its threads.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    configure_jax(None)
    config = transformer.make_config("gpt2", VOCAB_SIZE, CONTEXT_LENGTH, **SHAPE)
    weights = jax.jit(transformer.init_weights, static_argnums=1)(jax.random.key(0), config)
    adapters = [make_adapter(config, weights, arguments.rank, seed) for seed in range(arguments.streams)]
    setting = SHAPE | {"vocab_size": VOCAB_SIZE, "prompt_tokens": PROMPT_TOKENS, "max_tokens": MAX_TOKENS}
    setting |= {"streams": arguments.streams, "rank": arguments.rank, "rounds": arguments.rounds}
    setting |= {"cores": arguments.cores, "path": kernels.describe_path()}
    jax.block_until_ready(jax.jit(add_adapters)(weights, adapters[0]))
    run_turn(config, [Variant(weights)] * 2)  # so that the memory of what all sides share is not counted
    sides: dict[str, list[Variant]] = {NONE: [Variant(weights)] * arguments.streams}
    applied: MemoryUse | None = None
    if hasattr(Engine, "applies_adapters"):
        variants, applied = measure_memory(config, lambda: [Variant(weights, adapter) for adapter in adapters])
        sides |= {ONE_APPLIED: variants[:1] * arguments.streams, ALL_APPLIED: variants}
    merge = jax.jit(add_adapters)
    variants, merged = measure_memory(
        config, lambda: [Variant(jax.block_until_ready(merge(weights, adapter))) for adapter in adapters]
    )
    sides |= {ONE_MERGED: variants[:1] * arguments.streams, ALL_MERGED: variants}
    turns = alternate(config, sides, arguments.rounds)
    report_speeds(turns, setting)
    if applied is not None:
        check_tokens(config, sides[ALL_APPLIED], turns)
        report_difference(config, sides, setting)
        report_memory(applied, merged, setting)


def make_adapter(config: TransformerConfig, weights: TransformerWeights, rank: int, seed: int) -> AdapterTree:
    """An adapter of random numbers."""
    generator = np.random.default_rng(seed)

    def fill(leaf: jax.Array) -> jax.Array:
        return jax.numpy.asarray(SIZE_OF_NUMBERS * generator.standard_normal(leaf.shape, dtype=np.float32))

    return jax.tree.map(fill, init_adapters(config, weights, rank))


def run_turn(config: TransformerConfig, variants: list[Variant]) -> Turn:
    """Answers one request of each variant at the same time."""
    engine, tokens = Engine(config, max_num_seqs=64), [list[int]() for _ in variants]
    generator = np.random.default_rng(0)

    def collect(stream: int, output: object) -> None:
        if isinstance(output, TokenOutput):
            tokens[stream].append(output.token)

    requests = []
    for variant in variants:
        prompt = tuple(generator.integers(0, VOCAB_SIZE, PROMPT_TOKENS).tolist())
        request = GenerationRequest(variant.weights, prompt, MAX_TOKENS, GREEDY)
        requests.append(request if variant.adapter is None else request._replace(adapter=variant.adapter))
    started_at, cpu_started_at = time.perf_counter(), time.process_time()
    engine.submit_all(requests, [partial(collect, stream) for stream in range(len(variants))])
    engine.run()
    return Turn(tokens, time.perf_counter() - started_at, time.process_time() - cpu_started_at)


def alternate(config: TransformerConfig, sides: dict[str, list[Variant]], rounds: int) -> dict[str, list[Turn]]:
    """Lets all sides generate in turn; the first round is left out."""
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, variants in sides.items():
            turn = run_turn(config, variants)
            if number:
                turns[name].append(turn)
            time.sleep(PAUSE)
    return turns


def report_speeds(turns: dict[str, list[Turn]], setting: dict[str, Any]) -> None:
    """Prints the tokens per second of the main side beside each of the others."""
    main_side = ALL_APPLIED if ALL_APPLIED in turns else ALL_MERGED
    count = MAX_TOKENS * setting["streams"]
    speeds = {name: [count / turn.seconds for turn in of_side] for name, of_side in turns.items()}
    record: dict[str, Any] = {"name": f"adapters: {setting['streams']} streams, {main_side}"}
    record |= {"value": round(statistics.median(speeds[main_side]), 1), "unit": "tokens/s"}
    record |= {"se": round(mean_interval(speeds[main_side]).standard_error, 1) if setting["rounds"] > 1 else None}
    for name in turns:
        if name != main_side:
            ratios = [left / right for left, right in zip(speeds[main_side], speeds[name], strict=True)]
            compared = {"peer": name, "peer_value": round(statistics.median(speeds[name]), 1)}
            pairs = zip(turns[main_side], turns[name], strict=True)
            cpu_ratio = statistics.median(right.cpu_seconds / left.cpu_seconds for left, right in pairs)
            compared |= {"ratio": round(statistics.median(ratios), 3), "cpu_ratio": round(cpu_ratio, 3)}
            seconds = {"seconds": round(statistics.median(turn.seconds for turn in turns[main_side]), 3)}
            print(json.dumps(record | compared | seconds | {"setting": setting}), flush=True)


class MemoryUse(NamedTuple):
    """The memory of the variants of one side beyond factors and shared weights, and the seconds that each takes.

    Attributes:
        arrays: Bytes of weights that contain adapters, and of packed copies.
        resident: Growth of the resident memory of the process.
    """

    arrays: int
    resident: int
    seconds: float


def measure_memory(config: TransformerConfig, make: Any) -> tuple[list[Variant], MemoryUse]:
    """Makes variants, packs them as a request does, and measures their memory and the time of each."""
    before, started_at = resident_bytes(), time.perf_counter()
    variants: list[Variant] = make()
    num_bytes = 0
    for variant in variants:
        if variant.adapter is None:
            num_bytes += packing.pack(config, variant.weights).num_bytes
            num_bytes += sum(leaf.nbytes for leaf in jax.tree.leaves(variant.weights))
        else:
            num_bytes += packing.pack_adapter(config, variant.adapter).num_bytes
    seconds = (time.perf_counter() - started_at) / len(variants)
    return variants, MemoryUse(num_bytes, resident_bytes() - before, seconds)


def resident_bytes() -> int:
    """The resident memory of this process, without what it has freed."""
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check_tokens(config: TransformerConfig, variants: list[Variant], turns: dict[str, list[Turn]]) -> None:
    """Compares the tokens of streams in company with those of each adapter in streams of its own."""
    for stream, variant in enumerate(variants):
        separate = run_turn(config, [variant] * len(variants))
        if separate.tokens[stream] != turns[ALL_APPLIED][-1].tokens[stream]:
            raise SystemExit(f"stream {stream} has other tokens in company than with its adapter alone")


def report_difference(config: TransformerConfig, sides: dict[str, list[Variant]], setting: dict[str, Any]) -> None:
    """Prints how far the logits of adapters that are applied are from those of merged weights."""
    tokens, logits = [np.arange(PROMPT_TOKENS)], dict[str, np.ndarray]()
    for name in (ALL_APPLIED, ALL_MERGED):
        packed = [(packing.pack(config, weights), adapter) for weights, adapter in sides[name]]
        adapters = [[None if adapter is None else packing.pack_adapter(config, adapter)] for _, adapter in packed]
        caches = [[SequenceCache(config)] for _ in packed]
        steps = zip(packed, caches, adapters, strict=True)
        logits[name] = np.stack([extend(p, cache, tokens, "all", None, of_one) for (p, _), cache, of_one in steps])
    difference = np.abs(logits[ALL_APPLIED] - logits[ALL_MERGED]).max()
    record: dict[str, Any] = {"name": "adapters: largest difference of a logit from merged weights"}
    record |= {"value": float(f"{difference:.3g}"), "unit": "logit", "se": None}
    record |= {"peer": "standard deviation of the logits", "peer_value": round(float(logits[ALL_MERGED].std()), 4)}
    record |= {"ratio": float(f"{difference / logits[ALL_MERGED].std():.3g}"), "seconds": None}
    print(json.dumps(record | {"setting": setting}), flush=True)


def report_memory(applied: MemoryUse, merged: MemoryUse, setting: dict[str, Any]) -> None:
    """Prints the memory of adapters that are applied beside that of merged weights."""
    peer = {"peer": ALL_MERGED}
    for name, value, peer_value, unit in (
        ("memory of weights and packed copies", applied.arrays, merged.arrays, "bytes"),
        ("growth of the resident memory", applied.resident, merged.resident, "bytes"),
        ("before the first request, per adapter", applied.seconds, merged.seconds, "s"),
    ):
        digits = 0 if unit == "bytes" else 4
        record: dict[str, Any] = {"name": f"adapters: {setting['streams']} adapters, {name}"}
        record |= {"value": round(value, digits), "unit": unit, "se": None} | peer
        record |= {
            "peer_value": round(peer_value, digits),
            "ratio": round(value / peer_value, 4) if peer_value else None,
        }
        print(json.dumps(record | {"seconds": None, "setting": setting}), flush=True)


if __name__ == "__main__":
    main()
