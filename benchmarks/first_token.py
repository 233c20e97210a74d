"""Time to first token of the generation engine, without a server: a single stream, and sixteen concurrent streams.

    python benchmarks/first_token.py

The model is that of `benchmarks/serve.py`: 6 layers of width 384 and a vocabulary of 8192. A prompt has 32 tokens, a
response 64, or 32 to 96 in the records named `varied`. `burst` is the latency of sixteen requests that arrive together
at an idle engine; `on` is that of the following requests, each of which a stream submits as soon as its previous one
is finished. With responses of equal length, streams that started together continue together. To compare two versions,
put the `src` folder of each on PYTHONPATH and alternate between them. Prints JSON lines.
"""

import argparse
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax

from ontogeny.content.transformer import TransformerWeights, init_weights, make_config
from ontogeny.engine.engine import Engine
from ontogeny.engine.requests import FinishOutput, GenerationRequest, TokenOutput
from ontogeny.engine.sampling import SamplingParams

PROMPT_TOKENS, MAX_TOKENS = 32, 64
TIME_LIMIT = 600  # seconds for all responses of one measurement


class Stream:
    """A client that submits its next request as soon as the previous one is finished."""

    def __init__(
        self, engine: Engine, weights: TransformerWeights, seed: int, num_requests: int, is_varied: bool
    ) -> None:
        self.engine, self.weights, self.random = engine, weights, random.Random(seed)
        self.num_requests, self.is_varied = num_requests, is_varied
        self.latencies: list[float] = []  # seconds to the first token of each request
        self.is_finished = threading.Event()

    def submit(self) -> None:
        """Submits a request with a random prompt."""
        prompt = tuple(self.random.randrange(256) for _ in range(PROMPT_TOKENS))
        self.submitted_at, self.awaits_first_token = time.perf_counter(), True
        half = MAX_TOKENS // 2
        max_tokens = self.random.randint(half, MAX_TOKENS + half) if self.is_varied else MAX_TOKENS
        sampling_params = SamplingParams(1.0, seed=self.random.getrandbits(30))
        self.engine.submit(GenerationRequest(self.weights, prompt, max_tokens, sampling_params), self)

    def __call__(self, output: object) -> None:
        """Receives an output of the engine."""
        if isinstance(output, TokenOutput) and self.awaits_first_token:
            self.latencies.append(time.perf_counter() - self.submitted_at)
            self.awaits_first_token = False
        elif isinstance(output, FinishOutput):
            if len(self.latencies) < self.num_requests:
                self.submit()
            else:
                self.is_finished.set()


def measure(
    engine: Engine, weights: TransformerWeights, num_streams: int, num_requests: int, is_varied: bool = False
) -> tuple[list[Stream], float]:
    """Runs streams to their end; returns them and the seconds per generated token."""
    streams = [Stream(engine, weights, seed, num_requests, is_varied) for seed in range(num_streams)]
    started_at, num_before = time.perf_counter(), engine.num_generated_tokens
    for stream in streams:
        stream.submit()
    for stream in streams:
        if not stream.is_finished.wait(TIME_LIMIT):
            raise SystemExit(f"the engine did not finish the requests within {TIME_LIMIT} s")
    return streams, (time.perf_counter() - started_at) / (engine.num_generated_tokens - num_before)


def print_record(name: str, latencies: Sequence[float], seconds_per_token: float, num_streams: int) -> None:
    """Prints the percentiles of the latencies as a JSON line."""
    latencies = sorted(latencies)
    record: dict[str, Any] = {"name": f"first_token.{name}", "unit": "s", "streams": num_streams}
    record |= {"requests": len(latencies), "p50": round(latencies[len(latencies) // 2], 4)}
    record |= {"p99": round(latencies[int(0.99 * len(latencies))], 4), "per_token": round(seconds_per_token, 5)}
    print(json.dumps(record | {"load": os.getloadavg()[0]}), flush=True)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=16, help="number of concurrent streams")
    parser.add_argument("--requests", type=int, default=3, help="requests of each stream, at least 2")
    arguments = parser.parse_args()
    num_streams, num_requests = arguments.streams, arguments.requests
    if num_streams < 1 or num_requests < 2:
        parser.error("at least 1 stream with 2 requests is needed")
    config = make_config("gpt2", 8192, 256, num_layers=6, num_heads=6, width=384)
    weights = jax.jit(init_weights, static_argnums=1)(jax.random.key(0), config)
    engine = Engine(config)
    engine.start(weights)
    try:
        measure(engine, weights, 1, num_requests)  # warm-up
        streams, seconds_per_token = measure(engine, weights, 1, num_requests)
        print_record("alone", streams[0].latencies, seconds_per_token, 1)
        for is_varied in (False, True):
            streams, seconds_per_token = measure(engine, weights, num_streams, num_requests, is_varied)
            suffix = ".varied" if is_varied else ""
            first = [stream.latencies[0] for stream in streams]
            print_record(f"burst{suffix}", first, seconds_per_token, num_streams)
            following = [latency for stream in streams for latency in stream.latencies[1:]]
            print_record(f"on{suffix}", following, seconds_per_token, num_streams)
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
